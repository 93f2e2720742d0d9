"""Find the modules that a callable runs through."""

import functools
import itertools
import types
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

_DEPTH = 6  # of callables and containers inside each other
_MANY = 1000  # parts of a container are looked at
_CONTAINERS = (list, tuple, dict)


def reachable_modules(predict: Any) -> list[nn.Module]:
    """Return the networks that `predict` is or holds, in the order they are found, each once.

    Looks at modules, functools.partial, bound methods, attributes of callable objects, what a
    function closes over, has as defaults, or names of its globals, and into lists, tuples and
    dicts among these. Parts of a module that is found
    are not listed again.
    """
    return list({id(module): module for module in _found(predict, _DEPTH)}.values())


def batch_norms_in_training(predict: Any) -> list[str]:
    """Return the kinds of norms behind `predict` that take their statistics from the batch."""
    norms = (
        part
        for module in reachable_modules(predict)
        for part in module.modules()
        if isinstance(part, _BatchNorm)
    )
    return sorted(
        {type(norm).__name__ for norm in norms if norm.training or norm.running_mean is None}
    )


def _found(thing: Any, depth: int) -> Iterator[nn.Module]:
    if isinstance(thing, nn.Module):
        yield thing
        return
    if depth:
        for part in _parts(thing):
            yield from _found(part, depth - 1)


def _parts(thing: Any) -> list[Any]:
    """Return what a callable, or a container, holds that may be called in turn."""
    if isinstance(thing, _CONTAINERS):
        inside = thing.values() if isinstance(thing, dict) else thing
        return [part for part in itertools.islice(inside, _MANY) if _may_hold(part)]
    if isinstance(thing, functools.partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    if isinstance(thing, types.MethodType):
        return [thing.__self__]
    if isinstance(thing, types.FunctionType):
        closed = [cell.cell_contents for cell in thing.__closure__ or () if _is_filled(cell)]
        named = [
            thing.__globals__[name] for name in thing.__code__.co_names if name in thing.__globals__
        ]
        held = [
            *closed,
            *(thing.__defaults__ or ()),
            *(thing.__kwdefaults__ or {}).values(),
            *named,
        ]
        return [part for part in held if _may_hold(part)]
    if isinstance(thing, type) or not callable(thing):
        return []
    return [part for part in getattr(thing, "__dict__", {}).values() if _may_hold(part)]


def _may_hold(part: Any) -> bool:
    return callable(part) or isinstance(part, _CONTAINERS)


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
