import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics
from torch.nn import functional as F

from vidrobust.config import EvalConfig
from vidrobust.data import Failure, Record
from vidrobust.evaluation import fit_probe
from vidrobust.evaluation.representation import multi_label
from vidrobust.evaluation.representation.multi_label import (
    average_precision,
    average_sigmoids,
    fit_multi_label_probe,
    is_multi_label,
    mean_average_precision,
    measure_multi_label,
    target_matrix,
)
from vidrobust.models.feature_store import Features
from vidrobust.utils.errors import UserError

CPU = torch.device("cpu")


def _plain_average_precision(scores, targets):
    """Sum precision times increase of recall over the thresholds, from the highest score on.

    This is the definition of scikit-learn's average_precision_score.
    """
    total, recall_before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        above = [
            target for score, target in zip(scores, targets, strict=True) if score >= threshold
        ]
        recall = sum(above) / sum(targets)
        total += sum(above) / len(above) * (recall - recall_before)
        recall_before = recall
    return total


def _charades_map(scores, targets):
    """Compute the formula of the evaluation of Charades as plain loops.

    Videos without a class are ranked last. The precision at each positive is averaged.
    """
    values = []
    for k in range(len(targets[0])):
        column = [
            row[k] if any(classes) else -math.inf
            for row, classes in zip(scores, targets, strict=True)
        ]
        order = sorted(range(len(column)), key=lambda i: -column[i])
        positives, precisions = 0, []
        for place, i in enumerate(order, 1):
            if targets[i][k]:
                positives += 1
                precisions.append(positives / place)
        if precisions:
            values.append(sum(precisions) / len(precisions))
    return sum(values) / len(values)


# ------------------------------------------------------------------ average precision


@pytest.mark.parametrize(
    ("scores", "targets", "expected"),
    [
        ([4, 3, 2, 1], [1, 1, 0, 0], 1),
        ([4, 3, 2, 1], [0, 0, 1, 1], (1 / 3 + 2 / 4) / 2),
        ([4, 3, 2, 1], [1, 0, 1, 0], (1 + 2 / 3) / 2),
        ([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], 0.8333333),  # the example in scikit-learn's manual
        ([1, 1, 1, 1], [1, 0, 0, 0], 1 / 4),  # equal scores: the fraction of positives
        ([2, 1, 1, 0], [0, 1, 0, 1], (1 / 3 + 2 / 4) / 2),
        ([1, -math.inf], [0, 1], 1 / 2),
    ],
)
def test_average_precision_of_known_rankings(scores, targets, expected):
    value = average_precision(torch.tensor(scores, dtype=torch.float32), torch.tensor(targets))
    assert float(value) == pytest.approx(expected, abs=1e-6)


def test_average_precision_without_a_positive_is_nan():
    assert average_precision(torch.ones(3), torch.zeros(3)).isnan()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=30))
def test_average_precision_is_that_of_the_plain_loop(rows):
    scores, targets = [float(score) for score, _ in rows], [int(t) for _, t in rows]
    if not any(targets):
        return
    value = average_precision(torch.tensor(scores), torch.tensor(targets))
    assert float(value) == pytest.approx(_plain_average_precision(scores, targets), abs=1e-12)
    order = torch.randperm(len(scores))
    assert value == average_precision(torch.tensor(scores)[order], torch.tensor(targets)[order])


def test_mean_average_precision_is_that_of_charades():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(60, 7, generator=generator)
    targets = torch.rand(60, 7, generator=generator) < 0.2
    targets[:, 3] = False  # a class that no video has
    targets[10:20] = False  # videos without a class
    result = mean_average_precision(scores, targets)
    assert result.mean == pytest.approx(_charades_map(scores.tolist(), targets.tolist()))
    assert result.per_class[3] is None and result.classes == 6
    assert result.n == int(targets.any(1).sum())


def test_mean_average_precision_refuses_what_it_cannot_rank():
    with pytest.raises(ValueError, match="no video has a class"):
        mean_average_precision(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="some are NaN; give -inf"):
        mean_average_precision(torch.full((2, 3), torch.nan), torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"scores of shape \(2, 3\) and targets of shape \(2,\)"):
        mean_average_precision(torch.zeros(2, 3), torch.zeros(2))


# ------------------------------------------------------------------ probe


def _separable(n, generator):
    """Return features whose signs are the classes, and the classes."""
    features = torch.randn(n, 4, generator=generator) * torch.tensor([1.0, 10, 0.1, 1]) + 3
    return features, features[:, :3] > 3


def test_the_probe_is_the_minimum_of_the_penalised_binary_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 5, generator=generator) * torch.tensor([1, 10, 100, 0.1, 1]) + 50
    targets = torch.rand(200, 3, generator=generator) < 0.3
    layer = fit_multi_label_probe(features, targets, l2=0.01)
    mean, std = features.mean(0), features.std(0, correction=0)
    weight = (layer.weight * std).detach().requires_grad_(True)
    bias = (layer.bias + layer.weight @ mean).detach().requires_grad_(True)
    logits = (features - mean) / std @ weight.T + bias
    terms = [
        -(F.logsigmoid(logits[i, k]) if targets[i, k] else F.logsigmoid(-logits[i, k]))
        for i in range(200)
        for k in range(3)
    ]
    loss = torch.stack(terms).sum() / 200 + 0.01 / 2 * weight.square().sum()
    for gradient in torch.autograd.grad(loss, (weight, bias)):
        assert gradient.abs().max() < 1e-3


