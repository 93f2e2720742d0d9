"""Models of the user's own code (python:), TorchScript programs, and modules given in Python."""

import copy
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vidrobust.attacks.outputs import as_tensor
from vidrobust.models.input_spec import InputSpec, arranged
from vidrobust.models.sources.source_model import Adjust, Source, SourceModel, SourceTrunk
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log

NO_HEAD = "(none)"  # name of the classifier of a model whose outputs are its features
_LEAST = 1e-12  # of a probability whose logarithm is taken


def names() -> Sequence[str]:
    """Return no names, because any file or module may be given."""
    return []


def build_python(name: str, weights: str, adjust: Adjust) -> SourceModel:
    """Return the model that a function of the user's own code makes.

    Args:
        name: FILE_OR_MODULE:FUNCTION. The function takes no arguments and returns a module, any
            callable that maps clips to logits, or a pair of either and an InputSpec.
        weights: must be "".
        adjust: changes the input card.

    Raises:
        UserError: for a file, module or function that does not exist, and for errors in it.
    """
    where, _, function = name.rpartition(":")
    if not where or weights:
        raise UserError(f"python:{name}: write python:FILE.py:FUNCTION or python:MODULE:FUNCTION")
    module = _import(where, name)
    made = getattr(module, function, None)
    if not callable(made):
        defined = ", ".join(key for key, value in vars(module).items() if callable(value))
        raise UserError(f"python:{name}: {where} has no function {function}; it has {defined}")
    try:
        model = made()
    except Exception as error:  # the user's own code
        raise UserError(f"python:{name}: {function}() failed: {error!r}") from error
    card = InputSpec()
    if isinstance(model, tuple) and len(model) == 2 and isinstance(model[1], InputSpec):
        model, card = model
    if not callable(model) or isinstance(model, type):
        kind = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise UserError(
            f"python:{name}: {function}() returned {kind}; return a module, a function of clips, or"
            " a pair of one and an InputSpec"
        )
    return wrapped(model, adjust(card), f"python:{name}")


def build_torchscript(name: str, weights: str, adjust: Adjust) -> SourceModel:
    """Return a TorchScript program, whose outputs are taken as features and as logits.

    Args:
        name: the file.
        weights: must be "".
        adjust: changes the input card.

    Raises:
        UserError: for a file that is no such program.
    """
    if weights or not Path(name).is_file():
        raise UserError(f"torchscript:{name}: no such file")
    try:
        program = torch.jit.load(name, map_location="cpu")
    except RuntimeError as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"torchscript:{name}: no TorchScript program ({reason})") from None
    return wrapped(program, adjust(InputSpec()), f"torchscript:{name}")


def wrapped(model: Callable[[Tensor], Any], card: InputSpec, name: str) -> SourceModel:
    """Return a module or function as an encoder and a head.

    If the last linear layer of a module makes its output, the features are what this layer takes.
    Otherwise the outputs are the features too.

    Args:
        model: clips, as the card says -> logits, or an object with a field `logits`.
        card: what the model expects.
        name: for messages.

    Raises:
        UserError: the model cannot run on clips of the card, or returns no logits.
    """
    network = _copied(model, name) if isinstance(model, nn.Module) else _Function(model)
    network.eval()
    two = torch.rand(2, 3, card.frames, *card.size)
    clips = arranged(two, card)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    output, single = _tried(network, two, card, name)
    changed = [k for k, v in network.state_dict().items() if not torch.equal(v, before[k])]
    if changed:
        log.warning(
            f"{name} changes its own state in a forward pass, also in eval mode (first"
            f" {changed[0]}): results depend on the order of the clips"
        )
    run = _run
    if single:
        log.info(f"{name} takes one clip at a time")
        run = _one_by_one
    clips = arranged(two[:1], card) if single else clips
    if bool((output >= 0).all()) and torch.allclose(output.sum(1), torch.ones(len(output))):
        log.info(f"{name} returns probabilities: their logarithms are its logits")
        run, key = _logarithms_one_by_one if single else _logarithms, ""
    else:
        key = _last_linear(network, clips, output)
    if key:
        head = network.get_submodule(key)
        assert isinstance(head, nn.Linear)  # as _last_linear found it
        parent, _, last = key.rpartition(".")
        setattr(network.get_submodule(parent) if parent else network, last, nn.Identity())
    else:
        # a linear layer that changes nothing: sums with zeros are exact
        head = nn.Linear(output.shape[1], output.shape[1], bias=False)
        nn.init.eye_(head.weight)
    trunk = SourceTrunk(network, card, run, key or NO_HEAD, dim=head.in_features)
    return SourceModel(trunk, head.in_features, head, card, trained=True)


