"""Measure a protocol over the official splits of a data set, with mean and spread."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from vidrobust import config
from vidrobust.data import build_records, find_format
from vidrobust.evaluation.report import tables as markdown
from vidrobust.evaluation.report.page import render, write_page
from vidrobust.evaluation.retrieval_summary import RetrievalTable
from vidrobust.evaluation.summary import Summary
from vidrobust.study.arm_table import Spread, spread_of
from vidrobust.utils import distributed
from vidrobust.utils.atomic_files import replacing
from vidrobust.utils.errors import UserError


def check_splits(cfg: config.Config) -> None:
    """Raise UserError for splits that cannot be averaged, before anything is measured.

    They are those that the data set does not have, one that is named twice, splits without videos,
    and splits with the same training videos, as motionshapes has: they are two test sets.
    """
    splits = cfg.protocol.splits
    folds = find_format(cfg.data.name).folds
    if not folds:
        raise UserError(
            f"protocol.splits={splits}: data.name={cfg.data.name} has one split; leave it out"
        )
    for split in splits:
        if split not in folds or splits.count(split) > 1:
            known = ", ".join(map(str, folds))
            raise UserError(
                f"protocol.splits={splits}: data.name={cfg.data.name} has the splits {known}; name"
                " each at most once"
            )
    trained: dict[frozenset[str], int] = {}
    for split in splits:
        data = replace(cfg.data, fold=split, labels="")
        build_records(data, "test")
        uids = frozenset(record.uid for record in build_records(data, "train")[0])
        other = trained.setdefault(uids, split)
        if other != split:
            raise UserError(
                f"protocol.splits={splits}: splits {other} and {split} of {cfg.data.name} have the"
                " same training videos, so that they are two test sets; leave protocol.splits out,"
                f" and name one by data.fold={split}"
            )


def run_splits(
    cfg: config.Config, run: Callable[[int], tuple[Summary, Path]], out: Path
) -> dict[str, Spread]:
    """Measure each split, and write out/splits.json, out/report.md and out/report.html.

    They are written after every split, so that a call that is killed leaves those that are done.

    Args:
        cfg: names protocol and splits.
        run: number of a split -> (what was measured, folder of its report).
        out: folder of both files.

    Returns:
        Measure -> mean and spread over splits.

    Raises:
        UserError: as `check_splits`, and as `run` does.
    """
    check_splits(cfg)
    done: dict[int, tuple[Summary, Path]] = {}
    spreads: dict[str, Spread] = {}
    for split in cfg.protocol.splits:
        done[split] = run(split)
        measures = [measures_of(summary) for summary, _ in done.values()]
        # only what every split has measured has a mean
        keys = [key for key in measures[0] if all(key in each for each in measures)]
        spreads = {key: spread_of([each[key] for each in measures]) for key in keys}
        with distributed.together():
            if distributed.rank() == 0:
                _write(cfg, done, spreads, out)
    return spreads


def measures_of(summary: Summary) -> dict[str, float]:
    """Return name -> what an evaluation has measured: accuracies and other fractions."""
    measures: dict[str, float | None] = {}
    for name, accuracy in summary.representation.items():
        measures[name] = accuracy.acc
        measures[f"{name} top-5"] = accuracy.top5
        measures[f"{name} mean of classes"] = accuracy.mean_class
    measures |= {f"stage {name}": accuracy.acc for name, accuracy in summary.stages.items()}
    measures[f"clean, {summary.classifier}"] = summary.clean_acc
    measures |= {f"robust {point.threat}": point.robust_acc for point in summary.curve}
    measures |= {f"{name} mAP": each.mean for name, each in summary.average_precision.items()}
    if summary.retrieval:
        measures |= _recalls(summary.retrieval)
    if summary.corruption:
        measures["mpc"] = summary.corruption.mpc
    if summary.shift:
        measures[f"shift to {summary.shift.dataset}"] = summary.shift.acc
    for each in summary.calibration:
        measures[f"calibration error, {each.threat or 'clean'}"] = each.ece
    if summary.open_set:
        measures[f"AUROC, {summary.open_set.dataset} unknown"] = summary.open_set.auroc
    return {name: value for name, value in measures.items() if value is not None}


def _recalls(retrieval: RetrievalTable) -> dict[str, float]:
    """Return name -> recall at k, clean and under attack."""
    measures: dict[str, float] = {}
    for weights, variants in retrieval.recall.items():
        for variant, recalls in variants.items():
            measures |= {f"{weights} {variant} R@{each.k}": each.recall for each in recalls}
    for point in retrieval.curve:
        name = f"{point.side} {point.threat}"
        measures |= {f"{name} R@{each.k}": each.recall for each in point.recall}
    return measures


def _write(
    cfg: config.Config,
    done: dict[int, tuple[Summary, Path]],
    spreads: dict[str, Spread],
    out: Path,
) -> None:
    """Write the numbers, and then the report.

    Args:
        cfg: names protocol and data set.
        done: split -> what was measured, and the folder of its report.
        spreads: measure -> mean and spread over these splits.
        out: the folder.
    """
    numbers = {
        "protocol": cfg.protocol.name,
        "dataset": cfg.data.name,
        "splits": {str(split): str(folder) for split, (_, folder) in done.items()},
        "views": next(iter(done.values()))[0].views,
        "measures": {key: asdict(spread) for key, spread in spreads.items()},
    }
    with replacing(out / "splits.json") as file:
        file.write((json.dumps(numbers, indent=2) + "\n").encode())
    rows = [_row(key, spread) for key, spread in spreads.items()]
    titles = ["measure, %", *(f"split {split}" for split in done), "mean ± sd", "95 % interval"]
    heading = f"{cfg.protocol.name} on {cfg.data.name}, {len(done)} splits"
    summary, _ = next(iter(done.values()))
    note = (
        f"Views (clips x crops) of each test video: {summary.views['representation']} for"
        f" classifiers, stages and recall, {summary.views['attack']} for the clean accuracy of"
        " attacks, robust accuracy, calibration, corruptions and shift;"
        f" {summary.view_average} averaged. Intervals of the mean over splits by Student's t,"
        " clipped to 0 and 100 %. Official splits share videos, so that their spread is not"
        " that of independent runs."
    )
    lines = [
        f"# {markdown.escape(heading)}",
        "",
        note,
        "",
        *markdown.table(titles, *rows),
        "",
        *(f"- split {split}: {markdown.code(folder)}" for split, (_, folder) in done.items()),
    ]
    markdown.write(out / "report.md", lines)
    page = render(
        "splits.html",
        title=heading,
        heading=heading,
        verdict=_verdict(spreads, len(done)),
        note=note,
        titles=[(title, number not in (0, len(titles) - 1)) for number, title in enumerate(titles)],
        rows=[_sorted_by(row, spread) for row, spread in zip(rows, spreads.values(), strict=True)],
        splits={split: folder for split, (_, folder) in done.items()},
    )
    write_page(out / "report.html", page)


def _verdict(spreads: dict[str, Spread], splits: int) -> str:
    """Return the sentence that a reader needs first: the first measure, and the last robust one."""
    if not spreads:
        return "The splits have no measure in common."
    robust = [key for key in spreads if key.startswith("robust ")]
    names = [next(iter(spreads)), *robust[-1:]]
    parts = [f"{name} {_row(name, spreads[name])[-2]} %" for name in dict.fromkeys(names)]
    return f"Mean over {splits} splits: {', '.join(parts)}."


def _sorted_by(row: Sequence[str], spread: Spread) -> list[str | tuple[str, float]]:
    """Return the cells of a row with the numbers by which a table sorts.

    Args:
        row: from `_row`.
        spread: its numbers.
    """
    name, *values, middle, interval = row
    numbers = zip(values, spread.values, strict=True)
    return [name, *numbers, (middle, spread.mean), interval]


def _row(name: str, spread: Spread) -> Sequence[str]:
    """Return the row of a measure, in per cent."""
    mean, std, half = (100 * value if value is not None else None for value in _of(spread))
    assert mean is not None
    middle = f"{mean:.1f}" if std is None else f"{mean:.1f} ± {std:.1f}"
    # every measure is a fraction; Student's t over few splits is wider than its range
    interval = "" if half is None else f"{max(0, mean - half):.1f} to {min(100, mean + half):.1f}"
    return [name, *(f"{100 * value:.1f}" for value in spread.values), middle, interval]


def _of(spread: Spread) -> tuple[float, float | None, float | None]:
    """Return mean, standard deviation and half of the interval."""
    return spread.mean, spread.std, spread.half
