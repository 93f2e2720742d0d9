"""Make the tables of study.html: arms by measure, and arms by seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from vidrobust.study.arm_table import (
    BySeed,
    Measures,
    Spread,
    Table,
    differences,
    of_measure,
)
from vidrobust.study.best_arms import best_arms, is_decided
from vidrobust.study.study_charts import DotRow, dot_plot
from vidrobust.study.study_text import Runs, accuracies, number, signed

# A cell: its text, the number to sort by, and what hovering shows.
ShownCell = tuple[str, float | str, str]

# Beginnings of measures -> their group; all others are geometry.
_GROUPS = {
    "Accuracy": ("probe", "mAP", "clean", "robust ", "kept ", "mpc", "rpc", "shift"),
    "Attack success": ("success ",),
    "Cues": ("acc ", "bias "),
    "False negatives": ("fn_",),
}
_GEOMETRY = "Geometry"


@dataclass(frozen=True)
class Column:
    """A column of the table of arms: its number, its title, and whether it is shown at first."""

    place: int
    title: str
    shown: bool


@dataclass(frozen=True)
class ArmTable:
    """The table of arms.

    Attributes:
        titles: of the columns, and whether they hold numbers.
        rows: cells of each arm.
        groups: name -> the columns that can be chosen.
    """

    titles: list[tuple[str, bool]]
    rows: list[list[ShownCell | str]]
    groups: dict[str, list[Column]]


def arm_columns(runs: Runs, table: Table, by_seed: BySeed) -> ArmTable:
    """Return the table of all measures by arm; only accuracies are shown at first.

    Args:
        runs: runs of one data set.
        table: arm -> its result.
        by_seed: arm -> seed -> measures.
    """
    main = accuracies(runs)
    # a budget of 0 is clean accuracy
    zero = {point.threat for run in runs for point in run.summary.curve if point.eps == 0}
    all_measures: dict[str, None] = {}
    for result in table.values():
        all_measures |= dict.fromkeys(result.measures)
    by_group: dict[str, list[str]] = {group: [] for group in (*_GROUPS, _GEOMETRY)}
    for key in all_measures:
        if key.removeprefix("robust ").removeprefix("success ") not in zero:
            by_group[_group(key)].append(key)
    keys = [key for group in by_group.values() for key in group]
    best = {key: best_arms(by_seed, key) for key in keys if key in main}
    rows: list[list[ShownCell | str]] = []
    for name, result in table.items():
        cells = [_cell(result.measures.get(key), key, name in best.get(key, ())) for key in keys]
        rows.append([name, str(result.n), *cells])
    # the first two columns are the arm and its number of seeds
    places = {key: place for place, key in enumerate(keys, 2)}
    groups = {
        group: [Column(places[key], key, key in main) for key in of_group]
        for group, of_group in by_group.items()
        if of_group
    }
    titles = [("arm", False), ("seeds", True), *((key, True) for key in keys)]
    return ArmTable(titles, rows, groups)


def _group(key: str) -> str:
    """Return the group of a measure."""
    for group, beginnings in _GROUPS.items():
        if key.startswith(beginnings):
            return group
    return _GEOMETRY


def _cell(spread: Spread | None, key: str, is_best: bool) -> ShownCell:
    """Return mean and interval of a measure; hovering shows its spread and values."""
    if spread is None:
        return "–", "", "not measured"
    is_fraction = _group(key) != _GEOMETRY and key != "rpc" and not key.startswith("bias ")
    scale, digits = (100, 1) if is_fraction else (1, 3)
    text = number(scale * spread.mean, digits)
    if spread.half is not None:
        text += f" ± {number(scale * spread.half, digits)}"
    values = ", ".join(number(scale * value, digits) for value in spread.values)
    note = f"values by seed: {values}"
    if spread.std is not None:
        note = f"standard deviation {number(scale * spread.std, digits)}; {note}"
    return (Markup("<b>{}</b>").format(text) if is_best else text), spread.mean, note


# --- Seed by seed ---


@dataclass(frozen=True)
class SeedTable:
    """One measure by arm and seed, as a table and as a plot of dots."""

    measure: str
    drawing: Markup
    titles: list[tuple[str, bool]]
    rows: list[list[ShownCell | str]]


def seed_tables(
    baseline: str, table: Table, by_seed: BySeed, measures: Sequence[str]
) -> list[SeedTable]:
    """Return a table per measure: differences from the baseline, or values if there is none.

    Args:
        baseline: name of the baseline; "" for none.
        table: arm -> its result.
        by_seed: arm -> seed -> measures.
        measures: their names.
    """
    has_differences = any(result.difference for result in table.values())
    tables = []
    for measure in measures:
        spreads: dict[str, Spread] = {}
        values: dict[str, Mapping[int, float]] = {}
        for name, result in table.items():
            own = result.difference if has_differences else result.measures
            seeds: Mapping[int, Measures] = by_seed[name]
            if has_differences:
                seeds = differences(seeds, by_seed[baseline])
            if measure in own:
                spreads[name] = own[measure]
                values[name] = of_measure(seeds, measure)
        if spreads:
            tables.append(
                _seed_table(measure, spreads, values, baseline if has_differences else "")
            )
    return tables


def _seed_table(
    measure: str,
    spreads: Mapping[str, Spread],
    values: Mapping[str, Mapping[int, float]],
    baseline: str,
) -> SeedTable:
    """Return the table and the plot of one measure, in percentage points.

    Args:
        measure: its name.
        spreads: arm -> spread of its differences or values.
        values: arm -> seed -> difference or value.
        baseline: what differences are from; "" for values.
    """
    seeds = sorted({seed for each in values.values() for seed in each})
    write = signed if baseline else (lambda value: number(value, 1))
    rows: list[list[ShownCell | str]] = []
    dots = []
    for name, spread in spreads.items():
        mean = 100 * spread.mean
        half = None if spread.half is None else 100 * spread.half
        interval = "–" if half is None else f"{write(mean - half)} to {write(mean + half)}"
        decided = [("yes" if is_decided(spread) else "no")] if baseline else []
        cells: list[ShownCell] = []
        for seed in seeds:
            value = values[name].get(seed)
            cells.append(("–", "", "") if value is None else (write(100 * value), value, ""))
        rows.append([name, (write(mean), mean, ""), (interval, half or "", ""), *decided, *cells])
        points = {seed: 100 * value for seed, value in values[name].items()}
        note = f"{name}: {write(mean)} (95 % interval {interval}; {len(points)} seeds)"
        dots.append(DotRow(name, points, mean, half, note))
    subject = f"{measure}: difference from {baseline}" if baseline else measure
    label = "difference, percentage points" if baseline else "per cent"
    titles = [("arm", False), ("mean", True), ("95 % interval", True)]
    titles += [("decided", False)] if baseline else []
    titles += [(f"seed {seed}", True) for seed in seeds]
    return SeedTable(measure, dot_plot(dots, label, f"{subject}, by arm and seed"), titles, rows)
