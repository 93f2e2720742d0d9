"""Distillation of a frozen teacher, and DeACL (Zhang et al., ECCV 2022)."""

import torch
from torch import Tensor, nn

from vidrobust.attacks import Loss
from vidrobust.losses.cosine import similarity
from vidrobust.methods.adversarial.adversary import Adversary
from vidrobust.methods.adversarial.view_batch import average, together
from vidrobust.methods.base import Method
from vidrobust.methods.spec import Cost, MethodSpec, Parts
from vidrobust.models import Backbone, Model


class Distill(Method):
    """-cos(f(x), f_T(x)) of one view of a video; with an adversary, DeACL: - gamma cos(f(x_adv),
    f(x)) besides.

    x_adv raises -cos(f(x_adv), f_T(x)); gamma is 2. Clean and adversarial clips are one pass, of
    one norm branch. f is the trunk itself, followed by a linear map only where the teacher's
    features are of another size. The teacher is in eval mode and has no gradient.
    """

    views = 1
    wants_teacher = True
    teacher: Backbone
    map: nn.Module

    def __init__(
        self, model: Model, adversary: Adversary | None = None, gamma: float = 2.0
    ) -> None:
        super().__init__()
        self.model, self.adversary, self.gamma = model, adversary, gamma

    def learn_from(self, teacher: Backbone) -> None:
        super().learn_from(teacher)
        same = teacher.dim == self.model.backbone.dim
        self.map = nn.Identity() if same else nn.Linear(self.model.backbone.dim, teacher.dim)

    def forward(self, views: Tensor, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """views (B, 1, C, T, H, W) in [0, 1] -> {"loss": (B,), and its parts}; ids and labels are
        not looked at.
        """
        x = views[:, 0]
        with torch.no_grad():
            aim = self.teacher(x)

        def make_loss(model: Model) -> Loss:
            return lambda v: -similarity(self.map(model(v)), aim)

        made = (
            []
            if self.adversary is None
            else self.adversary.views(self.model, make_loss, x, self.progress)
        )
        f, *moved = together(self.model, [x], made)
        clean = -similarity(self.map(f), aim)
        if self.adversary is None:
            return {"loss": clean}
        adv = average([-similarity(f_adv, f) for f_adv in moved])
        self.adversary.budget.saw(1 + adv)
        return {"loss": clean + self.gamma * adv, "loss_clean": clean, "loss_adv": adv}


def _build(parts: Parts) -> Distill:
    return Distill(parts.model("none"), parts.attack(), parts.options.adversary.gamma)


SPEC = MethodSpec(
    build=_build,
    help="a teacher's features",
    cost=Cost(forward=1, learned=(1,)),
    options=frozenset({"teacher", "student"}),
    adversaries=("deacl",),
    refuses={"false_negatives": "has no negatives", "negatives": "learns from a teacher"},
)
