"""Test the claims of a study by its finished runs."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vidrobust import config
from vidrobust.evaluation.report import tables as markdown
from vidrobust.evaluation.summary import read_summary
from vidrobust.study.arm_table import FinishedRun, measures_by_seed, of_measure
from vidrobust.study.claims import Claim
from vidrobust.study.outcomes import VideoMeasure, video_measure
from vidrobust.study.paired_test import (
    DRAWS,
    PairedTest,
    differences_by_draw,
    holm,
    paired_test_of,
    seeds_needed,
)
from vidrobust.study.plan import Study
from vidrobust.study.run import FREE
from vidrobust.study.study_text import number
from vidrobust.utils.atomic_files import replacing

_TITLES = [
    *("claim", "verdict", "measured", "prediction", "data"),
    *("n", "seeds", "seeds for 80 %", "d", "p", "source"),
]
HELD, DID_NOT, UNDECIDED = "held", "did not hold", "undecided"
_LEVEL = 0.05


@dataclass(frozen=True)
class Verdict:
    """Hold what a study says about a claim, by one measure.

    Attributes:
        claim: name of the claim.
        source: who claims it.
        says: the claim.
        prediction: what it predicts for the measure.
        dataset: name of the data set, or of all data sets of a slope.
        measure: name of the measure.
        test: the difference of the two arms, or its slope, per seed; None without a common seed.
        p: its p-value, corrected for the number of tests of the study.
        verdict: HELD, DID_NOT or UNDECIDED.
        reason: of the verdict.
        notes: what to know of the comparison: seeds that are missing, other options that differ.
        evaluation: name of the further evaluation that it is tested by; empty: the run's own.
    """

    claim: str
    source: str
    says: str
    prediction: str
    dataset: str
    measure: str
    test: PairedTest | None
    p: float | None
    verdict: str
    reason: str
    notes: tuple[str, ...] = ()
    evaluation: str = ""


# --- Tests ---


def verdicts(study: Study, runs: Sequence[FinishedRun]) -> list[Verdict]:
    """Test all claims of a study; p-values are corrected for their number (Holm 1979).

    Args:
        study: has the claims.
        runs: the finished runs.
    """
    rows: list[tuple[Claim, Verdict, PairedTest | None]] = []
    for claim in study.claims:
        measured = _measured_by(claim, runs)
        datasets = [name for name in study.datasets if not claim.datasets or name in claim.datasets]
        for places in [list(claim.dial)] if claim.dial else [[name] for name in datasets]:
            for measure in claim.measures:
                test = _test(claim, measured, places, measure)
                beyond = _test(claim, measured, places, claim.beyond) if claim.beyond else None
                row = _untested(study, claim, measured, places, measure, test)
                rows.append((claim, row, beyond))
    corrected = holm([row.test.p if row.test else None for _, row, _ in rows])
    # what is beyond accuracy is another family of tests
    beyond_p = holm([beyond.p if beyond else None for *_, beyond in rows])
    return [
        _judged(claim, replace(row, p=p), beyond, q)
        for (claim, row, beyond), p, q in zip(rows, corrected, beyond_p, strict=True)
    ]


def _measured_by(claim: Claim, runs: Sequence[FinishedRun]) -> Sequence[FinishedRun]:
    """Return the runs with the evaluation that a claim is tested by, and its summary."""
    if not claim.evaluation:
        return runs
    summaries = [(run, _evaluation(run, claim) / "summary.json") for run in runs]
    return [replace(run, summary=read_summary(path)) for run, path in summaries if path.is_file()]


def _untested(
    study: Study,
    claim: Claim,
    runs: Sequence[FinishedRun],
    places: list[str],
    measure: str,
    test: PairedTest | None,
) -> Verdict:
    """Return a verdict that is still to be made; see `verdicts`."""
    what = f"slope of {measure} over {_dial_text(claim)}" if claim.dial else measure
    other = claim.against or "0"
    by = f" ({claim.evaluation})" if claim.evaluation else ""
    return Verdict(
        claim.name,
        claim.source,
        claim.says,
        f"{what}: {claim.arm} {claim.expected} {other}{by}",
        ", ".join(places),
        measure,
        test,
        None,
        UNDECIDED,
        "",
        tuple(_notes(study, claim, runs, places)),
        claim.evaluation,
    )


def _dial_text(claim: Claim) -> str:
    """Return the numbers of a claim's dial."""
    return f"{min(claim.dial.values()):g} to {max(claim.dial.values()):g}"


