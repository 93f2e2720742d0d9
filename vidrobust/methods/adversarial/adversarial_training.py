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
    with_selector,
)
from vidrobust.methods.adversarial.overfitting import OverfittingWatch
from vidrobust.methods.adversarial.view_batch import average, through
from vidrobust.methods.pseudo_labels import PseudoLabels
from vidrobust.methods.soft_labels import LabelSettings, cross_entropy
from vidrobust.methods.spec import AdversarySpec, Cost, Parts, branch_per_threat_only
from vidrobust.methods.supervised import (
    Supervised,
    classifier_of,
    label_settings_of,
    pseudo_labels_of,
)
from vidrobust.models import Model
from vidrobust.utils import distributed


class AdversarialTraining(Supervised):
    """Cross-entropy of adversarial clips, whose steps the adversary decides.

    With several steps it is PGD training (Madry et al., ICLR 2018). With one step of 1.25 eps from
    a random start it is "fast" training by FGSM (Wong et al., ICLR 2020). Where each threat has its
    own norm branch (Lo and Patel 2021), clean clips are one more kind, of the clean branch, and the
    loss is the mean over all kinds.
    """

    adversary: Adversary

    def __init__(
        self,
        model: Model,
        adversary: Adversary,
        pseudo: PseudoLabels | None = None,
        head_first: float = 0.0,
        *,
        label_settings: LabelSettings | None = None,
    ) -> None:
        """Set the parts of the method.

        Args:
            model: backbone and classifier.
            adversary: makes adversarial clips.
            pseudo: as in `Supervised`.
            head_first: as in `Supervised`.
            label_settings: as in `Supervised`.
        """
        super().__init__(model, pseudo, head_first, label_settings=label_settings)
        self.adversary = adversary
        # Several steps do not overfit in this way. With several threats, each would have to be
        # compared. Mixed clips have no class whose accuracy could be measured.
        watched = adversary.steps == 1 and len(adversary.threats) == 1
        watched = watched and not self.label_settings.mixes
        self.watch = OverfittingWatch() if watched else None

    def start_epoch(self) -> None:
        """Ask the watch for a measurement."""
        super().start_epoch()
        if self.watch is not None:
            self.watch.start_epoch()

    def report(self, last: bool = False) -> dict[str, float]:
        """Return numbers of the epoch that has ended, with those of the watch."""
        return super().report(last) | ({} if self.watch is None else self.watch.report())

    def losses(self, x: Tensor, labels: Tensor, progress: float) -> dict[str, Tensor]:
        """Return {"loss": (B,), and its parts for the log}.

        Args:
            x: (B, C, T, H, W) in [0, 1].
            labels: classes (B,), -1 for none, or distributions (B, K) of mixed clips.
            progress: fraction of training done.
        """

        def loss(x: Tensor) -> Tensor:
            return self.loss_of(self.model(x), labels)

        adv_views = self.adversary.views(self.model, lambda model: loss, x, progress)
        if self.watch is not None and self.watch.due and self.training:
            self._measure(self.watch, adv_views[0], x, labels)
        losses = [through(self.model, view, loss) for view in adv_views]
        adv = average(losses)
        # with a branch per threat, the clean branch is trained as well
        clean = [loss(x)] if self.adversary.combine == "branches" else []
        parts = {"loss": average([*clean, *losses]), "loss_adv": adv}
        self.adversary.budget.record(adv)
        return with_selector(self.model, x, adv_views, parts)

    def _measure(
        self, watch: OverfittingWatch, own: AdversarialView, x: Tensor, labels: Tensor
    ) -> None:
        """Measure a batch under the training's attack and under ten steps of PGD, in eval mode.

        Args:
            watch: records both accuracies.
            own: the clips under the training's attack.
            x: the clean clips (B, C, T, H, W) in [0, 1].
            labels: (B,), -1 for none.
        """
        adversary = self.adversary
        threat = adversary.threats[0]
        threat = replace(threat, eps=threat.eps * adversary.budget.current)
        # an attack that one step does not defeat; through the same norms as that of training
        pgd = Adversary([threat], steps=10, step=0.25, random_start=True, branches=[own.branch])

        def loss(x: Tensor) -> Tensor:
            return cross_entropy(self.model(x), labels)

        # training continues with the random numbers that it would have had without the measurement
        with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
            (view,) = pgd.views(self.model, lambda model: loss, x, 1.0)
        # videos without a label, as in pseudo-labels of files that do not decode, do not count
        labelled = (labels >= 0).float()
        accuracies = []
        with torch.no_grad(), in_mode(self.model, False):
            for attacked in (own, view):
                right = through(self.model, attacked, self.model).argmax(1) == labels
                fraction = (right * labelled).sum() / labelled.sum().clamp(min=1)
                accuracies.append(distributed.mean(fraction))
        watch.record(*accuracies)