def logits_of(output: Any, name: str) -> Tensor:
    """Return the tensor in a model's output, where there is no doubt which one it is.

    Args:
        output: a tensor, an object or mapping with `logits`, or a sequence of one tensor.
        name: for the message.

    Raises:
        ValueError: it is anything else.
    """
    if isinstance(output, Mapping) and "logits" in output:
        output = output["logits"]
    elif isinstance(getattr(output, "logits", None), Tensor):
        output = output.logits
    elif isinstance(output, list | tuple) and len(output) == 1:
        output = output[0]
    tensor = as_tensor(output, name)
    if tensor.ndim != 2:
        raise ValueError(f"{name} returns {tuple(tensor.shape)}; give logits (B, K)")
    return tensor


def _run(network: nn.Module, x: Any) -> Tensor:
    """Return the features of a module of the user."""
    return logits_of(network(x), "the model")


def _one_by_one(network: nn.Module, x: Any) -> Tensor:
    """Return the features of a module that takes one clip at a time."""
    if isinstance(x, list):
        clips: Any = map(list, zip(*(pathway.split(1) for pathway in x), strict=True))
    else:
        clips = x.split(1)
    return torch.cat([_run(network, clip) for clip in clips])


def _logarithms(network: nn.Module, x: Any) -> Tensor:
    """Return the logarithms of the probabilities that a module returns."""
    return _run(network, x).clamp(min=_LEAST).log()


def _logarithms_one_by_one(network: nn.Module, x: Any) -> Tensor:
    """Return `_logarithms` of a module that takes one clip at a time."""
    return _one_by_one(network, x).clamp(min=_LEAST).log()


def _logits_or_refuse(output: Any, name: str) -> Tensor:
    """Return `logits_of`, with a UserError for outputs of another kind."""
    try:
        return logits_of(output, name)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: {error}") from error


def _copied(model: nn.Module, name: str) -> nn.Module:
    """Return a copy of a module, whose head can be cut off while the user's own stays whole."""
    if isinstance(model, torch.jit.ScriptModule):
        return model  # no layer of a program is cut off, and copies of its weights are no leaves
    try:
        return copy.deepcopy(model)
    except Exception as error:  # whatever the objects in it raise
        raise UserError(
            f"{name}: cannot be copied ({error!r}); give a function of clips in its place, such as"
            " lambda clips: model(clips)"
        ) from error


def _tried(network: nn.Module, clips: Tensor, card: InputSpec, name: str) -> tuple[Tensor, bool]:
    """Return the outputs of two clips, and whether the model takes only one at a time.

    Args:
        network: the model.
        clips: two clips (2, 3, T, H, W).
        card: what the model expects.
        name: for messages.

    Raises:
        UserError: it fails on one clip too, or returns no logits.
    """
    with torch.no_grad():
        single = False
        try:
            output = network(arranged(clips, card))
        except Exception:  # whatever the model raises; with one clip it is reported
            single = True
        try:
            if single:
                output = network(arranged(clips[:1], card))
            return _logits_or_refuse(output, name), single
        except UserError:
            raise
        except Exception as error:  # as above
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"{name}: fails on a clip of {card.frames} frames of {card.size[0]} x"
                f" {card.size[1]} pixels in the layout {card.layout}, one or two at a time"
                f" ({reason}); set model.input.frames, size and layout, return an InputSpec,"
                " or a function that fills up its batch"
            ) from error


class _Function(nn.Module):
    """Hold a function that is no module."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def _last_linear(network: nn.Module, clip: Any, output: Tensor) -> str:
    """Return the name of the linear layer whose output is the network's; "" without one."""
    layers = [(name, layer) for name, layer in network.named_modules() if type(layer) is nn.Linear]
    if not layers:
        return ""
    name, layer = layers[-1]
    seen: list[tuple[Tensor, Tensor]] = []
    handle = layer.register_forward_hook(
        lambda module, inputs, made: seen.append((inputs[0], made))
    )
    try:
        with torch.no_grad():
            network(clip)
    finally:
        handle.remove()
    fits = len(seen) == 1 and seen[0][0].ndim == 2 and torch.equal(seen[0][1], output)
    return name if fits else ""


def _import(where: str, name: str) -> Any:
    """Import a file or a module by name."""
    try:
        if not where.endswith(".py"):
            return importlib.import_module(where)
        path = Path(where).expanduser()
        if not path.is_file():
            raise UserError(f"python:{name}: no file {where}")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None  # the name ends with .py
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(path.stem, module)  # dataclasses and pickles of the file need it
        spec.loader.exec_module(module)
        return module
    except UserError:
        raise
    except Exception as error:  # the user's own code
        raise UserError(f"python:{name}: importing {where} failed: {error!r}") from error


PYTHON = Source(
    build_python, names, "FILE.py:FUNCTION or MODULE:FUNCTION, which returns a module or a function"
)
TORCHSCRIPT = Source(build_torchscript, names, "a file of torch.jit.save")
