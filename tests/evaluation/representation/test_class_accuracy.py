"""Ranks, top-5, confusion and per-class accuracy against plain loops, scikit-learn and tables."""

import csv

import numpy as np
import pytest
import torch
from sklearn import metrics

from vidrobust.config.options import EvalConfig
from vidrobust.data import Failure
from vidrobust.evaluation.representation.class_accuracy import (
    class_accuracies,
    confusion_matrix,
    mean_class_accuracy,
    mean_class_interval,
    ranks_of_truth,
    write_class_tables,
)
from vidrobust.evaluation.representation.knn_and_probe import Representation, measure_representation
from vidrobust.models.feature_store import Features
from vidrobust.utils.intervals import wilson


def _features(values, labels, failed=()):
    n = len(labels)
    return Features(
        values,
        torch.tensor(labels),
        torch.arange(n),
        torch.zeros(n, values.shape[1], dtype=torch.long),
        torch.ones(n),
        [f"v{i}" for i in range(n)],
        list(failed),
    )


def test_ranks_are_those_of_a_sort():
    scores = torch.randint(0, 4, (200, 7), generator=torch.Generator().manual_seed(0)).float()
    labels = torch.randint(0, 7, (200,), generator=torch.Generator().manual_seed(1))
    for row, label, rank in zip(
        scores.tolist(), labels.tolist(), ranks_of_truth(scores, labels), strict=True
    ):
        order = sorted(range(7), key=lambda k: (-row[k], k))
        assert order.index(label) + 1 == rank


def test_a_class_without_votes_is_last():
    scores = torch.tensor([[1.0, -torch.inf, -torch.inf], [-torch.inf, -torch.inf, 2.0]])
    assert ranks_of_truth(scores, torch.tensor([1, 2])).tolist() == [3, 1]


def test_confusion_counts_every_video():
    predicted, labels = torch.tensor([0, 1, 1, -1, 2]), torch.tensor([0, 0, 1, 1, 2])
    confusion = confusion_matrix(predicted, labels, 4)
    assert confusion.tolist() == [
        [1, 1, 0, 0, 0],
        [0, 1, 0, 0, 1],
        [0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0],
    ]
    accuracies = class_accuracies(confusion)
    assert accuracies[:3].tolist() == [0.5, 0.5, 1] and accuracies[3].isnan()
    # a class without test videos does not count
    assert mean_class_accuracy(confusion) == pytest.approx(2 / 3)


def test_confusion_and_mean_class_accuracy_are_those_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 6, (300,), generator=generator)
    predicted = torch.randint(0, 6, (300,), generator=generator)
    confusion = confusion_matrix(predicted, labels, 6)
    assert (confusion[:, :6].numpy() == metrics.confusion_matrix(labels, predicted)).all()
    expected = metrics.balanced_accuracy_score(labels, predicted)
    assert mean_class_accuracy(confusion) == pytest.approx(expected)


def test_top5_and_failed_videos_are_counted():
    # class 6 of video 0 is the fifth, that of video 1 the sixth
    scores = torch.tensor([[9.0, 8, 7, 6, 0, 1, 2], [9.0, 8, 7, 6, 5, 1, 4]])
    failure = Failure(2, "gone", 3, "does not decode")
    result = Representation(_features(torch.zeros(2, 1, 1), [6, 6], [failure]), 7)
    result.add("head", scores)
    accuracy = result.accuracies()["head"]
    assert (accuracy.acc, accuracy.n, accuracy.top5) == (0, 3, pytest.approx(1 / 3))
    rows = result.rows()
    assert [row["ranks"] for row in rows] == [{"head": 5}, {"head": 6}, {"head": None}]
    assert result.confusions()["head"][3].tolist() == [0, 0, 0, 0, 0, 0, 0, 1]