class Trades(AdversarialTraining):
    """TRADES (Zhang et al., ICML 2019): CE(f(x), y) + beta KL(f(x) || f(x_adv)).

    x_adv maximises the divergence. The divergence has no gradient at x itself, so that the attack
    begins at a random point of the budget (in the released code at x + 0.001 times normal noise).
    """

    def __init__(
        self,
        model: Model,
        adversary: Adversary,
        pseudo: PseudoLabels | None = None,
        head_first: float = 0.0,
        *,
        label_settings: LabelSettings | None = None,
        beta: float = 6.0,
    ) -> None:
        """Set the parts of the method.

        Args:
            model: backbone and classifier.
            adversary: makes adversarial clips.
            pseudo: as in `Supervised`.
            head_first: as in `Supervised`.
            label_settings: as in `Supervised`.
            beta: weight of the divergence.
        """
        super().__init__(model, adversary, pseudo, head_first, label_settings=label_settings)
        self.beta = beta

    def losses(self, x: Tensor, labels: Tensor, progress: float) -> dict[str, Tensor]:
        """Return {"loss": (B,), and its parts for the log}.

        Args:
            x: (B, C, T, H, W) in [0, 1].
            labels: classes (B,), -1 for none, or distributions (B, K) of mixed clips.
            progress: fraction of training done.
        """

        def make_loss(model: Model) -> Loss:
            with torch.no_grad(), model.use_branch("clean"):
                clean_logits = full_precision(model(x))
            return lambda v: divergence(clean_logits, full_precision(model(v)))

        adv_views = self.adversary.views(self.model, make_loss, x, progress)
        # the learned loss has gradient to both predictions; in the attack the clean one is constant
        logits = full_precision(self.model(x))
        clean = self.loss_of(logits, labels)
        adv_logits = [through(self.model, view, self.model) for view in adv_views]
        adv = average([divergence(logits, full_precision(each)) for each in adv_logits])
        parts = {"loss": clean + self.beta * adv, "loss_clean": clean, "loss_adv": adv}
        self.adversary.budget.record(adv)
        return with_selector(self.model, x, adv_views, parts)


