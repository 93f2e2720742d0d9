"""Undo a training step that fails, so that the state before it is saved."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from vidrobust import checkpoint
from vidrobust.methods import Method
from vidrobust.training.ema import Average


class StepGuard:
    """Keeps what a forward pass changes: norm statistics, queues, momentum encoders, generators.

    Weights change in the optimizer's step alone, which a failure before it leaves as they are. A
    method that takes several optimizer steps per batch has its weights, its optimizer and their
    average kept as well.

    Args:
        method: the method that is trained.
        optimizer: its optimizer.
        average: the running average of its weights, if there is one.
        step: steps that are done.
    """

    def __init__(
        self, method: Method, optimizer: torch.optim.Optimizer, average: Average | None, step: int
    ) -> None:
        self.method = method
        self.optimizer = optimizer
        self.average = average
        self.done = step
        self._inside = False
        self._updating = False
        self._slots: list[tuple[dict[str, Any], str]] = []
        self._values: list[Tensor] = []
        self._copies: list[Tensor] = []
        self._rng: dict[str, Any] = {}
        self._rates: list[float] = []
        self._several: tuple[dict[str, Any], dict[str, Tensor]] | None = None

    @torch.no_grad()
    def begin(self) -> None:
        """Remember the state before a step."""
        # Tensors are looked up anew: an epoch may replace a buffer. Copies are reused where shapes
        # stay, as copying into them is faster than allocating.
        slots = self._changing()
        values = [store[name] for store, name in slots]
        same = len(values) == len(self._copies) and all(
            a.shape == b.shape for a, b in zip(values, self._copies, strict=True)
        )
        if same and values:
            torch._foreach_copy_(self._copies, values)
        elif not same:  # the first step, and an epoch that resizes a buffer
            self._copies = [value.detach().clone() for value in values]
        self._slots = slots
        self._values = values
        self._rng = checkpoint.rng_state()
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        if self.method.replays > 1:
            average = {} if self.average is None else copy.deepcopy(self.average.state)
            self._several = copy.deepcopy(self.optimizer.state_dict()), average
        self._inside = True

    def updating(self) -> None:
        """Note that weights begin to change."""
        # with several updates per batch, weights are kept, and the step can still be undone
        self._updating = self.method.replays == 1

    def end(self) -> None:
        """Note that the step is done."""
        self._inside = False
        self._updating = False
        self.done += 1

    @torch.no_grad()
    def undo(self) -> bool:
        """Put back the state after `done` steps.

        Return False if an update was under way, which has overwritten that state.
        """
        if not self._inside:
            return True
        if self._updating:
            return False
        for (store, name), value, kept in zip(self._slots, self._values, self._copies, strict=True):
            value.data.copy_(kept)
            store[name] = value
        if self._several is not None:  # steps of the same batch that were already taken
            optimizer, average = self._several
            self.optimizer.load_state_dict(optimizer)
            if self.average is not None:
                self.average.load(average)
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate
        checkpoint.set_rng_state(self._rng)
        self._inside = False
        return True

    def _changing(self) -> list[tuple[dict[str, Any], str]]:
        """Return the places of all tensors that must be kept to undo a step.

        They are the buffers that a checkpoint has, and parameters without gradient, which momentum
        encoders change in the forward pass. With several updates per batch they are also the
        trained parameters.
        """
        teacher: nn.Module | None = getattr(self.method, "teacher", None)
        fixed = set() if teacher is None else set(teacher.modules())  # it never changes
        slots: list[tuple[dict[str, Any], str]] = []
        for module in self.method.modules():
            if module in fixed:
                continue
            for name, buffer in module._buffers.items():
                if buffer is not None and name not in module._non_persistent_buffers_set:
                    slots.append((module._buffers, name))
            for name, parameter in module._parameters.items():
                if parameter is not None and (
                    self.method.replays > 1 or not parameter.requires_grad
                ):
                    slots.append((module._parameters, name))
        return slots
