"""Layout: how a code base stores its models, and how they become weights of a backbone here."""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from vidrobust.utils.errors import UserError

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """Recognise the state dicts of a code base by their keys, and rename them.

    Patterns are regular expressions that match from the beginning of a key. Keys are compared
    after `module.`, which data-parallel training puts before each, has been removed.

    Attributes:
        name: for messages, such as "MoCo".
        origin: the code in which the layout was read.
        needs: patterns, each of which some key must match.
        prefix: pattern of what stands before the backbone's keys. Other keys are left out.
        forbids: patterns that no key may match.
        renames: (pattern, replacement) in the order in which they are applied to the backbone's
            keys; here a pattern may match anywhere in the key.
        drops: patterns of keys behind the prefix that are no part of the backbone.
        head: pattern of what stands before the classifier's `weight` and `bias`, in keys of the
            file or renamed ones; empty: the file has none.
        options: the weights -> values of `model.*` that the backbone needs for them.
        branch: norm branch that a backbone without branches gets, if the file has several.
        note: what a user of such a file should know, for the log.
        when: the weights -> whether they fit, where keys alone do not decide.
        convert: the renamed weights of the backbone -> those of the network, where names are not
            enough: tensors that are split, reshaped or rescaled.
        refuse: the weights -> the reason why no network here takes them; "" if one does.
        card: fields of `InputSpec` that all models of this code share.
    """

    name: str
    origin: str
    needs: tuple[str, ...]
    prefix: str = ""
    forbids: tuple[str, ...] = ()
    renames: tuple[tuple[str, str], ...] = ()
    drops: tuple[str, ...] = ()
    head: str = ""
    options: Callable[[Weights], dict[str, Any]] = lambda weights: {}
    branch: str = "clean"
    note: str = ""
    when: Callable[[Weights], bool] = lambda weights: True
    convert: Callable[[Weights], Weights] = dict
    refuse: Callable[[Weights], str] = lambda weights: ""
    card: Mapping[str, Any] = field(default_factory=dict)

    def fits(self, weights: Weights) -> bool:
        """Return whether a state dict has the keys of this layout."""
        return (
            all(_any_matches(pattern, weights) for pattern in self.needs)
            and not any(_any_matches(pattern, weights) for pattern in self.forbids)
            and self.when(weights)
        )

    def apply(self, weights: Weights) -> "Recognised":
        """Return the backbone's weights, the classifier's, and what is left out.

        Raises:
            UserError: for weights that no network here takes.
        """
        if reason := self.refuse(weights):
            raise UserError(f"{self.name}: {reason}")
        backbone: dict[str, Tensor] = {}
        head: dict[str, Tensor] = {}
        left_out: list[str] = []
        for key, value in weights.items():
            found = re.match(self.prefix, key)
            rest = key[found.end() :] if found else ""
            renamed = self._renamed(rest)
            if place := self._in_head(key) or self._in_head(renamed):
                head[place] = value
            elif not rest or any(re.match(pattern, rest) for pattern in self.drops):
                left_out.append(key)
            else:
                backbone[renamed] = value
        backbone = dict(self.convert(backbone))
        options = self.options(weights)
        return Recognised(self, backbone, head, options, left_out, dict(self.card))

    def _renamed(self, key: str) -> str:
        """Return the name of a tensor here."""
        for pattern, replacement in self.renames:
            key = re.sub(pattern, replacement, key)
        return key

    def _in_head(self, key: str) -> str:
        """Return "weight" or "bias" for a tensor of the classifier, "" for another."""
        found = re.fullmatch(f"{self.head}(weight|bias)", key) if self.head else None
        return found[found.lastindex or 0] if found else ""


@dataclass(frozen=True)
class Recognised:
    """Weights of a file in the names of this package.

    Attributes:
        layout: of the file.
        backbone: the backbone's weights.
        head: `weight` and `bias` of the classifier; empty without one.
        options: values of `model.*` that the backbone needs for these weights.
        left_out: keys that are not used.
        card: fields of `InputSpec` that the file or its layout says.
    """

    layout: Layout
    backbone: dict[str, Tensor]
    head: dict[str, Tensor] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    card: dict[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """Return what was taken and what was left out, in one line."""
        line = f"recognised {self.layout.name}: {len(self.backbone)} tensors of the backbone"
        if dimensions(self.head, "weight"):
            line += f", a classifier of {len(self.head['weight'])} classes"
        # a tensor's first name says which part of the model it belongs to
        parts = Counter(re.split(r"[.]", key)[0] for key in self.left_out)
        if parts:
            line += "; left out: " + ", ".join(f"{name} ({n})" for name, n in parts.items())
        if self.options:
            line += "; sets " + " ".join(f"model.{key}={v}" for key, v in self.options.items())
        if self.card:
            line += "; made for " + " ".join(f"{key}={v}" for key, v in self.card.items())
        if self.layout.note:
            line += f"; {self.layout.note}"
        return line


def dimensions(weights: Weights, key: str) -> int:
    """Return the number of dimensions of a tensor, 0 for one that is missing."""
    return weights[key].ndim if key in weights else 0


def _any_matches(pattern: str, weights: Weights) -> bool:
    return any(re.match(pattern, key) for key in weights)
