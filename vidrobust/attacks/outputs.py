"""Check what a model returns, and that it leaves its input unchanged."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class BadSamples(ValueError):
    """NaN or infinity of single samples; a batch without them is sound.

    samples: their numbers in the batch of whoever called. reason: the message, with {} in the place
    of the numbers.
    """

    def __init__(self, samples: Sequence[int], reason: str) -> None:
        super().__init__(reason.replace("{}", str(list(samples))))
        self.samples = list(samples)
        self.reason = reason


@contextmanager
def numbered(numbers: Tensor | Sequence[int]) -> Iterator[None]:
    """Renumber the samples of a `BadSamples` raised inside, as those of a larger batch.

    numbers: of each sample of the smaller batch, its number in the larger one.
    """
    try:
        yield
    except BadSamples as error:
        known = numbers.tolist() if isinstance(numbers, Tensor) else list(numbers)
        raise BadSamples([known[i] for i in error.samples], error.reason) from None


def called(
    model: Callable[[Tensor], Any], x: Tensor, name: str = "predict", *, compare: bool = False
) -> Any:
    """Return model(x).

    Args:
        model: any callable.
        x: its input, which it must not change.
        name: what the message calls the model.
        compare: also compare all values before and after, which finds writes past autograd
            (`x.data`).

    Raises:
        ValueError: the model writes into x, after which nothing measured from x would be right.
    """
    version, before = _version(x), x.detach().clone() if compare else None
    try:
        found = model(x)
    except RuntimeError as error:
        if "leaf Variable that requires grad" in str(error) and "in-place" in str(error):
            raise _writes(name) from error
        raise
    if _version(x) != version or (before is not None and not torch.equal(before, x.detach())):
        raise _writes(name)
    return found


def _writes(name: str) -> ValueError:
    return ValueError(
        f"{name} writes into its input (x.sub_(...), x /= ...), so that the clips are no longer "
        "what they were; give lambda x: model(x.clone())"
    )


def _version(x: Tensor) -> int:
    """Return how often x was written to; inference tensors do not count it."""
    return -1 if x.is_inference() else x._version


def checked_output(found: Any, samples: int, name: str = "predict") -> Tensor:
    """Return the (B, K) tensor that a classifier gave, K at least 2.

    Args:
        found: what it returned.
        samples: B.
        name: what the message calls the classifier.

    Raises:
        ValueError: it is no tensor, with what to write instead, or of another shape.
    """
    logits = as_tensor(found, name)
    if logits.ndim != 2 or len(logits) != samples or logits.shape[1] < 2:
        raise ValueError(
            f"a classifier gives (B, K) logits of 2 classes or more; got {tuple(logits.shape)} "
            f"for B={samples}"
        )
    return logits


def as_tensor(found: Any, name: str = "predict") -> Tensor:
    """Return `found`, a floating tensor. Raises ValueError with how to get one of anything else."""
    if isinstance(found, Tensor):
        if not found.dtype.is_floating_point:
            raise ValueError(
                f"{name} returns a tensor of {found.dtype}; give floating-point numbers"
            )
        return found
    kind, remedy = type(found).__name__, "give a tensor (B, K)"
    if isinstance(found, Mapping):
        key = "logits" if "logits" in found else next(iter(found), "logits")
        kind, remedy = (
            f"a {kind} of {', '.join(map(str, found))}",
            f"give lambda x: model(x)[{key!r}]",
        )
    elif isinstance(found, tuple | list):
        kinds = ", ".join(type(part).__name__ for part in found)
        first = next((i for i, part in enumerate(found) if isinstance(part, Tensor)), 0)
        kind, remedy = f"a {kind} ({kinds})", f"give lambda x: model(x)[{first}]"
    elif isinstance(getattr(found, "logits", None), Tensor):
        kind, remedy = f"a {kind}", "give lambda x: model(x).logits"
    elif type(found).__module__ == "numpy":
        kind, remedy = (
            f"a numpy {kind}",
            "give the torch tensor itself; white-box attacks need its gradient",
        )
    raise ValueError(f"{name} returns {kind}; {remedy}")
