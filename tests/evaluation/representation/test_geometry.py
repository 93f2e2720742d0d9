"""Compare every measure with a plain loop, on random features."""

import itertools
import math
import statistics

import pytest
import torch

from vidrobust.evaluation.representation import geometry
from vidrobust.evaluation.representation.geometry import (
    alignment,
    breakaway_risk,
    class_distances,
    describe,
    effective_rank,
    linear_cka,
    margins,
    neighbour_accuracy,
    overlap_margin,
    overlap_risk,
    relative_displacement,
    tolerance,
    uniformity,
    universal_quantile,
)


@pytest.fixture(params=[7, 2**24], ids=["in blocks", "at once"])
def blocks(request, monkeypatch):
    monkeypatch.setattr(geometry, "_BLOCK", request.param)


def unit(v):
    return [float(c) / math.hypot(*map(float, v)) for c in v]


def distance(a, b, order=2.0):
    gaps = [abs(float(p) - float(q)) for p, q in zip(a, b, strict=True)]
    return max(gaps) if order == math.inf else sum(g**order for g in gaps) ** (1 / order)


def test_alignment_and_uniformity_match_plain_loops(blocks):
    x, y = 3 * torch.randn(9, 4), torch.randn(9, 4)
    assert alignment(x, y) == pytest.approx(
        statistics.fmean(distance(unit(a), unit(b)) ** 2 for a, b in zip(x, y, strict=True)),
        rel=1e-4,
    )
    pairs = [
        math.exp(-2 * distance(unit(x[i]), unit(x[j])) ** 2) for i in range(9) for j in range(i)
    ]
    assert uniformity(x) == pytest.approx(math.log(statistics.fmean(pairs)), rel=1e-3)
    assert alignment(x, 2 * x) == pytest.approx(0, abs=1e-9) and uniformity(
        x[:1].repeat(4, 1)
    ) == pytest.approx(0, abs=1e-5)
    with pytest.raises(ValueError, match="1 samples: at least 2 are needed"):
        uniformity(x[:1])


def test_tolerance_is_the_mean_similarity_within_classes():
    x, labels = torch.randn(12, 5), torch.tensor([0, 0, 0, 1, 1, 3, 3, 3, 3, 4, 4, 0])
    similar = [
        sum(p * q for p, q in zip(unit(x[i]), unit(x[j]), strict=True))
        for i in range(12)
        for j in range(12)
        if i != j and labels[i] == labels[j]
    ]
    assert tolerance(x, labels) == pytest.approx(statistics.fmean(similar), abs=1e-5)
    assert math.isnan(tolerance(x[:3], torch.arange(3)))
    with pytest.raises(ValueError, match="without a label"):
        tolerance(x, labels - 1)


def test_margins_match_plain_loops():
    x, labels = torch.randn(15, 4), torch.tensor([2, 5, 9] * 5)
    rows = [unit(v) for v in x]
    centroids = {
        c: [
            statistics.fmean(col)
            for col in zip(*[r for r, y in zip(rows, labels, strict=True) if y == c], strict=True)
        ]
        for c in (2, 5, 9)
    }
    result = margins(x, labels)
    between = [distance(centroids[a], centroids[b]) for a, b in ((2, 5), (2, 9), (5, 9))]
    assert result.centroid_min == pytest.approx(min(between), abs=1e-5)
    assert result.centroid_mean == pytest.approx(statistics.fmean(between), abs=1e-5)
    own_distances = [distance(r, centroids[int(y)]) for r, y in zip(rows, labels, strict=True)]
    other_distances = [
        min(distance(r, c) for k, c in centroids.items() if k != y)
        for r, y in zip(rows, labels, strict=True)
    ]
    assert result.sample.tolist() == pytest.approx(
        [o - m for o, m in zip(other_distances, own_distances, strict=True)], abs=1e-5
    )
    assert result.radius == pytest.approx(statistics.fmean(own_distances), abs=1e-5)
    mean = [statistics.fmean(col) for col in zip(*rows, strict=True)]
    spread = sum(5 * distance(c, mean) ** 2 for c in centroids.values())
    assert result.fisher == pytest.approx(spread / sum(o**2 for o in own_distances), rel=1e-4)
    with pytest.raises(ValueError, match="without a label"):
        margins(x, labels - 3)
    with pytest.raises(ValueError, match="the 3 samples are of 1"):
        margins(x[:3], torch.zeros(3, dtype=torch.long))


