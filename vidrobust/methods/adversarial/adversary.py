"""Make adversarial views in training."""

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
from vidrobust.methods.adversarial.eps_schedule import Budget
from vidrobust.models import Model, branch_names
from vidrobust.utils import distributed
from vidrobust.utils.logging import log


class Encoder(Protocol):
    """What an attack goes through: a Model, or two that embed half of a batch each."""

    def use_branch(self, branch: str) -> AbstractContextManager[None]: ...

    def modules(self) -> Iterator[nn.Module]: ...

    def train(self, mode: bool = True) -> Any: ...


EncoderType = TypeVar("EncoderType", bound=Encoder)
MakeLoss = Callable[[Any], Loss]  # encoder as the attack uses it -> the loss that it maximises


@dataclass(frozen=True)
class AdversarialView:
    """x_adv (N, C, T, H, W) in [0, 1], and the norm branch that it goes through."""

    x: Tensor
    branch: str


class Adversary(nn.Module):
    """Makes adversarial views of clips, on the model as it is.

    threats: what the perturbation may be. steps, step, random_start: of PGD, whose last iterate is
    taken; a step is a share of eps, None is 2.5 / steps. train_mode: norms use the batch's
    statistics in the attack, or, in eval mode, the running ones; neither moves these. combine: of
    several threats, the loss is averaged over all views ("average"), each clip takes the view of
    the largest loss ("worst"), or each threat has its own norm branch and the loss is averaged
    ("branches"). branches: one, or for "branches" one a threat. budget: how eps goes through
    training. Raises ValueError for other arguments.
    """

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
        budget: Budget | None = None,
    ) -> None:
        super().__init__()
        if steps < 1 or combine not in ("average", "worst", "branches"):
            raise ValueError(
                f"steps={steps}, combine={combine!r}: one step at least; average, worst or branches"
            )
        if combine == "branches" and len(branches) != len(threats):
            raise ValueError(
                f"{len(threats)} threats have {len(branches)} branches; one each, where they are"
                " combined so"
            )
        self.threats, self.steps, self.step, self.random_start = (
            tuple(threats),
            steps,
            step,
            random_start,
        )
        self.train_mode, self.combine, self.branches = train_mode, combine, tuple(branches)
        self.budget = budget or Budget()
        self.verified: set[str] = set()  # threats whose first views obeyed
        self.told: set[str] = set()  # threats whose first attack was looked at

    @property
    def starts_at_x(self) -> bool:
        """Whether the only gradient is taken at the clips themselves."""
        return self.steps == 1 and not self.random_start

    @property
    def chooses(self) -> bool:
        """Whether each clip takes the worst of several views, whose losses are then compared."""
        return self.combine == "worst" and len(self.threats) > 1

    def views(
        self,
        model: EncoderType,
        make_loss: Callable[[EncoderType], Loss],
        x: Tensor,
        progress: float,
    ) -> list[AdversarialView]:
        """Return adversarial views, one per threat, or one in all where the worst is taken.

        Flags and norm statistics stay as they are, and all ranks make the same passes. Warns where
        a threat's first attack changes nothing.

        Args:
            model: the encoder that is attacked.
            make_loss: called with the model in the attack's mode and branch -> the loss that is
                maximised, (N, C, T, H, W) -> (N,); samples may share parts of it.
            x: (N, C, T, H, W) in [0, 1].
            progress: fraction of training done.

        Raises:
            RuntimeError: for views that exceed the budget, which is a bug.
        """
        share = self.budget.share(progress)
        made = []
        for number, threat in enumerate(self.threats):
            branch = self.branches[number if self.combine == "branches" else 0]
            with self.attacking(model, branch):
                loss = make_loss(model)
                now = replace(threat, eps=share * threat.eps)
                made.append(AdversarialView(self._attack(loss, x, now), branch))
            self.verify(now, x, made[-1].x)
        if self.chooses:
            with self.attacking(model, self.branches[0]), torch.no_grad():
                return [AdversarialView(worst([view.x for view in made], loss), self.branches[0])]
        return made

    def verify(self, threat: ThreatModel, x: Tensor, x_adv: Tensor) -> None:
        """Once a threat: that the views obey it. Raises RuntimeError where they do not."""
        if threat.eps and threat.kind not in self.verified:
            self.verified.add(threat.kind)
            if not contains(threat, x, x_adv, atol=1e-5).all() and x_adv.isfinite().all():
                raise RuntimeError(f"adversarial clips exceed {threat}: a bug, please report it")

    def tell(self, threat: str, x: Tensor, x_adv: Tensor, norm: Tensor) -> None:
        """Once a threat: warn of an attack that changes nothing. norm: of its gradient, the
        largest.
        """
        if threat in self.told:
            return
        self.told.add(threat)
        if not float(norm) or torch.equal(x_adv, x):
            log.warning(
                f"the first attack ({threat}) changes nothing: the gradient of the attacked loss"
                f" has norm {float(norm):.3g}; begin at random points"
                " (method.adversary.start=random), or look for what masks gradients"
            )

    @contextmanager
    def attacking(self, model: Encoder, branch: str) -> Iterator[None]:
        """The model as the attack sees it; everything is put back as it was."""
        with in_mode(model, self.train_mode), model.use_branch(branch), frozen_statistics(model):
            yield
        # weights that were cast without gradient are not those to learn
        torch.clear_autocast_cache()

    def _attack(self, loss: Loss, x: Tensor, threat: ThreatModel) -> Tensor:
        if not threat.eps:
            return x.clone()
        step = 1.0 if self.starts_at_x and self.step is None else self.step
        size = None if step is None else step * threat.eps
        norms: list[Tensor] = []
        watched = loss if threat.kind in self.told else _watching(loss, norms)
        x_adv = pgd(
            watched,
            x,
            threat,
            steps=self.steps,
            step_size=size,
            random_start=self.random_start,
            best=False,
            generator=rank_generator(x.device),
        )
        if norms:
            self.tell(threat.kind, x, x_adv, torch.stack(norms).max())
        return x_adv


