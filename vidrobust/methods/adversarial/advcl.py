"""AdvCL: four views, pseudo-labels, three norm branches (Fan et al., NeurIPS 2021)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidrobust import config
from vidrobust.attacks import Loss
from vidrobust.data import Record
from vidrobust.losses.cosine import full_precision
from vidrobust.losses.info_nce import Hardness
from vidrobust.methods.adversarial.a_info_nce import asymmetry_of, hardness_of
from vidrobust.methods.adversarial.adversary import Adversary
from vidrobust.methods.adversarial.view_batch import ViewBatch, average, through
from vidrobust.methods.false_negatives.removal import Removal
from vidrobust.methods.pseudo_labels import PseudoLabels
from vidrobust.methods.simclr import AdversarialSimCLR
from vidrobust.methods.spec import AdversarySpec, Cost, Parts
from vidrobust.models import Backbone, Model
from vidrobust.utils.errors import UserError


class AdvCL(AdversarialSimCLR):
    """SupCon's loss over [x_adv, x1, x2, x_high], all positives of each other, + weight *
    cross-entropy of x_ce.

    x is the clip of x1 before augmentation, moved by `augment.original_shift`. x_high: its frames
    without the low frequencies of their Fourier transforms. x_adv raises the contrastive loss from
    x (branch "adv"); x_ce raises the cross-entropy of pseudo-labels from x (branch "adv_ce"), a
    linear head on the trunk for each granularity, averaged. The pseudo-labels are clusters of a
    clean teacher's features.
    """

    wants_teacher = True
    teacher: Backbone

    def __init__(
        self,
        model: Model,
        temperature: float,
        adversary: Adversary,
        ce_adversary: Adversary,
        counts: Sequence[int] = (2, 10, 50, 100, 500),
        removal: Removal | None = None,
        *,
        weight: float = 0.2,
        radius: float = 8.0,
        chunk: int = 0,
        asymmetry: tuple[float, float] | None = None,
        hard: Hardness | None = None,
        joint: bool = False,
        scale: float = 1.0,
    ) -> None:
        super().__init__(
            model,
            temperature,
            adversary,
            removal,
            pairing=self._pair,
            chunk=chunk,
            asymmetry=asymmetry,
            hard=hard,
            original=True,
            joint=joint,
            scale=scale,
        )
        self.ce_adversary, self.weight, self.radius = ce_adversary, weight, radius
        self.pseudo: PseudoLabels = PseudoLabels(counts, "method.adversary.clusters")
        self.heads = nn.ModuleList(nn.Linear(model.backbone.dim, k) for k in self.pseudo.counts)

    def prepare(self, records: Sequence[Record]) -> None:
        super().prepare(records)
        self.pseudo.know(len(records))

    def looks_with(self) -> Backbone:
        return self.teacher

    def forward(self, views: Tensor, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        parts = super().forward(views, ids, labels)
        known = self.pseudo(ids)

        def loss(x: Tensor) -> Tensor:
            return self._cross_entropy(self.model.backbone(x), known)

        made = self.ce_adversary.views(self.model, lambda model: loss, views[:, 2], self.progress)
        ce = average([through(self.model, view, loss) for view in made])
        self.ce_adversary.budget.saw(ce)
        return parts | {"loss": parts["loss"] + self.weight * ce, "loss_ce": ce}

    def _pair(self, batch: ViewBatch) -> dict[str, Tensor]:
        assert batch.original is not None
        x = batch.original
        high = high_pass(x, self.radius)
        like = (0, 0, 1, 0)

        def make_loss(model: Model) -> Loss:
            with torch.no_grad(), model.use_branch("clean"):
                others = [model(other) for other in (*batch.views, high)]
            return lambda v: batch.loss([model(v), *others], like)

        clean = [batch.z(0), batch.z(1), batch.model(high)]
        made = batch.attack(x, make_loss)
        rows = [[batch.embed(view), *clean] for view in made]
        adv = average([batch.loss(row, like, adversarial=(0,)) for row in rows])
        return {"loss": adv, "loss_adv": adv}

    def _cross_entropy(self, features: Tensor, known: Tensor) -> Tensor:
        """(B,): the mean over granularities; videos without a pseudo-label have none."""
        losses = [
            F.cross_entropy(
                full_precision(head(features)), known[:, g], reduction="none", ignore_index=-1
            )
            for g, head in enumerate(self.heads)
        ]
        return torch.stack(losses).mean(0)


def high_pass(x: Tensor, radius: float) -> Tensor:
    """Return frames (..., H, W) without frequencies nearer to 0 than `radius`, in cycles a frame.

    It may leave [0, 1].
    """
    height, width = x.shape[-2:]
    rows, columns = (torch.fft.fftfreq(n, 1 / n, device=x.device) for n in (height, width))
    keep = torch.hypot(*torch.meshgrid(rows, columns, indexing="ij")) >= radius
    return torch.fft.ifft2(torch.fft.fft2(full_precision(x)) * keep).real


def _build(parts: Parts) -> AdvCL:
    options = parts.options
    a = options.adversary
    if options.clips_per_video != 2 or options.false_negatives.encoder == "momentum":
        raise UserError(
            "method.adversary.name=advcl: two clips a video, and the model's own eye for false "
            "negatives"
        )
    model = parts.model("projector")
    first = parts.attack("adv")
    second = parts.attack("adv_ce")
    assert first is not None
    assert second is not None
    return AdvCL(
        model,
        options.temperature,
        first,
        second,
        a.clusters,
        parts.removal(2 * (parts.batch_size - 1)),
        weight=a.ce_weight,
        radius=a.radius,
        chunk=options.chunk,
        asymmetry=asymmetry_of(options),
        hard=hardness_of(options),
        joint=options.joint_views,
        scale=options.loss_scale,
    )


def _refusal(options: config.MethodConfig) -> str:
    if options.adversary.combine == "branches":
        return (
            "method.adversary.combine=branches: advcl's branches are of its two attacks; set "
            "average or worst"
        )
    return ""


SPEC = AdversarySpec(
    help="AdvCL: four views, pseudo-labels, three norm branches",
    costs={"": Cost(forward=3, attack=2, learned=(1, 1, 1, 1, 1), train_mode=True)},
    build=_build,
    options=frozenset({"clusters", "ce_weight", "radius"}),
    steps=5,
    step=0.25,
    random_start=True,
    train_mode=True,
    branches=lambda options: ("adv", "adv_ce"),
    branched_head=False,
    two_clips=True,
    uses_original=lambda options: True,
    measured="adv",
    fixed=frozenset({"clusters"}),
    refusal=_refusal,
)
