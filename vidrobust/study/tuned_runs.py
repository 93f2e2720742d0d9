"""Run what chooses the options of arms, and write down what was chosen."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vidrobust import config
from vidrobust.evaluation.report import tables as markdown
from vidrobust.study.plan import Arm, Study, load_run
from vidrobust.study.run import require_same
from vidrobust.study.tuning import (
    TUNED_RUNS,
    TUNING,
    Choices,
    Tuning,
    read_tuning_file,
    words_of,
)
from vidrobust.utils.atomic_files import replacing
from vidrobust.utils.errors import UserError
from vidrobust.utils.readable import percent


@dataclass
class Progress:
    """Say how far the choice is.

    Attributes:
        waiting: runs that decide next.
        choices: what is chosen already.
        scores: data set -> arm -> values of the options of a run -> its accuracy.
        ends: data set -> arm -> options whose value is the smallest or largest that was tried, so
            that a better one may lie beyond.
        rule: options and seed of all these runs, which tuning.json keeps beside their accuracies.
        is_complete: whether everything is chosen.
    """

    waiting: list[Arm] = field(default_factory=list)
    choices: Choices = field(default_factory=dict)
    scores: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    ends: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    rule: dict[str, Any] = field(default_factory=dict)
    is_complete: bool = True


def progress(
    study: Study,
    out: Path,
    overrides: Sequence[str],
    roots: Mapping[str, str],
    score: Callable[[Arm], float | None],
    failed: Collection[Path] = (),
    arms: Collection[str] | None = None,
) -> Progress:
    """Return the runs that decide next, and what those that are finished have decided.

    Args:
        study: the study, with `tune`.
        out: folder of the study.
        overrides: options of the command line.
        roots: data set -> its folder.
        score: run -> its accuracy; None if it is not finished.
        failed: folders of runs that have failed, whose values are not chosen.
        arms: names of the arms to choose for; None: all.

    Raises:
        UserError: where all values of an option fail, or a run holds out no videos.
    """
    assert study.tune is not None
    state = Progress()
    state.rule = {
        "options": list(study.tune.options),
        "seed": study.tune.seed,
        "overrides": list(overrides),
    }
    earlier = read_tuning_file(out)
    selected = _with_teachers(study.tune, study.arms if arms is None else arms)
    for dataset in study.datasets:
        state.choices[dataset] = {}
        state.scores[dataset] = {}
        state.ends[dataset] = {}
        for arm in study.tune.grid:
            if arm in study.skip.get(dataset, ()) or arm not in selected:
                continue
            teacher = study.tune.teacher(arm)
            if teacher and teacher not in state.choices[dataset]:
                state.is_complete = False
                continue
            picked = dict(state.choices[dataset].get(teacher, {}))
            scores = state.scores[dataset].setdefault(arm, {})
            for option, values in study.tune.steps(arm).items():
                runs = [
                    _candidate(study, out, overrides, roots, dataset, arm, {**picked, option: v})
                    for v in values
                ]
                found = {run.folder: _score(run, score, earlier, state.rule) for run in runs}
                scores |= {folder.name: acc for folder, acc in found.items() if acc is not None}
                missing = [run for run in runs if found[run.folder] is None]
                if undecided := [run for run in missing if run.folder not in failed]:
                    state.waiting += undecided
                    state.is_complete = False
                    break
                if len(missing) == len(runs):
                    raise UserError(f"{dataset}, {arm}: all runs that choose {option} have failed")
                picked[option] = _best(values, [found[run.folder] for run in runs])
                if _is_end(picked[option], values):
                    state.ends[dataset].setdefault(arm, []).append(option)
            else:
                state.choices[dataset][arm] = picked
    return state


def _score(
    run: Arm,
    score: Callable[[Arm], float | None],
    earlier: Mapping[str, Any],
    rule: Mapping[str, Any],
) -> float | None:
    """Return the accuracy of a run, of tuning.json where the run itself is on another machine.

    Args:
        run: the run.
        score: see `progress`.
        earlier: content of tuning.json.
        rule: see `Progress`; accuracies by another one do not count.

    Raises:
        UserError: for a folder that holds a run with other options.
    """
    require_same(run)
    accuracy = score(run)
    entry = earlier.get(run.dataset, {}).get(run.folder.parent.name, {})
    if accuracy is None and entry.get("rule") == rule:
        accuracy = entry.get("accuracies", {}).get(run.folder.name)
    return accuracy


def _with_teachers(tune: Tuning, arms: Collection[str]) -> set[str]:
    """Return arms, and those of the grid whose choices they take over."""
    selected = set(arms)
    for arm in reversed(list(tune.grid)):  # teachers are above
        if arm in selected and tune.teacher(arm):
            selected.add(tune.teacher(arm))
    return selected


def _best(values: Sequence[Any], accuracies: Sequence[float | None]) -> Any:
    """Return the value with the highest accuracy, the first of several."""
    known = [-1.0 if acc is None else acc for acc in accuracies]
    return values[known.index(max(known))]


def _is_end(value: Any, values: Sequence[Any]) -> bool:
    """Return whether a value is the smallest or the largest of several numbers."""
    if len(values) < 2 or not all(isinstance(each, int | float) for each in values):
        return False
    return bool(value in (min(values), max(values)))


def _candidate(
    study: Study,
    out: Path,
    overrides: Sequence[str],
    roots: Mapping[str, str],
    dataset: str,
    arm: str,
    values: Mapping[str, Any],
) -> Arm:
    """Return the run of an arm with some values; see `progress`."""
    assert study.tune is not None
    words = [*study.arms[arm], *words_of(values), *study.tune.options]
    cfg, _ = load_run(study, out, dataset, words, roots.get(dataset), study.tune.seed, overrides)
    if not cfg.data.validation:
        raise UserError(
            f"{study.config_file}: tune: options must hold out videos, as data.validation=0.1 does"
        )
    # all options of the arm's grid, so that two ways to the same values are one run, and those
    # that are taken over, so that another choice of theirs is another run
    keys = dict.fromkeys([*values, *study.tune.steps(arm)])
    label = ",".join(f"{key.rsplit('.', 1)[-1]}={_shown(config.get(cfg, key))}" for key in keys)
    folder = out / TUNED_RUNS / dataset / arm / label
    return Arm(dataset, f"{arm} {label}", study.tune.seed, cfg, folder)


def _shown(value: Any) -> str:
    """Return the value of an option for the name of a folder, such as `linf-4_255`."""
    text = "+".join(map(str, value)) if isinstance(value, list) else str(value)
    return text.replace("/", "_")


def write_tuning(out: Path, state: Progress) -> None:
    """Add the choices, and the accuracies that decided, to tuning.json."""
    content = read_tuning_file(out)
    chosen = {
        dataset: {
            arm: {
                "options": options,
                "at_end": state.ends[dataset].get(arm, []),
                "accuracies": state.scores[dataset].get(arm, {}),
                "rule": state.rule,
            }
            for arm, options in arms.items()
        }
        for dataset, arms in state.choices.items()
    }
    content = content | {name: content.get(name, {}) | arms for name, arms in chosen.items()}
    with replacing(out / TUNING) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())


def tuning_lines(out: Path) -> list[str]:
    """Return tuning.json as lines of Markdown; no lines without the file."""
    content = read_tuning_file(out)
    if not content:
        return []
    rows = []
    for dataset, arms in content.items():
        for arm, entry in arms.items():
            at_end = entry.get("at_end", [])
            chosen = ", ".join(
                f"{key}={value}{' (end)' if key in at_end else ''}"
                for key, value in entry["options"].items()
            )
            tried = ", ".join(
                f"{label}: {percent(acc)}" for label, acc in entry["accuracies"].items()
            )
            rows.append([dataset, arm, chosen or "-", tried or "-"])
    return [
        "## Chosen options",
        "",
        (
            "Options that were chosen on held-out training videos, one after the other, by the"
            " accuracy of the linear probe. (end): the smallest or largest value that was tried, so"
            " that a better one may lie beyond."
        ),
        "",
        *markdown.table(["data", "arm", "chosen", "accuracies on the held-out videos"], *rows),
        "",
    ]
