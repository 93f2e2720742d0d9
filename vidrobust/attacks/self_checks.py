"""Check a model and its attacks before a robust accuracy is believed.

The ways in which evaluations go wrong in public code: the attack does nothing, gradients vanish,
the model draws random numbers, its norms see the batch, the attack and the prediction are of
different models.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from vidrobust.attacks.arguments import none_or_more
from vidrobust.attacks.gradient import pgd
from vidrobust.attacks.losses import Misclassify, Predict, margin
from vidrobust.attacks.outputs import numbered
from vidrobust.attacks.reach import batch_norms_in_training
from vidrobust.attacks.search import judged_gradient
from vidrobust.attacks.square import square
from vidrobust.attacks.threat import ThreatModel

# a budget at which every clip can become any other, in each norm, for clips of n values in frames
# of m
_EVERYTHING = {
    "linf": lambda n, m: 1.0,
    "l2": lambda n, m: n**0.5,
    "l2_frame": lambda n, m: m**0.5,
    "l1": lambda n, m: n,
}
_TOO_FEW = "more than 1 value per channel when training"  # torch's words
_IN_TRAINING = "norms are in training mode; call eval()"

_FEW = 4  # clips below which one that is right says nothing about chance


def self_checks(
    predict: Predict,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    random: bool = False,
    batch_size: int = 0,
    generator: torch.Generator | None = None,
) -> list[str]:
    """Return what makes robust accuracies of this model doubtful, a line each; none is best.

    Costs about 130 forward and 80 backward passes of each clip.

    Args:
        predict: (B, C, T, H, W) in [0, 1] -> (B, K) logits.
        x: a few clips, 8 to 32 of them; attacks are checked on those that are classified right.
        y: their labels, (B,).
        threat: the budget at which the attacks are checked.
        random: the model is known to draw random numbers; what follows from that is not reported.
        batch_size: clips that predict gets at a time; 0: all. Of single clips norms in training
            mode are seen only where the model's modules are within reach (`reachable_modules`).
        generator: of the attacks.

    Raises:
        ValueError: for probabilities and for labels out of range; BadSamples for NaN.
    """
    none_or_more(batch_size=batch_size)
    size = batch_size or max(len(x), 1)
    logits = _logits(predict, x, y, size)
    found = [] if random else _of_the_model(predict, x, y, logits, size)
    right = (logits.argmax(1) == y).nonzero().flatten()
    if not len(right):
        return [*found, f"none of {len(y)} clips is classified right: attacks cannot be checked"]
    counts = _Counts()
    try:
        for rows in right.split(size):
            with numbered(rows):
                counts = counts + _of_the_attack(
                    predict, x[rows], y[rows], threat, random, generator
                )
    except ValueError as error:
        if found and _TOO_FEW in str(error):
            return found  # a norm in training mode, reported above, takes no single clip
        raise
    return found + _doubts(counts, len(right), len(y), logits.shape[1], random)


@torch.no_grad()
def _logits(predict: Predict, x: Tensor, y: Tensor, size: int) -> Tensor:
    """Return (B, K) logits, checked, of at most `size` clips at a time."""
    loss, parts = Misclassify(predict, y), []
    loss.require_labels(x)
    for rows in torch.arange(len(x), device=x.device).split(size):
        with numbered(rows):
            parts.append(loss.at(rows).logits(x[rows]))
    return torch.cat(parts)


@torch.no_grad()
def _of_the_model(predict: Predict, x: Tensor, y: Tensor, logits: Tensor, size: int) -> list[str]:
    found, scale = [], logits.abs().amax().clamp(min=1e-6)

    def differs(other: Tensor) -> bool:
        return bool((other.float() - logits[: len(other)]).abs().amax() > 1e-3 * scale)

    if differs(_logits(predict, x, y, size)):
        found.append(
            "the model gives other logits for the same clip: it draws random numbers; "
            "use suite rand (EOT)"
        )
    elif _depends_on_batch(predict, x, y, size, differs):
        found.append(f"a clip's logits depend on the rest of the batch: {_IN_TRAINING}")
    elif min(size, len(x)) == 1 and (norms := batch_norms_in_training(predict)):
        found.append(f"{', '.join(norms)} of single clips: {_IN_TRAINING}")
    if not found and differs(_while_attacked(predict, x, size)):
        found.append(
            "logits differ when gradients are asked for: "
            "attack and prediction see other norm branches"
        )
    return found


def _depends_on_batch(
    predict: Predict, x: Tensor, y: Tensor, size: int, differs: Callable[[Tensor], bool]
) -> bool:
    """Return whether clips have other logits in other company: in halves, and alone."""
    if min(size, len(x)) < 2:
        return False
    if len(x) > 3 and differs(_logits(predict, x, y, min(size, (len(x) + 1) // 2))):
        return True
    try:
        return differs(_logits(predict, x[:4], y[:4], 1))
    except ValueError as error:
        if _TOO_FEW in str(error):
            return True
        raise


def _while_attacked(predict: Predict, x: Tensor, size: int) -> Tensor:
    """Return logits as an attack sees them, of inputs that ask for a gradient."""
    with torch.enable_grad():
        return torch.cat(
            [predict(part.detach().clone().requires_grad_()).detach() for part in x.split(size)]
        )


@dataclass(frozen=True)
class _Counts:
    """Counts of clips that are classified right, by what attacks did to them.

    still: whose gradient is 0. idle: broken by a budget of 0. left: right at a budget that allows
    any clip. few, many: broken by 5 and by 40 steps of PGD. black: broken by Square.
    """

    still: int = 0
    idle: int = 0
    left: int = 0
    few: int = 0
    many: int = 0
    black: int = 0

    def __add__(self, other: "_Counts") -> "_Counts":
        return _Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def _of_the_attack(
    predict: Predict,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    random: bool,
    generator: torch.Generator | None,
) -> _Counts:
    loss = Misclassify(predict, y)
    still = int((judged_gradient(loss, x)[2].flatten(1).abs().amax(1) == 0).sum())

    def broken(attack_threat: ThreatModel, steps: int, *, start: bool = True) -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # gradients of 0, counted above
            attacked = pgd(
                loss, x, attack_threat, steps=steps, random_start=start, generator=generator
            )
        return int(_wrong(predict, attacked, y).sum())

    # the whole way of an attack, and not its shortcut for 0
    idle = 0 if random else broken(replace(threat, eps=1e-9), 2)
    clip = x[0].numel()
    everything = _EVERYTHING[threat.norm](clip, clip // (x.shape[2] if x.ndim == 5 else 1))
    # from the clips themselves: a random start would be another clip already
    left = len(x) - broken(ThreatModel(threat.norm, everything), 20, start=False)
    if random:
        return _Counts(still, idle, left)
    few = broken(threat, 5)
    many = broken(threat, 40)
    found = square(Misclassify(predict, y, margin), x, threat, queries=60, generator=generator)
    return _Counts(still, idle, left, few, many, int(_wrong(predict, found, y).sum()))


def _doubts(counts: _Counts, right: int, n: int, classes: int, random: bool) -> list[str]:
    """Return the lines that follow from the counts, over `right` of n clips."""
    found = []
    if counts.still:
        found.append(
            f"the gradient is 0 for {counts.still} of {right} clips: "
            "white-box attacks cannot see them"
        )
    if counts.idle:
        found.append(
            "a budget of 0 changes predictions: attack and evaluation do not see the same model"
        )
    # a random model may call one of a few broken clips right
    if counts.left > n / classes + random and n < _FEW:
        found.append(
            f"{counts.left} of {n} clips are right at a budget that allows any clip: too few clips "
            "to tell masked gradients from chance; check 8 or more (eval.checks)"
        )
    elif counts.left > n / classes + random:
        found.append(
            f"{counts.left} of {n} clips are right at a budget that allows any clip, "
            "above chance: "
            "gradients are masked"
        )
    if random:
        return found
    if counts.many < counts.few - 1:
        found.append(
            f"40 steps of PGD break {counts.many} clips, 5 steps {counts.few}: "
            "more steps help the defender"
        )
    white = max(counts.few, counts.many)
    if counts.black > white + 1:
        found.append(
            f"Square breaks {counts.black} clips without gradients, "
            f"PGD {white} with them: "
            "gradients are masked"
        )
    return found


@torch.no_grad()
def _wrong(predict: Predict, x: Tensor, y: Tensor) -> Tensor:
    return Misclassify(predict, y).logits(x).argmax(1) != y


def weak_white_box(
    broken_by: list[str | None], black_box: tuple[str, ...], parts: list[str]
) -> list[str]:
    """Return what a suite's own result says against it: black-box attacks or parts found more.

    Args:
        broken_by: the attack that broke each sample; None for what is robust.
        black_box: names of black-box attacks.
        parts: names of attacks on parts of the threat.
    """
    found, n = [], len(broken_by)
    for names, what in (
        (black_box, "black-box attacks"),
        (parts, "attacks on parts of the threat"),
    ):
        count = sum(by in names for by in broken_by)
        if count > max(0.01 * n, 1):
            found.append(
                f"{what} broke {count} of {n} clips that the white-box attacks before them left: "
                "those are too weak, or gradients are masked"
            )
    return found
