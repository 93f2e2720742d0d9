"""Adversary: make adversarial views in training."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from vidrobust.attacks import Loss, ThreatModel, contains, pgd
from vidrobust.losses.cosine import full_precision
from vidrobust.methods.adversarial.eps_schedule import EpsSchedule
from vidrobust.models import Model, branch_names
from vidrobust.utils import distributed
from vidrobust.utils.logging import log
from vidrobust.utils.phases import phase


class Encoder(Protocol):
    """The network that an attack differentiates: a `Model`, or a `SplitEncoder` of two models."""

    def use_branch(self, branch: str) -> AbstractContextManager[None]: ...

    def modules(self) -> Iterator[nn.Module]: ...

    def train(self, mode: bool = True) -> Any: ...


EncoderType = TypeVar("EncoderType", bound=Encoder)
MakeLoss = Callable[[Any], Loss]  # encoder in the attack's mode and branch -> loss to maximise


@dataclass(frozen=True)
class AdversarialView:
    """An adversarial view and its norm branch.

    Attributes:
        x: (N, C, T, H, W), in [0, 1] but for those of CLAE's released form.
        branch: name of the norm branch that it goes through.
    """

    x: Tensor
    branch: str


@dataclass(frozen=True)
class RecordedViews:
    """The first clips of a batch of adversarial views, on the CPU.

    Attributes:
        threat: kind of the threat.
        x: (n, C, T, H, W), the clips.
        x_adv: (n, C, T, H, W), their adversarial views.
    """

    threat: str
    x: Tensor
    x_adv: Tensor


class Adversary(nn.Module):
    """Makes adversarial views of clips by PGD, whose last iterate is taken."""

    def __init__(
        self,
        threats: Sequence[ThreatModel],
        *,
        steps: int = 1,
        step: float | None = None,
        random_start: bool = False,
        train_mode: bool = False,
        combine: str = "average",
        branches: Sequence[str] = ("adv",),
        budget: EpsSchedule | None = None,
    ) -> None:
        """Set the attack.

        Args:
            threats: what the perturbation may be.
            steps: PGD steps, at least 1.
            step: step size as a fraction of eps; None: 2.5 / steps, and 1 for one step from the
                clip itself.
            random_start: begin at a random point of the budget, not at the clip.
            train_mode: norms use batch statistics in the attack; otherwise running statistics.
                Running statistics do not change in either case.
            combine: with several threats, "average" averages the loss over all views, "worst"
                keeps for each clip the view with the largest loss, and "branches" gives each threat
                a norm branch and averages the loss.
            branches: names of norm branches: one, or one per threat with "branches".
            budget: schedule of eps; None: constant.

        Raises:
            ValueError: for other values.
        """
        super().__init__()
        if steps < 1 or combine not in ("average", "worst", "branches"):
            raise ValueError(
                f"steps={steps}, combine={combine!r}: use at least one step, and average, worst "
                "or branches"
            )
        if combine == "branches" and len(branches) != len(threats):
            raise ValueError(
                f"branches={list(branches)}: combine='branches' needs one branch for each of the "
                f"{len(threats)} threats"
            )
        self.threats = tuple(threats)
        self.steps = steps
        self.step = step
        self.random_start = random_start
        self.train_mode = train_mode
        self.combine = combine
        self.branches = tuple(branches)
        self.budget = budget or EpsSchedule()
        self.is_attacking = False  # inside `attacking`, which a replay of a step reports
        # kinds of threats whose first views were checked: within the budget, and with an effect
        self._checked_budget: set[str] = set()
        self._checked_effect: set[str] = set()
        self._recorded: list[RecordedViews] = []
        self._clips_to_record = 0

    @property
    def starts_at_x(self) -> bool:
        """True if the only gradient is taken at the clips themselves."""
        return self.steps == 1 and not self.random_start

    @property
    def takes_worst(self) -> bool:
        """True if each clip takes the view with the largest loss of several."""
        return self.combine == "worst" and len(self.threats) > 1

    def views(
        self,
        model: EncoderType,
        make_loss: Callable[[EncoderType], Loss],
        x: Tensor,
        progress: float,
    ) -> list[AdversarialView]:
        """Return adversarial views, one per threat, or one in all where the worst is taken.

        Modes and norm statistics of the model stay as they are, and all ranks make the same passes.
        Warns where the first attack of a threat changes nothing.

        Args:
            model: the encoder that is attacked.
            make_loss: called with the model in the attack's mode and branch -> the loss that is
                maximised, (N, C, T, H, W) -> (N,); samples may share parts of it.
            x: (N, C, T, H, W) in [0, 1].
            progress: fraction of training done.

        Raises:
            RuntimeError: for views that exceed the budget, which is a bug.
        """
        # once per step, for all threats: the adaptive schedule samples a new fraction at each call
        fraction = self.budget.fraction(progress)
        views = []
        for number, threat in enumerate(self.threats):
            branch = self.branches[number if self.combine == "branches" else 0]
            scheduled = replace(threat, eps=fraction * threat.eps)
            with self.attacking(model, branch):
                loss = make_loss(model)
                views.append(AdversarialView(self._attack(loss, x, scheduled), branch))
            self.require_in_budget(scheduled, x, views[-1].x)
            self.record(threat.kind, x, views[-1].x)
        if self.takes_worst:
            # the loss of the last threat judges the views of all threats, which share a branch and
            # the anchors that they are compared with
            branch = self.branches[0]
            with self.attacking(model, branch), torch.no_grad():
                return [AdversarialView(worst_views([view.x for view in views], loss), branch)]
        return views

    @contextmanager
    def recording(self, clips: int) -> Iterator[list[RecordedViews]]:
        """Yield a list that receives the first clips of the views which are made inside.

        Args:
            clips: number of clips of each batch of views.
        """
        self._clips_to_record = clips
        self._recorded = []
        try:
            yield self._recorded
        finally:
            self._clips_to_record = 0

    def record(self, threat: str, x: Tensor, x_adv: Tensor) -> None:
        """Keep the first clips of a batch of views, inside `recording`.

        Args:
            threat: its kind.
            x: (N, C, T, H, W) in [0, 1].
            x_adv: adversarial views of x.
        """
        if count := self._clips_to_record:
            first = [clips[:count].detach().float().cpu().clone() for clips in (x, x_adv)]
            self._recorded.append(RecordedViews(threat, *first))

    def require_in_budget(self, threat: ThreatModel, x: Tensor, x_adv: Tensor) -> None:
        """Check the first views of each threat.

        Args:
            threat: the budget.
            x: (N, C, T, H, W) in [0, 1].
            x_adv: adversarial views of x.

        Raises:
            RuntimeError: for views that exceed the budget.
        """
        if not threat.eps or threat.kind in self._checked_budget:
            return
        self._checked_budget.add(threat.kind)
        # views with NaN are refused by the loss, with the step and the videos
        if not contains(threat, x, x_adv, atol=1e-5).all() and x_adv.isfinite().all():
            raise RuntimeError(f"adversarial clips exceed {threat}: a bug, please report it")

    def warn_without_effect(self, threat: str, x: Tensor, x_adv: Tensor, norm: Tensor) -> None:
        """Warn once per threat of a first attack that changes nothing.

        Args:
            threat: its kind.
            x: (N, C, T, H, W) in [0, 1].
            x_adv: adversarial views of x.
            norm: the largest norm of the attack's gradients.
        """
        if threat in self._checked_effect:
            return
        self._checked_effect.add(threat)
        # a gradient that is not finite is no masked one; the step is refused with its cause
        if math.isfinite(float(norm)) and (not float(norm) or torch.equal(x_adv, x)):
            log.warning(
                f"the first attack ({threat}) changes nothing: the gradient of the attacked loss"
                f" has norm {float(norm):.3g}; start at random points"
                " (method.adversary.start=random), or look for an operation that masks gradients"
            )

    @contextmanager
    def attacking(self, model: Encoder, branch: str) -> Iterator[None]:
        """Put the model into the attack's mode and branch, and back afterwards."""
        with (
            phase("attack"),
            in_mode(model, self.train_mode),
            model.use_branch(branch),
            frozen_statistics(model),
        ):
            self.is_attacking = True
            try:
                yield
            finally:
                self.is_attacking = False
        # Autocast caches weights that it cast while no gradient was recorded. The learning passes
        # must not reuse these copies: no gradient would reach the weights.
        torch.clear_autocast_cache()

    def _attack(self, loss: Loss, x: Tensor, threat: ThreatModel) -> Tensor:
        if not threat.eps:  # at the beginning of a schedule
            return x.clone()
        # one step from the clip itself goes to the boundary, as FGSM does
        step = 1.0 if self.starts_at_x and self.step is None else self.step
        gradient_norms: list[Tensor] = []
        if threat.kind not in self._checked_effect:
            loss = _recording_gradient_norms(loss, gradient_norms)
        # best=False: in training the last iterate is taken, and its loss is not computed
        x_adv = pgd(
            loss,
            x,
            threat,
            steps=self.steps,
            step_size=None if step is None else step * threat.eps,
            random_start=self.random_start,
            best=False,
            generator=rank_generator(x.device),
        )
        if gradient_norms:
            largest = torch.stack(gradient_norms).max()
            self.warn_without_effect(threat.kind, x, x_adv, largest)
        return x_adv