def _judged(
    claim: Claim, row: Verdict, beyond: PairedTest | None, beyond_p: float | None
) -> Verdict:
    """Return the verdict of a row whose p-value is corrected.

    Args:
        claim: the claim.
        row: the row.
        beyond: the test of `claim.beyond`; None if there is none.
        beyond_p: its p-value, corrected.
    """
    test = row.test
    if test is None or test.half is None or row.p is None:
        seeds = 0 if test is None else 1
        return replace(row, reason=f"seeds in common: {seeds}, at least 2 are needed")
    if not math.isfinite(test.mean):
        return replace(row, reason="half of the videos withstand the largest budget")
    signed = claim.sign * test.mean
    if row.p < _LEVEL:
        if signed < 0:
            return replace(row, verdict=DID_NOT, reason="the difference is the opposite")
        if claim.relevant and signed + test.half < claim.relevant:
            return replace(row, verdict=DID_NOT, reason=_too_small(claim))
        if beyond is not None and not _is_found(claim, beyond, beyond_p):
            return replace(row, verdict=HELD, reason=f"by accuracy alone: {_beyond(claim, beyond)}")
        return replace(row, verdict=HELD, reason="")
    if claim.relevant and signed + test.half < claim.relevant:
        return replace(row, verdict=DID_NOT, reason=_too_small(claim))
    return replace(row, reason=_power(claim, test))


def _too_small(claim: Claim) -> str:
    """Return why a small difference is none."""
    return f"a difference of {_points(claim.relevant, claim)} is excluded"


def _is_found(claim: Claim, beyond: PairedTest, p: float | None) -> bool:
    """Return whether the measure beyond accuracy differs in the claim's direction."""
    return p is not None and p < _LEVEL and claim.sign * beyond.mean > 0


def _beyond(claim: Claim, beyond: PairedTest) -> str:
    """Return the difference of the measure beyond accuracy in words."""
    half = "" if beyond.half is None else f" ± {_points(beyond.half, claim, unit=False)}"
    return f"{claim.beyond} differs by {_points(beyond.mean, claim, unit=False)}{half}"


def _points(value: float, claim: Claim, *, unit: bool = True) -> str:
    """Return a difference in percentage points, with its sign where it is negative."""
    per = " per unit of the dial" if claim.dial else ""
    return number(100 * value, 1) + (f" points{per}" if unit else "")


def _power(claim: Claim, test: PairedTest) -> str:
    """Return how many seeds would decide.

    Where the measured difference is smaller than `claim.relevant`, they are those that find one of
    `claim.relevant`. As many exclude it where there is none: both need an interval of one width.
    """
    needed, target = test.seeds_needed, "a difference of this size"
    if abs(test.mean) < claim.relevant and test.spread is not None and test.of_videos is not None:
        needed = seeds_needed(claim.relevant, test.spread, test.of_videos, test.videos)
        target = f"a difference of {_points(claim.relevant, claim)}"
    if needed is None:
        return f"no number of seeds finds {target} with these videos"
    return f"{needed} seeds find {target} with 80 % power"


def _test(
    claim: Claim, runs: Sequence[FinishedRun], places: list[str], measure: str
) -> PairedTest | None:
    """Return the difference of a claim's arms over the seeds that all data sets have.

    Args:
        claim: the claim.
        runs: the finished runs.
        places: data sets; the slope over the dial is tested where there are several.
        measure: name of the measure.
    """
    kind = video_measure(measure)
    by_place = [_values(claim, runs, place, measure, kind) for place in places]
    seeds = sorted(set.intersection(*(set(values) for values in by_place)))
    if not seeds:
        return None
    # the difference itself, or the slope of a least-squares line over the dial
    weights = np.ones(1)
    if claim.dial:
        x = np.array([claim.dial[place] for place in places])
        weights = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    values = np.zeros(len(seeds))
    by_draw = np.zeros(1)
    videos = 0
    for weight, pairs in zip(weights, by_place, strict=True):
        arm, other = zip(*(pairs[seed] for seed in seeds), strict=True)
        if kind is None:  # over seeds alone
            difference = np.array([a[0, 0] - b[0, 0] for a, b in zip(arm, other, strict=True)])
            drawn = np.tile(difference, (DRAWS, 1))
            videos = _videos(runs, places)
        else:
            difference, drawn = differences_by_draw(arm, other, kind.reduce)
            videos += len(arm[0])
        values = values + weight * difference
        by_draw = by_draw + weight * drawn
    return paired_test_of(values, by_draw, videos)


