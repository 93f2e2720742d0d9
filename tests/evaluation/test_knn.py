import math

import pytest
import torch

from vidrobust.evaluation import knn, knn_scores


@pytest.mark.parametrize("at_once", [1, 130, 2**24])
def test_votes_are_their_double_loop(monkeypatch, at_once):
    monkeypatch.setattr(knn, "_SIMILARITIES", at_once)  # a video, two, all of them
    queries, gallery, labels = torch.randn(5, 3, 8), torch.randn(20, 8), torch.randint(4, (20,))
    found = knn_scores(queries, gallery, labels, 4, k=6, temperature=0.2)
    for i in range(5):
        total = torch.zeros(4)
        for clip in queries[i]:
            similar = [
                (torch.cosine_similarity(clip, g, dim=0).item(), int(y)) for g, y in zip(gallery, labels, strict=True)
            ]
            votes = torch.zeros(4)
            for s, y in sorted(similar, reverse=True)[:6]:
                votes[y] += math.exp(s / 0.2)
            total += votes / votes.sum()
        assert torch.allclose(found[i], total / 3, atol=1e-5)


def test_k_larger_than_the_gallery_takes_all_and_tiny_temperatures_do_not_overflow():
    scores = knn_scores(torch.randn(2, 1, 4), torch.randn(3, 4), torch.tensor([0, 1, 1]), 2, k=99, temperature=1e-3)
    assert torch.isfinite(scores).all() and torch.allclose(scores.sum(1), torch.ones(2))
