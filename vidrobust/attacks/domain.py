"""Declare which threat models an attack is defined for."""

from dataclasses import dataclass
from typing import get_args

from vidrobust.attacks.threat import Norm, Support, ThreatModel


@dataclass(frozen=True)
class Domain:
    """The threat models that an attack is defined for: every listed norm on every listed support.

    Attributes:
        attack: the attack's name in messages.
        norms: norms of the budget.
        supports: where a clip may change.
        least_queries: the smallest value of the option `queries` that allows one step, the other
            options at their defaults. 0 for attacks without that option.
    """

    attack: str
    norms: tuple[str, ...] = get_args(Norm)
    supports: tuple[str, ...] = get_args(Support)
    least_queries: int = 0

    def __contains__(self, threat: ThreatModel) -> bool:
        return threat.norm in self.norms and threat.support in self.supports

    def require(self, threat: ThreatModel) -> None:
        """Raise ValueError that names the allowed norms and supports, unless threat is one."""
        if threat in self:
            return
        limits = []
        if self.norms != get_args(Norm):
            limits.append(_listed("norm", self.norms))
        if self.supports != get_args(Support):
            limits.append(_listed("support", self.supports))
        raise ValueError(f"threat={threat}: {self.attack} is defined for {' and '.join(limits)}")

    def require_queries(self, queries: int) -> None:
        """Raise ValueError unless this many queries allow one step."""
        if queries < self.least_queries:
            raise ValueError(
                f"queries={queries}: must be at least {self.least_queries}, enough for one step of"
                f" {self.attack}"
            )


def _listed(noun: str, names: tuple[str, ...]) -> str:
    """Return `norm l2`, or `norms linf, l2, l1`."""
    return f"{noun}{'s' if len(names) > 1 else ''} {', '.join(names)}"
