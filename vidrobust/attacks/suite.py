"""ATTACKS, AutoAttack, and the worst case of several attacks."""

import inspect
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vidrobust.attacks.apgd import apgd, apgd_t
from vidrobust.attacks.arguments import above_zero, none_or_more
from vidrobust.attacks.domain import Domain
from vidrobust.attacks.gradient import fgsm, mim, pgd
from vidrobust.attacks.losses import (
    Misclassify,
    Predict,
    checked_labels,
    checked_logits,
    eot,
    require_classes,
    rounded,
)
from vidrobust.attacks.minimum import CW_DOMAIN, FAB_DOMAIN, cw, fab, fab_t, fmn, widened
from vidrobust.attacks.outputs import called, checked_output, numbered
from vidrobust.attacks.passes import Passes
from vidrobust.attacks.query import GEO_TRAP_DOMAIN, NES_DOMAIN, geo_trap, nes
from vidrobust.attacks.search import require_gradients
from vidrobust.attacks.self_checks import self_checks, weak_white_box
from vidrobust.attacks.square import square
from vidrobust.attacks.threat import (
    ThreatModel,
    as_clip,
    check_input,
    contains,
    measure,
    require_threat,
)
from vidrobust.attacks.video import (
    FLICKER_DOMAIN,
    FRAME_SALIENCY_DOMAIN,
    ONE_FRAME_DOMAIN,
    ROA_DOMAIN,
    SALT_AND_PEPPER_DOMAIN,
    flicker,
    frame_saliency,
    one_frame,
    roa,
    salt_and_pepper,
    sparse,
    temporal_translation,
)

Attack = Callable[..., Tensor]

# name -> attack(loss, x, threat, *, generator, ...) -> x_adv
ATTACKS: dict[str, Attack] = {
    "fgsm": fgsm,
    "pgd": pgd,
    "mim": mim,
    "apgd-ce": apgd,
    "apgd-dlr": apgd,
    "apgd-t": apgd_t,
    "fab": partial(fab, minimal=False),
    "fab-t": partial(fab_t, minimal=False),
    "fmn": partial(fmn, minimal=False),
    "cw": partial(cw, minimal=False),
    "square": square,
    "nes": nes,
    "geo-trap": geo_trap,
    "temporal-translation": temporal_translation,
    "frame-saliency": frame_saliency,
    "one-frame": one_frame,
    "sparse": sparse,
    "flicker": flicker,
    "roa": roa,
    "salt-and-pepper": salt_and_pepper,
}

# name -> the threats that an attack of ATTACKS is defined for; any threat unless listed
DOMAINS: dict[str, Domain] = {
    **{name: Domain(name) for name in ATTACKS},
    "fab": FAB_DOMAIN,
    "fab-t": FAB_DOMAIN,
    "cw": CW_DOMAIN,
    "nes": NES_DOMAIN,
    "geo-trap": GEO_TRAP_DOMAIN,
    "frame-saliency": FRAME_SALIENCY_DOMAIN,
    "one-frame": ONE_FRAME_DOMAIN,
    "flicker": FLICKER_DOMAIN,
    "roa": ROA_DOMAIN,
    "salt-and-pepper": SALT_AND_PEPPER_DOMAIN,
}

# name -> the score of the logits that an attack maximises; cross-entropy unless listed
_SCORES = {
    "apgd-dlr": "dlr",
    "fab": "margin",
    "fab-t": "margin",
    "fmn": "margin",
    "cw": "margin",
    "square": "margin",
    "nes": "margin",
    "geo-trap": "margin",
    "sparse": "escape",
    "flicker": "flicker_hinge",
}
BLACK_BOX = ("square", "nes", "geo-trap")
# with minimal=True one run of these serves every budget: `Outcome.within`
MINIMUM_NORM = ("fab", "fab-t", "fmn", "cw")
VERSIONS = ("standard", "plus", "rand", "video")


