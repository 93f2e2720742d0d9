"""AdvCL: four views, pseudo-labels, three norm branches (Fan et al., NeurIPS 2021)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vidrobust import config
from vidrobust.attacks import Loss
from vidrobust.data import Record
from vidrobust.losses.cosine import full_precision
from vidrobust.methods.adversarial.adversary import Adversary
from vidrobust.methods.adversarial.view_batch import ViewBatch, average, through
from vidrobust.methods.false_negatives.removal import Removal
from vidrobust.methods.pseudo_labels import PseudoLabels
from vidrobust.methods.simclr import (
    AdversarialSimCLR,
    LossSettings,
    ViewSettings,
    loss_settings,
)
from vidrobust.methods.spec import AdversarySpec, Cost, Parts
from vidrobust.methods.supervised import cross_entropy
from vidrobust.models import Backbone, Model
from vidrobust.utils.errors import UserError


@dataclass(frozen=True)
class AdvCLSettings:
    """Settings of what AdvCL adds to SupCon's loss.

    Attributes:
        clusters: of pseudo-labels, one count per granularity.
        ce_weight: weight of the cross-entropy.
        radius: frequencies below it are removed from the high-frequency view, in cycles per frame.
    """

    clusters: Sequence[int] = (2, 10, 50, 100, 500)
    ce_weight: float = 0.2
    radius: float = 8.0


class AdvCL(AdversarialSimCLR):
    """AdvCL: a contrastive loss over four views, and the cross-entropy of pseudo-labels.

    The loss is SupCon's over [x_adv, x1, x2, x_high], all positives of each other, + ce_weight
    times the cross-entropy of x_ce.

    - x is the clip of x1 before augmentation, shifted by `augment.original_shift`.
    - x_high: x without the low frequencies of the Fourier transform of each frame.
    - x_adv maximises the contrastive loss, beginning at x (branch "adv").
    - x_ce maximises the cross-entropy of pseudo-labels, beginning at x (branch "adv_ce"). There is
      a linear head on the backbone for each granularity, and their losses are averaged.
    - Pseudo-labels are clusters of a clean teacher's features.
    """

    wants_teacher = True
    teacher: Backbone
    pseudo: PseudoLabels

    def __init__(
        self,
        model: Model,
        loss: LossSettings,
        adversary: Adversary,
        ce_adversary: Adversary,
        removal: Removal | None = None,
        *,
        settings: AdvCLSettings = AdvCLSettings(),
        joint: bool = False,
    ) -> None:
        """Set the parts of the method.

        Args:
            model: backbone and projector, with the branches "adv" and "adv_ce".
            loss: settings of the contrastive loss.
            adversary: makes x_adv.
            ce_adversary: makes x_ce.
            removal: of false negatives.
            settings: of pseudo-labels and the high-frequency view.
            joint: x1 and x2 are one batch for the norms.
        """
        views = ViewSettings(joint=joint, original=True)
        super().__init__(model, loss, adversary, removal, pairing=self._pair, views=views)
        self.ce_adversary = ce_adversary
        self.settings = settings
        self.pseudo = PseudoLabels(settings.clusters, "method.adversary.clusters")
        self.heads = nn.ModuleList(nn.Linear(model.backbone.dim, k) for k in settings.clusters)

    def prepare(self, records: Sequence[Record]) -> None:
        """Get ready for the first step, with room for pseudo-labels."""
        super().prepare(records)
        self.pseudo.set_videos(len(records))

    def backbone_to_cluster(self) -> Backbone:
        """Return the teacher, whose features become pseudo-labels."""
        return self.teacher

    def forward(
        self, views: Tensor, ids: Tensor, labels: Tensor, progress: float = 0.0
    ) -> dict[str, Tensor]:
        """Return {"loss": (B,), and its parts for the log}.

        Args:
            views: (B, 3 + M, C, T, H, W) in [0, 1]: x1, x2, x and M non-semantic negatives.
            ids: (B,), one per video.
            labels: (B,), not used.
            progress: fraction of training done.
        """
        parts = super().forward(views, ids, labels, progress)
        pseudo_labels = self.pseudo(ids)

        def loss(x: Tensor) -> Tensor:
            return self._cross_entropy(self.model.backbone(x), pseudo_labels)

        # the second attack is on the same clip, through a norm branch of its own
        x = views[:, 2]
        adv_views = self.ce_adversary.views(self.model, lambda model: loss, x, progress)
        ce = average([through(self.model, view, loss) for view in adv_views])
        self.ce_adversary.budget.record(ce)
        return parts | {"loss": parts["loss"] + self.settings.ce_weight * ce, "loss_ce": ce}

    def _pair(self, batch: ViewBatch) -> dict[str, Tensor]:
        """Return the contrastive loss of the four views: a pairing."""
        assert batch.original is not None
        x = batch.original
        high = high_pass(x, self.settings.radius)
        # Of x_adv, x1, x2 and x_high, the clean view whose false negatives it has. x is the clip of
        # x1 before augmentation, so that x_adv and x_high take the place of x1.
        like = (0, 0, 1, 0)

        # the other three views do not change in the attack: they are embedded once, by clean norms
        def make_loss(model: Model) -> Loss:
            with torch.no_grad(), model.use_branch("clean"):
                others = [model(other) for other in (*batch.views, high)]
            return lambda x: batch.loss([model(x), *others], like)

        clean = [batch.z(0), batch.z(1), batch.model(high)]
        adv_views = batch.attack(x, make_loss)
        rows = [[batch.embed(view), *clean] for view in adv_views]
        adv = average([batch.loss(row, like, adversarial=(0,)) for row in rows])
        return {"loss": adv, "loss_adv": adv}

    def _cross_entropy(self, features: Tensor, pseudo_labels: Tensor) -> Tensor:
        """Return the mean over granularities, (B,), 0 for videos without a pseudo-label."""
        losses = [
            cross_entropy(head(features), pseudo_labels[:, g]) for g, head in enumerate(self.heads)
        ]
        return torch.stack(losses).mean(0)


def high_pass(x: Tensor, radius: float) -> Tensor:
    """Return frames without low frequencies, which may be outside of [0, 1].

    Frequencies at the radius are kept, as in the released code. The mean colour is the frequency 0:
    it is removed, so that the values have mean 0.

    Args:
        x: (..., H, W).
        radius: frequencies below it are removed, in cycles per frame.
    """
    height, width = x.shape[-2:]
    # frequencies in cycles per frame, 0 in the corner, as fft2 orders them
    rows, columns = (torch.fft.fftfreq(n, 1 / n, device=x.device) for n in (height, width))
    keep = torch.hypot(*torch.meshgrid(rows, columns, indexing="ij")) >= radius
    return torch.fft.ifft2(torch.fft.fft2(full_precision(x)) * keep).real


def _build(parts: Parts) -> AdvCL:
    options = parts.options
    a = options.adversary
    if options.false_negatives.encoder == "momentum":
        raise UserError(
            "method.false_negatives.encoder=momentum: advcl has no momentum encoder; set own"
        )
    model = parts.model()
    # each attack has its own norm branch, and both have their own schedule of eps
    first = parts.attack("adv")
    second = parts.attack("adv_ce")
    assert first is not None
    assert second is not None
    return AdvCL(
        model,
        loss_settings(options),
        first,
        second,
        # false negatives are detected between the two clean views of each video
        parts.removal(2 * (parts.batch_size - 1)),
        settings=AdvCLSettings(a.clusters, a.ce_weight, a.radius),
        joint=options.joint_views,
    )


def _refusal(options: config.MethodConfig) -> str:
    if options.adversary.combine == "branches":
        return (
            "method.adversary.combine=branches: advcl has a norm branch for each of its two "
            "attacks, and none for each threat; set average or worst"
        )
    return ""


SPEC = AdversarySpec(
    help="AdvCL: four views, pseudo-labels, three norm branches",
    costs={"": Cost(forward=3, attack=2, learned=(1, 1, 1, 1, 1), train_mode=True)},
    build=_build,
    options=frozenset({"clusters", "ce_weight", "radius"}),
    uses=lambda options: frozenset({"teacher"}),
    mixed=lambda options: True,
    # 5 steps of 2/255 within 8/255 in training mode, and one norm in the projector for all
    # branches, as in the released code
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
