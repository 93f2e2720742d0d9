"""Check a model and its attacks before a robust accuracy is believed.

The checks cover the ways in which evaluations go wrong in public code: the attack does nothing,
gradients vanish, the model draws random numbers, its norms depend on the batch, or the attack and
the prediction use different models.
"""

import warnings
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

# norm -> a budget at which every clip can become any other, for clips of n values, m per frame
_EVERYTHING = {
    "linf": lambda n, m: 1.0,
    "l2": lambda n, m: n**0.5,
    "l2_frame": lambda n, m: m**0.5,
    "l1": lambda n, m: n,
}
_TOO_FEW = "more than 1 value per channel when training"  # torch's words
_IN_TRAINING = "norms are in training mode; call eval()"

_FEW = 4  # with fewer clips, one that is right says nothing about chance


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
    """Return reasons to doubt robust accuracies of this model, one per line.

    An empty list is the best result. Costs at most about 145 forward and 70 backward passes per
    clip.

    Args:
        predict: (B, C, T, H, W) in [0, 1] -> (B, K) logits.
        x: a few clips, 8 to 32. Attacks are checked on those that are classified right.
        y: their labels, (B,).
        threat: the budget at which the attacks are checked.
        random: the model is known to draw random numbers; consequences of that are not reported.
        batch_size: clips that predict gets at a time; 0: all. With single clips, norms in training
            mode are only found where the model's modules are within reach (`reachable_modules`).
        generator: source of the attacks' random numbers.

    Raises:
        ValueError: for probabilities and for labels out of range; as `BadSamples` for NaN.
    """
    none_or_more(batch_size=batch_size)
    size = batch_size or max(len(x), 1)
    logits = _logits(predict, x, y, size)
    lines = [] if random else _check_model(predict, x, y, logits, size)
    right = (logits.argmax(1) == y).nonzero().flatten()
    if not len(right):
        return [*lines, f"none of {len(y)} clips is classified right: attacks cannot be checked"]
    counts = _Counts()
    try:
        for rows in right.split(size):
            with numbered(rows):
                counts = counts + _count_attacks(
                    predict, x[rows], y[rows], threat, random, generator
                )
    except ValueError as error:
        # a norm in training mode, reported in `lines`, may refuse a single clip
        if lines and _TOO_FEW in str(error):
            return lines
        raise
    return lines + _doubts(counts, len(right), len(y), logits.shape[1], random)


# ------------------------------------------------------------------ the model


@torch.no_grad()
def _logits(predict: Predict, x: Tensor, y: Tensor, size: int) -> Tensor:
    """Return (B, K) logits, checked, of at most `size` clips at a time."""
    loss = Misclassify(predict, y)
    parts = []
    loss.require_labels(x)
    for rows in torch.arange(len(x), device=x.device).split(size):
        with numbered(rows):
            parts.append(loss.at(rows).logits(x[rows]))
    return torch.cat(parts)


@torch.no_grad()
def _check_model(predict: Predict, x: Tensor, y: Tensor, logits: Tensor, size: int) -> list[str]:
    """Return what is wrong with the model itself: random, dependent on the batch, or two models.

    Args:
        predict: the model.
        x: the clips.
        y: their labels.
        logits: (B, K), of x.
        size: clips that predict gets at a time.
    """
    lines = []
    # each check explains the ones after it, so the first that fails is reported
    if _differs(logits, _logits(predict, x, y, size)):
        lines.append(
            "the model gives other logits for the same clip: it draws random numbers; "
            "use suite rand, or average over passes with eot (eval.eot=N)"
        )
    elif _depends_on_batch(predict, x, y, logits, size):
        lines.append(f"a clip's logits depend on the rest of the batch: {_IN_TRAINING}")
    elif min(size, len(x)) == 1 and (norms := batch_norms_in_training(predict)):
        lines.append(f"{', '.join(norms)} of single clips: {_IN_TRAINING}")
    if not lines and _differs(logits, _logits_with_gradients(predict, x, size)):
        lines.append(
            "logits differ when gradients are asked for: "
            "attack and prediction use different norm branches"
        )
    return lines


def _differs(logits: Tensor, other: Tensor) -> bool:
    """Return whether logits of the first clips differ by more than rounding explains."""
    scale = logits.abs().amax().clamp(min=1e-6)
    return bool((other.float() - logits[: len(other)]).abs().amax() > 1e-3 * scale)


