"""Measure how far small perturbations move features, by layer.

The measures need no labels (Petrov and Kwiatkowska 2022). `encode` maps clips (B, C, T, H, W) in
[0, 1] to features (B, D), in evaluation mode (`evaluation_mode`). Shapes: B clips, D feature
dimension.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
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


# --- Attacks on the representation ---


def gradient_norm(loss: Loss, x: Tensor) -> Tensor:
    """Return the L2 norm of the gradient of each sample's loss with respect to its pixels, (B,)."""
    x = x.detach().requires_grad_(True)
    # Samples do not interact, so that the gradient of the sum holds the gradient of each loss.
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
    """Return x_adv: x pushed as far from its representation as PGD gets within the threat.

    Petrov and Kwiatkowska 2022 use Linf 0.05 and 25 steps of 0.001, from a random start.

    Args:
        encode: the encoder.
        x: clean clips, (B, C, T, H, W) in [0, 1].
        threat: the allowed perturbations.
        steps: number of steps of PGD.
        step_size: step size in units of the norm; None: 2.5 eps / steps.
        generator: generator of the random start.

    Returns:
        Clips of the shape of x.
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
    """Attack the samples of each pair toward each other; return `geometry.overlap_margin`, (B,).

    Args:
        encode: the encoder.
        x: first samples of the pairs, (B, C, T, H, W) in [0, 1].
        y: second samples, of the same shape.
        threat: the allowed perturbations.
        steps: number of steps of PGD.
        step_size: step size in units of the norm; None: 2.5 eps / steps.
        generator: generator of the random starts.
    """
    x_to_y = pgd(
        pull_toward(encode, y), x, threat, steps=steps, step_size=step_size, generator=generator
    )
    y_to_x = pgd(
        pull_toward(encode, x), y, threat, steps=steps, step_size=step_size, generator=generator
    )
    with torch.no_grad():
        return geometry.overlap_margin(*(encode(v).float() for v in (x, y, x_to_y, y_to_x)))


# --- Layers ---


def by_layer(network: nn.Module, encode: Encode, x: Tensor) -> dict[str, Tensor]:
    """Return the outputs of a network's layers, averaged over time and space.

    The layers are the children of the network, in the order in which they run. Each child in a list
    of modules is a layer of its own. Children that do nothing, such as the pooling of a small stem,
    are left out. The outputs of a child that runs on frames, B * T of them, are averaged over the
    frames. The two pathways of a child that has two are concatenated.

    Args:
        network: the network whose children are the layers.
        encode: runs the network.
        x: clips, (B, C, T, H, W) in [0, 1].

    Returns:
        Name of a layer -> its pooled outputs, (B, D).
    """
    outputs: dict[str, Tensor] = {}
    handles = [
        layer.register_forward_hook(partial(_keep_output, outputs, name, len(x)))
        for name, layer in _layers(network)
    ]
    try:
        with torch.no_grad():
            encode(x)
    finally:
        # A hook that is left behind would run in every later call of the network.
        for handle in handles:
            handle.remove()
    return outputs


def _layers(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return (name, module) of the layers of a network, as in `by_layer`."""
    layers = []
    for name, child in network.named_children():
        if isinstance(child, nn.ModuleList):
            layers += [(f"{name}.{number}", part) for number, part in enumerate(child)]
        else:
            layers.append((name, child))
    return [(name, layer) for name, layer in layers if not isinstance(layer, nn.Identity)]


def _keep_output(
    outputs: dict[str, Tensor], name: str, clips: int, module: nn.Module, inputs: Any, output: Any
) -> None:
    """Store the pooled output of a layer.

    With its first three arguments set, this is a forward hook of torch, which passes the others.

    Args:
        outputs: receives the output.
        name: name of the layer.
        clips: number of clips B.
        module: the layer; not used.
        inputs: inputs of the layer; not used.
        output: output of the layer.
    """
    outputs[name] = _pooled(output, clips)


def _pooled(output: Any, clips: int) -> Tensor:
    """Average an output over time, space and frames, (B, D); `clips` is B."""
    if isinstance(output, list | tuple):
        return torch.cat([_pooled(pathway, clips) for pathway in output], 1)
    # Dimensions after the channels are time and space, if the layer has them.
    flat = output.float().flatten(2).mean(2) if output.ndim > 2 else output.float()
    # The first dimension is B, or B * T for a layer that runs on frames.
    return flat.view(clips, -1, flat.shape[1]).mean(1)


