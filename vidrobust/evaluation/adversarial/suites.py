"""SUITES: which attacks an evaluation runs."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, fields

from vidrobust.attacks import (
    ATTACKS,
    MINIMUM_NORM,
    Step,
    ThreatModel,
    attack_step,
    suite_steps,
)
from vidrobust.utils.errors import UserError, lookup

# eval.suite -> the version of AutoAttack, or the one attack
SUITES: dict[str, str] = {
    "autoattack": "standard",
    "plus": "plus",
    "rand": "rand",
    "video": "video",
    **{name: name for name in ATTACKS},
}


@dataclass(frozen=True)
class Suite:
    """A choice of attacks.

    Attributes:
        name: of SUITES.
        steps: of a single attack that has them.
        restarts: of a single attack that has them.
        queries: of a single attack that has them.
        effort: fraction of AutoAttack's steps and queries.
        step: step size of a single attack that has one, as a fraction of eps; 0: its default.
    """

    name: str = "pgd"
    steps: int = 20
    restarts: int = 1
    queries: int = 5000
    effort: float = 1.0
    step: float = 0.0

    def __call__(self, threat: ThreatModel, frames: int, classes: int) -> list[Step]:
        """Return the attacks to run.

        Args:
            threat: the budget.
            frames: T of the clips.
            classes: K of the model.
        """
        if self.kind not in ATTACKS:
            return suite_steps(self.kind, threat, frames, classes, effort=self.effort)
        options = {name: getattr(self, name) for name in self._counts}
        if self._has("step_size") and self.step * threat.eps:
            options["step_size"] = self.step * threat.eps
        if self.smallest:
            options["minimal"] = True
        return [attack_step(self.kind, **options)]

    def __str__(self) -> str:
        """Return the name with the settings that matter, such as pgd-20x5."""
        if self.kind not in ATTACKS:
            return self.name if self.effort == 1 else f"{self.name}, effort {self.effort:g}"
        if not {"queries", "steps"} & set(self._counts):
            return self.kind
        count = self.queries if "queries" in self._counts else self.steps
        restarts = f"x{self.restarts}" if "restarts" in self._counts else ""
        step = f", step {self.step:g} eps" if self.step and self._has("step_size") else ""
        return f"{self.kind}-{count}{restarts}{step}"

    @property
    def kind(self) -> str:
        """A version of AutoAttack, or a name of ATTACKS. Raises UserError for neither."""
        return lookup(SUITES, self.name, "eval.suite")

    @property
    def smallest(self) -> bool:
        """True if it is one attack that finds smallest perturbations.

        One run at the largest budget of a family then serves all its budgets.
        """
        return self.kind in MINIMUM_NORM

    @property
    def _counts(self) -> list[str]:
        return [name for name in ("steps", "restarts", "queries") if self._has(name)]

    def _has(self, name: str) -> bool:
        """Return whether the one attack has an option."""
        return name in inspect.signature(ATTACKS[self.kind]).parameters

    def without_effect(self) -> list[str]:
        """Return the options that were set and that these attacks do not have."""
        used = ["name", *(self._counts if self.kind in ATTACKS else ["effort"])]
        if self.kind in ATTACKS and self._has("step_size"):
            used.append("step")
        idle = []
        for item in fields(self):
            if item.name not in used and getattr(self, item.name) != item.default:
                idle.append(item.name)
        return idle


def families(threats: Sequence[ThreatModel]) -> list[list[ThreatModel]]:
    """Return the threats that differ only in eps, each family from small to large.

    A perturbation within one budget of a family is also within those after it.
    """
    kinds = dict.fromkeys(threat.kind for threat in threats)
    return [sorted((t for t in threats if t.kind == kind), key=lambda t: t.eps) for kind in kinds]


def require_defined(suite: Suite, threats: Sequence[ThreatModel]) -> None:
    """Raise UserError for a threat that an attack of the suite is not defined for.

    Whether the threat fits the clips is not asked here: `config` knows their size.
    """
    for threat in threats:
        try:
            # any number of frames above 1 and of classes above 3 gives the whole suite
            for step in suite(threat, frames=16, classes=10):
                step.require_defined(threat)
        except ValueError as error:
            raise UserError(f"eval.suite={suite.name} under {threat}: {error}") from None
