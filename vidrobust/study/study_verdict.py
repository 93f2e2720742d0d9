"""Say in a few sentences what a study found on a data set."""

from dataclasses import dataclass

from vidrobust.evaluation.report.verdict import in_words, worst
from vidrobust.study.arm_table import BySeed, Spread, Table
from vidrobust.study.best_arms import difference, is_decided
from vidrobust.study.plan import Study
from vidrobust.study.study_text import Runs, number

_NAMES = 3  # arms that a sentence names


@dataclass(frozen=True)
class MainMeasure:
    """The measure that a study is judged by on a data set.

    Attributes:
        key: name of the measure.
        title: of its column.
        words: the measure in words.
    """

    key: str
    title: str
    words: str


@dataclass(frozen=True)
class StudyVerdict:
    """Hold what a study found on a data set: the best arm, and its lead ("" if there is none)."""

    headline: str
    lead: str = ""


def main_measure(study: Study, runs: Runs) -> MainMeasure:
    """Return robust accuracy under the threat to name, or what was measured without attacks.

    The threat is that of the baseline's first run, as `worst` chooses it.

    Args:
        study: the study, which names the baseline.
        runs: runs of one data set.
    """
    of_baseline = [run for run in runs if run.arm.name == study.baseline]
    # a baseline that was not attacked names no threat
    for run in [*of_baseline, *runs]:
        if point := worst(run.summary.curve):
            words = f"robust accuracy when {in_words(point)}"
            return MainMeasure(f"robust {point.threat}", point.threat, words)
    if any(run.summary.average_precision for run in runs):
        return MainMeasure("mAP", "mAP", "mean average precision of the linear probe")
    if any(run.summary.clean_acc is not None for run in runs):
        return MainMeasure("clean", "clean", "accuracy")
    return MainMeasure("probe", "probe", "accuracy of the linear probe")


def study_verdict(
    study: Study, dataset: str, table: Table, by_seed: BySeed, main: MainMeasure
) -> StudyVerdict:
    """Return which arm has the highest accuracy, and how certain its lead is.

    Args:
        study: the study, which names the baseline.
        dataset: name of the data set.
        table: arm -> its result.
        by_seed: arm -> seed -> measures.
        main: the measure that decides.
    """
    spreads = {
        name: result.measures[main.key]
        for name, result in table.items()
        if main.key in result.measures
    }
    # a protocol may measure something else, such as recall
    if not spreads:
        return StudyVerdict(f"On {dataset}, no accuracy is measured.")
    top = max(spread.mean for spread in spreads.values())
    leaders = [name for name, spread in spreads.items() if spread.mean == top]
    value = _with_half(spreads[leaders[0]])
    if len(spreads) == 1:
        return StudyVerdict(
            f"On {dataset}, only {leaders[0]} is measured: its {main.words} is {value}."
        )
    if len(leaders) == len(spreads):
        return StudyVerdict(
            f"On {dataset}, all {len(leaders)} arms have the same {main.words}: {100 * top:.1f} %."
        )
    if study.baseline in spreads and study.baseline not in leaders:
        other = study.baseline
        role = f"the baseline {other}"
    else:
        others = [name for name in spreads if name not in leaders]
        other = max(others, key=lambda name: spreads[name].mean)
        role = f"the next, {other}"
    names = [f"the baseline {name}" if name == study.baseline else name for name in leaders]
    have = "has" if len(leaders) == 1 else "share"
    return StudyVerdict(
        f"On {dataset}, {_named(names)} {have} the highest {main.words}: {value}.",
        _lead(difference(by_seed, main.key, leaders[0], other), role),
    )


def _named(names: list[str]) -> str:
    """Return names for a sentence, of which only the first few are written."""
    if len(names) == 1:
        return names[0]
    if len(names) > _NAMES:
        return f"{', '.join(names[:_NAMES])} and {len(names) - _NAMES} others"
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _with_half(spread: Spread) -> str:
    """Return a mean in per cent, with half of its interval if there is one."""
    mean = f"{100 * spread.mean:.1f}"
    return f"{mean} %" if spread.half is None else f"{mean} ± {100 * spread.half:.1f} %"


def _lead(lead: Spread | None, role: str) -> str:
    """Return the sentence on the lead over another arm.

    Args:
        lead: difference of the best arm from the other, seed by seed; None without a common seed.
        role: the other arm, in words.
    """
    if lead is None:
        return f"Its lead over {role} is not decided: both share no seed."
    # means over other seeds may be in another order than those over common seeds
    side = "above" if lead.mean >= 0 else "below"
    points = f"{number(100 * abs(lead.mean), 1)} percentage points {side} {role}"
    if lead.half is None:
        return f"With one common seed that is {points}: not decided."
    low, high = (number(100 * (lead.mean + sign * lead.half), 1) for sign in (-1, 1))
    reason = "decided" if is_decided(lead) else "not decided, as the interval includes 0"
    return (
        f"That is {points} (95 % interval over {len(lead.values)} seeds: {low} to {high}):"
        f" {reason}."
    )
