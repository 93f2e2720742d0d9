"""Every rule against a double loop, on fresh random similarities."""

import inspect
import math

import pytest
import torch

from vidrobust.methods import RULES, Pairs, detect
from vidrobust.methods.false_negatives.rules import (
    adaptive_rate,
    adaptive_threshold,
    default_rate,
    fixed,
    mean_std,
    negative_weights,
    quantile,
    top_k,
    top_k_threshold,
)


def batch(videos: int = 12, views: int = 2, classes: int = 4) -> tuple[torch.Tensor, Pairs]:
    """Similarities of all views with all, and all that may be known of them."""
    z = torch.nn.functional.normalize(torch.randn(views * videos, 6), dim=1)
    ids = torch.arange(videos).repeat(views)
    known = {
        name: torch.randint(-1, classes, (videos,))[ids]
        for name in ("groups", "clusters", "labels")
    }
    return z @ z.T, Pairs((ids, ids), **{k: (v, v) for k, v in known.items()}, classes=classes)


def others_of(pairs: Pairs, i: int) -> list[int]:
    return [j for j in range(len(pairs.ids[1])) if pairs.ids[1][j] != pairs.ids[0][i]]


def expected(keep) -> torch.Tensor:
    """(N, M) of `keep(i, j)` over pairs of other videos."""
    similarities, pairs = expected.batch
    found = torch.zeros_like(similarities, dtype=torch.bool)
    for i in range(len(found)):
        for j in others_of(pairs, i):
            found[i, j] = keep(i, j)
    return found


@pytest.fixture(autouse=True)
def fresh():
    expected.batch = batch()


def test_fixed_and_top_k_and_both():
    s, pairs = expected.batch
    ranks = {i: sorted(others_of(pairs, i), key=lambda j: -s[i, j]) for i in range(len(s))}
    over = expected(lambda i, j: s[i, j] > 0.3)
    most = expected(lambda i, j: j in ranks[i][:5])
    assert torch.equal(fixed(s, pairs, 0.3), over) and torch.equal(top_k(s, pairs, 5), most)
    score = torch.stack([s[pairs.ids[0] == one].amax(0) for one in pairs.ids[0]])
    released = torch.zeros_like(over)
    for i, row in enumerate(
        score.tolist()
    ):  # FNC: all views of a video have its best view's scores
        candidates = sorted(others_of(pairs, i), key=lambda j: -row[j])[:5]
        released[i, [j for j in candidates if row[j] > 0.3]] = True
    assert (
        torch.equal(top_k_threshold(s, pairs, 5, 0.3), released) and (released != over & most).any()
    )
    one_view = Pairs((pairs.ids[0][:12], pairs.ids[1]))
    assert torch.equal(top_k_threshold(s[:12], one_view, 5, 0.3), (over & most)[:12]), (
        "both, of one view"
    )
    assert torch.equal(top_k(s, pairs, 999), pairs.negatives), "all there are"


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.37, 1.0])
def test_quantile_of_an_anchor_and_of_the_batch(rate):
    s, pairs = expected.batch
    share = rate or 0.25
    ranks = {i: sorted(others_of(pairs, i), key=lambda j: -s[i, j]) for i in range(len(s))}
    each = expected(lambda i, j: j in ranks[i][: round(share * len(ranks[i]))])
    assert torch.equal(quantile(s, pairs, rate), each)
    all_pairs = sorted(
        ((i, j) for i in range(len(s)) for j in others_of(pairs, i)), key=lambda p: -s[p]
    )
    chosen = set(all_pairs[: round(share * len(all_pairs))])
    found = quantile(s, pairs, rate, "batch")
    assert all(found[p] for p in chosen) and len(chosen) <= int(found.sum()) <= len(chosen) + 1, (
        "(i, j) ties with (j, i)"
    )
    assert default_rate(0) == default_rate(1) == 0.05


