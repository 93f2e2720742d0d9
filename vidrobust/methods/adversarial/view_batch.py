"""A batch as pairings of clean and adversarial views receive it.

A pairing is a function of `Streams`: `clae.py`, `rocl.py`, `acl.py` and `dynacl.py` have them.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vidrobust.attacks import Loss
from vidrobust.methods.adversarial.adversary import AdversarialView, Adversary
from vidrobust.models import Model
from vidrobust.models.momentum import SplitEncoder

# embeddings (B, D) each, and which clean view's place each has in the masks -> (B,) each, behind each other
AnchorLosses = Callable[..., Tensor]
Pairing = Callable[["Streams"], dict[str, Tensor]]


@dataclass
class Streams:
    """A batch of B videos as a pairing sees it.

    views: V of (B, C, T, H, W) in [0, 1]. anchors: the objective's loss `anchors(z, like, stop=False)` of any
    embeddings: like[i] says which clean view z[i] stands for, so that what was found false between clean views is
    masked; stop: no gradient reaches candidates; adversarial: which of z are, in a loss that is learned and not
    attacked. progress: the share of training done. look: called before an attack, with the model as it is, to find the
    false negatives that its loss will mask. original: the first view before it was augmented. joint: what embeds all
    views in one pass, as one batch for the norms; None: each view is a pass of its own.
    """

    model: Model
    views: list[Tensor]
    anchors: AnchorLosses
    adversary: Adversary | None
    progress: float
    look: Callable[[], object] = lambda: None
    original: Tensor | None = None
    joint: Model | SplitEncoder | None = None
    made: list[AdversarialView] = field(default_factory=list)  # by the last attack
    _z: dict[int, Tensor] = field(default_factory=dict)

    def z(self, view: int) -> Tensor:
        """The clean embedding (B, D) of a view, with gradient; computed when it is first asked for."""
        if view not in self._z and self.joint is not None:
            self._z.update(enumerate(self.joint(torch.cat(self.views)).chunk(len(self.views))))
        elif view not in self._z:
            self._z[view] = self.model(self.views[view])
        return self._z[view]

    def knows(self, view: int) -> bool:
        """Whether the clean embedding of a view is there already."""
        return view in self._z

    def loss(
        self, z: Sequence[Tensor], like: Sequence[int], *, stop: bool = False, adversarial: Sequence[int] = ()
    ) -> Tensor:
        """(B,): the mean of a video's anchors."""
        return self.anchors(z, like, stop=stop, adversarial=adversarial).view(len(z), -1).mean(0)

    @functools.cached_property
    def clean(self) -> Tensor:
        """(B,): the clean objective."""
        every = range(len(self.views))
        return self.loss([self.z(v) for v in every], every)

    def attack(
        self,
        x: Tensor,
        aim: Callable[[], Callable[[Tensor], Tensor]],
        encoder: Model | SplitEncoder | None = None,
    ) -> list[AdversarialView]:
        """Adversarial views of x (N, C, T, H, W).

        aim: called with the model as the attack sees it -> what is maximised, embeddings (N, D) -> (N,).
        encoder: what embeds x; None: the model.
        """
        encoder = encoder or self.model

        def of_clips() -> Loss:
            loss = aim()
            return lambda v: loss(encoder(v))

        assert self.adversary is not None
        self.look()
        self.made = self.adversary.views(encoder, of_clips, x, self.progress)
        return self.made

    @torch.no_grad()
    def seen(self, view: int) -> Tensor:
        """The embedding of a clean view with the model as it is, in the attack's mode and branch."""
        return self.model(self.views[view])

    def embed(self, view: AdversarialView) -> Tensor:
        """(N, D), with gradient, through the view's branch."""
        return through(self.model, view, self.model)

    def embed_together(self, views: Sequence[int], made: Sequence[AdversarialView]) -> list[Tensor]:
        """As `together` does; the clean embeddings are then those of `z`."""
        found = together(self.model, [self.views[v] for v in views], made)
        self._z.update(zip(views, found, strict=False))
        return found


def through(
    model: Model | SplitEncoder, view: AdversarialView, what: Callable[[Tensor], Tensor]
) -> Tensor:
    """what(x_adv), an embedding or a loss by passes of the model, through the view's norm branch."""
    with model.use_branch(view.branch):
        return what(view.x)


def together(model: Model, clips: Sequence[Tensor], made: Sequence[AdversarialView]) -> list[Tensor]:
    """Embeddings (N, D), with gradient, of clean clips (N, C, T, H, W) each, and behind them of adversarial views.

    Those of the clean norm branch are one pass with the clips: they share batch statistics, as RoCL's and DeACL's code
    has it, whose running ones are then those that the evaluation sees.
    """
    shared = [view.x for view in made if view.branch == "clean"]
    parts = model(torch.cat([*clips, *shared])).chunk(len(clips) + len(shared))
    mine = iter(parts[len(clips) :])
    return [*parts[: len(clips)],
            *(next(mine) if view.branch == "clean" else through(model, view, model) for view in made)]  # fmt: skip


def average(losses: Sequence[Tensor]) -> Tensor:
    """The mean of (B,) losses, one an adversarial view."""
    return losses[0] if len(losses) == 1 else torch.stack(list(losses)).mean(0)
