"""Branch norm: batch norm with one set of weights and statistics a branch, "clean" and "adv".

Adversarial views have other statistics than clean ones, so each stream keeps its own (Xie et al., AdvProp,
CVPR 2020; CLAE does so everywhere, shortcuts included: METHODS section 2.1).
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

BRANCHES = ("clean", "adv")


class BranchNorm(nn.Module):
    """One batch norm a branch; `branch` says which of them a forward pass goes through.

    Loads the state of a plain batch norm into every branch, as well as its own.
    """

    def __init__(self, norm: _BatchNorm, momentum: float) -> None:
        super().__init__()
        self.branch = "clean"
        clean, adv = copy.deepcopy(norm), copy.deepcopy(norm)
        adv.momentum = momentum
        self.branches = nn.ModuleDict({"clean": clean, "adv": adv})

    def forward(self, x: Tensor) -> Tensor:
        return self.branches[self.branch](x)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        # Called before the children load, with a state dict they share: a plain norm's entries become theirs.
        plain = [key for key in state if key.startswith(prefix) and "." not in key[len(prefix) :]]
        for key in plain:
            value = state.pop(key)
            for name in BRANCHES:
                state[f"{prefix}branches.{name}.{key[len(prefix) :]}"] = value
        super()._load_from_state_dict(state, prefix, *args)


def add_branches(model: nn.Module, *, momentum: float = 0.01) -> nn.Module:
    """Turn every batch norm of `model` into a BranchNorm, in place; both branches start from its state.

    momentum: of the adversarial branch (CLAE: 0.01); the clean branch keeps its own.
    """
    for name, child in model.named_children():
        if isinstance(child, BranchNorm):
            continue
        if isinstance(child, _BatchNorm):
            setattr(model, name, BranchNorm(child, momentum))
        else:
            add_branches(child, momentum=momentum)
    return model


@contextmanager
def use_branch(model: nn.Module, branch: str) -> Iterator[None]:
    """Forward passes of `model` inside the context go through `branch`.

    A model without branches has the clean one only. Raises ValueError for a branch the model does not have.
    """
    norms = [m for m in model.modules() if isinstance(m, BranchNorm)]
    known = BRANCHES if norms else BRANCHES[:1]
    if branch not in known:
        raise ValueError(f"no norm branch {branch!r} in this model; it has {', '.join(known)}")
    before = [norm.branch for norm in norms]
    for norm in norms:
        norm.branch = branch
    try:
        yield
    finally:
        for norm, name in zip(norms, before, strict=True):
            norm.branch = name


def single_branch_state(model: nn.Module, branch: str = "clean") -> dict[str, Tensor]:
    """The state dict that the model would have with plain norms holding `branch`."""
    own, others = f".branches.{branch}.", [f".branches.{name}." for name in BRANCHES if name != branch]
    state = model.state_dict()
    return {key.replace(own, "."): value for key, value in state.items() if not any(o in key for o in others)}
