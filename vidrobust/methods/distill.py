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
    """Distillation of a teacher; with an adversary it is DeACL.

    The loss is -cos(f(x), f_T(x)) of one view per video, and with an adversary also
    -gamma cos(f(x_adv), f(x)), where x_adv maximises -cos(f(x_adv), f_T(x)). f is the backbone
    itself, followed by a linear map only where the teacher's features are of another size. Clean
    and adversarial clips are one pass of one norm branch. The teacher is in eval mode and has no
    gradient.
    """

    views = 1
    wants_teacher = True
    teacher: Backbone
    map: nn.Module

    def __init__(
        self,
        model: Model,
        adversary: Adversary | None = None,
        gamma: float = 2.0,
        *,
        starts_as_teacher: bool = False,
    ) -> None:
        """Set the parts of the method.

        Args:
            model: the student, without a head.
            adversary: makes adversarial clips; None: plain distillation.
            gamma: weight of the adversarial term.
            starts_as_teacher: the student begins with the teacher's weights, as in DeACL's code.
        """
        super().__init__()
        self.starts_as_teacher = starts_as_teacher
        self.model = model
        self.adversary = adversary
        self.gamma = gamma

    def set_teacher(self, teacher: Backbone) -> None:
        """Keep the teacher, and build the linear map if its features are of another size."""
        super().set_teacher(teacher)
        same_size = teacher.dim == self.model.backbone.dim
        self.map = nn.Identity() if same_size else nn.Linear(self.model.backbone.dim, teacher.dim)

    def forward(
        self, views: Tensor, ids: Tensor, labels: Tensor, progress: float = 0.0
    ) -> dict[str, Tensor]:
        """Return {"loss": (B,), and its parts for the log}.

        Args:
            views: (B, 1, C, T, H, W) in [0, 1].
            ids: (B,), not used.
            labels: (B,), not used.
            progress: fraction of training done.
        """
        x = views[:, 0]
        with torch.no_grad():
            target = self.teacher(x)

        # the attack moves away from the teacher, the learned term below from the student's own
        # features of the clean clip
        def make_loss(model: Model) -> Loss:
            return lambda x: -similarity(self.map(model(x)), target)

        adv_views = []
        if self.adversary is not None:
            adv_views = self.adversary.views(self.model, make_loss, x, progress)
        # one pass of both, so that running statistics are those of clean and adversarial clips
        features, *adv_features = together(self.model, [x], adv_views)
        clean = -similarity(self.map(features), target)
        if self.adversary is None:
            return {"loss": clean}
        # the adversarial term compares the student with itself, without the map; gradient reaches
        # both features, as in the released code
        adv = average([-similarity(each, features) for each in adv_features])
        # 1 - cos: the adaptive schedule makes probabilities of losses, which may not be negative
        self.adversary.budget.record(1 + adv)
        return {"loss": clean + self.gamma * adv, "loss_clean": clean, "loss_adv": adv}


def _build(parts: Parts) -> Distill:
    options = parts.options
    return Distill(
        parts.model(),
        parts.attack(),
        options.adversary.gamma,
        starts_as_teacher=options.student == "teacher",
    )


SPEC = MethodSpec(
    build=_build,
    help="a teacher's features",
    cost=Cost(forward=1, learned=(1,)),
    head="none",
    options=frozenset({"teacher", "student"}),
    adversaries=("deacl",),
    refuses={"false_negatives": "has no negatives", "negatives": "learns from a teacher"},
)
