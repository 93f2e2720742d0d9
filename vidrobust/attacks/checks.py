"""Checks of a model and its attacks before a robust accuracy is believed.

The ways in which evaluations go wrong in public code: the attack does nothing, gradients vanish, the model draws random
numbers, its norms see the batch, the attack and the prediction are of different models.
"""

import warnings
from dataclasses import replace

import torch
from torch import Tensor

from vidrobust.attacks.gradient import pgd
from vidrobust.attacks.losses import Misclassify, Predict, margin
from vidrobust.attacks.search import judged_gradient
from vidrobust.attacks.square import square
from vidrobust.attacks.threat import ThreatModel

# a budget at which every clip can become any other, in each norm, for clips of n values in frames of m
_EVERYTHING = {
    "linf": lambda n, m: 1.0,
    "l2": lambda n, m: n**0.5,
    "l2_frame": lambda n, m: m**0.5,
    "l1": lambda n, m: n,
}

_FEW = 4  # clips below which one that is right says nothing about chance


def self_checks(
    predict: Predict, x: Tensor, y: Tensor, threat: ThreatModel, *, random: bool = False,
    generator: torch.Generator | None = None,
) -> list[str]:  # fmt: skip
    """What makes robust accuracies of this model doubtful, a line each; an empty list is what one wants.

    predict: (B, C, T, H, W) in [0, 1] -> (B, K) logits. x, y: a few clips with labels, 8 to 32 of them (fewer than 4 do
    not tell norms in training mode). random: the model is known to draw random numbers; what follows from that is not
    told. Costs about 130 forward and 80 backward passes of each. Raises ValueError for probabilities and labels out of
    range.
    """
    loss = Misclassify(predict, y)
    with torch.no_grad():
        logits = loss.logits(x)
    found = [] if random else _of_the_model(predict, x, logits)
    right = logits.argmax(1) == y
    if not right.any():
        return [*found, f"none of {len(y)} clips is classified right: attacks cannot be checked"]
    return found + _of_the_attack(predict, x[right], y[right], threat, len(y), logits.shape[1], random, generator)


@torch.no_grad()
def _of_the_model(predict: Predict, x: Tensor, logits: Tensor) -> list[str]:
    found, scale = [], logits.abs().amax().clamp(min=1e-6)

    def differs(other: Tensor) -> bool:
        return bool((other.float() - logits).abs().amax() > 1e-3 * scale)

    if differs(predict(x)):
        found.append("the model gives other logits for the same clip: it draws random numbers; use suite rand (EOT)")
    elif len(x) > 3 and differs(torch.cat([predict(half) for half in x.chunk(2)])):
        found.append("a clip's logits depend on the rest of the batch: norms are in training mode; call eval()")
    with torch.enable_grad():
        attacked = predict(x.detach().clone().requires_grad_()).detach()
    if not found and differs(attacked):
        found.append("logits differ when gradients are asked for: attack and prediction see other norm branches")
    return found


def _of_the_attack(
    predict: Predict, x: Tensor, y: Tensor, threat: ThreatModel, n: int, classes: int, random: bool,
    generator: torch.Generator | None,
) -> list[str]:  # fmt: skip
    found, loss = [], Misclassify(predict, y)
    still = judged_gradient(loss, x)[2].flatten(1).abs().amax(1) == 0
    if still.any():
        found.append(f"the gradient is 0 for {int(still.sum())} of {len(x)} clips: white-box attacks cannot see them")

    def broken(attack_threat: ThreatModel, steps: int, *, start: bool = True) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # gradients of 0, told above
            attacked = pgd(loss, x, attack_threat, steps=steps, random_start=start, generator=generator)
        return _wrong(predict, attacked, y)

    if (
        not random and broken(replace(threat, eps=1e-9), 2).any()
    ):  # the whole way of an attack, and not its shortcut for 0
        found.append("a budget of 0 changes predictions: attack and evaluation do not see the same model")
    clip = x[0].numel()
    everything = _EVERYTHING[threat.norm](clip, clip // (x.shape[2] if x.ndim == 5 else 1))
    # from the clips themselves: a random start would be another clip already
    left = int((~broken(ThreatModel(threat.norm, everything), 20, start=False)).sum())
    if left > n / classes and n < _FEW:
        found.append(
            f"{left} of {n} clips are right at a budget that allows any clip: too few "
            "clips to distinguish "
            "masked gradients from chance; check 8 or more (eval.checks)"
        )
    elif left > n / classes:
        found.append(f"{left} of {n} clips are right at a budget that allows any clip, above chance: "
                     "gradients are masked")  # fmt: skip
    if random:
        return found
    few, many = int(broken(threat, 5).sum()), int(broken(threat, 40).sum())
    if many < few - 1:
        found.append(f"40 steps of PGD break {many} clips, 5 steps {few}: more steps help the defender")
    black = _wrong(predict, square(Misclassify(predict, y, margin), x, threat, queries=60, generator=generator), y)
    if int(black.sum()) > max(few, many) + 1:
        found.append(f"Square breaks {int(black.sum())} clips without gradients, PGD {max(few, many)} with them: "
                     "gradients are masked")  # fmt: skip
    return found


@torch.no_grad()
def _wrong(predict: Predict, x: Tensor, y: Tensor) -> Tensor:
    return predict(x).argmax(1) != y


def weak_white_box(broken_by: list[str | None], black_box: tuple[str, ...], parts: list[str]) -> list[str]:
    """What a suite's own result says against it: black-box attacks, or attacks on parts of the threat, found more."""
    found, n = [], len(broken_by)
    for names, what in ((black_box, "black-box attacks"), (parts, "attacks on parts of the threat")):
        count = sum(by in names for by in broken_by)
        if count > max(0.01 * n, 1):
            found.append(f"{what} broke {count} of {n} clips that the white-box attacks before them left: "
                         "those are too weak, or gradients are masked")  # fmt: skip
    return found
