"""Costs of attacks by formula: passes per clip, for a clip that nothing breaks.

The formulas are those of the docstrings of the attacks. The tests compare them with `Passes`.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from vidrobust.attacks.apgd import L1_PHASES, apgd, apgd_t
from vidrobust.attacks.gradient import fgsm, mim, pgd
from vidrobust.attacks.minimum import cw, fab, fab_t, fmn
from vidrobust.attacks.query import geo_trap, nes
from vidrobust.attacks.square import square
from vidrobust.attacks.suite import Step
from vidrobust.attacks.threat import ThreatModel
from vidrobust.attacks.video import (
    flicker,
    frame_saliency,
    one_frame,
    roa,
    salt_and_pepper,
    sparse,
    temporal_translation,
)


@dataclass(frozen=True)
class Cost:
    """Passes per clip.

    Attributes:
        forward: forward passes.
        backward: backward passes.
    """

    forward: int
    backward: int

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.forward + other.forward, self.backward + other.backward)

    def __mul__(self, times: int) -> "Cost":
        return Cost(times * self.forward, times * self.backward)


@dataclass(frozen=True)
class _Attacked:
    """Hold what the cost of an attack depends on.

    Attributes:
        options: the attack's options by name.
        threat: the budget.
        shape: (T, H, W) of the clips.
        classes: K of the model.
    """

    options: Mapping[str, Any]
    threat: ThreatModel
    shape: tuple[int, int, int]
    classes: int

    @property
    def steps(self) -> int:
        """The option `steps`."""
        return int(self.options["steps"])

    @property
    def restarts(self) -> int:
        """The option `restarts`."""
        return int(self.options["restarts"])

    @property
    def targets(self) -> int:
        """The option `targets`, at most the number of wrong classes."""
        return min(int(self.options["targets"]), self.classes - 1)

    @property
    def place(self) -> Cost:
        """The pass of each start in which a gradient chooses frames, a patch or pixels."""
        is_chosen = self.threat.places in ("saliency", "search")
        return Cost(1, 1) if is_chosen else Cost(0, 0)


def largest_cost(
    step: Step, threat: ThreatModel, shape: tuple[int, int, int], classes: int
) -> Cost:
    """Return the passes per clip of a step of a suite, on a clip that it does not break.

    On a clip that it breaks it makes fewer. Not counted is a second pass for places where the
    gradient of every clip vanishes.

    Args:
        step: of `suite_steps` or `attack_step`.
        threat: the suite's threat; the step's own one takes precedence.
        shape: (T, H, W) of the clips.
        classes: K of the model.

    Raises:
        ValueError: for an attack that is not one of ATTACKS.
    """
    attack = step.attack.func if isinstance(step.attack, partial) else step.attack
    if attack not in _FORMULAS:
        raise ValueError(f"{step.name}: the cost of this attack is unknown")
    parameters = inspect.signature(step.attack).parameters.values()
    options = {each.name: each.default for each in parameters}
    attacked = _Attacked(options, step.threat or threat, shape, classes)
    return _FORMULAS[attack](attacked) * step.draws


# ------------------------------------------------------------------ formulas


def _climb(a: _Attacked) -> Cost:
    """Return the cost of ascent whose last iterate is evaluated without its gradient."""
    return Cost(a.steps + 1, a.steps)


def _fgsm(a: _Attacked) -> Cost:
    return a.place + Cost(1, 1)


def _pgd(a: _Attacked) -> Cost:
    return (a.place + _climb(a)) * a.restarts


def _one_start(a: _Attacked) -> Cost:
    return a.place + _climb(a)


def _apgd(a: _Attacked) -> Cost:
    steps = a.steps + 1
    if a.threat.norm == "l1":
        steps = sum(max(int(fraction * a.steps), 1) + 1 for _, fraction in L1_PHASES)
    return (a.place + Cost(steps, steps)) * a.restarts


def _apgd_t(a: _Attacked) -> Cost:
    return Cost(1, 0) + _apgd(a) * a.targets  # the first pass ranks the classes


def _fab(a: _Attacked) -> Cost:
    return (a.place + Cost(2, a.classes - 1) * a.steps) * a.restarts


def _fab_t(a: _Attacked) -> Cost:
    return Cost(1, 0) + (a.place + Cost(2, 1) * a.steps) * (a.restarts * a.targets)


def _cw(a: _Attacked) -> Cost:
    return _one_start(a) * a.options["searches"]


def _square(a: _Attacked) -> Cost:
    return Cost(a.options["queries"] + 1, 0) * a.restarts


def _nes(a: _Attacked) -> Cost:
    per_step = a.options["samples"] + 1
    return Cost(1 + (a.options["queries"] - 1) // per_step * per_step, 0)


def _geo_trap(a: _Attacked) -> Cost:
    return Cost(1 + (a.options["queries"] - 1) // 3 * 3, 0)


def _temporal_translation(a: _Attacked) -> Cost:
    shifts = 2 * a.options["shift"] + 1 if a.shape[0] > 1 else 1
    return a.place + Cost(shifts, shifts) * a.steps


def _frame_saliency(a: _Attacked) -> Cost:
    frames, mode = a.shape[0], a.options["mode"]
    saliency = Cost(1, 1)
    if mode == "one_shot":
        return saliency + _climb(a) + Cost(frames, 0)
    return saliency + (_climb(a) + (saliency if mode == "refresh" else Cost(0, 0))) * frames


def _one_frame(a: _Attacked) -> Cost:
    return _climb(a) * a.shape[0]


def _penalised(a: _Attacked) -> Cost:
    last = 0 if a.options.get("cyclic") else 1
    return a.place + Cost(a.steps + last, a.steps)


def _roa(a: _Attacked) -> Cost:
    search = Cost(0, 0)
    if a.threat.places == "search":
        stride, k = a.options["stride"], a.threat.k
        rows, columns = ((side - k) // stride + 1 for side in a.shape[1:])
        search = Cost(1 + min(a.options["candidates"], rows * columns), 1)
    return a.place + search + _climb(a)


_FORMULAS: dict[Callable[..., Any], Callable[[_Attacked], Cost]] = {
    fgsm: _fgsm,
    pgd: _pgd,
    mim: _one_start,
    apgd: _apgd,
    apgd_t: _apgd_t,
    fab: _fab,
    fab_t: _fab_t,
    fmn: _one_start,
    cw: _cw,
    square: _square,
    nes: _nes,
    geo_trap: _geo_trap,
    temporal_translation: _temporal_translation,
    frame_saliency: _frame_saliency,
    one_frame: _one_frame,
    sparse: _penalised,
    flicker: _penalised,
    roa: _roa,
    salt_and_pepper: _climb,
}
