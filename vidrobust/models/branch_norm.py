"""Batch norm with separate weights and statistics per branch.

Adversarial views have other statistics than clean ones, so each stream has its own batch norm
(AdvProp, Xie et al., CVPR 2020). CLAE converts every norm, shortcuts included (Ho and Vasconcelos
2020). Lo and Patel (2021) use one branch for each kind of perturbation.
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
    """Hold one batch norm per branch; a forward pass goes through the one named by `branch`.

    The state dict of a plain batch norm loads into every branch. The state dict of a BranchNorm
    loads as usual.

    Args:
        norm: copied into every branch.
        momentum: of the statistics of all branches but "clean".
        names: of the branches other than "clean".
    """

    def __init__(self, norm: _BatchNorm, momentum: float, names: Sequence[str] = ("adv",)) -> None:
        super().__init__()
        self.branch = "clean"
        self.branches = nn.ModuleDict({"clean": copy.deepcopy(norm)})
        for name in names:
            branch_norm = copy.deepcopy(norm)
            branch_norm.momentum = momentum
            self.branches[name] = branch_norm

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x by the current branch."""
        return self.branches[self.branch](x)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        # torch calls this before the children load, with the same dictionary. Entries of a plain
        # norm are therefore replaced here by entries of every branch.
        plain = [key for key in state if key.startswith(prefix) and "." not in key[len(prefix) :]]
        for key in plain:
            value = state.pop(key)
            for name in self.branches:
                state[f"{prefix}branches.{name}.{key[len(prefix) :]}"] = value
        super()._load_from_state_dict(state, prefix, *args)


def add_branches(
    model: nn.Module, names: Sequence[str] = ("adv",), *, momentum: float = 0.01
) -> nn.Module:
    """Replace every batch norm of a model by a BranchNorm, in place.

    All branches start from the state of the norm that they replace. A BranchNorm stays unchanged.

    Args:
        model: the model.
        names: of the adversarial branches; the branch "clean" is always added.
        momentum: of the adversarial branches (CLAE: 0.01); the clean branch keeps its own.

    Returns:
        The same model.
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
    """Return the branches of a model, "clean" first; only "clean" for a model without branches."""
    norm = next((m for m in model.modules() if isinstance(m, BranchNorm)), None)
    return ("clean",) if norm is None else tuple(norm.branches)


@contextmanager
def use_branch(model: nn.Module, branch: str) -> Iterator[None]:
    """Run forward passes of a model through one norm branch, within the context.

    "average" and "select" use all branches at once; see `Backbone`. Raises ValueError for a branch
    that the model does not have, and for "select" if the model was trained without a selector.
    """
    names = branch_names(model)
    backbones: list[Any] = [m for m in model.modules() if hasattr(m, "mixed")]
    if branch not in names and (branch not in MIXTURES or not backbones):
        raise ValueError(f"no norm branch {branch!r} in this model; it has {', '.join(names)}")
    if branch == "select" and any(m.selector is None for m in backbones):
        raise ValueError(
            "branch 'select': this model was trained without a selector; use 'average'"
        )

    # Remember the branches before, because contexts may be nested.
    norms = [m for m in model.modules() if isinstance(m, BranchNorm)]
    branches_before = [norm.branch for norm in norms]
    mixed_before = [m.mixed for m in backbones]
    if branch in names:
        for norm in norms:
            norm.branch = branch
    for m in backbones:
        m.mixed = branch if branch in MIXTURES else ""
    try:
        yield
    finally:
        for norm, name in zip(norms, branches_before, strict=True):
            norm.branch = name
        for m, name in zip(backbones, mixed_before, strict=True):
            m.mixed = name


# ------------------------------------------------------------------ state dicts


def branch_of(key: str) -> str | None:
    """Return the branch of a state-dict key: `bn1.branches.adv.weight` -> `adv`; else None."""
    match = _BRANCH.search(key)
    return match[1] if match else None


def without_branch(key: str) -> str:
    """Return a state-dict key without its branch: `bn1.branches.adv.weight` -> `bn1.weight`."""
    return _BRANCH.sub(".", key)


def single_branch_state(model: nn.Module, branch: str = "clean") -> dict[str, Tensor]:
    """Return the state dict of the same model with plain norms, taken from one branch."""
    state = model.state_dict()
    return {
        without_branch(key): value
        for key, value in state.items()
        if branch_of(key) in (None, branch)
    }
