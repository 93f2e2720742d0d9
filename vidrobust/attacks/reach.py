"""Find the modules that a callable runs through."""

import functools
import itertools
import types
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

_MAX_DEPTH = 6  # of callables and containers inside each other
_MAX_PARTS = 1000  # of a container that are searched
_CONTAINERS = (list, tuple, dict)


def reachable_modules(predict: Any) -> list[nn.Module]:
    """Return the networks that `predict` is or holds, in the order of the search, each once.

    The search covers modules, functools.partial, bound methods, and attributes of callable objects.
    Of functions it covers closures, defaults, and the globals that they name. It goes into lists,
    tuples and dicts among these. Parts of a module are not listed again.
    """
    return list({id(module): module for module in _modules_in(predict, _MAX_DEPTH)}.values())


def batch_norms_in_training(predict: Any) -> list[str]:
    """Return the kinds of norms behind `predict` that take their statistics from the batch."""
    kinds = set()
    for module in reachable_modules(predict):
        for part in module.modules():
            # without running statistics, a norm uses the batch in eval mode too
            if isinstance(part, _BatchNorm) and (part.training or part.running_mean is None):
                kinds.add(type(part).__name__)
    return sorted(kinds)


def _modules_in(thing: Any, depth: int) -> Iterator[nn.Module]:
    """Yield the modules that a thing is or holds, at most so many levels down."""
    if isinstance(thing, nn.Module):
        yield thing
        return
    if depth:
        for part in _parts(thing):
            yield from _modules_in(part, depth - 1)


def _parts(thing: Any) -> list[Any]:
    """Return what a callable, or a container, holds that may be called in turn."""
    if isinstance(thing, _CONTAINERS):
        values = thing.values() if isinstance(thing, dict) else thing
        return [part for part in itertools.islice(values, _MAX_PARTS) if _may_hold(part)]
    if isinstance(thing, functools.partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    if isinstance(thing, types.MethodType):
        return [thing.__self__]
    if isinstance(thing, types.FunctionType):
        return [part for part in _held_by_function(thing) if _may_hold(part)]
    if isinstance(thing, type) or not callable(thing):
        return []
    return [part for part in getattr(thing, "__dict__", {}).values() if _may_hold(part)]


def _held_by_function(function: types.FunctionType) -> list[Any]:
    """Return what a function closes over, has as defaults, and names of its globals."""
    closed = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
    names = function.__code__.co_names
    named = [function.__globals__[name] for name in names if name in function.__globals__]
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    return [*closed, *defaults, *named]


def _may_hold(part: Any) -> bool:
    return callable(part) or isinstance(part, _CONTAINERS)


def _is_filled(cell: Any) -> bool:
    """Return whether a closure's cell has a value; one of a name assigned later has none yet."""
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
