import pytest
import torch

from vidrobust.methods import PseudoLabels, k_means


def test_clusters_that_lie_apart_are_found():
    for _ in range(5):
        centres = torch.eye(7)
        truth = torch.randint(7, (200,))
        truth[:7] = torch.arange(7)
        x = torch.nn.functional.normalize(centres[truth] + 0.05 * torch.randn(200, 7), dim=1)
        found = k_means(x, 7)
        assert torch.equal(found[:, None] == found, truth[:, None] == truth)


def test_the_same_seed_gives_the_same_labels_and_each_is_used():
    x = torch.nn.functional.normalize(torch.randn(60, 5), dim=1)
    found = k_means(x, 11)
    assert torch.equal(found, k_means(x, 11)) and found.unique().numel() == 11
    assert torch.equal(k_means(x, 60).sort().values, torch.arange(60)), "a cluster a row"


def test_raw_features_are_clustered_by_their_distance():
    """One direction, two lengths: the cosines of all rows are nearly equal."""
    near = torch.ones(20, 3) + 0.01 * torch.randn(20, 3)
    pseudo = PseudoLabels([2], "method.clusters", unit=False)
    pseudo.set_videos(40)
    pseudo.cluster(torch.cat([near, 5 * near]), torch.arange(40))
    labels = pseudo(torch.arange(40))[:, 0]
    assert labels[:20].unique().numel() == labels[20:].unique().numel() == 1
    assert labels[0] != labels[20]


def test_rows_that_are_all_alike_and_wrong_counts():
    same = torch.nn.functional.normalize(torch.ones(5, 3), dim=1)
    assert k_means(same, 3).shape == (5,)
    for k in (0, 6):
        with pytest.raises(ValueError, match=f"{k} clusters of 5 samples: choose 1 to 5"):
            k_means(same, k)
