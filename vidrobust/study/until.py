"""Stop the training of arms at equal accuracy on held-out videos.

Arms that learn faster are then compared with others that know as much, not more.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from vidrobust.study.claims import is_list_of_text
from vidrobust.utils.atomic_files import read_json, replacing
from vidrobust.utils.errors import UserError, nearest
from vidrobust.utils.readable import percent
from vidrobust.utils.text import shown

CHECKS = "until.json"
UNTIL = "until_"  # an evaluation on held-out videos, and the number of steps


@dataclass(frozen=True)
class Until:
    """Describe when training stops.

    Attributes:
        accuracy: of the linear probe on the videos that data.validation holds out, in (0, 1).
        steps: least number of steps from one check to the next.
        options: options of the evaluation that checks it, after those of the arm.
    """

    accuracy: float
    steps: int
    options: Sequence[str] = ()

    def next_check(self, done: int) -> int:
        """Return the step of the next check: a tenth more than were done, at least `steps` more.

        Accuracy changes slowly late in training, where checks at a fixed distance would take longer
        than the training.

        Args:
            done: steps until the last check; 0 before the first one.
        """
        return done + max(self.steps, done // 10)


def read_until(content: Any, path: Path) -> Until | None:
    """Return what a study's config file says under `until`; None if it says nothing.

    Args:
        content: the value of the key; None without it.
        path: the config file, for messages.

    Raises:
        UserError: for an unknown or missing key, and a value of another type.
    """
    if content is None:
        return None
    keys = [each.name for each in fields(Until)]
    if not isinstance(content, dict) or not {"accuracy", "steps"} <= content.keys():
        raise UserError(f"{path}: until: must be a mapping with the keys accuracy and steps")
    for key in content:
        if key not in keys:
            raise UserError(f"{path}: until: unknown key '{shown(key)}'{nearest(key, keys)}")
    until = Until(**content)
    if type(until.accuracy) is not float or not 0 < until.accuracy < 1:
        raise UserError(f"{path}: until: accuracy={shown(until.accuracy)}: must be in (0, 1)")
    if type(until.steps) is not int or until.steps < 1:
        raise UserError(f"{path}: until: steps={shown(until.steps)}: must be at least 1")
    options = until.options
    if not is_list_of_text(options):
        raise UserError(f"{path}: until: options={shown(options)}: must be a list of key=value")
    return until


@dataclass(frozen=True)
class Checks:
    """Hold the checks of a run, as until.json does.

    Attributes:
        target: the accuracy to reach.
        accuracies: steps -> accuracy on held-out videos.
        is_over: whether the accuracy is reached, or no step is left.
    """

    target: float
    accuracies: dict[int, float]
    is_over: bool

    @property
    def shortfall(self) -> str:
        """Say by how much the accuracy was missed; "" if it was reached."""
        if not self.is_over or max(self.accuracies.values()) >= self.target:
            return ""
        last = max(self.accuracies)
        return (
            f"after all {last} steps {percent(self.accuracies[last])} on held-out videos, below"
            f" the {percent(self.target)} that were to be reached"
        )


def write_checks(folder: Path, checks: Checks) -> None:
    """Write until.json into the folder of a run."""
    with replacing(folder / CHECKS) as file:
        file.write((json.dumps(vars(checks), indent=2) + "\n").encode())


def read_checks(folder: Path) -> Checks | None:
    """Return the checks of a run; None before the first one.

    Raises:
        UserError: for a damaged file.
    """
    path = folder / CHECKS
    if not path.is_file():
        return None
    remedy = "delete it, and run the same command again"
    content = read_json(path, remedy)
    try:
        accuracies = {int(step): float(acc) for step, acc in content["accuracies"].items()}
        return Checks(float(content["target"]), accuracies, bool(content["is_over"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: is damaged ({error!r}); {remedy}") from None