class Free(AdversarialTraining):
    """Free adversarial training (Shafahi et al., NeurIPS 2019).

    Each batch is taken `replays` times. One backward pass gives the gradient of the weights and
    that of the perturbation, which then makes a step of eps. The perturbation begins at a random
    point with each batch; the published code continues with that of the last batch.
    """

    def __init__(
        self,
        model: Model,
        adversary: Adversary,
        pseudo: PseudoLabels | None = None,
        head_first: float = 0.0,
        *,
        label_settings: LabelSettings | None = None,
        replays: int = 4,
    ) -> None:
        """Set the parts of the method.

        Args:
            model: backbone and classifier.
            adversary: has the threat and the schedule of eps.
            pseudo: as in `Supervised`.
            head_first: as in `Supervised`.
            label_settings: as in `Supervised`; it must not mix clips.
            replays: optimizer steps per batch.

        Raises:
            ValueError: for several threats, and for a support other than dense, tube and flicker.
        """
        super().__init__(model, adversary, pseudo, head_first, label_settings=label_settings)
        supports = [threat.support for threat in adversary.threats]
        if len(supports) != 1 or supports[0] not in ("dense", "tube", "flicker"):
            raise ValueError("free adversarial training takes one threat, dense, tube or flicker")
        self.replays = replays
        self._replay = 0  # of the current batch

    def losses(self, x: Tensor, labels: Tensor, progress: float) -> dict[str, Tensor]:
        """Return {"loss": (B,), and its parts}; the backward pass also moves the perturbation.

        Args:
            x: (B, C, T, H, W) in [0, 1], the same in all replays.
            labels: (B,), -1 for none.
            progress: fraction of training done.
        """
        # the first replay of a batch: a new perturbation, within the eps of this step
        if self._replay == 0:
            threat = self.adversary.threats[0]
            eps = threat.eps * self.adversary.budget.fraction(progress)
            self._threat = replace(threat, eps=eps)
            # no pixel scores are needed: these supports have no place to be chosen
            self._ball: Ball = make_ball(self._threat, x, lambda: x.amax(1))
            self._delta = self._ball.random(rank_generator(x.device))
        self._replay = (self._replay + 1) % self.replays
        # one backward pass gives both gradients: a hook moves the perturbation
        x_adv = self._ball.apply(self._delta).requires_grad_(True)
        self.adversary.require_in_budget(self._threat, x, x_adv.detach())
        self.adversary.record(self._threat.kind, x, x_adv)
        if torch.is_grad_enabled():
            x_adv.register_hook(self._move)
        loss = self.loss_of(self.model(x_adv), labels)
        if self._replay == 0:  # the last one of this batch
            self.adversary.budget.record(loss)
        return {"loss": loss, "loss_adv": loss}

    @torch.no_grad()
    def _move(self, gradient: Tensor) -> None:
        """Take a step of eps with the perturbation."""
        ball = self._ball
        before = self._delta
        step = ball.ascend(ball.pull(gradient, before), ball.eps, before)
        self._delta = ball.project(before + step)
        kind = self._threat.kind
        self.adversary.warn_without_effect(kind, before, self._delta, gradient.norm())


def divergence(logits: Tensor, adv_logits: Tensor) -> Tensor:
    """Return KL(softmax(logits) || softmax(adv_logits)) of (B, K) each, (B,).

    Gradient reaches both.
    """
    log_p = logits.log_softmax(1)
    log_q = adv_logits.log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def shared_arguments(parts: Parts) -> tuple[Model, Adversary, PseudoLabels | None, float]:
    """Return model, adversary, pseudo-labels and `head_first` of adversarial training."""
    options = parts.options
    adversary = parts.attack()
    assert adversary is not None
    return classifier_of(parts), adversary, pseudo_labels_of(options), options.head_first


def _build_training(parts: Parts) -> AdversarialTraining:
    labels = label_settings_of(parts.options)
    return AdversarialTraining(*shared_arguments(parts), label_settings=labels)


def _build_trades(parts: Parts) -> Trades:
    labels = label_settings_of(parts.options)
    beta = parts.options.adversary.beta
    return Trades(*shared_arguments(parts), label_settings=labels, beta=beta)


def _build_free(parts: Parts) -> Free:
    labels = label_settings_of(parts.options)
    replays = parts.options.adversary.replays
    return Free(*shared_arguments(parts), label_settings=labels, replays=replays)


def _free_refusal(options: config.MethodConfig) -> str:
    a = options.adversary
    supports = [parse_threat(name).support for name in a.threats]
    moved_whole = all(support in ("dense", "tube", "flicker") for support in supports)
    if len(a.threats) > 1 or a.combine == "branches" or not moved_whole:
        return (
            "method.adversary.threats: free adversarial training takes one, dense, tube or flicker,"
            " without branches"
        )
    for key in ("mixup", "cutmix"):
        if value := getattr(options, key):
            return (
                f"method.{key}={value:g}: free adversarial training repeats a batch, which would be"
                " mixed differently each time; set 0, or another adversary"
            )
    return ""


PGD = AdversarySpec(
    help="PGD training",
    costs={"": Cost(attack=1)},
    build=_build_training,
    # 10 steps of 2/255 within 8/255
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
    # 10 steps of 2/255 within 8/255; 0.007 within 0.031 in the released code
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
    step=1.25,  # Wong et al. 2020: 10/255 within 8/255
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
