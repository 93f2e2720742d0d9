"""AutoRate: a learning rate that accuracy under attack reduces (AutoLoRa, Xu et al. 2024).

After each epoch, accuracy under attack is measured (`measured_accuracy.py`). At checkpoints of the
run, the rate is reduced and training goes back to the best weights so far, as in Auto-PGD (Croce
and Hein 2020). A run ends with its best weights.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

# Prefixes of the keys of weights and norm statistics in a method's state. The rest is the state of
# training, such as the budgets of an adaptive schedule, which continues.
_WEIGHTS = ("model.", "branch.")


class AutoRate:
    """Holds the accuracies of a run, the factor of its rate and its best weights.

    Attributes:
        checkpoints: epochs, increasing, at least 1.
        factor: of the configured rate.
        accuracies: under attack, after each epoch.
        best: weights and norm statistics after the epoch of the highest accuracy, on the CPU.
    """

    def __init__(
        self, milestones: Sequence[float], gamma: float, patience: float, epochs: int
    ) -> None:
        """Begin with the whole rate.

        Args:
            milestones: checkpoints, as fractions of the run.
            gamma: factor of the rate where it is reduced.
            patience: smallest fraction of the epochs since the checkpoint before in which accuracy
                has to increase.
            epochs: of the run.
        """
        marks = {round(part * epochs) for part in milestones}
        self.checkpoints = sorted(mark for mark in marks if mark > 0)
        self.gamma = gamma
        self.patience = patience
        self.factor = 1.0
        self.accuracies: list[float] = []
        self.best: dict[str, Tensor] = {}

    @property
    def best_epoch(self) -> int:
        """Number of the epoch whose weights are the best, from 0."""
        return self.accuracies.index(max(self.accuracies))

    def record(self, accuracy: float, method: nn.Module) -> bool:
        """Record the accuracy after an epoch, and keep weights that are better than all before.

        Args:
            accuracy: under attack, in [0, 1].
            method: holds the weights after the epoch, in `model` and, for AutoLoRa, `branch`.

        Returns:
            True if the rate was reduced and the method has its best weights again.
        """
        if accuracy > max(self.accuracies, default=-1.0):
            # copies: the weights go on changing in place
            self.best = {
                key: value.detach().cpu().clone()
                for key, value in method.state_dict().items()
                if key.startswith(_WEIGHTS)
            }
        self.accuracies.append(accuracy)
        if not must_reduce(self.accuracies, self.checkpoints, self.patience):
            return False
        self.factor *= self.gamma
        self.go_back(method)
        return True

    def go_back(self, method: nn.Module) -> None:
        """Give the method the weights and norm statistics that it had after the best epoch."""
        # as in the released code, the state of training stays as it is
        method.load_state_dict(method.state_dict() | self.best)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"factor": self.factor, "accuracies": list(self.accuracies), "best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what a checkpoint has kept."""
        self.factor = float(state["factor"])
        self.accuracies = [float(value) for value in state["accuracies"]]
        self.best = dict(state["best"])


def must_reduce(accuracies: Sequence[float], checkpoints: Sequence[int], patience: float) -> bool:
    """Return whether the rate is reduced after the last of some epochs.

    As in the released code, a checkpoint W is judged after W + 1 epochs, and the first one by the
    first condition alone. That code also asks that the rate was not reduced at the checkpoint
    before, but compares the rate with its own copy, so that this always holds.

    Args:
        accuracies: after each epoch so far.
        checkpoints: epochs, increasing, at least 1.
        patience: smallest fraction of the epochs since the checkpoint before in which accuracy has
            to increase.
    """
    end = len(accuracies) - 1
    if end not in checkpoints:
        return False
    earlier = [mark for mark in checkpoints if mark < end]
    start = max(earlier, default=0)
    increases = sum(accuracies[i + 1] > accuracies[i] for i in range(start, end))
    if increases < patience * (end - start):
        return True
    return bool(earlier) and max(accuracies) == max(accuracies[: start + 1])