def test_distances_between_classes_match_plain_loops():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, 4, generator=generator)
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, 3, 3])  # no sample of class 2
    found = class_distances(x, labels)
    for a, b in itertools.product(range(4), repeat=2):
        cosines = [
            1 - float(torch.cosine_similarity(x[i], x[j], dim=0))
            for i, j in itertools.product(range(9), repeat=2)
            if i != j and labels[i] == a and labels[j] == b
        ]
        if cosines:
            assert float(found[a, b]) == pytest.approx(statistics.fmean(cosines), abs=1e-6)
        else:
            assert math.isnan(found[a, b])
    measures = describe(x[:, None], labels)
    present = [0, 1, 3]
    within = statistics.fmean(float(found[k, k]) for k in present)
    assert measures.distance_within == pytest.approx(within)
    pairs = itertools.permutations(present, 2)
    between = statistics.fmean(float(found[a, b]) for a, b in pairs)
    assert measures.distance_between == pytest.approx(between)
    assert measures.class_distances[2] == [None] * 4
    # a class of one sample has no pair within it
    single = describe(x[:5, None], torch.tensor([0, 0, 0, 0, 1]))
    assert single.class_distances[1][1] is None and single.distance_within is not None


def test_well_separated_classes_have_larger_margins():
    labels = torch.arange(4).repeat(20)
    tight, loose = (torch.eye(4)[labels] + s * torch.randn(80, 4) for s in (0.05, 0.8))
    a, b = margins(tight, labels), margins(loose, labels)
    assert a.sample.mean() > b.sample.mean() and a.radius < b.radius and a.fisher > b.fisher
    assert tolerance(tight, labels) > tolerance(loose, labels)


def test_effective_rank_counts_directions():
    x = torch.zeros(40, 6)
    x[:20, 0], x[20:, 0] = 1, -1
    assert effective_rank(x) == pytest.approx(1, abs=1e-6) and effective_rank(torch.ones(5, 3)) == 0
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 4)
    assert effective_rank(signs) == pytest.approx(4, abs=1e-6), (
        "four directions with equal variance"
    )
    y = torch.randn(30, 5)
    s = torch.linalg.svdvals(y - y.mean(0))
    p = (s / s.sum()).tolist()
    assert effective_rank(y) == pytest.approx(math.exp(-sum(v * math.log(v) for v in p)), rel=1e-4)


@pytest.mark.parametrize("shape", [(50, 6, 4), (7, 20, 30)], ids=["many samples", "few samples"])
def test_linear_cka_matches_plain_loops(shape):
    n, d, e = shape
    x, y = torch.randn(n, d), torch.randn(n, e)
    cx, cy = x - x.mean(0), y - y.mean(0)
    cross = sum(float((cx[:, i] * cy[:, j]).sum()) ** 2 for i in range(d) for j in range(e))
    norms = [
        math.sqrt(
            sum(
                float((z[:, i] * z[:, j]).sum()) ** 2
                for i in range(z.shape[1])
                for j in range(z.shape[1])
            )
        )
        for z in (cx, cy)
    ]
    assert linear_cka(x, y) == pytest.approx(cross / (norms[0] * norms[1]), rel=1e-3)
    assert (
        math.isnan(linear_cka(torch.full((n, d), 0.1), y))
        and effective_rank(torch.full((n, d), 0.1)) == 0
    )
    turn = torch.linalg.qr(torch.randn(d, d)).Q
    assert linear_cka(x, 7 * x @ turn + 3) == pytest.approx(1, abs=1e-5)
    assert math.isnan(linear_cka(x, torch.ones(n, 2)))
    with pytest.raises(ValueError, match="of the same ones"):
        linear_cka(x, y[:3])