def test_a_class_does_not_depend_on_the_others():
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(100, 4, generator=generator)
    targets = torch.rand(100, 3, generator=generator) < 0.4
    together = fit_multi_label_probe(features, targets)
    alone = fit_multi_label_probe(features, targets[:, 1:2])
    assert torch.allclose(together.weight[1], alone.weight[0], atol=1e-3)


def test_the_probe_ranks_separable_classes_without_a_mistake():
    generator = torch.Generator().manual_seed(2)
    layer = fit_multi_label_probe(*_separable(300, generator))
    features, targets = _separable(100, generator)
    assert mean_average_precision(layer(features), targets).mean > 0.98


def test_the_softmax_probe_is_as_before():
    """Known answers of the version before both probes shared their minimisation."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(30, 3, generator=generator)
    labels = torch.randint(4, (30,), generator=generator)
    layer = fit_probe(features, labels, 4)
    # where the minimisation stops depends on the processor in the fourth digit
    assert layer.bias.tolist() == pytest.approx([0.5565, 0.5152, -1.3877, 0.3161], abs=2e-3)


# ------------------------------------------------------------------ measurement


def _features(values, index, uids, failed=()):
    count, clips, _ = values.shape
    zeros = torch.zeros(count, clips, dtype=torch.long)
    return Features(
        values,
        labels=torch.full((count,), -1),
        index=torch.tensor(index),
        start=zeros,
        fps=torch.ones(count),
        uids=list(uids),
        failed=list(failed),
    )


def _records(targets):
    return [
        Record(f"{i}.mp4", f"/v/{i}.mp4", -1, labels=tuple(row.nonzero().flatten().tolist()))
        for i, row in enumerate(targets)
    ]


def test_a_representation_is_measured_with_failed_videos_ranked_last():
    generator = torch.Generator().manual_seed(3)
    features, targets = _separable(120, generator)
    noise = torch.randn(120, 2, 4, generator=generator)
    clips = features[:, None].repeat(1, 2, 1)
    records = _records(targets)
    lost = Failure(0, "0.mp4", -1, "cut")
    uids = [record.uid for record in records]
    kept = list(range(1, 120))
    gallery = [_features(x, range(120), uids) for x in (clips, noise)]
    queries = [_features(x[1:], kept, uids[1:], [lost]) for x in (clips, noise)]
    result = measure_multi_label(gallery, queries, records, records, 3, EvalConfig(), CPU)
    assert torch.equal(result.targets, targets)
    assert (result.scores["trained_probe"][0] == -torch.inf).all()
    precisions = result.precisions()
    assert precisions["trained_probe"].mean > 0.9 > precisions["random_probe"].mean
    whole = measure_multi_label(
        gallery, gallery, records, records, 3, EvalConfig(), CPU
    ).precisions()
    assert whole["trained_probe"].mean > precisions["trained_probe"].mean


def test_targets_are_the_labels_of_the_records():
    records = [Record("a", "a", -1, labels=(0, 2)), Record("b", "b", -1, labels=())]
    assert target_matrix(records, 3).tolist() == [[True, False, True], [False] * 3]
    assert is_multi_label(records) and not is_multi_label([Record("a", "a", 0)])
    with pytest.raises(UserError, match="a: has one label, and mean average precision is for"):
        target_matrix([Record("a", "a", 0)], 3)


def test_views_are_averaged_by_logits_or_by_sigmoids():
    logits = torch.tensor([[[2.0, -1.0], [0.0, 30.0]]])
    assert average_sigmoids(logits, "logits").tolist() == [[1.0, 14.5]]
    probabilities = average_sigmoids(logits, "probabilities").sigmoid()
    assert torch.allclose(probabilities, logits.sigmoid().mean(1))
    # large logits keep their order, which their sigmoids in float32 do not
    large = torch.tensor([[[40.0], [40.0]], [[50.0], [50.0]]])
    first, second = average_sigmoids(large, "probabilities").flatten().tolist()
    assert first < second


def test_the_interval_is_that_of_drawn_videos():
    """Compare with a bootstrap that ranks the videos of each draw anew, with ties."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 6, (40, 3), generator=generator).double()
    targets = torch.rand(40, 3, generator=generator) < 0.4
    targets[:, 0] |= ~targets.any(1)  # every video has a class
    drawn = []
    for _ in range(600):
        chosen = torch.randint(40, (40,), generator=generator)
        values = [average_precision(scores[chosen, k], targets[chosen, k]) for k in range(3)]
        drawn.append(float(torch.stack(values).nanmean()))
    result = mean_average_precision(scores, targets)
    low, high = result.ci95
    assert low < result.mean < high
    expected = torch.tensor(drawn).quantile(torch.tensor([0.025, 0.975])).tolist()
    assert result.ci95 == pytest.approx(expected, abs=0.03)


def test_the_weights_of_a_draw_are_sample_weights():
    """Against scikit-learn, for one draw."""
    rng = np.random.default_rng(0)
    scores = np.round(rng.normal(size=(30, 2)), 1)
    positive = rng.uniform(size=(30, 2)) < 0.4
    weights = np.random.default_rng(5).multinomial(30, np.full(30, 1 / 30), 1)[0]
    expected = np.mean(
        [
            metrics.average_precision_score(positive[:, k], scores[:, k], sample_weight=weights)
            for k in range(2)
        ]
    )
    low, high = multi_label._bootstrap(scores, positive, resamples=1, seed=5)
    assert low == high == pytest.approx(expected, abs=1e-12)