def cka_by_layer(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, float]:
    """Return `geometry.linear_cka` of each layer that both have.

    a and b are outputs of `by_layer`: of clean and attacked clips, or of two models.
    """
    return {name: geometry.linear_cka(a[name], b[name]) for name in a if name in b}


# --- Measurement ---


Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class Displacement:
    """Distances by which attacks within one budget move a representation.

    Attributes:
        eps: the Linf budget.
        universal_quantile: median `geometry.universal_quantile`.
        relative_displacement: median `geometry.relative_displacement`.
        breakaway_risk: `geometry.breakaway_risk`.
        nn_top1: `geometry.neighbour_accuracy` with k = 1.
        nn_top5: the same with k = 5.
        overlap_risk: `geometry.overlap_risk`; None if no batch has two clips.
        overlap_margin: median `geometry.overlap_margin`; None if no batch has two clips.
        cka: layer -> linear CKA of its clean and attacked outputs.
    """

    eps: float
    universal_quantile: float
    relative_displacement: float
    breakaway_risk: float
    nn_top1: float
    nn_top5: float
    overlap_risk: float | None
    overlap_margin: float | None
    cka: dict[str, float]


@dataclass(frozen=True)
class Sensitivity:
    """The entry `sensitivity` of summary.json.

    Attributes:
        n: measured clips.
        gradient_norm: median L2 norm of the gradient of the classifier's cross-entropy.
        budgets: the measures at each budget.
        warnings: how many clips were left out, if any were.
    """

    n: int
    gradient_norm: float
    budgets: list[Displacement]
    warnings: list[str] = field(default_factory=list)