@pytest.mark.parametrize("order", [1.0, 2.0, math.inf])
def test_universal_quantile_and_relative_displacement_match_plain_loops(blocks, order):
    features, moved = torch.randn(11, 3), torch.rand(6) * 4
    pairs = [distance(features[i], features[j], order) for i in range(11) for j in range(i)]
    expected = [statistics.fmean(p <= float(m) for p in pairs) for m in moved]
    assert universal_quantile(moved, features, order=order).tolist() == pytest.approx(
        expected, abs=1e-6
    )
    displacement = relative_displacement(moved, features, order=order)
    middle = sorted(pairs)[(len(pairs) - 1) // 2]
    assert displacement.tolist() == pytest.approx([float(m) / middle for m in moved], rel=1e-4)
    ends = universal_quantile(torch.tensor([1e9, 0.0]), features, order=order)
    assert ends.tolist() == [1, 0]


def test_breakaway_risk_and_neighbour_accuracy_match_plain_loops(blocks):
    features, index = torch.randn(10, 3), torch.tensor([7, 0, 3, 3])
    attacked = features[index] + 0.9 * torch.randn(4, 3)
    nearer = [
        [distance(a, features[j]) < distance(a, features[i]) for j in range(10) if j != i]
        for a, i in zip(attacked, index.tolist(), strict=True)
    ]
    assert breakaway_risk(attacked, features, index) == pytest.approx(sum(map(sum, nearer)) / 36)
    for k in (1, 5):
        assert neighbour_accuracy(attacked, features, index, k) == statistics.fmean(
            sum(row) < k for row in nearer
        )
    same = torch.ones(10, 3)
    assert (
        breakaway_risk(same, same, torch.arange(10)) == 1
        and neighbour_accuracy(same, same, torch.arange(10), 5) == 0
    )
    with pytest.raises(ValueError, match="not finite"):
        neighbour_accuracy(attacked * torch.nan, features, index)
    assert breakaway_risk(features, features, torch.arange(10)) == 0
    assert neighbour_accuracy(features, features, torch.arange(10)) == 1


def test_overlap_matches_plain_loops():
    x, y, a, b = torch.randn(4, 6, 3).unbind(0)
    margin = overlap_margin(x, y, a, b)
    for i in range(6):
        expected = (distance(x[i], b[i]) - distance(x[i], a[i])) / distance(x[i], y[i])
        assert float(margin[i]) == pytest.approx(expected, rel=1e-4)
    assert overlap_risk(margin) == statistics.fmean(float(m) < 0 for m in margin)
    assert overlap_margin(x, y, x, y).tolist() == pytest.approx([1] * 6), (
        "the samples have not moved"
    )
    assert overlap_risk(overlap_margin(x, y, y, x)) == 1, "each sample became the other"
    joined = overlap_margin(
        torch.cat([x[:1], x]), torch.cat([x[:1], y]), torch.cat([a[:1], a]), torch.cat([b[:1], b])
    )
    assert math.isnan(joined[0]) and overlap_risk(joined) == overlap_risk(margin), (
        "the first pair has equal features"
    )


def test_small_distances_between_long_vectors_are_exact():
    """By default torch.cdist uses matrix products for more than 25 rows, which are less exact."""
    x = 1 + 1e-3 * torch.randn(60, 512)
    moved = (x[1:] - x[:-1]).norm(dim=1)
    exact = universal_quantile(moved.double(), x.double())
    assert torch.allclose(universal_quantile(moved, x).double(), exact, atol=0.01)
    alike = torch.nn.functional.normalize(torch.randn(4, 64), dim=1).repeat_interleave(10, 0)
    assert margins(alike, torch.arange(4).repeat_interleave(10)).radius < 1e-6


def test_a_summary_describes_features_with_and_without_classes():
    features, labels = torch.randn(12, 3, 5), torch.arange(3).repeat(4)
    views = torch.randn(4, 2, 5)
    measures, x = describe(features, labels, views), features[:, 1]
    assert measures.alignment == alignment(views[:, 0], views[:, 1])
    assert measures.uniformity == uniformity(x) and measures.tolerance == tolerance(x, labels)
    sample = margins(x, labels).sample
    assert measures.margin_mean == pytest.approx(float(sample.mean()))
    assert measures.margin_negative == pytest.approx(float((sample < 0).float().mean()))
    edges = [-math.inf, *(i / 20 - 1 for i in range(1, 40)), math.inf]
    assert measures.margin_histogram == [
        sum(lo <= float(s) < hi for s in sample) for lo, hi in itertools.pairwise(edges)
    ]
    assert measures.margin_quantiles[2] == pytest.approx(float(sample.quantile(0.5)))
    one = describe(features[:, :1], torch.zeros(12, dtype=torch.long))
    assert one.alignment is one.tolerance is one.margin_quantiles is None and one.uniformity < 0
    assert set(vars(describe(features[:1], labels[:1])).values()) == {None}, (
        "a single video cannot be compared with others"
    )
