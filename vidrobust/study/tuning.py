"""Choose options of each arm of a study by the same rule, on a held-out part of the training split.

Options are chosen one after the other: each value of the first option is run, and the one with the
highest accuracy of the linear probe on the held-out videos stays; then the next option. Of equal
accuracies the first counts. The test split is not used.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from vidrobust.study.claims import is_list_of_text
from vidrobust.utils.atomic_files import read_json
from vidrobust.utils.errors import UserError, nearest
from vidrobust.utils.text import shown

TUNING = "tuning.json"
# folder of the runs that decide, in that of the study
TUNED_RUNS = "tune"
_REMEDY = "delete it, and run the study with --tune"
_AS = "as"  # key of a grid: the arm whose choices come first

# data set -> arm -> option -> value
Choices = dict[str, dict[str, dict[str, Any]]]


@dataclass(frozen=True)
class Tuning:
    """Describe what is chosen.

    Attributes:
        grid: name of an arm -> option -> values to choose from. The key `as` names another arm,
            whose choices are taken over before.
        options: options of the runs that decide, after those of the study and of the arm. They
            hold out videos by data.validation.
        seed: seed of these runs.
    """

    grid: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    options: Sequence[str] = ()
    seed: int = 1000

    def steps(self, arm: str) -> dict[str, list[Any]]:
        """Return option -> values, in the order in which an arm's options are chosen."""
        return {key: list(values) for key, values in self.grid[arm].items() if key != _AS}

    def teacher(self, arm: str) -> str:
        """Return the arm whose choices an arm takes over; "" for none."""
        return str(self.grid[arm].get(_AS, ""))


def read_tuning(content: Any, path: Path, arms: Collection[str]) -> Tuning | None:
    """Return what a study's config file says under `tune`; None if it says nothing.

    Args:
        content: the value of the key; None without it.
        path: the config file, for messages.
        arms: names of the arms.

    Raises:
        UserError: for an unknown key or arm, and a value of another type.
    """
    if content is None:
        return None
    keys = [each.name for each in fields(Tuning)]
    if not isinstance(content, dict) or not isinstance(content.get("grid"), dict):
        raise UserError(f"{path}: tune: must be a mapping with the key grid")
    for key in content:
        if key not in keys:
            raise UserError(f"{path}: tune: unknown key '{shown(key)}'{nearest(key, keys)}")
    tuning = Tuning(**content)
    options = tuning.options
    if not is_list_of_text(options):
        raise UserError(f"{path}: tune: options={shown(options)}: must be a list of key=value")
    if type(tuning.seed) is not int or tuning.seed < 0:
        raise UserError(f"{path}: tune: seed={shown(tuning.seed)}: must be a whole number")
    for number, (arm, steps) in enumerate(tuning.grid.items()):
        if arm not in arms:
            raise UserError(f"{path}: tune: no arm '{shown(arm)}'{nearest(arm, list(arms))}")
        # only an arm above may be a teacher, so that no two arms wait for each other
        _check_steps(steps, list(tuning.grid)[:number], f"{path}: tune: grid: {shown(arm)}")
    return tuning


def _check_steps(steps: Any, above: Collection[str], where: str) -> None:
    """Raise UserError for anything but options with values.

    Args:
        steps: the value of an arm in the grid.
        above: the arms before it.
        where: its place, for messages.
    """
    if not isinstance(steps, dict):
        raise UserError(f"{where}: must be a mapping of options to lists of values")
    for option, values in steps.items():
        if option == _AS and values not in above:
            raise UserError(f"{where}: as={shown(values)}: must be an arm of the grid above it")
        if option != _AS and (not isinstance(values, list) or not values):
            raise UserError(f"{where}: {shown(option)}: must be a list of values")


def words_of(values: Mapping[str, Any]) -> list[str]:
    """Return values of options as `key=value`."""
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def read_tuning_file(out: Path) -> dict[str, Any]:
    """Return the content of tuning.json in a study's folder; nothing without the file.

    Raises:
        UserError: for a damaged file.
    """
    path = out / TUNING
    return read_json(path, _REMEDY) if path.is_file() else {}


def read_choices(out: Path) -> Choices | None:
    """Return what tuning.json of a study's folder says was chosen; None without such a file.

    Raises:
        UserError: for a damaged file.
    """
    path = out / TUNING
    if not path.is_file():
        return None
    content = read_tuning_file(out)
    try:
        return {
            dataset: {arm: dict(entry["options"]) for arm, entry in arms.items()}
            for dataset, arms in content.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: is damaged ({error!r}); {_REMEDY}") from None
