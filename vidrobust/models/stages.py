"""Read what the stages of a backbone compute, as tokens.

A stage is a module of the network: a residual stage of a convolutional network, a block of a
transformer. Its tokens (B, N, D) are the places of its feature map, D channels each.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidrobust.models.backbone import Backbone
from vidrobust.utils.errors import UserError


def stage_names(backbone: Backbone) -> tuple[str, ...]:
    """Return the names of a backbone's stages, from its input to its features.

    They are the modules `layer1`, `layer2`, ... of a residual network, and otherwise the members of
    the list of modules that holds most of the weights.

    Raises:
        UserError: for a network without such a list; any module may be named in place of a stage.
    """
    network = backbone.stored
    residual = [name for name, _ in network.named_children() if re.fullmatch(r"layer\d+", name)]
    if residual:
        return tuple(residual)
    lists = [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > 1
    ]
    if not lists:
        raise UserError(
            "this network has no list of stages; name a module of it, such as"
            f" {next((name for name, _ in network.named_children()), 'none')}"
        )
    # of nested lists that hold the same weights, the outer one
    prefix, blocks = max(lists, key=lambda item: (_size(item[1]), -item[0].count(".")))
    # a ModuleDict only holds parts of a head, and is not run itself
    names = [
        name
        for name, block in blocks.named_children()
        if _size(block) and not isinstance(block, nn.ModuleDict)
    ]
    return tuple(f"{prefix}.{name}" if prefix else name for name in names)


def blocks_of(backbone: Backbone) -> list[nn.Module]:
    """Return the blocks of a backbone's stages.

    They are the members of a stage that is a list of modules, each of several layers. Any other
    stage is a block itself: a layer may change the output of the one before it in place.

    Raises:
        UserError: for a network without a list of stages.
    """
    blocks: list[nn.Module] = []
    for name in stage_names(backbone):
        stage = backbone.stored.get_submodule(name)
        inner = [*stage.children()] if isinstance(stage, nn.Sequential) else []
        is_list = bool(inner) and all(any(True for _ in each.children()) for each in inner)
        blocks += inner if is_list else [stage]
    return blocks


class PooledStages:
    """Map clips to the average-pooled outputs of all stages, side by side.

    Attributes:
        names: of the stages.
        sizes: number of features of each stage.
    """

    def __init__(self, backbone: Backbone, clip: Tensor) -> None:
        """Run the backbone on a clip (1, C, T, H, W), to learn the sizes of its stages."""
        self.backbone = backbone
        self.names = stage_names(backbone)
        with torch.no_grad():
            self.sizes = [each.shape[2] for each in stage_tokens(backbone, clip, self.names)]

    def __call__(self, x: Tensor) -> Tensor:
        """Return the pooled outputs (B, sum of `sizes`) of clips (B, C, T, H, W) in [0, 1]."""
        tokens = stage_tokens(self.backbone, x, self.names)
        return torch.cat([each.mean(1) for each in tokens], 1)


def require_stages(backbone: Backbone) -> None:
    """Raise UserError for `protocol.stages` of a network without a list of stages."""
    try:
        stage_names(backbone)
    except UserError as error:
        raise UserError(f"protocol.stages=true: {error}; set it to false") from None
    if backbone.mixed == "select":
        raise UserError("protocol.stages=true: not with eval.branch=select; name one branch")


def _size(module: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(p.numel() for p in module.parameters())


def stage_tokens(backbone: Backbone, x: Tensor, names: Sequence[str] = ("",)) -> list[Tensor]:
    """Return the tokens (B, N, D) of some stages, by one pass of the backbone.

    The mean over tokens is the average-pooled feature map. The pathways of SlowFast are pooled to
    the size of the smallest one, and their channels are concatenated.

    Args:
        backbone: the backbone.
        x: clips (B, C, T, H, W) in [0, 1].
        names: of stages, or of other modules; "": the last stage.

    Returns:
        The tokens of each stage. Gradient flows through them.

    Raises:
        UserError: for an unknown module, and one whose output is no feature map.
    """
    names = [name or stage_names(backbone)[-1] for name in names]
    last = stage_names(backbone)[-1] if _has_stages(backbone) else names[-1]
    with _recorded(backbone, {*names, last}) as outputs:
        backbone(x)
    if idle := [name for name in names if not outputs[name]]:
        raise UserError(f"module {idle[0]} is not run by itself; name a module in it, or a stage")
    # Channels come first in some networks and last in others (Swin), but in one network all stages
    # agree. The last one has as many channels as there are features.
    final = _tensor(outputs[last][0], last)
    channels_last = final.ndim > 3 and final.shape[1] != backbone.dim == final.shape[-1]
    tokens = [
        _mean([_tokens(output, len(x), name, channels_last=channels_last) for output in each])
        for name, each in ((name, outputs[name]) for name in names)
    ]
    # like the features, which the backbone returns in float32
    return [each.float() for each in tokens] if backbone.bf16 else tokens


def _has_stages(backbone: Backbone) -> bool:
    try:
        return bool(stage_names(backbone))
    except UserError:
        return False


@contextmanager
def _recorded(backbone: Backbone, names: set[str]) -> Iterator[dict[str, list[Any]]]:
    """Record the outputs of modules in forward passes: name -> output of each pass.

    There are several passes where norm branches are averaged.
    """
    if backbone.mixed == "select":
        raise UserError(
            "eval.branch=select: stages and tokens are those of one branch or of the average; set"
            " eval.branch"
        )
    modules = dict(backbone.stored.named_modules())
    outputs: dict[str, list[Any]] = {name: [] for name in names}
    with ExitStack() as hooks:
        for name in sorted(names):
            if name not in modules:
                raise UserError(
                    f"the network has no module {name!r}; its stages are"
                    f" {', '.join(stage_names(backbone))}"
                )

            def record(module: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
                outputs[name].append(output)

            handle = modules[name].register_forward_hook(record)
            hooks.callback(handle.remove)
        yield outputs


def _tensor(output: Any, name: str) -> Tensor:
    """Return the feature map in the output of a module, whose pathways are joined."""
    if isinstance(output, list | tuple) and output and isinstance(output[0], Tensor):
        maps = [each for each in output if isinstance(each, Tensor) and each.ndim == 5]
        # a tuple of a map and its shape or attention has one map; pathways are a list
        output = _joined(maps) if isinstance(output, list) and len(maps) > 1 else output[0]
    if not isinstance(output, Tensor) or output.ndim < 2:
        raise UserError(f"module {name} gives no feature map; name another one")
    return output


def _joined(pathways: Sequence[Tensor]) -> Tensor:
    """Return pathways (B, C, T, H, W) pooled to the smallest one, with their channels joined."""
    t, h, w = min((each.shape[2:] for each in pathways), key=lambda shape: shape.numel())
    return torch.cat([F.adaptive_avg_pool3d(each, (t, h, w)) for each in pathways], 1)


def _tokens(output: Any, batch: int, name: str, *, channels_last: bool) -> Tensor:
    """Return the output of a module as tokens (B, N, D).

    Args:
        output: of the module.
        batch: B, the number of clips.
        name: of the module.
        channels_last: feature maps have their channels last.
    """
    values = _tensor(output, name)
    # (B, D), tokens (B, N, D), or maps with one to three dimensions of places
    if values.ndim > 3:
        values = values.flatten(1, -2) if channels_last else values.flatten(2).transpose(1, 2)
    values = values.reshape(len(values), -1, values.shape[-1])
    if len(values) % batch:
        raise UserError(f"module {name} gives {len(values)} maps for {batch} clips; name another")
    # image networks run on the frames of a clip one by one
    return values.reshape(batch, -1, values.shape[-1])


def _mean(outputs: Sequence[Tensor]) -> Tensor:
    """Return the mean of the outputs of several passes."""
    return outputs[0] if len(outputs) == 1 else torch.stack(tuple(outputs)).mean(0)
