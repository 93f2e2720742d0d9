"""Measure how far small perturbations move features, by layer.

Without labels (Petrov and Kwiatkowska 2022; METHODS section 4.11), on clips. encode: (B, C, T, H,
W) in [0, 1] -> (B, D), in eval mode (`evaluation_mode`). B clips, D feature.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidrobust.attacks import (
    Loss,
    Predict,
    ThreatModel,
    called,
    checked_output,
    finite_logits,
    pgd,
    pull_toward,
    push_away,
    require_classes,
)
from vidrobust.evaluation.representation import geometry
from vidrobust.evaluation.results import MODEL_FAULT
from vidrobust.models import Backbone
from vidrobust.utils.errors import UserError

Encode = Callable[[Tensor], Tensor]


def gradient_norm(loss: Loss, x: Tensor) -> Tensor:
    """(B,): the L2 norm of each sample's loss by its pixels: how steep it is at x."""
    x = x.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(x).sum(), x)
    return gradient.flatten(1).norm(dim=1)


def displace(
    encode: Encode,
    x: Tensor,
    threat: ThreatModel,
    *,
    steps: int = 25,
    step_size: float | None = 0.001,
    generator: torch.Generator | None = None,
) -> Tensor:
    """x_adv like x (B, C, T, H, W): x pushed as far from its representation as PGD gets within the
    threat.

    The published setting is Linf 0.05, 25 steps of 0.001, from a random start. step_size None: 2.5
    eps / steps.
    """
    return pgd(
        push_away(encode, x), x, threat, steps=steps, step_size=step_size, generator=generator
    )


def overlap(
    encode: Encode,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    steps: int = 10,
    step_size: float | None = 0.001,
    generator: torch.Generator | None = None,
) -> Tensor:
    """(B,): `geometry.overlap_margin` of pairs x, y (B, C, T, H, W), each attacked toward the
    other.
    """
    x_to_y = pgd(
        pull_toward(encode, y), x, threat, steps=steps, step_size=step_size, generator=generator
    )
    y_to_x = pgd(
        pull_toward(encode, x), y, threat, steps=steps, step_size=step_size, generator=generator
    )
    with torch.no_grad():
        return geometry.overlap_margin(*(encode(v).float() for v in (x, y, x_to_y, y_to_x)))


def by_layer(trunk: nn.Module, encode: Encode, x: Tensor) -> dict[str, Tensor]:
    """Outputs of a trunk's children, in the order they run, averaged over time and space -> name ->
    (B, D).

    encode runs the trunk. A child that runs on frames, B * T of them, is averaged over them too;
    the two pathways of one that has two are joined; children of a list of modules count each, and
    what does nothing (a small stem's pooling) does not.
    """
    found: dict[str, Tensor] = {}

    def pooled(output: Any) -> Tensor:
        if isinstance(output, list | tuple):
            return torch.cat([pooled(part) for part in output], 1)
        flat = output.float().flatten(2).mean(2) if output.ndim > 2 else output.float()
        return flat.view(len(x), -1, flat.shape[1]).mean(1)

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, inputs, output: found.__setitem__(name, pooled(output))

    named = [
        (f"{name}.{number}", part) if isinstance(child, nn.ModuleList) else (name, child)
        for name, child in trunk.named_children()
        for number, part in enumerate(child if isinstance(child, nn.ModuleList) else [child])
        if not isinstance(part, nn.Identity)
    ]
    handles = [child.register_forward_hook(keep(name)) for name, child in named]
    try:
        with torch.no_grad():
            encode(x)
    finally:
        for handle in handles:
            handle.remove()
    return found


def cka_by_layer(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, float]:
    """`geometry.linear_cka` of the layers that both have, as clean against attacked, or a model
    against another.
    """
    return {name: geometry.linear_cka(a[name], b[name]) for name in a if name in b}


Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]


