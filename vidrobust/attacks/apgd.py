"""Auto-PGD, which adapts its own step size (Croce and Hein, ICML 2020)."""

from dataclasses import replace

import torch
from torch import Tensor

from vidrobust.attacks.arguments import at_least_one, between
from vidrobust.attacks.losses import Loss, Misclassify, Score, dlr_toward, toward
from vidrobust.attacks.search import Search
from vidrobust.attacks.threat import ThreatModel

_RADII = (
    (3, 0.3),
    (2, 0.3),
    (1, 0.4),
)  # L1: budgets, as multiples of eps, and the share of the steps of each


def apgd(
    loss: Loss,
    x: Tensor,
    threat: ThreatModel,
    *,
    steps: int = 100,
    restarts: int = 1,
    rho: float = 0.75,
    generator: torch.Generator | None = None,
) -> Tensor:
    """APGD -> each sample's best iterate, shaped as x.

    Steps of 2 eps with momentum are halved, and the search goes back to its best point, when fewer
    than `rho` of the steps since the last check raised the loss, or none raised its best (section 3
    there). In L1 steps are sparse and the search comes down from three times the budget (Croce and
    Hein, ICML 2021). Costs at most restarts * (steps + 1) forward and as many backward passes (L1:
    steps + 3). Raises ValueError as `pgd` does.
    """
    at_least_one(steps=steps, restarts=restarts)
    between(0, 1, rho=rho)
    search = Search(loss, x, threat, generator)
    for _ in range(restarts):
        if not search.begin():
            break
        _start_and_climb(search, steps, rho)
    return search.result()


def apgd_t(
    loss: Misclassify,
    x: Tensor,
    threat: ThreatModel,
    *,
    targets: int = 9,
    steps: int = 100,
    restarts: int = 1,
    rho: float = 0.75,
    generator: torch.Generator | None = None,
) -> Tensor:
    """APGD-T: `apgd` on the targeted DLR loss, toward each of the `targets` likeliest wrong classes
    in turn.

    The score of `loss` is not used. With fewer than four classes, where that loss is not defined,
    it is the difference of the two logits.
    """
    at_least_one(targets=targets, steps=steps, restarts=restarts)
    between(0, 1, rho=rho)
    search = Search(loss, x, threat, generator)
    for score in likeliest(loss, search.x, targets, ratio=True):
        for _ in range(restarts):
            if not search.begin(replace(loss, score=score)):
                return search.result()
            _start_and_climb(search, steps, rho)
    return search.result()


@torch.no_grad()
def likeliest(loss: Misclassify, x: Tensor, targets: int, *, ratio: bool) -> list[Score]:
    """Scores toward the `targets` classes that x is likeliest taken for, each sample's own, from
    the likeliest on.

    ratio: by the targeted DLR where there are four classes, else by the difference of two logits.
    """
    if loss.targeted:
        raise ValueError(
            "this attack goes through the likeliest wrong classes itself: give it an untargeted"
            " loss"
        )
    logits = loss.logits(x)
    others = logits.scatter(1, loss.y.unsqueeze(1), -torch.inf).argsort(dim=1, descending=True)
    score = dlr_toward if ratio and logits.shape[1] >= 4 else toward
    return [score(others[:, i]) for i in range(min(targets, logits.shape[1] - 1))]


def _start_and_climb(search: Search, steps: int, rho: float) -> None:
    if search.threat.norm != "l1":
        _climb(search, search.ball.random(search.generator), steps, rho)
        return
    eps = search.ball.eps
    delta = search.ball.with_eps(_RADII[0][0] * eps).random(search.generator)
    for factor, share in _RADII:
        # on the way down the samples are all still there, so that eps is theirs
        search.ball = search.ball.with_eps(factor * eps)
        delta = search.ball.project(delta)
        delta = _climb_l1(
            search, delta, max(int(share * steps), 1), first=factor == 3, keep=factor == 1
        )


