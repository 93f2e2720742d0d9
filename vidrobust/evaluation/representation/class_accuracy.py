"""Accuracy by class, top-5 accuracy and confusion of predictions."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vidrobust.utils.atomic_files import replacing
from vidrobust.utils.intervals import wilson

NONE = -1  # the predicted class of a video without a prediction


def ranks_of_truth(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the place of the true class among the scores of each video, (N,); 1 is the first.

    Equal scores are ordered by class, as `argmax` does. A true class with the score -inf, as one
    that no neighbour votes for, comes last.

    Args:
        scores: (N, K).
        labels: true classes, (N,), in 0..K-1.
    """
    own = scores.gather(1, labels[:, None])
    ahead = (scores > own).sum(1)
    places = torch.arange(scores.shape[1], device=scores.device)
    ties = ((scores == own) & (places < labels[:, None])).sum(1)
    last = torch.full_like(ahead, scores.shape[1])
    return torch.where(own[:, 0] == -torch.inf, last, 1 + ahead + ties)


def confusion_matrix(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return how many videos of each class were given each class, (K, K + 1).

    Rows are true classes, columns predicted ones; the last column is of videos without a
    prediction, as those that do not decode.

    Args:
        predicted: classes, (N,); `NONE` for none.
        labels: true classes, (N,).
        classes: their number K.
    """
    columns = torch.where(predicted < 0, classes, predicted)
    cells = labels * (classes + 1) + columns
    return cells.bincount(minlength=classes * (classes + 1)).view(classes, classes + 1)


def class_accuracies(confusion: Tensor) -> Tensor:
    """Return the accuracy of each class, (K,); NaN for classes without test videos."""
    return confusion.diagonal() / confusion.sum(1)


def mean_class_accuracy(confusion: Tensor) -> float:
    """Return the mean accuracy over the classes that have test videos."""
    return float(class_accuracies(confusion).nanmean())


def mean_class_interval(
    confusion: Tensor, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % interval of the mean class accuracy, by a bootstrap within each class.

    Videos of each class are drawn with replacement (Efron 1979), so that each keeps its number. Of
    n videos with accuracy p, the right ones among the drawn follow Binomial(n, p).

    Args:
        confusion: a `confusion_matrix`.
        resamples: number of draws.
        seed: of the draws.

    Returns:
        (low, high).
    """
    counts = confusion.sum(1).numpy()
    present = counts > 0
    hits = confusion.diagonal().numpy()[present]
    n = counts[present]
    drawn = np.random.default_rng(seed).binomial(n, hits / n, (resamples, len(n)))
    low, high = np.quantile((drawn / n).mean(1), (0.025, 0.975))
    return float(low), float(high)


def write_class_tables(folder: Path, confusions: dict[str, Tensor], classes: Sequence[str]) -> None:
    """Write `per_class.csv` and a `confusion_<classifier>.csv` for each classifier.

    per_class.csv has a row per class: its name, number of test videos, and the accuracy of each
    classifier with its 95 % interval (Wilson). A confusion table has a row per true class and a
    column per predicted class.

    Args:
        folder: where they are written.
        confusions: classifier -> its `confusion_matrix`.
        classes: names of the classes.
    """
    accuracies = {name: class_accuracies(each).tolist() for name, each in confusions.items()}
    counts = next(iter(confusions.values())).sum(1).tolist()
    bounds = [f"{name} {end}" for name in confusions for end in ("low", "high")]
    table = [["class", "videos", *confusions, *bounds]]
    for place, (label, videos) in enumerate(zip(classes, counts, strict=True)):
        cells = [f"{values[place]:.4f}" if videos else "" for values in accuracies.values()]
        for confusion in confusions.values():
            interval = wilson(int(confusion[place, place]), videos)
            cells += [f"{end:.4f}" if videos else "" for end in interval]
        table.append([label, str(videos), *cells])
    _write_csv(folder / "per_class.csv", table)
    for name, confusion in confusions.items():
        rows = [
            [label, *map(str, row)] for label, row in zip(classes, confusion.tolist(), strict=True)
        ]
        header = ["true class", *classes, "none"]
        _write_csv(folder / f"confusion_{name}.csv", [header, *rows])


def write_precision_table(
    folder: Path,
    precisions: Mapping[str, Sequence[float | None]],
    counts: Sequence[int],
    classes: Sequence[str],
) -> None:
    """Write `per_class.csv` of average precisions, for videos with several labels each.

    Args:
        folder: where it is written.
        precisions: probe -> average precision of each class, None without a video of it.
        counts: number of test videos of each class.
        classes: names of the classes.
    """
    table = [["class", "videos", *precisions]]
    for place, (label, videos) in enumerate(zip(classes, counts, strict=True)):
        values = [each[place] for each in precisions.values()]
        cells = ["" if value is None else f"{value:.4f}" for value in values]
        table.append([label, str(videos), *cells])
    _write_csv(folder / "per_class.csv", table)


def _write_csv(path: Path, rows: list[list[str]]) -> None:
    """Write rows of cells, whole or not at all."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    with replacing(path) as file:
        # names of folders need not be UTF-8
        file.write(text.getvalue().encode(errors="surrogateescape"))
