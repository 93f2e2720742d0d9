"""SUITES: which attacks an evaluation runs."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, fields

from vidrobust import config
from vidrobust.attacks import (
    ATTACKS,
    MINIMUM_NORM,
    Step,
    ThreatModel,
    attack_step,
    parse_threat,
    suite_steps,
)
from vidrobust.utils import distributed
from vidrobust.utils.errors import UserError, lookup
from vidrobust.utils.logging import log

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
    """What attacks are run. name: of SUITES. steps, restarts, queries: of a single attack, those of
    them that it has.

    effort: share of AutoAttack's steps and queries.
    """

    name: str = "pgd"
    steps: int = 20
    restarts: int = 1
    queries: int = 5000
    effort: float = 1.0

    def __call__(self, threat: ThreatModel, frames: int, classes: int) -> list[Step]:
        if self.kind not in ATTACKS:
            return suite_steps(self.kind, threat, frames, classes, effort=self.effort)
        options = {name: getattr(self, name) for name in self._counts}
        return [attack_step(self.kind, **options, **({"minimal": True} if self.smallest else {}))]

    def __str__(self) -> str:
        if self.kind not in ATTACKS:
            return self.name if self.effort == 1 else f"{self.name}, effort {self.effort:g}"
        count = self.queries if "queries" in self._counts else self.steps
        several = f"x{self.restarts}" if "restarts" in self._counts else ""
        return self.kind + (
            f"-{count}{several}" if {"queries", "steps"} & set(self._counts) else ""
        )

    @property
    def kind(self) -> str:
        """A version of AutoAttack, or a name of ATTACKS. Raises UserError for neither."""
        return lookup(SUITES, self.name, "eval.suite")

    @property
    def smallest(self) -> bool:
        """Whether it is one attack that finds smallest perturbations: a run at the largest budget
        serves them all.
        """
        return self.kind in MINIMUM_NORM

    @property
    def _counts(self) -> list[str]:
        known = inspect.signature(ATTACKS[self.kind]).parameters
        return [name for name in ("steps", "restarts", "queries") if name in known]

    def without_effect(self) -> list[str]:
        """The options that were set, and that these attacks do not have."""
        used = self._counts if self.kind in ATTACKS else ["effort"]
        return [
            f.name
            for f in fields(self)
            if f.name not in ("name", *used) and getattr(self, f.name) != f.default
        ]


def families(threats: Sequence[ThreatModel]) -> list[list[ThreatModel]]:
    """Threats that differ in eps only, each family from small to large: one holds those before
    it.
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


def covered(threat: ThreatModel, size: int) -> float:
    """The share of a frame of `size` x `size` pixels that a patch, border or pixels may change; 0:
    another support.
    """
    inner = max(size - 2 * threat.k, 0)
    changed = {"patch": threat.k**2, "border": size**2 - inner**2, "pixels": threat.k}
    return changed.get(threat.support, 0) / size**2


def check_suite(cfg: config.Config) -> tuple[Suite, list[ThreatModel]]:
    """(what is run, budgets by family from small to large).

    Warns of options without effect, of patches and borders that are most of a frame, and of borders
    that no view shows.

    Raises UserError for an unknown suite, and for threats that it is not for.
    """
    e = cfg.eval
    suite = Suite(e.suite, e.steps, e.restarts, e.queries, e.effort)
    threats = [
        threat for family in families(list(map(parse_threat, e.threats))) for threat in family
    ]
    require_defined(suite, threats)
    if (idle := suite.without_effect()) and distributed.rank() == 0:
        log.warning(f"no effect with eval.suite={e.suite}: eval." + ", eval.".join(idle))
    for threat in threats:
        share = covered(threat, cfg.data.size)
        if e.unit == "clip" and share > 0.25 and distributed.rank() == 0:
            log.warning(f"{threat} covers {share:.0%} of frames of {cfg.data.size} pixels")
        cut = (cfg.data.short_side - cfg.data.size) // 2
        unseen = (
            e.unit == "video" and e.crops == 1 and threat.support == "border" and threat.k <= cut
        )
        if unseen and distributed.rank() == 0:
            log.warning(
                f"{threat} is a border of the source frames, of which the centre crop shows none:"
                f" it ends {cut} pixels inside; take border{cut + 1} or more"
            )
    return suite, threats
