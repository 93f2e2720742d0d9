"""Pair clean and adversarial views: CLAE, RoCL, ACL, DynACL.

A pairing is a function of `Streams`; with `method.adversary.name=none` the clean loss is all there is.
"""

import functools
import math
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
Invariance = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


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


def clae(s: Streams, alpha: float = 1.0) -> dict[str, Tensor]:
    """CLAE (Ho and Vasconcelos, NeurIPS 2020; METHODS section 2.1): L(z1, ..., zV) + alpha L(z1, z_adv).

    x_adv raises L(f(x1), f(x_adv)) from x1 itself, where the positive pair's similarity is at its maximum and the
    negatives of the batch drive the step. There the two embeddings that the loss compares are equal: one pass gives
    both, of which only one is differentiated. Further steps, a random start, or several threats of which the worst is
    taken, compare with f(x1) as it was.
    """

    def aim() -> Callable[[Tensor], Tensor]:
        if s.adversary is not None and s.adversary.starts_at_x and not s.adversary.chooses:
            return lambda z: s.loss([z.detach(), z], (0, 1))
        anchor = s.seen(0)
        return lambda z: s.loss([anchor, z], (0, 1))

    clean = s.clean
    adv = average([s.loss([s.z(0), s.embed(view)], (0, 1), adversarial=(1,))
                   for view in s.attack(s.views[0], aim)])  # fmt: skip
    return {"loss": clean + alpha * adv, "loss_clean": clean, "loss_adv": adv}


def clae_published(s: Streams, alpha: float = 1.0, eps: float = 0.03) -> dict[str, Tensor]:
    """CLAE as its code has it: eps is of the normalised clip, nothing is clamped, and the three passes of the
    adversarial branch (two of the attack) all move its running statistics. The published eps is 0.03.
    """
    x, clean = s.views[0], s.clean
    with s.model.use_branch("adv"), torch.enable_grad():
        with torch.no_grad():
            anchor = s.model(x)
        tilde = x.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(s.loss([anchor, s.model(tilde)], (0, 1)).sum(), tilde)
    x_adv = x + eps * s.model.backbone.std * gradient.sign()
    if s.adversary is not None:
        s.adversary.tell("published", x, x_adv, gradient.norm())
    adv = s.loss([s.z(0), s.embed(AdversarialView(x_adv, "adv"))], (0, 1), adversarial=(1,))
    return {"loss": clean + alpha * adv, "loss_clean": clean, "loss_adv": adv}


def rocl(s: Streams, regularizer: float = 1 / 256) -> dict[str, Tensor]:
    """RoCL (Kim et al., NeurIPS 2020): NT-Xent(x1, x2, x_adv) + NT-Xent(x_adv, x2) / lambda.

    As its code has it: x_adv raises NT-Xent(f(x_adv), f(x2)) from x1. All three are positives of
    each other, the two of an anchor added up. No gradient reaches the second factor of a
    similarity, also in the attack. A-InfoNCE changes the first loss alone. Norms have one branch: a
    pass of x_adv and x2 for the second loss, then one of all three for the first.
    """

    def aim() -> Callable[[Tensor], Tensor]:
        other = s.seen(1)
        return lambda z: s.loss([z, other], (0, 1), stop=True)

    made = s.attack(s.views[0], aim)
    pair = []
    for view in made:
        z2, z_adv = together(s.model, [s.views[1]], [view])
        pair.append(s.loss([z_adv, z2], (0, 1), stop=True))
    z1, z2, *moved = s.embed_together((0, 1), made)
    three = [s.loss([z1, z2, z_adv], (0, 1, 0), stop=True, adversarial=(2,)) for z_adv in moved]
    adv, pairs = 2 * average(three), average(pair)
    return {"loss": adv + regularizer * pairs, "loss_adv": adv, "loss_pair": pairs}


def acl(s: Streams, weight: float = 1.0, invariance: Invariance | None = None) -> dict[str, Tensor]:
    """ACL (Jiang et al., NeurIPS 2020; METHODS section 4.2): ((2 - weight) L(z1, z2) + weight L(a1, a2)) / 2.

    The weight is 1. Both views are attacked together; a1, a2 go through the adversarial norm branch. invariance: a loss
    of (z1, z2, a1, a2, z of the original), (B,), besides: AIR's, whose code does not halve the other two.
    """
    clean = s.clean
    pairs = _both_attacked(s)
    adv = average([s.loss(pair, (0, 1), adversarial=(0, 1)) for pair in pairs])
    both = (2 - weight) * clean + weight * adv
    parts = {"loss": 0.5 * both, "loss_clean": clean, "loss_adv": adv}
    if invariance is None:
        return parts
    assert s.original is not None
    z = s.model(s.original)
    more = average([invariance(s.z(0), s.z(1), *pair, z) for pair in pairs])
    return parts | {"loss": both + more, "loss_invariance": more}


def a2a(s: Streams) -> dict[str, Tensor]:
    """ACL's adversarial-to-adversarial variant: L(a1, a2) alone, with one norm branch."""
    adv = average([s.loss(pair, (0, 1), adversarial=(0, 1)) for pair in _both_attacked(s)])
    return {"loss": adv, "loss_adv": adv}


def a2s(s: Streams) -> dict[str, Tensor]:
    """ACL's adversarial-to-standard variant: L(a1, z2), which x1 is moved to raise; a1 has the adversarial branch.

    METHODS section 4.2 names it and no more: that the attack has the loss that is learned is our reading.
    """

    def aim() -> Callable[[Tensor], Tensor]:
        with s.model.use_branch("clean"):
            other = s.seen(1)
        return lambda z: s.loss([z, other], (0, 1))

    z2, made = s.z(1), s.attack(s.views[0], aim)
    adv = average([s.loss([s.embed(view), z2], (0, 1), adversarial=(0,)) for view in made])
    return {"loss": adv, "loss_adv": adv}


def _both_attacked(s: Streams) -> list[tuple[Tensor, Tensor]]:
    """a1, a2 (B, D) for each threat: both views are moved together to raise NT-Xent of the pair."""
    pairs = []
    for view in s.attack(torch.cat(s.views[:2]), lambda: lambda z: s.anchors(z.chunk(2), (0, 1)), s.joint):
        if s.joint is not None:
            a1, a2 = through(s.joint, view, s.joint).chunk(2)
            pairs.append((a1, a2))
            continue
        first, second = (AdversarialView(part, view.branch) for part in view.x.chunk(2))
        pairs.append((s.embed(first), s.embed(second)))
    return pairs


def dynacl(s: Streams, invariance: Invariance | None = None) -> dict[str, Tensor]:
    """DynACL (Luo et al., ICLR 2023): ACL whose adversarial stream gains weight.

    The weight climbs from 1 by 1/30 at each twentieth of the run (every 50 of 1000 epochs, 2/3 a
    run), at most 2; the released code is one epoch ahead of it. Its augmentations, which weaken
    meanwhile, are `augment.fade`'s. In its code the second view goes through a momentum encoder, in
    both streams and in the attack: `s.joint` is then a `SplitEncoder`. With `invariance` it is AIR.
    """
    weight = min(1 + math.floor(20 * s.progress) / 20 * 2 / 3, 2.0)
    return acl(s, weight, invariance)