def test_adaptive_rules_wait_and_then_find_more_and_more():
    s, pairs = expected.batch
    rules = (
        lambda p: adaptive_threshold(s, p, 0.9, 0.2, 0.1),
        lambda p: adaptive_rate(s, p, 0.4, 0.1),
    )
    for rule in rules:
        counts = [
            int(rule(Pairs(pairs.ids, progress=p)).sum())
            for p in (0, 0.05, 0.09, 0.3, 0.6, 0.9, 1.0)
        ]
        assert counts[:3] == [0, 0, 0] and counts == sorted(counts) and counts[-1] > counts[3]
    half = 0.2 + 0.7 * 0.5 * (1 + math.cos(math.pi * 0.5))
    now = Pairs(pairs.ids, progress=0.55)
    assert torch.equal(adaptive_threshold(s, now, 0.9, 0.2, 0.1), fixed(s, now, half))
    assert torch.equal(
        adaptive_threshold(s, Pairs(pairs.ids, progress=1.0), 0.9, 0.2, 0.1), fixed(s, pairs, 0.2)
    )
    assert torch.equal(adaptive_rate(s, now, 0.4, 0.1), quantile(s, now, 0.2))
    assert (
        not adaptive_rate(s, now, 0.4, 1.0).any()
        and not adaptive_threshold(s, now, 0.9, 0.2, 1.0).any()
    )


def test_mean_and_k_standard_deviations_of_the_negatives():
    s, pairs = expected.batch
    negatives = torch.stack([s[i, j] for i in range(len(s)) for j in others_of(pairs, i)])
    limit = negatives.mean() + 1.2 * ((negatives - negatives.mean()) ** 2).mean().sqrt()
    assert torch.equal(mean_std(s, pairs, 1.2), expected(lambda i, j: s[i, j] > limit))
    alone = Pairs((torch.zeros(2), torch.zeros(2)))
    assert not mean_std(torch.ones(2, 2), alone).any(), "no negatives, nothing to find"


@pytest.mark.parametrize(
    ("rule", "known"), [("cluster", "clusters"), ("oracle", "labels"), ("sibling", "groups")]
)
def test_what_is_known_of_videos(rule, known):
    s, pairs = expected.batch
    side = getattr(pairs, known)[0]
    assert torch.equal(
        RULES[rule].rule(s, pairs), expected(lambda i, j: side[i] == side[j] and side[i] >= 0)
    )
    with pytest.raises(ValueError, match=f"needs {known}, and there are none"):
        RULES[rule].rule(s, Pairs(pairs.ids))


@pytest.mark.parametrize("rule", RULES)
def test_own_views_are_never_found_and_a_negative_is_always_left(rule):
    s, pairs = expected.batch
    found = detect(RULES[rule].rule, s, pairs, pairs.negatives & (torch.rand_like(s) < 0.5))
    assert not (found & ~pairs.negatives).any() and (pairs.negatives & ~found).any(1).all()
    everything = detect(lambda s, p: torch.ones_like(s, dtype=torch.bool), s, pairs)
    for i in range(len(s)):
        least = min(others_of(pairs, i), key=lambda j: s[i, j])
        assert [j for j in others_of(pairs, i) if not everything[i, j]] == [least]


def test_one_video_has_no_negatives_and_nan_finds_nothing():
    one = Pairs((torch.zeros(2), torch.zeros(2)))
    assert not detect(
        lambda s, p: torch.ones_like(s, dtype=torch.bool), torch.ones(2, 2), one
    ).any()
    s, pairs = expected.batch
    assert not detect(RULES["fixed"].rule, s * torch.nan, pairs).any()


def test_nobodys_are_not_looked_at():
    """A queue begins with vectors that are no video's."""
    ids = (torch.arange(3), torch.tensor([-1, -1, 5, -1, 6]))
    assert Pairs(ids).negatives.sum(0).tolist() == [0, 0, 3, 0, 3]
    for rule in ("topk", "quantile", "mean_std"):
        found = detect(RULES[rule].rule, torch.rand(3, 5), Pairs(ids))
        assert not found[:, [0, 1, 3]].any() and (found[:, [2, 4]].sum(1) < 2).all(), rule


def test_weights_are_one_less_confidence():
    s = torch.tensor([[0.8, -0.2, 0.5]])
    found = torch.tensor([[True, True, False]])
    assert torch.allclose(negative_weights(s, found), torch.tensor([[0.2, 1.0, 1.0]]))


def test_defaults_of_rules():
    """FNC's (Huynh et al. 2022), and, where it has no such rule, those of the options."""
    found = {
        rule.__name__: {
            name: parameter.default
            for name, parameter in inspect.signature(rule).parameters.items()
            if parameter.default is not parameter.empty
        }
        for rule in (fixed, top_k, top_k_threshold)
    }
    assert found == {
        "fixed": {"threshold": 0.7},
        "top_k": {"k": 10},
        "top_k_threshold": {"k": 10, "threshold": 0.7},
    }
