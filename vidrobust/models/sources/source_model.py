"""SourceModel: a network of another package, as an encoder and a head."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vidrobust.models.input_spec import InputSpec, arranged
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log

# changes the input card of a source before the model is built, as options ask
Adjust = Callable[[InputSpec], InputSpec]


@dataclass(frozen=True)
class SourceModel:
    """A network of another package.

    Attributes:
        network: clips (B, C, T, H, W), normalised as `input` says -> features (B, dim). Its
            attribute `network` is the other package's module without its head, so that the keys of
            its state dict are those of the package's files.
        dim: number of features.
        head: features -> logits; None for a network without a classifier.
        input: what the network expects.
        trained: it has pretrained weights.
    """

    network: "SourceTrunk"
    dim: int
    head: nn.Linear | None
    input: InputSpec
    trained: bool = False


@dataclass(frozen=True)
class Source:
    """A package that models come from.

    Attributes:
        build: name, weights ("" for random ones) and a function that changes the input card -> the
            model.
        names: returns the names that exist; none if any name may.
        help: what a name is, for messages and docs.
        package: the other package, if it may be missing; "": it is always there.
        extra: extra of this package that installs it.
    """

    build: Callable[[str, str, Adjust], SourceModel]
    names: Callable[[], Sequence[str]]
    help: str
    package: str = ""
    extra: str = ""


Shape = tuple[int, tuple[int, int]]  # number of frames; height and width


class SourceTrunk(nn.Module):
    """Run a network of another package on clips, and check that they fit.

    Args:
        network: the other package's module.
        input: what it expects.
        run: network and clips in its layout -> features.
        head_key: name of the classifier in the package's state dicts.
        least_frames: smallest number of frames that it takes.
        fixed: the only number of frames and size that it takes; None: any.
        interpolated: the number of frames and size of its position embeddings, which it
            interpolates for others; None: it has none of fixed size.
        dim: number of features that its head takes; 0: they are not checked.
    """

    def __init__(
        self,
        network: nn.Module,
        input: InputSpec,
        run: Callable[[nn.Module, Any], Tensor],
        head_key: str,
        *,
        least_frames: int = 1,
        fixed: Shape | None = None,
        interpolated: Shape | None = None,
        dim: int = 0,
    ) -> None:
        super().__init__()
        self.network = network
        self.input = input
        self.run = run
        self.head_key = head_key
        self.least_frames = least_frames
        self.fixed = fixed
        self.interpolated = interpolated
        self.dim = dim
        self.reported: set[Shape] = set()  # shapes whose interpolation was logged

    def forward(self, x: Tensor) -> Tensor:
        """Return the features (B, dim) of normalised RGB clips (B, C, T, H, W)."""
        self.require_fit(x.shape[2], (x.shape[3], x.shape[4]))
        try:
            features = self.run(self.network, arranged(x, self.input))
            if self.dim not in (0, features.shape[1]):
                raise ValueError(f"{features.shape[1]} features in place of {self.dim}")
            return features
        except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
            # whoever runs batches makes them smaller
            if "memory" in str(error) or isinstance(error, torch.OutOfMemoryError):
                raise
            shape = x.shape[2], (x.shape[3], x.shape[4])
            own = self.input.frames, self.input.size
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"the model fails on {_text(shape)} in the layout {self.input.layout} ({reason});"
                f" its input card says {_text(own)}; correct model.input.* or data.*"
            ) from error

    def require_fit(self, frames: int, size: tuple[int, int]) -> None:
        """Raise UserError for clips that the network cannot take."""
        if self.fixed and (frames, size) != self.fixed:
            raise UserError(
                f"this network takes {_text(self.fixed)}, not {_text((frames, size))}; set"
                f" data.frames={self.fixed[0]} and data.size={self.fixed[1][0]}"
            )
        shape = frames, size
        if self.interpolated not in (None, shape) and shape not in self.reported:
            assert self.interpolated is not None
            self.reported.add(shape)
            log.warning(
                f"position embeddings of {_text(self.interpolated)} are interpolated for"
                f" {_text(shape)}"
            )
        if frames < self.least_frames:
            raise UserError(
                f"this network takes at least {self.least_frames} frames, not {frames}; set"
                " data.frames"
            )


def _text(shape: Shape) -> str:
    """Return a number of frames and a size as text."""
    frames, (height, width) = shape
    return f"{frames} frames of {height} x {width} pixels"


def whole(network: nn.Module, x: Tensor) -> Tensor:
    """Run a network that takes clips."""
    return network(x)


def per_frame(network: nn.Module, x: Tensor) -> Tensor:
    """Run an image network on every frame of clips (B, C, T, H, W), and average over frames."""
    batch, frames = x.shape[0], x.shape[2]
    outputs = network(x.transpose(1, 2).flatten(0, 1))
    return outputs.flatten(1).view(batch, frames, -1).mean(1)


def cut_last_linear(network: nn.Module) -> tuple[str, nn.Linear]:
    """Replace the last linear layer of a classifier by the identity; return its name and itself.

    Raises:
        ValueError: the network has no linear layer.
    """
    linear = [
        (name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)
    ]
    if not linear:
        raise ValueError("it has no linear layer that could be its classifier")
    name, layer = linear[-1]
    parent, _, last = name.rpartition(".")
    setattr(network.get_submodule(parent) if parent else network, last, nn.Identity())
    return name, layer


def linear_of(convolution: nn.Conv3d) -> nn.Linear:
    """Return a convolution of one pixel as the linear layer that it is on averaged features."""
    weight = convolution.weight
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=convolution.bias is not None)
    state = {"weight": weight.flatten(1)}
    if convolution.bias is not None:
        state["bias"] = convolution.bias
    layer.load_state_dict(state)
    return layer