def _climb(search: Search, delta: Tensor, steps: int, rho: float) -> None:
    """One start of APGD in Linf, L2 and L2 of a frame."""
    value, gradient = search.gradient(delta)
    s = {
        "delta": delta,
        "before": delta,
        "gradient": gradient,
        "value": value,
        "best": delta,
        "best_gradient": gradient,
        "best_value": value,
        "size": 2 * search.ball.eps,
        "best_at_check": value,
        "halved": torch.ones_like(value),
        "rises": torch.zeros_like(value),
    }
    window, left = max(int(0.22 * steps), 1), max(int(0.22 * steps), 1)
    for step in range(steps):
        s = dict(zip(s, search.drop(*s.values()), strict=True))
        if not len(search.rows):
            return
        ball, a = search.ball, 0.75 if step else 1.0
        ahead = ball.project(s["delta"] + ball.ascend(s["gradient"], s["size"], s["delta"]))
        mixed = s["delta"] + a * (ahead - s["delta"]) + (1 - a) * (s["delta"] - s["before"])
        s["before"], s["delta"] = s["delta"], ball.project(mixed)
        value, s["gradient"] = search.gradient(s["delta"])
        s["rises"] = s["rises"] + (value > s["value"])
        s["value"] = value
        _remember(s, value > s["best_value"])
        left -= 1
        if left == 0:
            stuck = (s["halved"] == 0) & (s["best_at_check"] >= s["best_value"])
            halve = (s["rises"] <= rho * window) | stuck
            s["size"] = torch.where(halve, s["size"] / 2, s["size"])
            s["halved"], s["best_at_check"] = halve.float(), s["best_value"]
            s["rises"] = torch.zeros_like(value)
            _go_back(s, halve)
            window = left = max(window - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))


def _climb_l1(search: Search, delta: Tensor, steps: int, *, first: bool, keep: bool) -> Tensor:
    """One start of APGD in L1 -> the deltas of highest loss, of the samples that are left."""
    value, gradient = search.gradient(delta, keep=keep)
    entries = (search.ball.low < search.ball.high).flatten(1).sum(1)
    used = entries if first else (delta != 0).flatten(1).sum(1)
    s = {
        "delta": delta,
        "gradient": gradient,
        "best": delta,
        "best_gradient": gradient,
        "best_value": value,
        "size": search.ball.eps,
        "entries": entries,
        "used": used,
        "share": torch.full_like(value, 0.2) if first else used / entries / 1.5,
    }
    window = max(int(0.04 * steps), 1)
    for step in range(1, steps + 1):
        s = dict(zip(s, search.drop(*s.values()), strict=True))
        if not len(search.rows):
            break
        ball = search.ball
        sparse = _largest(s["gradient"], s["share"] * s["entries"]).sign()
        move = sparse / (sparse.abs().flatten(1).sum(1) * ball.weight + 1e-10).view(-1, 1, 1, 1, 1)
        s["delta"] = ball.project(s["delta"] + s["size"].view(-1, 1, 1, 1, 1) * move)
        value, s["gradient"] = search.gradient(s["delta"], keep=keep)
        _remember(s, value > s["best_value"], value)
        if step % window == 0:
            now = (s["best"] != 0).flatten(1).sum(1)
            sparser = now < 0.95 * s["used"]
            s["share"], s["used"] = now / s["entries"] / 1.5, now
            s["size"] = torch.where(sparser, ball.eps, s["size"] / 1.5).clamp(
                min=ball.eps / 10, max=ball.eps
            )
            _go_back(s, sparser)
    return s["best"]


def _remember(s: dict[str, Tensor], better: Tensor, value: Tensor | None = None) -> None:
    if not better.is_cuda and not better.any():  # a GPU would wait for the answer
        return
    wide = better.view(-1, 1, 1, 1, 1)
    s["best"] = torch.where(wide, s["delta"], s["best"])
    s["best_gradient"] = torch.where(wide, s["gradient"], s["best_gradient"])
    s["best_value"] = torch.where(better, s["value"] if value is None else value, s["best_value"])


def _go_back(s: dict[str, Tensor], to_best: Tensor) -> None:
    wide = to_best.view(-1, 1, 1, 1, 1)
    s["delta"] = torch.where(wide, s["best"], s["delta"])
    s["gradient"] = torch.where(wide, s["best_gradient"], s["gradient"])


def _largest(gradient: Tensor, count: Tensor) -> Tensor:
    """The gradient where its size is among the `count` (n,) largest of the entries, 0 elsewhere."""
    size = gradient.abs().flatten(1)
    rank = (size.shape[1] - count).long().clamp(0, size.shape[1] - 1)
    threshold = size.sort(dim=1).values.gather(1, rank.unsqueeze(1))
    return torch.where((size >= threshold).view_as(gradient), gradient, 0)
