"""Supervised adversarial training: PGD, fast, free, TRADES."""

from dataclasses import replace

import torch
from torch import Tensor

from vidrobust import config
from vidrobust.attacks import Ball, Loss, make_ball, parse_threat
from vidrobust.losses.cosine import full_precision
from vidrobust.methods.adversarial.adversary import (
    AdversarialView,
    Adversary,
    in_mode,
    rank_generator,
    selection,
)
from vidrobust.methods.adversarial.overfitting import OverfittingWatch
from vidrobust.methods.adversarial.view_batch import average, through
from vidrobust.methods.spec import AdversarySpec, Cost, Parts, branch_per_threat_only
from vidrobust.methods.supervised import Supervised, cross_entropy
from vidrobust.models import Model
from vidrobust.utils import distributed


class AdversarialTraining(Supervised):
    """Cross-entropy of adversarial clips: PGD training (Madry et al., ICLR 2018), and "fast", FGSM
    from a random start with a step of 1.25 eps (Wong et al., ICLR 2020), by what the adversary's
    steps are.

    Where each threat has its own norm branch (Lo and Patel 2021; METHODS section 6.1), clean clips
    are one more kind, of the clean branch, and the loss is the mean over all kinds.
    """

    def __init__(
        self,
        model: Model,
        adversary: Adversary,
        clusters: int = 0,
        head_first: float = 0.0,
        *,
        unit: bool = True,
    ) -> None:
        super().__init__(model, clusters, head_first, unit=unit)
        self.adversary = adversary
        # more steps than one do not overfit so; each threat of several would have to be looked at
        watched = adversary.steps == 1 and len(adversary.threats) == 1
        self.watch = OverfittingWatch() if watched else None

    def start_epoch(self) -> None:
        super().start_epoch()
        if self.watch is not None:
            self.watch.due = True

    def report(self, last: bool = False) -> dict[str, float]:
        return super().report(last) | ({} if self.watch is None else self.watch.report())

    def losses(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """x (B, C, T, H, W) in [0, 1], labels (B,) -> {"loss": (B,), and its parts}."""

        def loss(v: Tensor) -> Tensor:
            return cross_entropy(self.model(v), labels)

        made = self.adversary.views(self.model, lambda model: loss, x, self.progress)
        if self.watch is not None and self.watch.due and self.training:
            self._look(self.watch, made[0], x, labels)
        losses = [through(self.model, view, loss) for view in made]
        adv = average(losses)
        clean = [loss(x)] if self.adversary.combine == "branches" else []
        return self.told(x, made, {"loss": average([*clean, *losses]), "loss_adv": adv})

    def _look(
        self, watch: OverfittingWatch, own: AdversarialView, x: Tensor, labels: Tensor
    ) -> None:
        """Show the watch a batch under the training's attack and under ten steps of PGD, in eval
        mode.
        """
        adversary = self.adversary
        threat = adversary.threats[0]
        threat = replace(threat, eps=threat.eps * adversary.budget.now)
        pgd = Adversary([threat], steps=10, step=0.25, random_start=True, branches=[own.branch])

        def loss(v: Tensor) -> Tensor:
            return cross_entropy(self.model(v), labels)

        # training goes on with the random numbers that it would have had
        with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
            (view,) = pgd.views(self.model, lambda model: loss, x, 1.0)
        with torch.no_grad(), in_mode(self.model, False):
            right = [
                through(self.model, each, self.model).argmax(1) == labels for each in (own, view)
            ]
        known = (labels >= 0).float()
        shares = [(found * known).sum() / known.sum().clamp(min=1) for found in right]
        watch.saw(*map(distributed.mean, shares))

    def told(
        self, x: Tensor, made: list[AdversarialView], parts: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """The parts, with the selector's; the budget is told of the adversarial loss."""
        self.adversary.budget.saw(parts["loss_adv"])
        chosen = selection(self.model, x, made)
        return (
            parts
            if chosen is None
            else parts | {"loss": parts["loss"] + chosen, "loss_selector": chosen}
        )


class Trades(AdversarialTraining):
    """TRADES (Zhang et al., ICML 2019): CE(f(x), y) + beta KL(f(x) || f(x_adv)), where x_adv raises
    that divergence.

    At x itself it has no gradient: the attack begins at a random point of the budget (the released
    code: at x + 0.001 times normal noise).
    """

    def __init__(
        self,
        model: Model,
        adversary: Adversary,
        clusters: int = 0,
        head_first: float = 0.0,
        *,
        beta: float = 6.0,
        unit: bool = True,
    ) -> None:
        super().__init__(model, adversary, clusters, head_first, unit=unit)
        self.beta = beta

    def losses(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """As `AdversarialTraining`'s."""

        def make_loss(model: Model) -> Loss:
            with torch.no_grad(), model.use_branch("clean"):
                clean = full_precision(model(x))
            return lambda v: divergence(clean, full_precision(model(v)))

        def robust(v: Tensor) -> Tensor:
            return divergence(logits, full_precision(self.model(v)))

        made = self.adversary.views(self.model, make_loss, x, self.progress)
        logits = full_precision(self.model(x))
        clean = cross_entropy(logits, labels)
        adv = average([through(self.model, view, robust) for view in made])
        return self.told(
            x, made, {"loss": clean + self.beta * adv, "loss_clean": clean, "loss_adv": adv}
        )


class Free(AdversarialTraining):
    """Free adversarial training (Shafahi et al., NeurIPS 2019): each batch is taken `replays`
    times, and one backward pass gives the gradient of the weights and that of the perturbation,
    which then makes a step of eps.

    The perturbation begins at a random point with each batch; the published code carries it over
    from the last one.
    """

    def __init__(
        self,
        model: Model,
        adversary: Adversary,
        clusters: int = 0,
        head_first: float = 0.0,
        *,
        replays: int = 4,
        unit: bool = True,
    ) -> None:
        super().__init__(model, adversary, clusters, head_first, unit=unit)
        if len(adversary.threats) != 1 or adversary.threats[0].support not in (
            "dense",
            "tube",
            "flicker",
        ):
            raise ValueError("free adversarial training takes one threat, dense, tube or flicker")
        self.replays = replays
        self._turn = 0

    def losses(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """As `AdversarialTraining`'s, of the next of a batch's replays; the backward pass moves the
        perturbation.
        """
        if self._turn == 0:
            threat = self.adversary.threats[0]
            self._threat = replace(
                threat, eps=threat.eps * self.adversary.budget.share(self.progress)
            )
            self._ball: Ball = make_ball(self._threat, x, lambda: x.amax(1))
            self._delta = self._ball.random(rank_generator(x.device))
        self._turn = (self._turn + 1) % self.replays
        x_adv = self._ball.apply(self._delta).requires_grad_(True)
        self.adversary.verify(self._threat, x, x_adv.detach())
        if torch.is_grad_enabled():
            x_adv.register_hook(self._move)
        loss = cross_entropy(self.model(x_adv), labels)
        if self._turn == 0:  # the last of its replays
            self.adversary.budget.saw(loss)
        return {"loss": loss, "loss_adv": loss}

    @torch.no_grad()
    def _move(self, gradient: Tensor) -> None:
        ball = self._ball
        step = ball.ascend(ball.pull(gradient, self._delta), ball.eps, self._delta)
        before, self._delta = self._delta, ball.project(self._delta + step)
        self.adversary.tell(self._threat.kind, before, self._delta, gradient.norm())


def divergence(logits: Tensor, adversarial: Tensor) -> Tensor:
    """KL(softmax(logits) || softmax(adversarial)) of (B, K), (B, K) -> (B,), with gradient to
    both.
    """
    log_p, log_q = logits.log_softmax(1), adversarial.log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def _common(parts: Parts) -> tuple[Model, Adversary, int, float]:
    """Return the arguments that all methods of this file share, in order."""
    options = parts.options
    model = parts.model("linear", options.clusters or parts.classes)
    adversary = parts.attack()
    assert adversary is not None
    return model, adversary, options.clusters, options.head_first


def _unit(parts: Parts) -> bool:
    return parts.options.clusters_metric == "cosine"


def _build_training(parts: Parts) -> AdversarialTraining:
    return AdversarialTraining(*_common(parts), unit=_unit(parts))


def _build_trades(parts: Parts) -> Trades:
    beta = parts.options.adversary.beta
    return Trades(*_common(parts), beta=beta, unit=_unit(parts))


def _build_free(parts: Parts) -> Free:
    replays = parts.options.adversary.replays
    return Free(*_common(parts), replays=replays, unit=_unit(parts))


def _free_refusal(options: config.MethodConfig) -> str:
    a = options.adversary
    supports = [parse_threat(name).support for name in a.threats]
    moved_whole = all(support in ("dense", "tube", "flicker") for support in supports)
    if len(a.threats) > 1 or a.combine == "branches" or not moved_whole:
        return (
            "method.adversary.threats: free adversarial training takes one, dense, tube or flicker,"
            " without branches"
        )
    return ""


PGD = AdversarySpec(
    help="PGD training",
    costs={"": Cost(attack=1)},
    build=_build_training,
    steps=10,
    step=0.25,
    random_start=True,
    branches=branch_per_threat_only,
)
TRADES = AdversarySpec(
    help="TRADES",
    costs={"": Cost(forward=1, attack=1, learned=(1, 1))},
    build=_build_trades,
    options=frozenset({"beta"}),
    steps=10,
    step=0.25,
    random_start=True,
    branches=branch_per_threat_only,
)
FAST = AdversarySpec(
    help="FGSM from a random start",
    costs={"": Cost(attack=1, train_mode=True)},
    build=_build_training,
    attack=frozenset({"threats", "combine", "selector", "step", "start", "schedule"}),
    step=1.25,
    random_start=True,
    train_mode=True,
    branches=branch_per_threat_only,
)
FREE = AdversarySpec(
    help="free adversarial training: replays of a batch",
    costs={"": Cost(learned=(1, 1, 1, 1))},
    build=_build_free,
    options=frozenset({"replays"}),
    attack=frozenset({"threats", "schedule"}),
    random_start=True,
    branches=branch_per_threat_only,
    refusal=_free_refusal,
)
