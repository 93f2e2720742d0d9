import math

import pytest
import torch

from vidrobust.evaluation import knn_scores
from vidrobust.evaluation.representation import knn
from vidrobust.utils.errors import UserError


@pytest.mark.parametrize("at_once", [1, 130, 2**24])
def test_votes_match_a_plain_loop(monkeypatch, at_once):
    monkeypatch.setattr(knn, "_SIMILARITIES", at_once)  # one video at a time, two, or all of them
    queries, gallery, labels = torch.randn(5, 3, 8), torch.randn(20, 8), torch.randint(4, (20,))
    votes_by_video = knn_scores(queries, gallery, labels, 4, k=6, temperature=0.2)
    for i in range(5):
        total = torch.zeros(4)
        for clip in queries[i]:
            similar = [
                (torch.cosine_similarity(clip, g, dim=0).item(), int(y))
                for g, y in zip(gallery, labels, strict=True)
            ]
            votes = torch.zeros(4)
            for s, y in sorted(similar, reverse=True)[:6]:
                votes[y] += math.exp(s / 0.2)
            total += votes / votes.sum()
        assert torch.allclose(votes_by_video[i], total / 3, atol=1e-5)


def test_large_k_uses_the_whole_gallery_and_tiny_temperatures_do_not_overflow():
    scores = knn_scores(
        torch.randn(2, 1, 4), torch.randn(3, 4), torch.tensor([0, 1, 1]), 2, k=99, temperature=1e-3
    )
    assert torch.isfinite(scores).all() and torch.allclose(scores.sum(1), torch.ones(2))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["queries", "gallery"])
def test_non_finite_features_are_refused_with_the_names_of_the_clips(where, value):
    """A NaN in the gallery would be the nearest neighbour of every query."""
    queries, gallery, labels = torch.randn(5, 2, 8), torch.randn(20, 8), torch.randint(4, (20,))
    if where == "queries":
        queries[3, 1, 2] = value
    else:
        gallery[[7, 19], 0] = value
    message = {
        "queries": "features of the queries: NaN or infinite for q3;",
        "gallery": "features of the gallery: NaN or infinite for g3, g9;",
    }[where]
    names = (
        [f"q{i}" for i in range(5)],
        [f"g{i}" for i in range(10)],
    )  # the gallery has two clips per name
    with pytest.raises(UserError, match=message):
        knn_scores(queries, gallery, labels, 4, names=names)
    with pytest.raises(
        UserError, match="NaN or infinite for row 3;" if where == "queries" else "row 7, row 19;"
    ):
        knn_scores(queries, gallery, labels, 4)


@pytest.mark.parametrize("scale", [1e-20, 1e-14, 1e20])
def test_votes_do_not_depend_on_the_length_of_features(scale):
    torch.manual_seed(0)
    queries, gallery, labels = torch.randn(5, 3, 8), torch.randn(20, 8), torch.randint(4, (20,))
    expected = knn_scores(queries, gallery, labels, 4, k=6)
    assert torch.allclose(
        knn_scores(scale * queries, scale * gallery, labels, 4, k=6), expected, atol=1e-4
    )


def test_zero_features_have_finite_votes():
    votes = knn_scores(
        torch.zeros(1, 1, 4), torch.randn(6, 4), torch.tensor([0, 1, 0, 1, 0, 1]), 2, k=2
    )
    assert torch.isfinite(votes).all()
