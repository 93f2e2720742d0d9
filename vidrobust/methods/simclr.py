"""SimCLR on clips (Chen et al. 2020; on video, Feichtenhofer et al. 2021), with or without adversarial views."""

import torch
from torch import Tensor

from vidrobust.methods.adversarial import CLAE
from vidrobust.methods.info_nce import nt_xent
from vidrobust.methods.method import Method
from vidrobust.models import Model


class SimCLR(Method):
    """Two views of a video are positives, views of other videos negatives.

    With an adversary (CLAE, METHODS section 2.1): L(z1, z2) + alpha * L(z1, z_adv), where x_adv is made from the
    first view, z_adv comes from the adversarial norm branch and z1 is the clean embedding, computed once.
    """

    views = 2

    def __init__(self, model: Model, temperature: float, adversary: CLAE | None = None) -> None:
        super().__init__()
        self.model, self.temperature, self.adversary = model, temperature, adversary

    def forward(self, views: Tensor, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """views (B, 2, C, T, H, W) in [0, 1], ids (B,) one a video; labels are not looked at.

        Returns {"loss": (B,), and its parts (B,) for the log}.
        """
        z1, z2 = self.model(views[:, 0]), self.model(views[:, 1])
        clean = self._pair(z1, z2, ids)
        if self.adversary is None:
            return {"loss": clean}
        x_adv = self.adversary.view(self.model, views[:, 0], lambda a, b: self._pair(a, b, ids))
        with self.model.use_branch("adv"):
            z_adv = self.model(x_adv)
        adv = self._pair(z1, z_adv, ids)
        return {"loss": clean + self.adversary.alpha * adv, "loss_clean": clean, "loss_adv": adv}

    def _pair(self, a: Tensor, b: Tensor, ids: Tensor) -> Tensor:
        """(B, D), (B, D) -> (B,): the mean of both anchors' losses."""
        losses = nt_xent(torch.cat([a, b]), torch.cat([ids, ids]), self.temperature)
        return losses.view(2, -1).mean(0)