def rank_generator(device: torch.device) -> torch.Generator | None:
    """What the random numbers of this rank's clips come from: torch's own of one process, and else
    others on each rank.

    torch's global generators are alike on all ranks, and go on alike.
    """
    if distributed.world() == 1:
        return None
    return torch.Generator(device).manual_seed(int(torch.randint(2**62, ())) + distributed.rank())


def _watching(loss: Loss, norms: list[Tensor]) -> Loss:
    """The same loss, which notes the norms of its gradients."""

    def watched(v: Tensor) -> Tensor:
        if v.requires_grad:
            v.register_hook(lambda gradient: norms.append(gradient.detach().norm()))
        return loss(v)

    return watched


def selection(model: Model, x: Tensor, views: Sequence[AdversarialView]) -> Tensor | None:
    """(B,): the cross-entropy of choosing the norm branch of clean clips x and of their adversarial
    views, averaged.

    From the clean branch's features, which have no gradient; None for a model without a selector.
    """
    backbone = model.backbone
    if backbone.selector is None:
        return None
    names, losses = branch_names(backbone), []
    moved = (
        (view.x, view.branch) for view in views if not torch.equal(view.x, x)
    )  # eps may be 0 at first
    for clips, branch in ((x, "clean"), *moved):
        with torch.no_grad(), in_mode(backbone, False), model.use_branch("clean"):
            features = backbone(clips)
        target = torch.full((len(clips),), names.index(branch), device=clips.device)
        losses.append(
            F.cross_entropy(full_precision(backbone.selector(features)), target, reduction="none")
        )
    return torch.stack(losses).mean(0)


def worst(views: Sequence[Tensor], loss: Loss) -> Tensor:
    """Of each sample the view with the largest loss. Samples that share a loss are judged with all
    of one kind.
    """
    values = torch.stack([loss(view) for view in views])
    chosen = values.argmax(0)
    return torch.stack(list(views), 1)[torch.arange(len(chosen), device=chosen.device), chosen]


@contextmanager
def in_mode(model: nn.Module | Encoder, train: bool) -> Iterator[None]:
    """Train or eval mode inside; every module's mode is put back as it was."""
    modes = [(m, m.training) for m in model.modules()]
    model.train(train)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def frozen_statistics(model: nn.Module | Encoder) -> Iterator[None]:
    """Norms in train mode go on using the batch's statistics, but leave the running ones alone."""
    norms = [
        m
        for m in model.modules()
        if isinstance(m, _BatchNorm) and m.track_running_stats and m.training
    ]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