def measure_sensitivity(
    backbone: Backbone, classify: Predict, clips: Batches, eps: Sequence[float], *, seed: int
) -> Sensitivity:
    """Measure how far attacks within several Linf budgets move a backbone's representation.

    Most measures are medians over samples. Pairs are a sample and its neighbour in the batch.
    Attacks are those of Petrov and Kwiatkowska 2022: 25 steps of 0.001 away from the clean
    representation, or 10 toward another one, from random starts.

    Clips are left out if their logits, representation or gradient are NaN or infinite. Memory holds
    the pixels of one batch at a time.

    Args:
        backbone: the encoder, in evaluation mode.
        classify: returns logits; used for the gradient of their cross-entropy.
        clips: returns the same batches each time it is called: x (B, C, T, H, W) and labels (B,).
            Every sample is a candidate neighbour of the others.
        eps: Linf budgets, in increasing order.
        seed: seed of the random starts.

    Raises:
        UserError: for outputs that are not logits, labels out of range, and fewer than two clips
            with finite numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    # The clean clips decide which ones are measured, at all budgets.
    masks, gradient_norms, clean_outputs = _measure_clean(backbone, classify, clips)
    clean, layers = clean_outputs.joined()
    budgets = []
    for budget in eps:
        threat = ThreatModel("linf", budget)
        attacked, margins = _attack_all(backbone, clips, masks, threat, generator)
        budgets.append(_compare(budget, clean, layers, attacked, margins))
    left_out = sum(int((~mask).sum()) for mask in masks)
    warnings = [f"sensitivity: {left_out} clips left out, {MODEL_FAULT}"] if left_out else []
    return Sensitivity(len(clean), float(torch.cat(gradient_norms).median()), budgets, warnings)


def _measure_clean(
    backbone: Backbone, classify: Predict, clips: Batches
) -> tuple[list[Tensor], list[Tensor], "_Outputs"]:
    """Run clean clips through the model, and find those with finite numbers.

    Args:
        backbone: the encoder.
        classify: returns logits.
        clips: the batches, as in `measure_sensitivity`.

    Returns:
        By batch: masks of the clips with finite numbers; the gradient norms of these clips; and the
        outputs of the backbone for them.

    Raises:
        UserError: as `measure_sensitivity` does.
    """
    masks = []
    gradient_norms = []
    clean = _Outputs()
    for x, labels in clips():
        # Logits and representation must be finite, and so must the gradient.
        with torch.no_grad():
            try:
                logits = checked_output(called(classify, x), len(x))
                require_classes(labels, logits.shape[1])
            except ValueError as error:
                raise UserError(f"eval.sensitivity: {error}") from None
            encoded = called(backbone, x, "the backbone")
            is_finite = finite_logits(logits) & encoded.flatten(1).isfinite().all(1)
        norms = gradient_norm(partial(_cross_entropy, classify, labels), x)
        is_finite &= norms.isfinite()
        masks.append(is_finite)
        if is_finite.any():
            gradient_norms.append(norms[is_finite])
            clean.add(backbone, _kept(x, is_finite))
    left_out = sum(int((~mask).sum()) for mask in masks)
    if left_out and sum(int(mask.sum()) for mask in masks) < 2:
        raise UserError(
            f"eval.sensitivity: distances need two clips, but {left_out} have {MODEL_FAULT}; set it"
            " to 0"
        )
    return masks, gradient_norms, clean


def _attack_all(
    backbone: Backbone,
    clips: Batches,
    masks: Sequence[Tensor],
    threat: ThreatModel,
    generator: torch.Generator,
) -> tuple["_Outputs", list[Tensor]]:
    """Attack all clips within one budget.

    Args:
        backbone: the encoder.
        clips: the batches, as in `measure_sensitivity`.
        masks: the clips of each batch that are measured.
        threat: the budget.
        generator: generator of the random starts.

    Returns:
        Outputs of the backbone for the attacked clips; overlap margins of the pairs, by batch.
    """
    attacked = _Outputs()
    margins = []
    for (batch, _), mask in zip(clips(), masks, strict=True):
        x = _kept(batch, mask)
        if not len(x):
            continue
        attacked.add(backbone, displace(backbone, x, threat, generator=generator))
        # A pair is a clip and the one before it; the first clip is paired with the last.
        if len(x) > 1:
            margins.append(overlap(backbone, x, x.roll(1, 0), threat, generator=generator))
    return attacked, margins


def _compare(
    eps: float,
    clean: Tensor,
    layers: dict[str, Tensor],
    attacked_outputs: "_Outputs",
    margins: Sequence[Tensor],
) -> Displacement:
    """Return the measures of one budget.

    Args:
        eps: the budget.
        clean: representations of the clean clips, (N, D).
        layers: name of a layer -> its outputs for the clean clips, (N, D_l).
        attacked_outputs: outputs for the attacked clips, in the same order.
        margins: overlap margins of the pairs, by batch; none if no batch has two clips.
    """
    attacked, attacked_layers = attacked_outputs.joined()
    index = torch.arange(len(clean), device=clean.device)
    moved = (attacked - clean).norm(dim=1)
    margin = torch.cat(list(margins)) if margins else clean.new_empty(0)
    return Displacement(
        eps=eps,
        universal_quantile=float(geometry.universal_quantile(moved, clean).median()),
        relative_displacement=float(geometry.relative_displacement(moved, clean).median()),
        breakaway_risk=geometry.breakaway_risk(attacked, clean, index),
        nn_top1=geometry.neighbour_accuracy(attacked, clean, index, 1),
        nn_top5=geometry.neighbour_accuracy(attacked, clean, index, 5),
        overlap_risk=geometry.overlap_risk(margin) if len(margin) else None,
        overlap_margin=float(margin.nanmedian()) if len(margin) else None,
        cka=cka_by_layer(layers, attacked_layers),
    )


def _kept(x: Tensor, mask: Tensor) -> Tensor:
    """Return the clips of the mask, without a copy if these are all."""
    return x if mask.all() else x[mask]


def _cross_entropy(classify: Predict, labels: Tensor, x: Tensor) -> Tensor:
    """Return the cross-entropy of each sample, (B,)."""
    return F.cross_entropy(checked_output(classify(x), len(x)).float(), labels, reduction="none")


class _Outputs:
    """Collect a backbone's outputs batch by batch: representations, and those of its layers."""

    def __init__(self) -> None:
        self.encoded: list[Tensor] = []
        self.layers: list[dict[str, Tensor]] = []

    @torch.no_grad()
    def add(self, backbone: Backbone, x: Tensor) -> None:
        """Run a batch of clips through the backbone, and keep its outputs."""
        self.encoded.append(backbone(x).float())
        self.layers.append(by_layer(backbone.stored, backbone, x))

    def joined(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Return representations (N, D), and name of a layer -> its outputs (N, D_l)."""
        layers = {name: torch.cat([f[name] for f in self.layers]) for name in self.layers[0]}
        return torch.cat(self.encoded), layers
