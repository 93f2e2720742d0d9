"""Check what a model returns, and that it leaves its input unchanged."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class BadSamples(ValueError):
    """NaN or infinity of single samples; a batch without them is sound.

    Attributes:
        samples: their numbers in the caller's batch.
        reason: the message, with {} in place of the numbers.
    """

    def __init__(self, samples: Sequence[int], reason: str) -> None:
        super().__init__(reason.replace("{}", str(list(samples))))
        self.samples = list(samples)
        self.reason = reason


@contextmanager
def numbered(numbers: Tensor | Sequence[int]) -> Iterator[None]:
    """Renumber the samples of a `BadSamples` raised inside, as those of a larger batch.

    numbers: for each sample of the smaller batch, its number in the larger one.
    """
    try:
        yield
    except BadSamples as error:
        # reading the numbers makes a GPU wait, so only after an error
        outer = numbers.tolist() if isinstance(numbers, Tensor) else list(numbers)
        raise BadSamples([outer[i] for i in error.samples], error.reason) from None


def called(
    model: Callable[[Tensor], Any], x: Tensor, name: str = "predict", *, compare: bool = False
) -> Any:
    """Return model(x).

    Args:
        model: any callable.
        x: its input, which it must not change.
        name: what the message calls the model.
        compare: also compare all values before and after. This finds writes that autograd does not
            record (`x.data`).

    Raises:
        ValueError: the model writes into x, after which nothing measured from x would be right.
    """
    version = _version(x)
    before = x.detach().clone() if compare else None
    try:
        output = model(x)
    except RuntimeError as error:
        # torch itself refuses writes into an input that asks for a gradient
        if "leaf Variable that requires grad" in str(error) and "in-place" in str(error):
            raise _writes(name) from error
        raise
    # the counter catches writes that autograd records, comparing the values catches all others
    if _version(x) != version or (before is not None and not torch.equal(before, x.detach())):
        raise _writes(name)
    return output


def _writes(name: str) -> ValueError:
    return ValueError(
        f"{name} writes into its input (x.sub_(...), x /= ...), so that the clips are no longer "
        "what they were; give lambda x: model(x.clone())"
    )


def _version(x: Tensor) -> int:
    """Return how often x was written to; inference tensors do not count it."""
    return -1 if x.is_inference() else x._version


def checked_output(output: Any, samples: int, name: str = "predict") -> Tensor:
    """Return the (B, K) tensor of a classifier, K at least 2.

    Args:
        output: of the classifier.
        samples: B.
        name: what the message calls the classifier.

    Raises:
        ValueError: the output has another shape, or is no tensor; the message says what to write
            instead.
    """
    logits = as_tensor(output, name)
    if logits.ndim != 2 or len(logits) != samples or logits.shape[1] < 2:
        raise ValueError(
            f"a classifier gives (B, K) logits of 2 classes or more; got {tuple(logits.shape)} "
            f"for B={samples}"
        )
    return logits


def as_tensor(output: Any, name: str = "predict") -> Tensor:
    """Return a model's output, if it is a floating-point tensor.

    Args:
        output: of the model.
        name: what the message calls the model.

    Raises:
        ValueError: it is anything else; the message says how to get a tensor of it.
    """
    if isinstance(output, Tensor):
        if not output.dtype.is_floating_point:
            raise ValueError(
                f"{name} returns a tensor of {output.dtype}; give floating-point numbers"
            )
        return output
    kind, remedy = _kind_and_remedy(output)
    raise ValueError(f"{name} returns {kind}; {remedy}")


def _kind_and_remedy(output: Any) -> tuple[str, str]:
    """Return what an output is that is no tensor, and what to write instead."""
    kind = type(output).__name__
    # a dict, as of Hugging Face models; a tuple; an object with a field of logits; an array
    if isinstance(output, Mapping):
        key = "logits" if "logits" in output else next(iter(output), "logits")
        keys = ", ".join(map(str, output))
        return f"a {kind} of {keys}", f"give lambda x: model(x)[{key!r}]"
    if isinstance(output, tuple | list):
        kinds = ", ".join(type(part).__name__ for part in output)
        first = next((i for i, part in enumerate(output) if isinstance(part, Tensor)), 0)
        return f"a {kind} ({kinds})", f"give lambda x: model(x)[{first}]"
    if isinstance(getattr(output, "logits", None), Tensor):
        return f"a {kind}", "give lambda x: model(x).logits"
    if type(output).__module__ == "numpy":
        return (
            f"a numpy {kind}",
            "give the torch tensor itself; white-box attacks need its gradient",
        )
    return kind, "give a tensor (B, K)"
