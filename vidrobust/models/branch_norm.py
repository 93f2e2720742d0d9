"""Batch norm with separate weights and statistics per branch.

Adversarial views have other statistics than clean ones, so each stream keeps its own (Xie et al.,
AdvProp, CVPR 2020; CLAE does so everywhere, shortcuts included: METHODS section 2.1). Lo and Patel
(2021, METHODS section 6.1) give every kind of perturbation its own.
"""

import copy
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

MIXTURES = ("average", "select")
_BRANCH = re.compile(r"\.branches\.([^.]+)\.")


class BranchNorm(nn.Module):
    """One batch norm a branch; `branch` says which of them a forward pass goes through.

    Loads the state of a plain batch norm into every branch, as well as its own.
    """

    def __init__(self, norm: _BatchNorm, momentum: float, names: Sequence[str] = ("adv",)) -> None:
        super().__init__()
        self.branch = "clean"
        self.branches = nn.ModuleDict({"clean": copy.deepcopy(norm)})
        for name in names:
            own = copy.deepcopy(norm)
            own.momentum = momentum
            self.branches[name] = own

    def forward(self, x: Tensor) -> Tensor:
        return self.branches[self.branch](x)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        # Called before the children load, with a state dict they share: a plain norm's entries
        # become theirs.
        plain = [key for key in state if key.startswith(prefix) and "." not in key[len(prefix) :]]
        for key in plain:
            value = state.pop(key)
            for name in self.branches:
                state[f"{prefix}branches.{name}.{key[len(prefix) :]}"] = value
        super()._load_from_state_dict(state, prefix, *args)


def add_branches(
    model: nn.Module, names: Sequence[str] = ("adv",), *, momentum: float = 0.01
) -> nn.Module:
    """Turn every batch norm of `model` into a BranchNorm, in place; all branches start from its
    state.

    names: of the adversarial branches, beside "clean". momentum: of these (CLAE: 0.01); the clean
    branch keeps its own.
    """
    for name, child in model.named_children():
        if isinstance(child, BranchNorm):
            continue
        if isinstance(child, _BatchNorm):
            setattr(model, name, BranchNorm(child, momentum, names))
        else:
            add_branches(child, names, momentum=momentum)
    return model


def branch_names(model: nn.Module) -> tuple[str, ...]:
    """The branches of a model, "clean" first; a model without branches has that one only."""
    norm = next((m for m in model.modules() if isinstance(m, BranchNorm)), None)
    return ("clean",) if norm is None else tuple(norm.branches)


@contextmanager
def use_branch(model: nn.Module, branch: str) -> Iterator[None]:
    """Forward passes of `model` inside the context go through `branch`.

    "average" and "select" are all of them at once, as a Backbone mixes them. Raises ValueError for
    a branch the model does not have, and for "select" of one that has not learned to.
    """
    known = branch_names(model)
    mixing: list[Any] = [m for m in model.modules() if hasattr(m, "mixed")]
    if branch not in known and (branch not in MIXTURES or not mixing):
        raise ValueError(f"no norm branch {branch!r} in this model; it has {', '.join(known)}")
    if branch == "select" and any(m.selector is None for m in mixing):
        raise ValueError("this model was trained without a selector; its branches can be averaged")
    norms = [m for m in model.modules() if isinstance(m, BranchNorm)]
    before, mixed = [norm.branch for norm in norms], [m.mixed for m in mixing]
    for norm in norms if branch in known else ():
        norm.branch = branch
    for m in mixing:
        m.mixed = branch if branch in MIXTURES else ""
    try:
        yield
    finally:
        for norm, name in zip(norms, before, strict=True):
            norm.branch = name
        for m, name in zip(mixing, mixed, strict=True):
            m.mixed = name


def branch_of(key: str) -> str | None:
    """The branch that an entry of a state dict belongs to: `bn1.branches.adv.weight` -> `adv`."""
    found = _BRANCH.search(key)
    return found[1] if found else None


def without_branch(key: str) -> str:
    """`bn1.branches.adv.weight` -> `bn1.weight`."""
    return _BRANCH.sub(".", key)


def single_branch_state(model: nn.Module, branch: str = "clean") -> dict[str, Tensor]:
    """The state dict that the model would have with plain norms holding `branch`."""
    state = model.state_dict()
    return {
        without_branch(key): value
        for key, value in state.items()
        if branch_of(key) in (None, branch)
    }
