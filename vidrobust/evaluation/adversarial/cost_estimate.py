"""Estimate what attacks will cost on this machine, from passes that are measured on a few clips."""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from vidrobust.attacks import (
    BLACK_BOX,
    Cost,
    Misclassify,
    Predict,
    ThreatModel,
    largest_cost,
    pgd,
    rounded,
    rounds_away,
)
from vidrobust.evaluation.adversarial.attack_settings import AttackSettings
from vidrobust.evaluation.adversarial.targets import Unit
from vidrobust.evaluation.results import rank_files
from vidrobust.utils.atomic_files import read_rows
from vidrobust.utils.intervals import wilson
from vidrobust.utils.readable import rough_time

LEAST_S = 60.0  # a shorter evaluation needs no estimate
_SHARE = 0.02  # of the time of the attacks, which the measurement may take
_REPEATS = 3  # of a pass
_PILOT_STEPS = 3  # of PGD, which shows how many clips break early
_PILOT_CLIPS = 4  # fewer show nothing
_LIMITS = (1000, 200, 50)  # values of eval.limit that are offered

_Pass = Callable[[Predict, Tensor], int]  # (model, samples) -> number of classes


@dataclass(frozen=True)
class PassTimes:
    """Measured times of passes, per video.

    Attributes:
        forward_s: of a forward pass, in seconds.
        both_s: of a forward and a backward pass together, in seconds.
    """

    forward_s: float
    both_s: float

    def seconds(self, cost: Cost) -> float:
        """Return the time of some passes.

        A backward pass without a forward pass of its own (FAB's, to each class) runs the model
        forward again, as the graph of a pass is freed.
        """
        return self.forward_s * max(0, cost.forward - cost.backward) + self.both_s * cost.backward


