"""Ranks and recall at k of retrieval, against plain loops and closed forms."""

import math

import pytest
import torch

from vidrobust.evaluation.representation.knn import directions
from vidrobust.evaluation.representation.retrieval import (
    RANKS,
    first_ranks,
    nearest,
    recalls,
    space_of,
)
from vidrobust.utils.intervals import wilson

E = torch.eye(4)


def _loop(queries, gallery, labels, gallery_labels):
    """Return ranks and orders by sorting one query at a time in Python."""
    ranks, orders = [], []
    for query, label in zip(queries.tolist(), labels.tolist(), strict=True):
        scores = [sum(a * b for a, b in zip(query, item, strict=True)) for item in gallery.tolist()]
        order = sorted(range(len(scores)), key=lambda j: (-scores[j], j))
        right = [place for place, j in enumerate(order, 1) if gallery_labels[j] == label]
        ranks.append(right[0] if right else 0)
        orders.append(order)
    return ranks, orders


@pytest.mark.parametrize("similarity", ["centered", "cosine"])
def test_ranks_are_those_of_a_loop(similarity, exact):
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(30, 5, generator=generator)
    gallery = torch.randn(40, 5, generator=generator) + 1
    labels = torch.randint(0, 6, (30,), generator=generator)
    gallery_labels = torch.randint(0, 5, (40,), generator=generator)
    space = space_of(similarity, queries, gallery)
    vectors = space.queries(queries), space.gallery(gallery)
    ranks, orders = _loop(*vectors, labels, gallery_labels)
    assert first_ranks(*vectors, labels, gallery_labels).tolist() == ranks
    assert nearest(*vectors, 7).tolist() == [order[:7] for order in orders]
    assert 0 in ranks, "a class without a gallery video has no rank"


def test_centered_subtracts_the_mean_of_each_set():
    """CoCLR's released code: test features minus their mean, train features minus theirs."""
    queries = torch.tensor([[3.0, 0.0], [1.0, 0.0]])
    gallery = torch.tensor([[0.0, 5.0], [0.0, 9.0]])
    space = space_of("centered", queries, gallery)
    assert space.queries(queries).tolist() == [[1, 0], [-1, 0]]
    assert space.gallery(gallery).tolist() == [[0, -1], [0, 1]]


def test_cosine_compares_features_as_they_are():
    features = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    space = space_of("cosine", features, features)
    assert torch.equal(space.queries(features), directions(features))
    assert space.gallery(features)[0].tolist() == pytest.approx([0.6, 0.8])


def test_of_equally_similar_videos_the_earlier_is_nearer():
    gallery = torch.stack([E[0], E[0], E[0], E[1]])
    ranks = first_ranks(E[:1], gallery, torch.tensor([7]), torch.tensor([1, 1, 7, 7]))
    assert ranks.tolist() == [3]
    assert nearest(E[:1], gallery, 4).tolist() == [[0, 1, 2, 3]]


def test_a_gallery_video_with_nan_is_never_found():
    gallery = torch.stack([E[0] * math.nan, E[1]])
    assert first_ranks(E[:2], gallery, torch.tensor([0, 1]), torch.tensor([0, 1])).tolist() == [
        0,
        1,
    ]


def test_a_query_with_nan_finds_nothing():
    ranks = first_ranks(E[:1] * math.nan, E, torch.tensor([0]), torch.arange(4))
    assert ranks.tolist() == [0]


def test_parts_of_the_queries_have_the_ranks_of_all(monkeypatch):
    from vidrobust.evaluation.representation import retrieval

    queries, labels = torch.randn(9, 4), torch.arange(9) % 4
    whole = first_ranks(queries, E, labels, torch.arange(4))
    monkeypatch.setattr(retrieval, "_AT_ONCE", 8)
    assert torch.equal(first_ranks(queries, E, labels, torch.arange(4)), whole)


def test_recall_counts_ranks_up_to_k():
    table = recalls([1, 3, 0, 6, 21], gallery=100, n=6)
    assert [each.k for each in table] == list(RANKS)
    assert [each.recall for each in table] == [1 / 6, 2 / 6, 3 / 6, 3 / 6, 4 / 6]
    assert table[1].ci95 == list(wilson(2, 6))


def test_a_k_above_the_gallery_is_left_out():
    assert [each.k for each in recalls([1], gallery=12, n=1)] == [1, 5, 10]
