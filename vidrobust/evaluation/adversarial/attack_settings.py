"""AttackSettings: which attacks an evaluation runs, and what it keeps."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from vidrobust import config
from vidrobust.attacks import ThreatModel, parse_threat
from vidrobust.evaluation.adversarial.suites import Suite, families, require_defined
from vidrobust.utils import distributed
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log


@dataclass(frozen=True)
class AttackSettings:
    """Settings of an attacked evaluation.

    Attributes:
        threats: budgets, in any order.
        suite: which attacks.
        seed: seed of all random numbers.
        pictures: number of broken clips that are kept per kind of threat.
        crops: number of crops of source frames, 1 or 3.
        h264_crf: predictions are also made after H.264 at this CRF; 0: none.
        save: adversarial clips that are saved: "none", "broken" or "all".
        classes: names of the classes, for the lists of saved clips; (): numbers.
    """

    threats: Sequence[ThreatModel]
    suite: Suite
    seed: int
    pictures: int = 0
    crops: int = 1
    h264_crf: int = 0
    save: str = "none"
    classes: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Raise UserError for a CRF that H.264 does not have."""
        if not 0 <= self.h264_crf <= 51:
            raise UserError(f"h264_crf={self.h264_crf}: must be 1 (best) to 51, or 0 for none")

    @cached_property
    def families(self) -> list[list[ThreatModel]]:
        """Threats that differ only in eps, each family from small to large."""
        return families(self.threats)

    @property
    def ordered(self) -> list[ThreatModel]:
        """All threats, in the order in which they are attacked."""
        return [threat for family in self.families for threat in family]


def check_suite(cfg: config.Config) -> AttackSettings:
    """Return the configured attacks, the only place where `eval.threats` become threats.

    Warns of options without effect, of patches and borders that cover most of a frame, and of
    borders that no view shows.

    Args:
        cfg: its `eval.*`, and `data.*` for sizes.

    Raises:
        UserError: for an unknown suite, and for threats that it is not defined for.
    """
    e = cfg.eval
    suite = Suite(e.suite, e.steps, e.restarts, e.queries, e.effort, e.step)
    threats = [parse_threat(name) for name in e.threats]
    settings = AttackSettings(threats, suite, cfg.seed, e.pictures, e.crops, e.h264, e.save)
    require_defined(suite, settings.ordered)
    if distributed.rank() == 0:
        for line in _doubts(cfg, settings):
            log.warning(line)
    return settings


def _doubts(cfg: config.Config, settings: AttackSettings) -> list[str]:
    """Return warnings of options without effect and of threats that probably were not meant."""
    e, data = cfg.eval, cfg.data
    doubts = []
    if idle := settings.suite.without_effect():
        doubts.append(f"no effect with eval.suite={e.suite}: eval." + ", eval.".join(idle))
    # the centre crop leaves out this many pixels of a source frame at each end of the shorter side
    cropped = (min(data.resize or [data.short_side]) - data.size) // 2
    for threat in settings.ordered:
        fraction = covered(threat, data.size)
        if e.unit == "clip" and fraction > 0.25:
            doubts.append(f"{threat} covers {fraction:.0%} of frames of {data.size} pixels")
        outside = threat.support == "border" and threat.k <= cropped
        if e.unit == "video" and e.crops == 1 and outside:
            doubts.append(
                f"{threat} is a border of the source frames, of which the centre crop shows none:"
                f" it ends {cropped} pixels inside; use border{cropped + 1} or more"
            )
    return doubts


def covered(threat: ThreatModel, size: int) -> float:
    """Return the fraction of a frame that a patch, border or pixels may change.

    Args:
        threat: the threat.
        size: of the frame, size x size pixels.

    Returns:
        The fraction; 0 for another support.
    """
    inner = max(size - 2 * threat.k, 0)
    changed = {"patch": threat.k**2, "border": size**2 - inner**2, "pixels": threat.k}
    return changed.get(threat.support, 0) / size**2