def _depends_on_batch(predict: Predict, x: Tensor, y: Tensor, logits: Tensor, size: int) -> bool:
    """Return whether clips have other logits in other batches: in halves, and alone."""
    if min(size, len(x)) < 2:
        return False
    if len(x) > 3:
        half = min(size, (len(x) + 1) // 2)
        if _differs(logits, _logits(predict, x, y, half)):
            return True
    try:
        return _differs(logits, _logits(predict, x[:4], y[:4], 1))
    except ValueError as error:
        # a norm in training mode refuses a single clip
        if _TOO_FEW in str(error):
            return True
        raise


def _logits_with_gradients(predict: Predict, x: Tensor, size: int) -> Tensor:
    """Return logits as an attack gets them, of inputs that ask for a gradient."""
    with torch.enable_grad():
        return torch.cat(
            [predict(part.detach().clone().requires_grad_()).detach() for part in x.split(size)]
        )


# ------------------------------------------------------------------ the attacks


@dataclass(frozen=True)
class _Counts:
    """Counts of clips that are classified right, by what attacks did to them.

    Attributes:
        zero_gradient: their gradient is 0.
        by_nothing: broken by a budget of 0.
        unbroken: still right at a budget that allows any clip.
        by_few_steps: broken by 5 steps of PGD.
        by_many_steps: broken by 40 steps of PGD.
        by_square: broken by Square.
    """

    zero_gradient: int = 0
    by_nothing: int = 0
    unbroken: int = 0
    by_few_steps: int = 0
    by_many_steps: int = 0
    by_square: int = 0

    def __add__(self, other: "_Counts") -> "_Counts":
        return _Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def _count_attacks(
    predict: Predict,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    random: bool,
    generator: torch.Generator | None,
) -> _Counts:
    """Attack clips that are classified right, and count what breaks.

    Args:
        predict: the model.
        x: the clips.
        y: their labels.
        threat: the budget.
        random: leave out the attacks whose outcome a random model makes meaningless.
        generator: source of the attacks' random numbers.
    """
    loss = Misclassify(predict, y)
    largest = judged_gradient(loss, x)[2].flatten(1).abs().amax(1)
    zero_gradient = int((largest == 0).sum())

    # a tiny eps in place of 0 runs the whole attack, and not its shortcut for 0
    nothing = replace(threat, eps=1e-9)
    by_nothing = 0 if random else _broken_by_pgd(loss, x, nothing, 2, generator)

    values = x[0].numel()
    per_frame = values // (x.shape[2] if x.ndim == 5 else 1)
    everything = ThreatModel(threat.norm, _EVERYTHING[threat.norm](values, per_frame))
    # from the clips themselves: a random start would be another clip already
    unbroken = len(x) - _broken_by_pgd(loss, x, everything, 20, generator, random_start=False)
    if random:
        return _Counts(zero_gradient, by_nothing, unbroken)

    by_few_steps = _broken_by_pgd(loss, x, threat, 5, generator)
    by_many_steps = _broken_by_pgd(loss, x, threat, 40, generator)
    x_square = square(Misclassify(predict, y, margin), x, threat, queries=60, generator=generator)
    by_square = int(_wrong(predict, x_square, y).sum())
    return _Counts(zero_gradient, by_nothing, unbroken, by_few_steps, by_many_steps, by_square)


def _broken_by_pgd(
    loss: Misclassify,
    x: Tensor,
    threat: ThreatModel,
    steps: int,
    generator: torch.Generator | None,
    random_start: bool = True,
) -> int:
    """Return how many clips PGD breaks.

    Args:
        loss: of the classifier.
        x: the clips.
        threat: the budget.
        steps: of PGD.
        generator: source of random starts.
        random_start: begin at a random point; False: at x.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gradients of 0 are counted already
        x_adv = pgd(loss, x, threat, steps=steps, random_start=random_start, generator=generator)
    return int(_wrong(loss.predict, x_adv, loss.y).sum())


def _doubts(counts: _Counts, right: int, n: int, classes: int, random: bool) -> list[str]:
    """Return the reasons for doubt that follow from the counts.

    Args:
        counts: of all clips that are classified right.
        right: their number.
        n: the number of all clips.
        classes: K.
        random: the model draws random numbers.
    """
    lines = []
    if counts.zero_gradient:
        lines.append(
            f"the gradient is 0 for {counts.zero_gradient} of {right} clips: "
            "white-box attacks cannot use it"
        )
    if counts.by_nothing:
        lines.append(
            "a budget of 0 changes predictions: attack and evaluation use different models"
        )
    # a random model may call one of a few broken clips right
    if counts.unbroken > n / classes + random:
        if n < _FEW:
            meaning = (
                ": too few clips to distinguish masked gradients from chance; check 8 or more"
                " (eval.checks)"
            )
        else:
            meaning = ", above chance: gradients are masked"
        budget = "a budget that allows any clip"
        lines.append(f"{counts.unbroken} of {n} clips are right at {budget}{meaning}")
    if random:
        return lines
    # one clip may differ by chance
    if counts.by_many_steps < counts.by_few_steps - 1:
        lines.append(
            f"40 steps of PGD break {counts.by_many_steps} clips, 5 steps {counts.by_few_steps}: "
            "more steps help the defender"
        )
    by_pgd = max(counts.by_few_steps, counts.by_many_steps)
    if counts.by_square > by_pgd + 1:
        lines.append(
            f"Square breaks {counts.by_square} clips without gradients, "
            f"PGD {by_pgd} with them: "
            "gradients are masked"
        )
    return lines


@torch.no_grad()
def _wrong(predict: Predict, x: Tensor, y: Tensor) -> Tensor:
    """Return (B,) bool: x is predicted as another class than y."""
    return Misclassify(predict, y).logits(x).argmax(1) != y


def weak_white_box(
    broken_by: list[str | None], black_box: tuple[str, ...], parts: list[str]
) -> list[str]:
    """Return what a suite's own result says against it: black-box attacks or parts broke more.

    Args:
        broken_by: the attack that broke each sample; None for robust ones.
        black_box: names of black-box attacks.
        parts: names of attacks on parts of the threat.
    """
    lines = []
    n = len(broken_by)
    for names, what in (
        (black_box, "black-box attacks"),
        (parts, "attacks on parts of the threat"),
    ):
        count = sum(by in names for by in broken_by)
        # one clip, or 1 %, may be chance
        if count > max(0.01 * n, 1):
            lines.append(
                f"{what} broke {count} of {n} clips that the white-box attacks before them left: "
                "those are too weak, or gradients are masked"
            )
    return lines
