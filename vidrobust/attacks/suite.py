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
    **{
        name: partial(attack, minimal=False)
        for name, attack in (("fab", fab), ("fab-t", fab_t), ("fmn", fmn), ("cw", cw))
    },
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

# the score of the logits that an attack maximises, where it is not cross-entropy
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
MINIMUM_NORM = (
    "fab",
    "fab-t",
    "fmn",
    "cw",
)  # with minimal=True one run serves every budget: `Outcome.within`
VERSIONS = ("standard", "plus", "rand", "video")


@dataclass(frozen=True)
class Step:
    """One attack of a suite. threat: a part of the suite's, for an attack that only uses that
    part.
    """

    name: str
    attack: Attack
    score: str = "ce"
    threat: ThreatModel | None = None
    draws: int = 1
    minimal: bool = False  # it looks for smallest perturbations, whatever the budget

    def __call__(
        self,
        predict: Predict,
        x: Tensor,
        y: Tensor,
        threat: ThreatModel,
        rounding: bool,
        generator: torch.Generator | None,
    ) -> Tensor:
        seen = predict if self.draws == 1 else eot(predict, self.draws)
        loss = Misclassify(seen, y, self.score, x if rounding else None)
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
    """What a suite found.

    x_adv: the worst clips; x_rounded: the worst ones to round to uint8. broken_by: the attack that
    broke each, "clean" for those that are wrong without one, None for what is robust; rounded_by:
    the same after rounding. passes: attack -> (forward, backward) passes in clips; seconds: attack
    -> time. rejected: attack -> how many clips it put outside the threat model. smallest: the
    threat, of a run of smallest perturbations alone.
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
        """Whether each sample withstood all of it."""
        return [by is None for by in self.broken_by]

    @torch.no_grad()
    def within(self, predict: Predict, x: Tensor, y: Tensor, threat: ThreatModel) -> "Outcome":
        """The same at a smaller budget, of the smallest perturbations: one run of them gives
        accuracy at every eps.

        self: of `attack_step("fmn", minimal=True)` or another of MINIMUM_NORM; x, y: what it was
        run on. A clip is broken where its perturbation is small enough. After rounding, `widened`
        ones are looked at: the smallest are gone. Costs a forward pass of all clips, and another of
        those that rounding undoes. Raises ValueError for a run of any other attack, for a larger
        budget, and for another kind of threat.
        """
        if self.smallest is None:
            raise ValueError(
                "not a run of smallest perturbations alone: attack_step('fmn', minimal=True), no"
                " rounding"
            )
        if threat.kind != self.smallest.kind or threat.eps > self.smallest.eps:
            raise ValueError(
                f"{threat}: what was run was {self.smallest}, which tells of its smaller budgets"
            )
        small = (measure(threat, x, self.x_adv) <= threat.eps * (1 + 1e-6)).tolist()
        broken_by = [
            by if by == "clean" or ok else None
            for by, ok in zip(self.broken_by, small, strict=True)
        ]
        x_adv = torch.where(_wide(torch.tensor(small, device=x.device), x), self.x_adv, x)
        wrong = torch.tensor([by is not None for by in broken_by], device=x.device)
        x_rounded, also = _survives_rounding(predict, threat, x, y, x_adv, wrong)
        rounded_by = [
            (by or "clean") if gone else None
            for by, gone in zip(broken_by, also.tolist(), strict=True)
        ]
        return replace(
            self, x_adv=x_adv, x_rounded=x_rounded, broken_by=broken_by, rounded_by=rounded_by
        )


def attack_step(name: str, **options: Any) -> Step:
    """An attack of ATTACKS by name, with its options, as a step of a suite.

    Raises ValueError for an unknown attack or option.
    """
    if name not in ATTACKS:
        raise ValueError(f"no attack {name!r}; there are {', '.join(ATTACKS)}")
    attack = ATTACKS[name]
    known = [
        key for key, p in inspect.signature(attack).parameters.items() if p.kind is p.KEYWORD_ONLY
    ][:-1]
    if unknown := [key for key in options if key not in known]:
        raise ValueError(f"{name} has no option {', '.join(unknown)}; it has {', '.join(known)}")
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
        raise ValueError(f"version={version!r}: {', '.join(VERSIONS)}")
    require_threat(threat)
    above_zero(effort=effort)
    n = {"steps": max(round(100 * effort), 1)}
    flat = threat.norm == "l1"
    queries = attack_step("square", queries=max(round(5000 * effort), 1))
    targets = 5 if flat and version != "plus" else 9
    targeted = [attack_step("apgd-t", **n, targets=targets), attack_step("fab-t", **n)]
    if version == "rand":
        steps = [replace(attack_step(name, **n), draws=20) for name in ("apgd-ce", "apgd-dlr")]
    elif version == "plus":
        steps = [
            *(attack_step(name, **n, restarts=5) for name in ("apgd-ce", "apgd-dlr", "fab")),
            queries,
            *targeted,
        ]
    else:
        steps = [attack_step("apgd-ce", **n, restarts=5 if flat else 1), *targeted, queries]
    if version == "video" and threat.support == "dense" and frames > 1:
        steps += [
            replace(
                attack_step("apgd-ce", **n), name=f"apgd-{part.support}{part.k or ''}", threat=part
            )
            for part in _parts(threat, frames)
        ]
    return [
        step
        for step in steps
        if (step.threat or threat) in step.domain and not (step.name == "apgd-dlr" and classes < 3)
    ]


def _parts(threat: ThreatModel, frames: int) -> list[ThreatModel]:
    """Threats that a dense one holds: fewer ways to move, which a weak search of all of them may
    miss.
    """
    fewer = sorted({max(frames // 4, 1), 1}, reverse=True)
    return [
        replace(threat, support="flicker"),
        replace(threat, support="tube"),
        *(replace(threat, support="frames", k=k) for k in fewer),
    ]


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
    """Attack x with one step after the other, each only what is not broken yet.

    No attack is trusted: its clips are measured from their pixels (what lies outside the threat is
    thrown away, and counted) and classified anew.

    Args:
        predict: (B, C, T, H, W) in [0, 1] -> (B, K) logits.
        x: the clips; the outcome keeps no graph of them.
        y: (B,) labels.
        threat: what is allowed.
        steps: of `suite_steps` or `attack_step`.
        rounding: a sample goes on until it is broken after rounding to uint8 as well.
        warn: warn where black-box attacks, or parts of the threat, broke what white-box attacks
            left.
        generator: of all random numbers.

    Raises:
        ValueError: for probabilities in place of logits, labels out of range, x outside [0, 1], a
            model that writes into its input; `BadSamples` for NaN logits and gradients, which names
            the samples by their number in x.
    """
    check_input(x)
    require_threat(threat)
    y = checked_labels(y)
    if isinstance(steps, Step) or not steps or not all(isinstance(step, Step) for step in steps):
        raise TypeError(
            "steps: a list of steps, [attack_step('pgd', steps=50)] or suite_steps(...)"
        )
    x = x.detach().clone()  # a model that writes into it is refused, and has changed the copy alone
    with torch.no_grad():
        clean = _wrong(predict, x, y)
    broken_by = ["clean" if wrong else None for wrong in clean.tolist()]
    outcome = Outcome(
        x.clone(),
        x.clone(),
        broken_by,
        _after_rounding(predict, x, y, clean) if rounding else list(broken_by),
        smallest=threat if not rounding and all(step.minimal for step in steps) else None,
    )
    to_round = rounding and not rounds_away(threat, x)
    for step in steps:
        left = [
            i
            for i, by in enumerate(broken_by)
            if by is None or (to_round and outcome.rounded_by[i] is None)
        ]
        if not left:
            break
        counted, rows, start = (
            Passes(predict),
            torch.tensor(left, device=x.device),
            time.perf_counter(),
        )
        with numbered(rows):
            found = step(counted, x[rows], y[rows], threat, to_round, generator)
        outcome.seconds[step.name] = time.perf_counter() - start
        outcome.passes[step.name] = (counted.forward, counted.backward)
        inside = contains(threat, x[rows], found)
        if not inside.all():
            outcome.rejected[step.name] = int((~inside).sum())
        found = torch.where(_wide(inside, x), found, x[rows])
        _record(outcome, predict, step.name, threat, rows, x, y, found, to_round)
    if not rounding:
        outcome.x_rounded = outcome.x_adv
        outcome.rounded_by = list(broken_by)
    for line in _weakness(steps, broken_by) if warn else ():
        warnings.warn(line, stacklevel=2)
    return outcome


def _weakness(steps: Sequence[Step], broken_by: list[str | None]) -> list[str]:
    """Return what the outcome says against the white-box attacks, if any came before the others."""
    parts = [step.name for step in steps if step.threat is not None]
    white = [step.name for step in steps if step.name not in (*BLACK_BOX, *parts)]
    return weak_white_box(broken_by, BLACK_BOX, parts) if white else []


def rounds_away(threat: ThreatModel, x: Tensor) -> bool:
    """Whether no perturbation of the threat is left after rounding to uint8: Linf of less than a
    step between values.

    Clips that are no uint8 values themselves go to the nearest, and it takes half a step less.
    """
    whole = bool(((x * 255).round() / 255 - x).abs().amax() < 1e-6) if x.numel() else False
    return threat.norm == "linf" and threat.eps * 255 < (1 - 1e-4 if whole else 0.5 + 1e-4)


@torch.no_grad()
def _record(
    outcome: Outcome,
    predict: Predict,
    name: str,
    threat: ThreatModel,
    rows: Tensor,
    x: Tensor,
    y: Tensor,
    found: Tensor,
    rounding: bool,
) -> None:
    with numbered(rows):
        wrong = _wrong(predict, found, y[rows])
    _take(outcome.broken_by, outcome.x_adv, name, rows, wrong, found)
    if rounding:
        with numbered(rows):
            clips, also = _survives_rounding(predict, threat, x[rows], y[rows], found, wrong)
        _take(outcome.rounded_by, outcome.x_rounded, name, rows, also, clips)


def _take(
    by: list[str | None], kept: Tensor, name: str, rows: Tensor, wrong: Tensor, found: Tensor
) -> None:
    """Keep what was found of the rows that nothing has broken before."""
    for at, (row, is_wrong) in enumerate(zip(rows.tolist(), wrong.tolist(), strict=True)):
        if by[row] is None:
            kept[row] = found[at]
            by[row] = name if is_wrong else None


@torch.no_grad()
def _survives_rounding(
    predict: Predict, threat: ThreatModel, x: Tensor, y: Tensor, found: Tensor, wrong: Tensor
) -> tuple[Tensor, Tensor]:
    """(the clips to round, whether they are wrong then): `found`, or `widened` where rounding
    undoes what it did.
    """
    also = _wrong(predict, rounded(found, x), y)
    undone = (wrong & ~also).nonzero().flatten()
    if not len(undone):
        return found, also
    wide, to_round = widened(threat, x[undone], found[undone]), found.clone()
    with numbered(undone):
        saved = _wrong(predict, rounded(wide, x[undone]), y[undone])
    to_round[undone[saved]], also[undone[saved]] = wide[saved], True
    return to_round, also


@torch.no_grad()
def _after_rounding(predict: Predict, x: Tensor, y: Tensor, clean: Tensor) -> list[str | None]:
    seen = rounded(x, x)
    wrong = clean if torch.equal(seen, x) else _wrong(predict, seen, y)
    return ["clean" if w else None for w in wrong.tolist()]


def autoattack(
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
        generator: of all random numbers.

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
    with torch.no_grad():
        first = checked_output(called(predict, x[:1].clone()), 1)
    classes = first.shape[1]
    require_classes(loss.y, classes)
    checked_logits(first, loss.y[:1])
    steps = suite_steps(version, threat, as_clip(x).shape[2], classes, effort=effort)
    size = batch_size or len(x)
    if checks:
        n = _enough(loss, x, checks, batch_size or checks)
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
    found, broken_by = [], []
    for rows in torch.arange(len(x)).split(size):
        with numbered(rows):
            outcome = worst_case(
                predict, x[rows], y[rows], threat, steps, warn=False, generator=generator
            )
        found.append(outcome.x_adv)
        broken_by += outcome.broken_by
    for line in _weakness(steps, broken_by):
        warnings.warn(line, stacklevel=2)
    return torch.cat(found)


@torch.no_grad()
def _enough(loss: Misclassify, x: Tensor, wanted: int, size: int) -> int:
    """Return how many samples, from the first on, hold `wanted` that are right; else all."""
    right = 0
    for rows in torch.arange(len(x)).split(size):
        with numbered(rows):
            hits = loss.at(rows.to(loss.y.device)).logits(x[rows]).argmax(1) == loss.y[rows]
        for row, hit in zip(rows.tolist(), hits.tolist(), strict=True):
            right += hit
            if right == wanted:
                return row + 1
    return len(x)


def _wrong(predict: Predict, x: Tensor, y: Tensor) -> Tensor:
    """Return (B,) bool: x is predicted as another class. Raises ValueError as `logits` does."""
    return Misclassify(predict, y).logits(x).argmax(1) != y


def _wide(flag: Tensor, x: Tensor) -> Tensor:
    return flag.view(-1, *[1] * (x.ndim - 1))