def rank_generator(device: torch.device) -> torch.Generator | None:
    """Return a generator for the clips of this rank; None with one process, for torch's own.

    torch's global generators have the same state on all ranks, and must keep it. Each rank has
    other clips, whose random starts therefore come from a generator that also depends on the rank.
    """
    if distributed.world() == 1:
        return None
    return torch.Generator(device).manual_seed(int(torch.randint(2**62, ())) + distributed.rank())


def _recording_gradient_norms(loss: Loss, norms: list[Tensor]) -> Loss:
    """Return the same loss, which appends the norm of each of its gradients to a list."""

    def recording(x: Tensor) -> Tensor:
        if x.requires_grad:
            x.register_hook(lambda gradient: norms.append(gradient.detach().norm()))
        return loss(x)

    return recording


def with_selector(
    model: Model, x: Tensor, views: Sequence[AdversarialView], parts: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return the parts of a loss with that of the norm selector, if the model has one.

    Args:
        model: the model.
        x: clean clips (B, C, T, H, W) in [0, 1].
        views: their adversarial views.
        parts: "loss" (B,), and others.
    """
    choice = selector_loss(model, x, views)
    if choice is None:
        return parts
    return parts | {"loss": parts["loss"] + choice, "loss_selector": choice}


def selector_loss(model: Model, x: Tensor, views: Sequence[AdversarialView]) -> Tensor | None:
    """Return the loss (B,) of choosing the norm branch from the clean branch's features.

    It is the mean cross-entropy over clean clips and their adversarial views. The features have no
    gradient: the loss trains the selector alone. Lo and Patel (2021) detect the branch with a
    network of its own; here a linear map of the features does.

    Args:
        model: the model.
        x: clean clips (B, C, T, H, W) in [0, 1].
        views: their adversarial views.

    Returns:
        The loss, or None for a model without a selector.
    """
    backbone = model.backbone
    if backbone.selector is None:
        return None
    names = branch_names(backbone)
    # with eps 0, as at the beginning of a schedule, a view is the clean clip
    moved = [(view.x, view.branch) for view in views if not torch.equal(view.x, x)]
    losses = []
    for clips, branch in ((x, "clean"), *moved):
        with torch.no_grad(), in_mode(backbone, False), model.use_branch("clean"):
            features = backbone(clips)
        logits = full_precision(backbone.selector(features))
        target = torch.full((len(clips),), names.index(branch), device=clips.device)
        losses.append(F.cross_entropy(logits, target, reduction="none"))
    return torch.stack(losses).mean(0)


def worst_views(views: Sequence[Tensor], loss: Loss) -> Tensor:
    """Return, for each clip, the view with the largest loss.

    The contrastive loss of a clip depends on the other clips, which are views of the same threat.

    Args:
        views: (N, C, T, H, W) each.
        loss: (N, C, T, H, W) -> (N,).
    """
    values = torch.stack([loss(view) for view in views])
    chosen = values.argmax(0)
    return torch.stack(list(views), 1)[torch.arange(len(chosen), device=chosen.device), chosen]


@contextmanager
def in_mode(model: nn.Module | Encoder, train: bool) -> Iterator[None]:
    """Set train or eval mode inside, and put back the mode of every module afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(train)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def frozen_statistics(model: nn.Module | Encoder) -> Iterator[None]:
    """Keep the running statistics of norms inside; in train mode they use batch statistics."""
    norms = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats and module.training
    ]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
