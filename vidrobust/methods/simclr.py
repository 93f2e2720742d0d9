"""SimCLR on clips (Chen et al. 2020; on video, Feichtenhofer et al. 2021), with or without adversarial views."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vidrobust.data import Record
from vidrobust.engine import distributed
from vidrobust.methods.adversarial import CLAE
from vidrobust.methods.info_nce import nt_xent
from vidrobust.methods.method import Method
from vidrobust.methods.momentum import MomentumEncoder
from vidrobust.methods.removal import Masks, Removal
from vidrobust.models import Model


class SimCLR(Method):
    """The views of a video are positives of each other, those of other videos negatives.

    With false-negative removal (paper A), negatives are looked through first, on the clean embeddings, detached: the
    model's own, or those of a momentum encoder. With an adversary (CLAE, METHODS section 2.1):
    L(z1, ..., zV) + alpha * L(z1, z_adv), where x_adv is made from the first view, z_adv comes from the adversarial
    norm branch and z1 is the clean embedding, computed once. What is removed between the first two clean views is
    removed from the adversarial loss, and from the loss that the attack raises.
    """

    def __init__(
        self, model: Model, temperature: float, adversary: CLAE | None = None, removal: Removal | None = None, *,
        clips: int = 2, chunk: int = 0, detector: MomentumEncoder | None = None,
    ) -> None:  # fmt: skip
        super().__init__(removal)
        self.model, self.temperature, self.adversary = model, temperature, adversary
        self.views, self.chunk, self.detector = clips, chunk, detector

    def forward(self, views: Tensor, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """views (B, V, C, T, H, W) in [0, 1], ids (B,) one a video; labels are not looked at.

        Returns {"loss": (B,), and its parts (B,) for the log}.
        """
        z = [self.model(views[:, v]) for v in range(self.views)]
        masks = self._masks(z, views, ids)
        clean = self._loss(z, ids, labels, masks)
        if self.adversary is None:
            return {"loss": clean}
        pair = masks if self.views == 2 else self._masks(z[:2], views[:, :2], ids, first=False)
        x_adv = self.adversary.view(self.model, views[:, 0], lambda a, b: self._loss([a, b], ids, labels, pair))
        with self.model.use_branch("adv"):
            z_adv = self.model(x_adv)
        adv = self._loss([z[0], z_adv], ids, labels, pair)
        return {"loss": clean + self.adversary.alpha * adv, "loss_clean": clean, "loss_adv": adv}

    def prepare(self, records: Sequence[Record]) -> None:
        if self.detector is not None:
            self.detector.start_from(self.model)
        super().prepare(records)

    def _loss(self, z: Sequence[Tensor], ids: Tensor, labels: Tensor, masks: Masks) -> Tensor:
        """V embeddings (B, D) of each video -> (B,): the mean of its anchors' losses."""
        keys = self._keys(ids, labels).repeat(len(z))
        losses = nt_xent(
            torch.cat(list(z)), keys, self.temperature, masks.ignore, attract=masks.attract, weights=masks.weights,
            chunk=self.chunk,
        )  # fmt: skip
        return losses.view(len(z), -1).mean(0)

    def _keys(self, ids: Tensor, labels: Tensor) -> Tensor:
        """(B,): what makes views positives of each other."""
        return ids

    def _masks(self, z: Sequence[Tensor], views: Tensor, ids: Tensor, *, first: bool = True) -> Masks:
        """Over all rows of `z`, V of each of the B videos, and those of all ranks. first: of this batch."""
        if self.removal is None:
            return Masks()
        if self.detector is not None:
            if self.training and first:
                self.detector.follow(self.model, self.progress)
            z = [self.detector(views[:, v]) for v in range(len(z))]
        everything, keys = torch.cat(list(z)).detach().float(), ids.repeat(len(z))
        if self.training and first:
            self.removal.remember(everything[: len(ids)], ids)
        sides = keys, distributed.gather(keys)
        return self.removal(everything, distributed.gather(everything), sides, self.progress, count=first)