@dataclass(frozen=True)
class Estimate:
    """The cost of attacks.

    Attributes:
        videos: number of videos that are still to be attacked.
        at_most_s: seconds if no attack breaks any clip.
        about_s: seconds if attacks break the clips that a short PGD breaks, and no others; None
            where that was not measured, and for black-box attacks, which break fewer.
    """

    videos: int
    at_most_s: float
    about_s: float | None = None

    def __str__(self) -> str:
        """Return the estimate, and what smaller values of eval.limit would give, as one line."""
        limit = f"at most {rough_time(self.at_most_s)}"
        whole = f"{limit} on this machine"
        if self.about_s is not None:
            whole = f"about {rough_time(self.about_s)} on this machine ({limit})"
        expected_s = self.at_most_s if self.about_s is None else self.about_s
        parts = [whole]
        for fewer in [each for each in _LIMITS if 2 * each <= self.videos][:2]:
            low, high = wilson(fewer // 2, fewer)
            points = 100 * (high - low) / 2
            less = rough_time(expected_s * fewer / self.videos)
            parts.append(f"eval.limit={fewer}: {less}, interval of ±{points:.0f} points")
        return "; ".join(parts)


class OnlyEstimated(Exception):
    """Ends an evaluation that was only to be estimated; holds the estimate as text."""


def estimate_attacks(
    unit: Unit, attack: AttackSettings, videos: int, *, ranks: int = 1, least_s: float = LEAST_S
) -> Estimate | None:
    """Return what attacks will cost, or None where they take less than `least_s` seconds.

    Loading, decoding and H.264 are not included. No random number of torch is used up. For a
    black-box attack the model runs forward alone, as it may have no backward pass.

    Args:
        unit: a few videos of the evaluation, whose passes are measured.
        attack: threats and attacks.
        videos: number of videos that are to be attacked.
        ranks: processes that share them.
        least_s: seconds.

    Raises:
        ValueError: the model gives no finite numbers or no logits, or an attack needs a gradient
            that it has not, or a threat does not fit; the attacks themselves report it.
        RuntimeError: the model has no backward pass and an attack needs one, or memory runs out.
    """
    has_backward = attack.suite.kind not in BLACK_BOX
    run = _forward_and_backward if has_backward else _forward
    devices = [unit.x.device] if unit.x.is_cuda else []
    with torch.random.fork_rng(devices), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the attack, which repeats them
        first_s, classes = _first_pass(run, unit)
        # the first pass is the slowest, so that this is a bound
        slow = PassTimes(first_s / len(unit.x), first_s / len(unit.x))
        bound_s = _at_most(unit, attack, slow, classes) * videos / ranks
        if bound_s < least_s:
            return None
        times = _measure_passes((_forward, run), unit, _SHARE * bound_s)
        at_most_s = _at_most(unit, attack, times, classes) * videos / ranks
        if at_most_s < least_s:
            return None
        about_s = None
        passes = 1 if attack.suite.smallest else (_PILOT_STEPS + 2) * len(attack.threats)
        per_clip_s = passes * times.both_s
        clips = int(_SHARE * at_most_s / max(per_clip_s, 1e-9))
        if has_backward and min(clips, len(unit.x)) >= _PILOT_CLIPS:
            some = replace(unit, x=unit.x[:clips], labels=unit.labels[:clips])
            about_s = _about(some, attack, times, classes) * videos / ranks
    return Estimate(videos, at_most_s, about_s)


def videos_left(out: Path, attack: AttackSettings, indices: list[int]) -> int:
    """Return the number of videos without rows of all threats, which an evaluation still attacks.

    Args:
        out: folder of the evaluation.
        attack: its threats.
        indices: its videos.
    """
    done = {
        (row.get("index"), row.get("threat"))
        for path in rank_files(out, "results")
        for row in read_rows(path)
    }
    threats = [str(threat) for threat in attack.ordered]
    return sum(any((index, each) not in done for each in threats) for index in indices)


# --- Measuring ---


def _first_pass(run: _Pass, unit: Unit) -> tuple[float, int]:
    """Return the seconds of a first pass, and the number of classes."""
    classes = 0

    def first() -> None:
        nonlocal classes
        classes = run(unit.predict, unit.x)

    return _timed(first, unit.x), classes


def _measure_passes(runs: tuple[_Pass, _Pass], unit: Unit, budget_s: float) -> PassTimes:
    """Return the median times of passes, per sample.

    Args:
        runs: the forward pass, and the most that an attack needs.
        unit: the model and the samples.
        budget_s: repeats end after this many seconds.
    """
    medians = []
    for run in dict.fromkeys(runs):  # the same one is measured once
        times: list[float] = []
        while len(times) < _REPEATS and (not times or sum(times) < budget_s / 2):
            times.append(_timed(partial(run, unit.predict, unit.x), unit.x))
        medians.append(median(times) / len(unit.x))
    return PassTimes(medians[0], max(medians))


def _forward(predict: Predict, x: Tensor) -> int:
    with torch.no_grad():
        return predict(x).shape[1]


def _forward_and_backward(predict: Predict, x: Tensor) -> int:
    """Run the model, with a gradient to x where it has one, and return the number of classes."""
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        logits = predict(leaf)
    if logits.requires_grad:
        torch.autograd.grad(logits.float().logsumexp(1).sum(), leaf)
    return logits.shape[1]


def _timed(run: Callable[[], object], x: Tensor) -> float:
    """Return the seconds that a function takes, on the device of x."""
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    start = time.perf_counter()
    run()
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter() - start


# --- Counting ---


def _threat_seconds(
    unit: Unit, threat: ThreatModel, attack: AttackSettings, times: PassTimes, classes: int
) -> float:
    """Return the seconds of all steps of a suite on one clip that nothing breaks.

    Args:
        unit: gives the shape of the clips.
        threat: the budget.
        attack: the suite.
        times: of passes.
        classes: K of the model.
    """
    frames, height, width = unit.x.shape[2:]
    steps = attack.suite(threat, frames, classes)
    costs = [largest_cost(step, threat, (frames, height, width), classes) for step in steps]
    # the clip is classified before, and after each step as it is and rounded
    verified = Cost(3 + 2 * len(steps), 0)
    return times.seconds(sum(costs, verified))


def _at_most(unit: Unit, attack: AttackSettings, times: PassTimes, classes: int) -> float:
    """Return the seconds per clip that nothing breaks, over all threats."""
    total = 0.0
    for family in attack.families:
        attacked = [threat for threat in family if threat.eps > 0]
        # one run for the largest budget serves the whole family
        for threat in attacked[-1:] if attack.suite.smallest else attacked:
            total += _threat_seconds(unit, threat, attack, times, classes)
        total += times.seconds(Cost(2, 0))  # the clip itself, as it is and rounded
    return total


def _about(unit: Unit, attack: AttackSettings, times: PassTimes, classes: int) -> float:
    """Return the mean seconds per clip, if attacks break what a short PGD breaks.

    Args:
        unit: the clips that PGD attacks.
        attack: the suite.
        times: of passes.
        classes: K of the model.
    """
    with torch.no_grad():
        right = unit.predict(unit.x).argmax(1) == unit.labels
    total = 0.0
    for family in attack.families:
        left = right.clone()
        attacked = [threat for threat in family if threat.eps > 0]
        for threat in attacked[-1:] if attack.suite.smallest else attacked:
            before = left.float().mean().item()
            if not attack.suite.smallest:  # such an attack goes on when a clip is broken
                left &= _withstand(unit, threat)
            after = left.float().mean().item()
            total += after * _threat_seconds(unit, threat, attack, times, classes)
            broken_early = Cost(_PILOT_STEPS + 4, _PILOT_STEPS)
            total += (before - after) * times.seconds(broken_early)
        total += times.seconds(Cost(2, 0))
    return total


def _withstand(unit: Unit, threat: ThreatModel) -> Tensor:
    """Return which clips a short PGD does not break, before or after rounding, (B,) bool.

    The suite attacks a clip until it is broken after rounding to uint8 too.
    """
    to_round = not rounds_away(threat, unit.x)
    loss = Misclassify(unit.predict, unit.labels, "ce", unit.x if to_round else None)
    generator = torch.Generator().manual_seed(0)
    x_adv = pgd(loss, unit.x, threat, steps=_PILOT_STEPS, generator=generator)
    with torch.no_grad():
        right = unit.predict(x_adv).argmax(1) == unit.labels
        if to_round:
            right |= unit.predict(rounded(x_adv, unit.x)).argmax(1) == unit.labels
    return right