@dataclass(frozen=True)
class Step:
    """One attack of a suite.

    Attributes:
        name: the attack's name in results.
        attack: attack(loss, x, threat, *, generator) -> x_adv.
        score: the score of the logits that it maximises, a name in SCORES.
        threat: a part of the suite's threat, for an attack that only uses that part.
        draws: passes that are averaged per gradient (`eot`), for random models.
        minimal: it looks for smallest perturbations, whatever the budget.
    """

    name: str
    attack: Attack
    score: str = "ce"
    threat: ThreatModel | None = None
    draws: int = 1
    minimal: bool = False

    def __call__(
        self,
        predict: Predict,
        x: Tensor,
        y: Tensor,
        threat: ThreatModel,
        rounding: bool,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Return the perturbed clips of the attack.

        Args:
            predict: (B, C, T, H, W) in [0, 1] -> (B, K) logits.
            x: the clips.
            y: (B,) labels.
            threat: the suite's threat; the step's own one takes precedence.
            rounding: a sample is finished only when it is also wrong after rounding to uint8.
            generator: source of all random numbers.
        """
        averaged = predict if self.draws == 1 else eot(predict, self.draws)
        loss = Misclassify(averaged, y, self.score, x if rounding else None)
        return self.attack(loss, x, self.threat or threat, generator=generator)

    @property
    def domain(self) -> Domain:
        """Return what the attack declares in DOMAINS; any threat for names not in ATTACKS."""
        return DOMAINS.get(self.name, Domain(self.name))

    def require_defined(self, threat: ThreatModel) -> None:
        """Raise ValueError where this step would refuse to run, without running it.

        It refuses a threat outside the attack's domain, and fewer queries than one step takes.
        """
        self.domain.require(self.threat or threat)
        options = self.attack.keywords if isinstance(self.attack, partial) else {}
        if "queries" in options:
            self.domain.require_queries(options["queries"])


@dataclass
class Outcome:
    """The result of a suite.

    Attributes:
        x_adv: the worst clips.
        x_rounded: the clips that are worst after rounding to uint8; they are not rounded yet.
        broken_by: the attack that broke each sample; "clean" for those that are wrong without an
            attack, None for robust ones.
        rounded_by: the same after rounding.
        passes: attack -> (forward, backward) passes in clips.
        seconds: attack -> time.
        rejected: attack -> the number of clips that it put outside the threat model.
        smallest: the threat of a run of smallest perturbations alone; None for other runs.
    """

    x_adv: Tensor = field(repr=False)
    x_rounded: Tensor = field(repr=False)
    broken_by: list[str | None]
    rounded_by: list[str | None]
    passes: dict[str, tuple[int, int]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)
    smallest: ThreatModel | None = None

    @property
    def robust(self) -> list[bool]:
        """Return whether each sample withstood all attacks."""
        return [by is None for by in self.broken_by]

    @torch.no_grad()
    def within(self, predict: Predict, x: Tensor, y: Tensor, threat: ThreatModel) -> "Outcome":
        """Return the outcome at a smaller budget, from a run of smallest perturbations.

        One such run (`attack_step("fmn", minimal=True)` or another of MINIMUM_NORM) gives the
        accuracy at every eps: a clip is broken where its perturbation is small enough. Smallest
        perturbations do not survive rounding, so `widened` ones are used for it. Costs a forward
        pass of all clips, and another of those that rounding undoes.

        Args:
            predict: the model of the run.
            x: the clips of the run.
            y: their labels.
            threat: of the kind of the run's threat, with at most its budget.

        Raises:
            ValueError: the run was of another attack, or the threat has another kind or a larger
                budget.
        """
        if self.smallest is None:
            raise ValueError(
                "not a run of smallest perturbations alone: give worst_case the steps"
                " [attack_step('fmn', minimal=True)], and no rounding"
            )
        if threat.kind != self.smallest.kind or threat.eps > self.smallest.eps:
            raise ValueError(
                f"threat={threat}: must be of kind {self.smallest.kind} and at most"
                f" {self.smallest}, the threat of this run"
            )
        # broken at this budget: broken at all, by a perturbation that is small enough
        small = measure(threat, x, self.x_adv) <= threat.eps * (1 + 1e-6)
        broken_by = [
            by if by == "clean" or is_small else None
            for by, is_small in zip(self.broken_by, small.tolist(), strict=True)
        ]
        x_adv = torch.where(_wide(small, x), self.x_adv, x)
        wrong = torch.tensor([by is not None for by in broken_by], device=x.device)
        x_rounded, wrong_rounded = _best_to_round(_Problem(predict, x, y, threat), x_adv, wrong)
        rounded_by = [
            (by or "clean") if is_wrong else None
            for by, is_wrong in zip(broken_by, wrong_rounded.tolist(), strict=True)
        ]
        return replace(
            self, x_adv=x_adv, x_rounded=x_rounded, broken_by=broken_by, rounded_by=rounded_by
        )


# ------------------------------------------------------------------ steps


def attack_step(name: str, **options: Any) -> Step:
    """Return an attack of ATTACKS as a step of a suite.

    Args:
        name: of ATTACKS.
        options: keyword options of the attack.

    Raises:
        ValueError: for an unknown attack or option.
    """
    if name not in ATTACKS:
        raise ValueError(f"name={name!r}: must be one of {', '.join(ATTACKS)}")
    attack = ATTACKS[name]
    parameters = inspect.signature(attack).parameters
    allowed = [key for key, p in parameters.items() if p.kind is p.KEYWORD_ONLY]
    allowed = allowed[:-1]  # the last one is the generator, which the suite gives
    if unknown := [key for key in options if key not in allowed]:
        raise ValueError(f"{name} has no option {', '.join(unknown)}; it has {', '.join(allowed)}")
    return Step(
        name,
        partial(attack, **options) if options else attack,
        _SCORES.get(name, "ce"),
        minimal=name in MINIMUM_NORM and options.get("minimal", False),
    )


def suite_steps(
    version: str, threat: ThreatModel, frames: int, classes: int, *, effort: float = 1.0
) -> list[Step]:
    """Return the attacks of a version of AutoAttack (Croce and Hein 2020) defined for threat.

    standard: APGD-CE, APGD-T (9 targets), FAB-T (9), Square (5000 queries); in L1 APGD-CE has 5
    restarts and APGD-T 5 targets. plus: APGD-CE, APGD-DLR and untargeted FAB with 5 restarts,
    Square, APGD-T and FAB-T (9 targets each). rand: APGD-CE and APGD-DLR with the average of 20
    passes. video: standard, then APGD-CE on parts of a dense threat: flicker, tube, a quarter of
    the frames, one frame. FAB is not defined for l2_frame, DLR not for two classes.

    Args:
        version: standard, plus, rand or video.
        threat: what is allowed.
        frames: T of the clips.
        classes: K of the logits.
        effort: multiplies steps and queries; below 1 it is not AutoAttack any more.

    Raises:
        ValueError: for an unknown version.
    """
    if version not in VERSIONS:
        raise ValueError(f"version={version!r}: must be one of {', '.join(VERSIONS)}")
    require_threat(threat)
    above_zero(effort=effort)
    # the published numbers: 100 steps and 5000 queries
    count = {"steps": max(round(100 * effort), 1)}
    is_l1 = threat.norm == "l1"
    targets = 5 if is_l1 and version != "plus" else 9
    square_step = attack_step("square", queries=max(round(5000 * effort), 1))
    targeted = [attack_step("apgd-t", **count, targets=targets), attack_step("fab-t", **count)]

    # the published attacks of each version
    if version == "rand":
        steps = [replace(attack_step(name, **count), draws=20) for name in ("apgd-ce", "apgd-dlr")]
    elif version == "plus":
        names = ("apgd-ce", "apgd-dlr", "fab")
        restarted = [attack_step(name, **count, restarts=5) for name in names]
        steps = [*restarted, square_step, *targeted]
    else:
        apgd_ce = attack_step("apgd-ce", **count, restarts=5 if is_l1 else 1)
        steps = [apgd_ce, *targeted, square_step]

    # the parts of a dense threat, for clips
    if version == "video" and threat.support == "dense" and frames > 1:
        for part in _parts(threat, frames):
            name = f"apgd-{part.support}{part.k or ''}"
            steps.append(replace(attack_step("apgd-ce", **count), name=name, threat=part))

    steps = [step for step in steps if (step.threat or threat) in step.domain]
    return [step for step in steps if step.name != "apgd-dlr" or classes >= 3]


def _parts(threat: ThreatModel, frames: int) -> list[ThreatModel]:
    """Return threats that a dense one includes.

    Each has fewer dimensions, so that a search may find in it what a search of the whole threat
    misses.
    """
    counts = sorted({max(frames // 4, 1), 1}, reverse=True)
    return [
        replace(threat, support="flicker"),
        replace(threat, support="tube"),
        *(replace(threat, support="frames", k=k) for k in counts),
    ]


# ------------------------------------------------------------------ the worst case


@dataclass(frozen=True)
class _Problem:
    """The model, clips and threat of a suite.

    Attributes:
        predict: (B, C, T, H, W) in [0, 1] -> (B, K) logits.
        x: the clips.
        y: (B,) labels.
        threat: what is allowed.
    """

    predict: Predict
    x: Tensor
    y: Tensor
    threat: ThreatModel

    def at(self, rows: Tensor) -> "_Problem":
        """Return the problem of some of the samples."""
        return replace(self, x=self.x[rows], y=self.y[rows])


def worst_case(
    predict: Predict,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    steps: Sequence[Step],
    *,
    rounding: bool = False,
    warn: bool = True,
    generator: torch.Generator | None = None,
) -> Outcome:
    """Attack x with one step after the other, each only the samples that are not broken yet.

    No attack is trusted. Its clips are measured from their pixels: those outside the threat are
    discarded, and counted. The others are classified anew.

    Args:
        predict: (B, C, T, H, W) in [0, 1] -> (B, K) logits.
        x: the clips; the outcome keeps no graph of them.
        y: (B,) labels.
        threat: what is allowed.
        steps: of `suite_steps` or `attack_step`.
        rounding: go on with a sample until it is broken after rounding to uint8 too.
        warn: warn where black-box attacks, or parts of the threat, broke what white-box attacks
            left.
        generator: source of all random numbers.

    Raises:
        ValueError: for probabilities in place of logits, labels out of range, x outside [0, 1], and
            a model that writes into its input. As `BadSamples`, which names the samples by their
            number in x: for NaN logits and gradients.
    """
    check_input(x)
    require_threat(threat)
    y = checked_labels(y)
    if isinstance(steps, Step) or not steps or not all(isinstance(step, Step) for step in steps):
        raise TypeError(
            "steps: must be a list of steps, [attack_step('pgd', steps=50)] or suite_steps(...)"
        )
    # a model that writes into its input is refused; only the copy has changed by then
    x = x.detach().clone()
    with torch.no_grad():
        clean_wrong = _wrong(predict, x, y)
    broken_by = ["clean" if wrong else None for wrong in clean_wrong.tolist()]
    outcome = Outcome(
        x.clone(),
        x.clone(),
        broken_by,
        _clean_after_rounding(predict, x, y, clean_wrong) if rounding else list(broken_by),
        smallest=threat if not rounding and all(step.minimal for step in steps) else None,
    )
    problem = _Problem(predict, x, y, threat)
    to_round = rounding and not rounds_away(threat, x)
    for step in steps:
        remaining = _remaining(outcome, to_round)
        if not remaining:
            break
        _run_step(problem, step, remaining, to_round, generator, outcome)
    if not rounding:
        outcome.x_rounded = outcome.x_adv
        outcome.rounded_by = list(outcome.broken_by)
    for line in _weakness(steps, outcome.broken_by) if warn else ():
        warnings.warn(line, stacklevel=2)
    return outcome


def _remaining(outcome: Outcome, to_round: bool) -> list[int]:
    """Return the samples that are not broken yet; to_round: or not after rounding."""
    return [
        i
        for i, by in enumerate(outcome.broken_by)
        if by is None or (to_round and outcome.rounded_by[i] is None)
    ]


def _run_step(
    problem: _Problem,
    step: Step,
    samples: list[int],
    to_round: bool,
    generator: torch.Generator | None,
    outcome: Outcome,
) -> None:
    """Run one attack on some samples, verify its clips, and record them in the outcome.

    Args:
        problem: all clips.
        step: the attack.
        samples: the numbers of the samples to attack.
        to_round: break the samples after rounding too.
        generator: source of all random numbers.
        outcome: changed in place.
    """
    rows = torch.tensor(samples, device=problem.x.device)
    counted = Passes(problem.predict)
    start = time.perf_counter()
    with numbered(rows):
        x_adv = step(counted, problem.x[rows], problem.y[rows], problem.threat, to_round, generator)
    outcome.seconds[step.name] = time.perf_counter() - start
    outcome.passes[step.name] = (counted.forward, counted.backward)

    # clips outside the threat are replaced with the clean clips, which are indexed anew, as the
    # attack may have written into its copy
    attacked = problem.at(rows)
    inside = contains(problem.threat, attacked.x, x_adv)
    if not inside.all():
        outcome.rejected[step.name] = int((~inside).sum())
    x_adv = torch.where(_wide(inside, x_adv), x_adv, attacked.x)

    # the suite classifies the clips itself
    with numbered(rows), torch.no_grad():
        wrong = _wrong(problem.predict, x_adv, attacked.y)
    _record(outcome.broken_by, outcome.x_adv, step.name, rows, wrong, x_adv)
    if to_round:
        with numbered(rows):
            x_rounded, wrong_rounded = _best_to_round(attacked, x_adv, wrong)
        _record(outcome.rounded_by, outcome.x_rounded, step.name, rows, wrong_rounded, x_rounded)


def _weakness(steps: Sequence[Step], broken_by: list[str | None]) -> list[str]:
    """Return what the outcome says against the white-box attacks, if any came before the others."""
    parts = [step.name for step in steps if step.threat is not None]
    white = [step.name for step in steps if step.name not in (*BLACK_BOX, *parts)]
    return weak_white_box(broken_by, BLACK_BOX, parts) if white else []


def rounds_away(threat: ThreatModel, x: Tensor) -> bool:
    """Return whether rounding to uint8 undoes every perturbation of the threat.

    It does for Linf budgets below the distance of two uint8 values. Clips that are no uint8 values
    themselves are rounded too, and half that distance is enough to change the result.
    """
    is_uint8 = bool(((x * 255).round() / 255 - x).abs().amax() < 1e-6) if x.numel() else False
    return threat.norm == "linf" and threat.eps * 255 < (1 - 1e-4 if is_uint8 else 0.5 + 1e-4)


def _record(
    broken_by: list[str | None],
    kept: Tensor,
    name: str,
    rows: Tensor,
    wrong: Tensor,
    x_adv: Tensor,
) -> None:
    """Record the result of an attack for the samples that no attack has broken before.

    Args:
        broken_by: per sample of the whole batch, changed in place.
        kept: the clips of the whole batch, changed in place.
        name: of the attack.
        rows: the numbers of the attacked samples.
        wrong: (n,) bool, of the attacked samples.
        x_adv: their perturbed clips.
    """
    for index, (row, is_wrong) in enumerate(zip(rows.tolist(), wrong.tolist(), strict=True)):
        if broken_by[row] is None:
            kept[row] = x_adv[index]
            broken_by[row] = name if is_wrong else None


@torch.no_grad()
def _best_to_round(problem: _Problem, x_adv: Tensor, wrong: Tensor) -> tuple[Tensor, Tensor]:
    """Return the clips to round to uint8, and whether they are wrong then, (B,) bool.

    These are x_adv, or `widened` ones where rounding undoes what the attack did.

    Args:
        problem: the clips that were attacked.
        x_adv: their perturbed clips.
        wrong: (B,) bool, x_adv is wrong before rounding.
    """
    predict, x, y = problem.predict, problem.x, problem.y
    wrong_rounded = _wrong(predict, rounded(x_adv, x), y)
    # where rounding undoes the attack, scale its perturbation up to the whole budget and try again
    undone = (wrong & ~wrong_rounded).nonzero().flatten()
    if not len(undone):
        return x_adv, wrong_rounded
    wide = widened(problem.threat, x[undone], x_adv[undone])
    with numbered(undone):
        saved = _wrong(predict, rounded(wide, x[undone]), y[undone])
    to_round = x_adv.clone()
    to_round[undone[saved]] = wide[saved]
    wrong_rounded[undone[saved]] = True
    return to_round, wrong_rounded


@torch.no_grad()
def _clean_after_rounding(
    predict: Predict, x: Tensor, y: Tensor, clean_wrong: Tensor
) -> list[str | None]:
    """Return "clean" for samples whose clean clip is wrong after rounding, None for the others."""
    x_rounded = rounded(x, x)
    wrong = clean_wrong if torch.equal(x_rounded, x) else _wrong(predict, x_rounded, y)
    return ["clean" if is_wrong else None for is_wrong in wrong.tolist()]


# ------------------------------------------------------------------ AutoAttack


def autoattack(  # noqa: PLR0913  (a public signature)
    predict: Predict,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    version: str = "standard",
    *,
    effort: float = 1.0,
    batch_size: int = 0,
    checks: int = 8,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the worst clips that AutoAttack finds (Croce and Hein, ICML 2020), shaped as x.

    `worst_case` with the steps of `suite_steps` also returns which attack broke what, and what it
    cost. Doubts are Python warnings: those of `self_checks`, and black-box attacks that broke what
    white-box attacks left.

    Args:
        predict: (B, C, T, H, W) in [0, 1] -> (B, K) logits, in eval mode.
        x: the clips.
        y: (B,) labels.
        threat: what is allowed.
        version: of `suite_steps`.
        effort: multiplies steps and queries.
        batch_size: samples attacked at a time; 0: all.
        checks: samples for `self_checks`: the first ones until so many are classified right; 0:
            none.
        generator: source of all random numbers.

    Raises:
        ValueError: as `worst_case` does, and for an unknown version. Samples are named by their
            number in x.
    """
    check_input(x)
    none_or_more(batch_size=batch_size, checks=checks)
    require_gradients()
    loss = Misclassify(predict, y)
    loss.require_labels(x)
    if not len(x):
        return x.detach().clone()
    classes = _number_of_classes(loss, x)
    steps = suite_steps(version, threat, as_clip(x).shape[2], classes, effort=effort)
    # doubts about the model first, as they explain odd results
    if checks:
        n = _first_with_right(loss, x, checks, batch_size or checks)
        for line in self_checks(
            predict,
            x[:n],
            y[:n],
            threat,
            random=version == "rand",
            batch_size=batch_size,
            generator=torch.Generator().manual_seed(0),
        ):
            warnings.warn(line, stacklevel=2)
    # the attacks, batch by batch; doubts about them need the results of all batches
    x_adv = []
    broken_by = []
    for rows in torch.arange(len(x)).split(batch_size or len(x)):
        with numbered(rows):
            outcome = worst_case(
                predict, x[rows], y[rows], threat, steps, warn=False, generator=generator
            )
        x_adv.append(outcome.x_adv)
        broken_by += outcome.broken_by
    for line in _weakness(steps, broken_by):
        warnings.warn(line, stacklevel=2)
    return torch.cat(x_adv)


@torch.no_grad()
def _number_of_classes(loss: Misclassify, x: Tensor) -> int:
    """Return K, from the first clip, and refuse labels that are no class."""
    logits = checked_output(called(loss.predict, x[:1].clone()), 1)
    require_classes(loss.y, logits.shape[1])
    checked_logits(logits, loss.y[:1])
    return logits.shape[1]


@torch.no_grad()
def _first_with_right(loss: Misclassify, x: Tensor, count: int, size: int) -> int:
    """Return how many samples, from the first on, include `count` that are right; else all.

    Args:
        loss: of the classifier.
        x: the clips.
        count: of right ones to include.
        size: clips that predict gets at a time.
    """
    right = 0
    for rows in torch.arange(len(x)).split(size):
        with numbered(rows):
            hits = loss.at(rows.to(loss.y.device)).logits(x[rows]).argmax(1) == loss.y[rows]
        for row, hit in zip(rows.tolist(), hits.tolist(), strict=True):
            right += hit
            if right == count:
                return row + 1
    return len(x)


def _wrong(predict: Predict, x: Tensor, y: Tensor) -> Tensor:
    """Return (B,) bool: x is predicted as another class.

    Raises:
        ValueError: as `Misclassify.logits` does.
    """
    return Misclassify(predict, y).logits(x).argmax(1) != y


def _wide(flag: Tensor, x: Tensor) -> Tensor:
    """Return (B,) flags shaped to broadcast to x."""
    return flag.view(-1, *[1] * (x.ndim - 1))
