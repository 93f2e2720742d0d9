"""Measure how far small perturbations move features, by layer.

The measures need no labels (Petrov and Kwiatkowska 2022). `encode` maps clips (B, C, T, H, W) in
[0, 1] to features (B, D), in evaluation mode (`evaluation_mode`). Shapes: B clips, D feature
dimension.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
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
from vidrobust.utils import distributed
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
        clips: returns the same batches each time it is called: x (B, C, T, H, W) and labels (B,),
            of which B may be 0. Under torchrun each rank has every world-th batch. Every sample is
            a candidate neighbour of the others.
        eps: Linf budgets, in increasing order.
        seed: seed of the random starts.

    Raises:
        UserError: for outputs that are not logits, labels out of range, and fewer than two clips
            with finite numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    # The clean clips decide which ones are measured, at all budgets.
    with distributed.together():
        own = [_measure_clean(backbone, classify, x, labels) for x, labels in clips()]
    clean = _of_all_ranks(own)
    _require_two(clean)
    budgets = []
    for budget in eps:
        threat = ThreatModel("linf", budget)
        with distributed.together():
            own = _attack_all(backbone, clips, clean, threat, generator)
        budgets.append(_compare(budget, clean, _of_all_ranks(own)))
    left_out = sum(int((~batch.mask).sum()) for batch in clean)
    warnings = [f"sensitivity: {left_out} clips left out, {MODEL_FAULT}"] if left_out else []
    norms = torch.cat([batch.numbers for batch in clean])
    return Sensitivity(len(norms), float(norms.median()), budgets, warnings)


@dataclass(frozen=True)
class _Batch:
    """The measured clips of a batch, clean or attacked.

    Attributes:
        mask: which clips of the batch have finite numbers, and are measured, N of them.
        shape: (C, T, H, W) of a clip.
        numbers: gradient norms of clean clips (N,); overlap margins of attacked pairs.
        encoded: representations (N, D); None for N = 0.
        layers: name of a layer -> its outputs (N, D_l).
    """

    mask: Tensor
    shape: tuple[int, ...]
    numbers: Tensor
    encoded: Tensor | None = None
    layers: dict[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> "_Batch":
        """Return the batch on a device."""
        return _Batch(
            self.mask.to(device),
            self.shape,
            self.numbers.to(device),
            None if self.encoded is None else self.encoded.to(device),
            {name: output.to(device) for name, output in self.layers.items()},
        )


def _of_all_ranks(own: list[_Batch]) -> list[_Batch]:
    """Return the batches of all ranks in their order; each rank has every world-th one."""
    if distributed.world() == 1:
        return own
    # A rank without batches measures nothing on another device.
    device = own[0].mask.device if own else torch.device("cpu")
    ranks = distributed.gathered([batch.to("cpu") for batch in own])
    columns = itertools.zip_longest(*ranks)
    return [batch.to(device) for column in columns for batch in column if batch is not None]


def _require_two(clean: list[_Batch]) -> None:
    """Raise UserError for fewer than two clips that decode, or have finite numbers."""
    decoded = sum(len(batch.mask) for batch in clean)
    if decoded < 2:
        raise UserError(
            "eval.sensitivity: distances need two clips, but fewer test videos decode; set it to 0"
        )
    left_out = decoded - sum(int(batch.mask.sum()) for batch in clean)
    if left_out > decoded - 2:
        raise UserError(
            f"eval.sensitivity: distances need two clips, but {left_out} have {MODEL_FAULT}; set it"
            " to 0"
        )


def _measure_clean(backbone: Backbone, classify: Predict, x: Tensor, labels: Tensor) -> _Batch:
    """Run clean clips through the model, and find those with finite numbers.

    Args:
        backbone: the encoder.
        classify: returns logits.
        x: clips (B, C, T, H, W); B may be 0.
        labels: (B,).

    Raises:
        UserError: for outputs that are not logits, and labels out of range.
    """
    if not len(x):
        return _Batch(torch.ones(0, dtype=torch.bool, device=x.device), (), x.new_empty(0))
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
    batch = _Batch(is_finite, tuple(x.shape[1:]), norms[is_finite])
    return _with_outputs(batch, backbone, _kept(x, is_finite)) if is_finite.any() else batch


@torch.no_grad()
def _with_outputs(batch: _Batch, backbone: Backbone, x: Tensor) -> _Batch:
    """Return a batch with the outputs of the backbone for its clips."""
    return replace(
        batch, encoded=backbone(x).float(), layers=by_layer(backbone.stored, backbone, x)
    )


def _attack_all(
    backbone: Backbone,
    clips: Batches,
    clean: Sequence[_Batch],
    threat: ThreatModel,
    generator: torch.Generator,
) -> list[_Batch]:
    """Attack all clips of this rank within one budget.

    Args:
        backbone: the encoder.
        clips: the batches of this rank, as in `measure_sensitivity`.
        clean: the batches of all ranks.
        threat: the budget.
        generator: generator of the random starts.

    Returns:
        The batches of this rank.
    """
    own = iter(clips())
    attacked = []
    for number, batch in enumerate(clean):
        count = int(batch.mask.sum())
        if number % distributed.world() != distributed.rank():
            _skip_starts(count, batch.shape, threat, generator)
            continue
        x = _kept(next(own)[0], batch.mask)
        result = replace(batch, numbers=batch.numbers.new_empty(0))
        if count:
            moved = displace(backbone, x, threat, generator=generator)
            result = _with_outputs(result, backbone, moved)
        # A pair is a clip and the one before it; the first clip is paired with the last.
        if count > 1:
            margins = overlap(backbone, x, x.roll(1, 0), threat, generator=generator)
            result = replace(result, numbers=margins)
        attacked.append(result)
    return attacked


def _skip_starts(
    count: int, shape: tuple[int, ...], threat: ThreatModel, generator: torch.Generator
) -> None:
    """Draw the random starts of a batch of another rank, so that those of the next one are alike.

    Args:
        count: number of its clips.
        shape: (C, T, H, W) of a clip.
        threat: the budget; the attacks do not start without one.
        generator: generator of the random starts.
    """
    if not threat.eps or not count:
        return
    # one start of `displace`, and two of `overlap`
    for _ in range(3 if count > 1 else 1):
        torch.rand((count, *shape), generator=generator, device=generator.device)


def _compare(
    eps: float, clean_batches: Sequence[_Batch], batches: Sequence[_Batch]
) -> Displacement:
    """Return the measures of one budget.

    Args:
        eps: the budget.
        clean_batches: the clean clips.
        batches: the attacked clips, in the same order. No batch has margins if none has two clips.
    """
    clean, layers = _joined(clean_batches)
    attacked, attacked_layers = _joined(batches)
    margin = torch.cat([batch.numbers for batch in batches])
    index = torch.arange(len(clean), device=clean.device)
    moved = (attacked - clean).norm(dim=1)
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


def _joined(batches: Sequence[_Batch]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return representations (N, D), and name of a layer -> its outputs (N, D_l)."""
    measured = [batch for batch in batches if batch.encoded is not None]
    names = measured[0].layers
    layers = {name: torch.cat([batch.layers[name] for batch in measured]) for name in names}
    return torch.cat([batch.encoded for batch in measured if batch.encoded is not None]), layers


def _kept(x: Tensor, mask: Tensor) -> Tensor:
    """Return the clips of the mask, without a copy if these are all."""
    return x if mask.all() else x[mask]


def _cross_entropy(classify: Predict, labels: Tensor, x: Tensor) -> Tensor:
    """Return the cross-entropy of each sample, (B,)."""
    return F.cross_entropy(checked_output(classify(x), len(x)).float(), labels, reduction="none")