def test_top5_of_a_probe_is_that_of_a_loop_and_five_classes_have_none():
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(8, 6, generator=generator)
    labels = torch.arange(8).repeat(6)
    train = means[labels] + torch.randn(48, 6, generator=generator)
    test = means[labels] + torch.randn(48, 6, generator=generator)
    gallery = _features(train[:, None], labels.tolist())
    queries = _features(test[:, None], labels.tolist())
    result = measure_representation([gallery], [queries], 8, EvalConfig(), torch.device("cpu"))
    logits = result.probe(test)
    hits = [label in row.topk(5).indices for row, label in zip(logits, labels, strict=True)]
    assert result.accuracies()["trained_probe"].top5 == sum(hits) / 48
    few = Representation(_features(torch.zeros(1, 1, 1), [0]), 5)
    few.add("head", torch.zeros(1, 5))
    assert few.accuracies()["head"].top5 is None


def test_a_knn_class_without_a_vote_is_not_among_the_five():
    # two neighbours vote for classes 0 and 1; class 2 has no vote
    gallery = _features(torch.eye(8)[:, None], list(range(8)))
    queries = _features(torch.tensor([[[1.0, 0.9] + [0.0] * 6]]), [2])
    result = measure_representation(
        [gallery], [queries], 8, EvalConfig(knn_k=2), torch.device("cpu")
    )
    assert result.accuracies()["trained_knn"].top5 == 0


def _row_of(name, videos, accuracy, interval):
    low, high = (f"{end:.4f}" for end in interval) if interval else ("", "")
    cells = {"class": name, "videos": str(videos), "head": accuracy}
    return cells | {"head low": low, "head high": high}


def test_tables_are_read_back(tmp_path):
    confusion = torch.tensor([[3, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1]])
    write_class_tables(tmp_path, {"head": confusion}, ["a", "b, c", "d"])
    with open(tmp_path / "per_class.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        _row_of("a", 4, "0.7500", wilson(3, 4)),
        _row_of("b, c", 0, "", ()),
        _row_of("d", 2, "0.5000", wilson(1, 2)),
    ]
    with open(tmp_path / "confusion_head.csv", newline="") as file:
        table = list(csv.reader(file))
    assert table[0] == ["true class", "a", "b, c", "d", "none"]
    assert [row[1:] for row in table[1:]] == [list(map(str, row)) for row in confusion.tolist()]


def test_the_interval_of_the_class_mean_is_that_of_drawn_videos():
    """Compare with a bootstrap that draws the videos of each class one by one."""
    right = [[1] * 9 + [0] * 3, [1, 0, 0, 1, 0], [1] * 4]
    confusion = torch.zeros(4, 5, dtype=torch.long)  # the last class has no videos
    for label, answers in enumerate(right):
        confusion[label, label] = sum(answers)
        confusion[label, 3] = len(answers) - sum(answers)
    rng = np.random.default_rng(1)
    drawn = [
        np.mean([rng.choice(answers, len(answers)).mean() for answers in right])
        for _ in range(4000)
    ]
    expected = np.quantile(drawn, (0.025, 0.975))
    found = mean_class_interval(confusion, resamples=4000)
    assert found == pytest.approx(tuple(expected), abs=0.02)
    assert found[0] < mean_class_accuracy(confusion) < found[1]
    assert mean_class_interval(confusion) == mean_class_interval(confusion)


def test_accuracies_and_classes_have_intervals(tmp_path):
    scores = torch.eye(8).repeat(3, 1)
    scores[:2] = -scores[:2]  # two of 24 are wrong, and not among five
    result = Representation(_features(torch.zeros(24, 1, 2), list(range(8)) * 3), 8)
    result.add("trained_probe", scores)
    accuracy = result.accuracies()["trained_probe"]
    assert accuracy.ci95 == accuracy.top5_ci95 == list(wilson(22, 24)) and accuracy.top5 == 22 / 24
    low, high = accuracy.mean_class_ci95
    assert low < accuracy.mean_class < high
    write_class_tables(tmp_path, result.confusions(), [f"c{k}" for k in range(8)])
    rows = list(csv.DictReader((tmp_path / "per_class.csv").open()))
    assert float(rows[0]["trained_probe low"]) == pytest.approx(wilson(2, 3)[0], abs=1e-4)
    assert float(rows[7]["trained_probe high"]) == 1.0
