"""RetrievalTable: recall at k, clean and under attack, as summary.json holds it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from vidrobust.attacks import ThreatModel
from vidrobust.evaluation.adversarial.retrieval_attack import LOSSES, Attacked, FeatureAttack
from vidrobust.evaluation.adversarial.suites import families
from vidrobust.evaluation.representation.retrieval import Recall, recalls


@dataclass(frozen=True, kw_only=True)
class RetrievalPoint:
    """Recall under one threat, an entry of `curve` of `RetrievalTable`.

    Attributes:
        side: whose clips are attacked, "queries" or "gallery"; the others stay clean.
        threat: the budget, as `eval.threats` names it.
        kind: the threat without its size.
        norm: norm of the threat.
        eps: size of the budget.
        recall: the worst case over attacks and over smaller budgets of the same family.
        by_attack: attack -> recall at the same k, of this attack and budget alone.
        max_measured: size of the largest perturbation.
        out_of_budget: number of videos with a clip outside of the budget.
        passes: attack -> [forward, backward] passes in clips.
        rejected: attack -> clips outside of the budget that were not used.
    """

    side: str
    threat: str
    kind: str
    norm: str
    eps: float
    recall: list[Recall]
    by_attack: dict[str, list[float]]
    max_measured: float
    out_of_budget: int
    passes: dict[str, list[int]]
    rejected: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class RetrievalTable:
    """Results of the protocol "retrieval", the entry `retrieval` of summary.json.

    Attributes:
        n: number of queries; those that do not decode find nothing.
        gallery: number of gallery videos that decode.
        clips: clips of each video whose features are averaged.
        chance: recall at 1 of a random order.
        recall: "trained" and "random" weights -> "centered" and "cosine" -> recall at k.
        similarity: which of the two is attacked.
        attacked: number of queries of `curve`.
        unit: what is perturbed, a "clip" each of the K clips, or the source frames of a "video".
        suite: the attack with its counts.
        neighbors: gallery videos that the attack `leave_neighbors` moves a video away from.
        curve: recall under each threat.
        warnings: reasons to doubt the numbers.
    """

    n: int
    gallery: int
    clips: int
    chance: float
    recall: dict[str, dict[str, list[Recall]]]
    similarity: str
    attacked: int = 0
    unit: str = "clip"
    suite: str = ""
    neighbors: int = 0
    curve: list[RetrievalPoint] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def retrieval_curve(
    side: str,
    attack: FeatureAttack,
    attacked: Attacked,
    ranks: Sequence[Sequence[int]],
    clean: Sequence[int],
    size: int,
) -> list[RetrievalPoint]:
    """Return recall under each threat.

    Each attacked query is a search of its own, so the worst case of a query is its largest rank
    over attacks and smaller budgets. An attacked gallery is one gallery for all queries, so its
    worst case is the attack with the lowest recall. Clean videos are within every budget.

    Args:
        side: "queries" or "gallery".
        attack: threats and settings.
        attacked: results of the attacks.
        ranks: rank of the first right video for each query, per condition; 0 for none.
        clean: the same without an attack.
        size: number of gallery videos.
    """
    number = {condition: i for i, condition in enumerate(attack.conditions)}
    points = []
    for family in families(attack.threats):
        so_far: list[Sequence[int]] = [clean]
        for threat in family:
            here = [ranks[number[threat, name]] for name in LOSSES]
            so_far += here
            worst = (
                _worst_queries(so_far, size) if side == "queries" else _worst_gallery(so_far, size)
            )
            points.append(_point(side, attack, attacked, threat, worst, here, size))
    return points


def _worst_queries(ranks: Sequence[Sequence[int]], size: int) -> list[Recall]:
    """Return recall where each query keeps its largest rank; 0, nothing found, is the largest."""
    worst = [0 if 0 in of_query else max(of_query) for of_query in zip(*ranks, strict=True)]
    return recalls(worst, size, len(worst))


def _worst_gallery(ranks: Sequence[Sequence[int]], size: int) -> list[Recall]:
    """Return at each k the lowest recall of several galleries."""
    tables = [recalls(of_gallery, size, len(of_gallery)) for of_gallery in ranks]
    return [min(at_k, key=lambda each: each.recall) for at_k in zip(*tables, strict=True)]


def _point(
    side: str,
    attack: FeatureAttack,
    attacked: Attacked,
    threat: ThreatModel,
    worst: list[Recall],
    here: list[Sequence[int]],
    size: int,
) -> RetrievalPoint:
    """Return the entry of a threat.

    Args:
        side: "queries" or "gallery".
        attack: threats and settings.
        attacked: results of the attacks.
        threat: the budget.
        worst: recall of the worst case.
        here: ranks of each attack at this budget.
        size: number of gallery videos.
    """
    numbers = [attack.conditions.index((threat, name)) for name in LOSSES]
    results = [videos[n] for videos in attacked.videos.values() for n in numbers]
    by_attack = {}
    for name, ranks in zip(LOSSES, here, strict=True):
        by_attack[name] = [each.recall for each in recalls(ranks, size, len(ranks))]
    return RetrievalPoint(
        side=side,
        threat=str(threat),
        kind=threat.kind,
        norm=threat.norm,
        eps=threat.eps,
        recall=worst,
        by_attack=by_attack,
        max_measured=max((result.measured for result in results), default=0.0),
        out_of_budget=sum(not result.in_budget for result in results),
        passes={name: attacked.passes[n] for name, n in zip(LOSSES, numbers, strict=True)},
        rejected={
            name: attacked.rejected[n]
            for name, n in zip(LOSSES, numbers, strict=True)
            if attacked.rejected[n]
        },
    )


def budget_warnings(curve: Sequence[RetrievalPoint]) -> list[str]:
    """Return warnings of clips outside of their budget."""
    warnings = []
    for point in curve:
        where = f"retrieval, {point.side} under {point.threat}"
        if point.out_of_budget:
            warnings.append(f"{where}: {point.out_of_budget} videos exceed the budget")
        for name, count in point.rejected.items():
            warnings.append(
                f"{where}: {count} clips of {name} were outside of the budget and were not used"
            )
    return warnings
