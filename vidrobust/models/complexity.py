"""Count the parameters and operations of a model."""

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from vidrobust.utils.logging import log
from vidrobust.utils.text import shown


@dataclass(frozen=True)
class Complexity:
    """Size and cost of a model.

    Attributes:
        parameters: number of parameters, those of all norm branches and of frozen layers included.
        flops_per_clip: floating-point operations of a forward pass in eval mode. As in most papers,
            a multiplication with its addition counts as one. None if they could not be counted.
        uncounted: names of operations that fvcore has no count for, such as "aten::sub"; they add
            nothing to `flops_per_clip`. Operations per element, as in activations, are never
            counted.
    """

    parameters: int
    flops_per_clip: int | None
    uncounted: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Return the operations for a log line, such as "0.12 GFLOPs per clip"; "" for None."""
        if self.flops_per_clip is None:
            return ""
        return f"{self.flops_per_clip / 1e9:.2g} GFLOPs per clip"


def parameters_text(count: int) -> str:
    """Return a number of parameters for a log line, such as "1,026 parameters"."""
    return f"{count:,} parameters" if count < 100_000 else f"{count / 1e6:.2f} M parameters"


def model_complexity(model: nn.Module, clip_shape: Sequence[int]) -> Complexity:
    """Count the parameters of a model, and the operations of a forward pass of one clip.

    The pass is that of a copy: mode, statistics and gradients of the model stay as they are. So do
    the states of random-number generators. If operations cannot be counted, the reason is logged.

    Args:
        model: takes (1, C, T, H, W) on its own device.
        clip_shape: (C, T, H, W).
    """
    parameters = sum(p.numel() for p in model.parameters())
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    # fvcore traces by TorchScript, which torch has deprecated
    with (
        warnings.catch_warnings(),
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        torch.no_grad(),
    ):
        warnings.simplefilter("ignore")
        try:
            # imported here, as the import alone warns
            from fvcore.nn import FlopCountAnalysis

            # The copy of a compiled model is not compiled, which tracing needs.
            analysis = FlopCountAnalysis(
                copy.deepcopy(model).eval(), torch.zeros(1, *clip_shape, device=device)
            )
            analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
            flops = int(analysis.total())
            uncounted = sorted(analysis.unsupported_ops())
        except Exception as error:  # whatever a model or the tracer raises
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            log.warning(f"operations of the model could not be counted: {shown(reason, 120)}")
            return Complexity(parameters, None)
    return Complexity(parameters, flops, uncounted)