def measure_sensitivity(
    backbone: Backbone, classify: Predict, clips: Batches, eps: Sequence[float], *, seed: int
) -> dict[str, Any]:
    """Measure how a backbone's representation gives way at some Linf budgets.

    Medians over samples; pairs are of a sample and its successor in a batch. Attacks as published
    (Petrov and Kwiatkowska 2022): 25 steps of 0.001 away, 10 toward, from random starts. Clips on
    which logits, representation or gradient are NaN or infinite are left out, and `warnings` says
    how many. Memory holds the pixels of one batch at a time.

    Args:
        backbone: in evaluation mode.
        classify: logits, for the steepness of their cross-entropy.
        clips: gives, each time it is called, the same batches of (x (B, C, T, H, W), labels (B,));
            every sample is a candidate for being another's neighbour.
        eps: Linf budgets, from small to large.
        seed: of the random starts.

    Returns:
        What a summary says: n, gradient_norm, and budgets, an entry each.

    Raises:
        UserError: for what is no logits, labels out of range, and fewer than two clips with finite
            numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    masks, steep, seen = _sound(backbone, classify, clips)
    clean, layers = seen.joined()
    places, budgets = torch.arange(len(clean), device=clean.device), []
    for budget in eps:
        threat, between = ThreatModel("linf", budget), []
        moved_clips = _Measured()
        for (batch, _), good in zip(clips(), masks, strict=True):
            x = batch if good.all() else batch[good]
            if not len(x):
                continue
            moved_clips.add(backbone, displace(backbone, x, threat, generator=generator))
            if len(x) > 1:
                between.append(overlap(backbone, x, x.roll(1, 0), threat, generator=generator))
        attacked, attacked_layers = moved_clips.joined()
        moved = (attacked - clean).norm(dim=1)
        margin = torch.cat(between) if between else clean.new_empty(0)
        budgets.append(
            {
                "eps": budget,
                "universal_quantile": float(geometry.universal_quantile(moved, clean).median()),
                "relative_displacement": float(
                    geometry.relative_displacement(moved, clean).median()
                ),
                "breakaway_risk": geometry.breakaway_risk(attacked, clean, places),
                "nn_top1": geometry.neighbour_accuracy(attacked, clean, places, 1),
                "nn_top5": geometry.neighbour_accuracy(attacked, clean, places, 5),
                "overlap_risk": geometry.overlap_risk(margin) if len(margin) else None,
                "overlap_margin": float(margin.nanmedian()) if len(margin) else None,
                "cka": cka_by_layer(layers, attacked_layers),
            }
        )
    lost = sum(int((~good).sum()) for good in masks)
    left_out = [f"sensitivity: {lost} clips left out, {MODEL_FAULT}"]
    found = {"n": len(clean), "gradient_norm": float(torch.cat(steep).median()), "budgets": budgets}
    return found | ({"warnings": left_out} if lost else {})


def _sound(
    backbone: Backbone, classify: Predict, clips: Batches
) -> tuple[list[Tensor], list[Tensor], "_Measured"]:
    """Return of each batch (which clips have finite numbers, their gradient norms), and measure
    them.
    """
    masks, steep, seen = [], [], _Measured()
    for x, labels in clips():
        with torch.no_grad():
            try:
                logits = checked_output(called(classify, x), len(x))
                require_classes(labels, logits.shape[1])
            except ValueError as error:
                raise UserError(f"eval.sensitivity: {error}") from None
            encoded = called(backbone, x, "the backbone")
            good = finite_logits(logits) & encoded.flatten(1).isfinite().all(1)
        norms = gradient_norm(partial(_cross_entropy, classify, labels), x)
        good &= norms.isfinite()
        masks.append(good)
        if good.any():
            steep.append(norms[good])
            seen.add(backbone, x if good.all() else x[good])
    lost = sum(int((~good).sum()) for good in masks)
    if lost and sum(int(good.sum()) for good in masks) < 2:
        raise UserError(
            f"eval.sensitivity: distances need two clips, and {lost} have {MODEL_FAULT}; set it"
            " to 0"
        )
    return masks, steep, seen


def _cross_entropy(classify: Predict, labels: Tensor, x: Tensor) -> Tensor:
    return F.cross_entropy(checked_output(classify(x), len(x)).float(), labels, reduction="none")


class _Measured:
    """Representations of clips, and outputs of the layers, batch by batch."""

    def __init__(self) -> None:
        self.encoded: list[Tensor] = []
        self.layers: list[dict[str, Tensor]] = []

    @torch.no_grad()
    def add(self, backbone: Backbone, x: Tensor) -> None:
        self.encoded.append(backbone(x).float())
        self.layers.append(by_layer(backbone.trunk, backbone, x))

    def joined(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Return representations (N, D), and name -> outputs (N, D_l) of the layers."""
        return torch.cat(self.encoded), {
            name: torch.cat([f[name] for f in self.layers]) for name in self.layers[0]
        }
