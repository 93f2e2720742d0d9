"""FiniteWatch: find the first module of a step whose output or gradient is not finite."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from vidrobust.methods import Adversary, Method
from vidrobust.models import Backbone
from vidrobust.models.branch_norm import BranchNorm


@dataclass(frozen=True)
class Finding:
    """The first output or gradient that is not finite.

    Attributes:
        text: what is not finite.
        details: lines about it: where it happened, inputs, values, weights.
    """

    text: str
    details: list[str]


class FiniteWatch:
    """Watches all modules of a method while it is a context, in the order in which they compute.

    A module ends after those that it contains, so that the first one is the innermost. Results of
    a method stay bitwise the same: nothing is computed by the model, and no random number is used.

    Attributes:
        output: the first output that is not finite, or None. The last possible one is the loss.
        gradient: the first gradient at the output of a module that is not finite, if it came before
            `output`; or None.
        parameter: name of the first parameter, in the order of the backward pass, whose gradient is
            not finite while all outputs are; "" for none.
    """

    def __init__(self, method: Method, views: Tensor) -> None:
        """Set what is watched.

        Args:
            method: the method.
            views: its views in this step, (B, V + M, C, T, H, W) in [0, 1].
        """
        self.method = method
        self.views = views
        self.output: Finding | None = None
        self.gradient: Finding | None = None
        self.parameter = ""
        self._adversaries = [m for m in method.modules() if isinstance(m, Adversary)]
        self._handles: list[Any] = []
        self._inputs: dict[str, list[str]] = {}
        self._last_output = "none"
        self._last_gradient = "none"
        self._pass = ("", "")  # kind and description of the last pass of a backbone
        self._passes: dict[str, int] = {}

    def __enter__(self) -> "FiniteWatch":
        for name, module in self.method.named_modules():
            before = module.register_forward_pre_hook(partial(self._before, name), with_kwargs=True)
            after = module.register_forward_hook(partial(self._after, name))
            self._handles += [before, after]
        for name, parameter in self.method.named_parameters():
            if parameter.requires_grad:
                hook = partial(self._of_parameter, name)
                self._handles.append(parameter.register_hook(hook))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(
        self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Describe the inputs now, as a module may overwrite them."""
        if self.output is not None:
            return
        inputs = list(_floats((args, kwargs)))
        self._inputs[name] = [described(x) for x in inputs]
        if isinstance(module, Backbone):
            self._begin_pass(name, module, inputs[0])

    def _begin_pass(self, name: str, backbone: Backbone, x: Tensor) -> None:
        kind = self._kind()
        self._passes[kind] = self._passes.get(kind, 0) + 1
        norm = next((m for m in backbone.modules() if isinstance(m, BranchNorm)), None)
        branch = "" if norm is None else f"norm branch {backbone.mixed or norm.branch}, "
        mode = "train" if backbone.training else "eval"
        text = f"pass {self._passes[kind]} through {name} ({branch}{mode} mode) of {self._shown(x)}"
        self._pass = kind, text

    def _kind(self) -> str:
        """Return what the step is doing now."""
        if any(adversary.is_attacking for adversary in self._adversaries):
            return "attack"
        return "learned pass" if torch.is_grad_enabled() else "pass without gradient"

    def _where(self) -> str:
        """Return where the step is now, for a report."""
        kind = self._kind()
        # a module outside of the backbones follows the last pass, unless an attack has ended since
        return f"{kind}, {self._pass[1]}" if kind == self._pass[0] else kind

    def _shown(self, x: Tensor) -> str:
        """Return which views of the batch the clips (N, C, T, H, W) are."""
        size = len(self.views)
        if x.shape[1:] != self.views.shape[2:] or len(x) % size:
            return "clips of another shape"
        names = []
        for part in x.detach().split(size):
            numbers = range(self.views.shape[1])
            same = [v for v in numbers if torch.equal(part, self.views[:, v].to(part.dtype))]
            names.append(self._view_name(same[0]) if same else "clips that are no view (attacked)")
        return ", ".join(names)

    def _view_name(self, number: int) -> str:
        views = self.method.views + self.method.original
        return f"view {number + 1}" if number < views else f"negative {number - views + 1}"

    def _after(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.output is not None:
            return
        outputs = list(_floats(output))
        if all(_is_finite(y) for y in outputs):
            self._last_output = name
            for y in outputs:
                if y.requires_grad:
                    y.register_hook(partial(self._of_output, name, self._where()))
        elif not name:  # the method itself: no module inside is to blame
            self.output = Finding("the loss itself, as the outputs of all modules are finite", [])
        else:
            self.output = Finding(self._titled(name, module), self._details(name, module, outputs))

    def _titled(self, name: str, module: nn.Module) -> str:
        return f"{name} ({type(module).__name__})"

    def _details(self, name: str, module: nn.Module, outputs: list[Tensor]) -> list[str]:
        inputs = self._inputs.get(name, [])
        lines = [f"in: {self._where()}"]
        lines += [f"input: {text}" for text in inputs]
        lines += [f"output: {described(y)}" for y in outputs]
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        lines += [f"{key}: {described(value.detach())}" for key, value in own if _is_float(value)]
        if any(_NOT_FINITE in text for text in inputs):
            lines.append(
                "its input is not finite already, and no output of a module before was: look"
                f" between {self._last_output or 'the loss'} and this module, or at the attack"
            )
        return lines

    def _of_output(self, name: str, where: str, gradient: Tensor) -> None:
        """Check a gradient at the output of a module."""
        if self.output is not None or self.gradient is not None:
            return
        title = self._titled(name, self.method.get_submodule(name)) if name else "the loss"
        if _is_finite(gradient):
            self._last_gradient = title
            return
        details = [
            f"in: backward pass of: {where}",
            f"gradient: {described(gradient)}",
            f"last finite gradient: at the output of {self._last_gradient}",
        ]
        self.gradient = Finding(f"at the output of {title}", details)

    def _of_parameter(self, name: str, gradient: Tensor) -> None:
        bad = self.output is None and not self.parameter
        if bad and not _is_finite(gradient):
            self.parameter = name


_NOT_FINITE = "not finite"


@torch.no_grad()
def described(x: Tensor) -> str:
    """Return shape, type and range of a tensor, and how many of its values are not finite."""
    shape = "x".join(str(size) for size in x.shape) or "scalar"
    kind = str(x.dtype).removeprefix("torch.")
    finite = x[x.isfinite()].float()
    values = f"{float(finite.min()):.4g} to {float(finite.max()):.4g}" if len(finite) else "none"
    bad = x.numel() - len(finite)
    if not bad:
        return f"{shape} {kind}, {values}"
    nan = int(x.isnan().sum())
    return (
        f"{shape} {kind}, {bad:,} of {x.numel():,} values {_NOT_FINITE} ({nan:,} NaN), finite:"
        f" {values}"
    )


# Without gradient: operations that save tensors for a backward pass would be counted by
# `recompute.recomputed`, which demands as many when it computes a pass again.
@torch.no_grad()
def _is_finite(x: Tensor) -> bool:
    return bool(x.isfinite().all())


def _floats(value: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors in nested inputs or outputs."""
    if _is_float(value):
        yield value
    elif isinstance(value, Mapping):
        yield from _floats(list(value.values()))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _floats(each)


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 0