def _values(
    claim: Claim,
    runs: Sequence[FinishedRun],
    dataset: str,
    measure: str,
    kind: VideoMeasure | None,
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Return seed -> numbers (videos, k) of the claim's two arms, for the seeds that both have.

    Without another arm, its numbers are 0.
    """
    if kind is None:
        table = measures_by_seed(runs, dataset)
        arm, other = (
            of_measure(table.get(name, {}), measure) for name in (claim.arm, claim.against)
        )
        other = other if claim.against else dict.fromkeys(arm, 0.0)
        return {
            seed: (np.array([[arm[seed]]]), np.array([[other[seed]]]))
            for seed in arm
            if seed in other
        }
    by_arm = [
        {
            run.arm.seed: numbers
            for run in runs
            if (run.arm.dataset, run.arm.name) == (dataset, name)
            if (numbers := kind.read(_evaluation(run, claim)))
        }
        for name in (claim.arm, claim.against)
    ]
    if not claim.against:
        by_arm[1] = {
            seed: {uid: [0.0] * len(values) for uid, values in numbers.items()}
            for seed, numbers in by_arm[0].items()
        }
    return {
        seed: _aligned(numbers, by_arm[1][seed])
        for seed, numbers in by_arm[0].items()
        if seed in by_arm[1]
    }


def _aligned(
    arm: Mapping[str, list[float]], other: Mapping[str, list[float]]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the videos that both runs have, in the same order."""
    uids = sorted(arm.keys() & other.keys())
    return np.array([arm[uid] for uid in uids]), np.array([other[uid] for uid in uids])


def _evaluation(run: FinishedRun, claim: Claim) -> Path:
    """Return the folder of the evaluation that a claim is tested by."""
    return run.arm.folder / "eval" / (claim.evaluation or run.arm.cfg.eval.name)


def _videos(runs: Sequence[FinishedRun], places: Sequence[str]) -> int:
    """Return the number of test videos of some data sets."""
    counts = {run.arm.dataset: run.summary.n for run in runs}
    return sum(counts[place] for place in places)


# --- Notes ---


def _notes(
    study: Study, claim: Claim, runs: Sequence[FinishedRun], places: Sequence[str]
) -> list[str]:
    """Return what a reader should know of a comparison."""
    notes = []
    for name in filter(None, (claim.arm, claim.against)):
        for place in places:
            of_arm = [r for r in runs if (r.arm.dataset, r.arm.name) == (place, name)]
            missing = sorted(set(study.seeds) - {run.arm.seed for run in of_arm})
            if missing:
                of = f" of {claim.evaluation}" if claim.evaluation else ""
                notes.append(f"{place}, {name}: no result{of} of seeds {_listed(missing)}")
            notes += [f"{run.arm.label}: {reason}" for run in of_arm for reason in run.shortfalls]
    for place in places:
        notes += _unnamed(claim, runs, place)
    return list(dict.fromkeys(notes))


def _unnamed(claim: Claim, runs: Sequence[FinishedRun], place: str) -> list[str]:
    """Return a note on the options that differ between a claim's arms, other than the method's."""
    pages = {
        run.arm.name: run.arm.folder / "config.yaml" for run in runs if run.arm.dataset == place
    }
    if claim.arm not in pages or claim.against not in pages:
        return []
    pair = [config.load(pages[name]) for name in (claim.against, claim.arm)]
    others = [line for line in config.differences(*pair) if not line.startswith(_NAMED)]
    if not others:
        return []
    return [
        f"{claim.arm} and {claim.against} also differ (values of {claim.against} in brackets):"
        f" {', '.join(others)}"
    ]


# Options that the name of an arm says, or that change no result.
_NAMED = ("method.", "seed=", *FREE)


def _listed(seeds: Sequence[int]) -> str:
    """Return seeds in words."""
    return ", ".join(map(str, seeds))


# --- Table ---


def verdict_lines(rows: Sequence[Verdict]) -> list[str]:
    """Return the verdicts as lines of Markdown, with a heading and what the columns are."""
    if not rows:
        return []
    return [
        "## Claims",
        "",
        (
            "measured: mean difference over seeds ± half of its 95 % interval over seeds"
            " and test videos, percentage points; seeds for 80 %: with which 80 % of studies find a"
            " difference of this size; d: mean by standard deviation over seeds; p: corrected for"
            " the number of tests (Holm)."
        ),
        "",
        *verdict_table(rows),
    ]


def verdict_table(rows: Sequence[Verdict]) -> list[str]:
    """Return the verdicts as a table, and notes below it."""
    lines = [*markdown.table(_TITLES, *(_row(row) for row in rows)), ""]
    notes = [(row.claim, note) for row in rows for note in row.notes]
    for claim, note in dict.fromkeys(notes):
        lines.append(f"- {markdown.escape(claim)}: {markdown.escape(note)}")
    return [*lines, ""] if notes else lines


def _row(row: Verdict) -> list[str]:
    """Return the cells of a verdict."""
    test = row.test
    verdict = f"{row.verdict} ({row.reason})" if row.reason else row.verdict
    if test is None:
        cells = [row.says, verdict, "-", row.prediction, row.dataset]
        return [*cells, "-", "0", "-", "-", "-", row.source]
    return [
        row.says,
        verdict,
        measured(test),
        row.prediction,
        row.dataset,
        str(test.videos),
        str(len(test.values)),
        "-" if test.seeds_needed is None else str(test.seeds_needed),
        "-" if test.effect is None else number(test.effect, 1),
        "-" if row.p is None else f"{row.p:.2g}",
        row.source,
    ]


def measured(test: PairedTest) -> str:
    """Return a difference and half of its interval, percentage points."""
    half = "" if test.half is None else f" ± {number(100 * test.half, 1)}"
    return f"{number(100 * test.mean, 1)}{half}"


def write_verdicts(path: Path, rows: Sequence[Verdict]) -> None:
    """Write the verdicts as JSON."""
    entries: list[dict[str, Any]] = [asdict(row) for row in rows]
    with replacing(path) as file:
        file.write((json.dumps(entries, indent=2) + "\n").encode())
