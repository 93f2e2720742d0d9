"""Method: the base class of all learning methods."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vidrobust.data import Record
from vidrobust.losses.cosine import cosines
from vidrobust.methods.adversarial.adversary import Adversary, frozen_statistics
from vidrobust.methods.false_negatives.removal import Removal
from vidrobust.methods.pseudo_labels import PseudoLabels
from vidrobust.models import Backbone, Model
from vidrobust.utils.errors import UserError


class Method(nn.Module):
    """Base class: `method(views, ids, labels, progress)` returns {"loss": (B,), ...}.

    Losses are per video; the caller averages them. Entries other than "loss" are its parts, for the
    log. Everything that a method keeps between steps (a queue, a momentum encoder) is in its state
    dict.

    Attributes:
        views: V, clips per video that `forward` takes in front of the non-semantic negatives.
        original: the last of the V clips shows the frames of the first one without augmentation.
        model: the backbone and head that are trained.
        replays: optimizer steps per batch.
        wants_teacher: `set_teacher` must be called before `prepare`.
        starts_as_teacher: the backbone begins with the teacher's weights, unless others are given.
        alike: prefixes of buffers that are equal on all ranks without being synchronised, because
            each rank computes them from gathered data.
        adversary: makes adversarial views, or None.
        removal: of false negatives, or None.
        pseudo: pseudo-labels of the features of `backbone_to_cluster`, or None.
    """

    views: int
    original: bool = False
    model: Model
    replays: int = 1
    wants_teacher: bool = False
    starts_as_teacher: bool = False
    alike = ("removal.", "queue", "position", "steps", "pseudo.", "teacher.")

    def __init__(self, removal: Removal | None = None) -> None:
        """Set the removal of false negatives; subclasses set everything else."""
        super().__init__()
        self.adversary: Adversary | None = None
        self.removal = removal
        self.pseudo: PseudoLabels | None = None

    def set_teacher(self, teacher: Backbone) -> None:
        """Keep a trained backbone as the teacher, in eval mode and without gradient."""
        self.teacher = teacher.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Method":
        """Set train or eval mode of everything but the teacher, which stays in eval mode."""
        super().train(mode)
        if hasattr(self, "teacher"):
            self.teacher.eval()
        return self

    def prepare(self, records: Sequence[Record]) -> None:
        """Get ready for the first step, once the model's weights are loaded.

        Args:
            records: the training videos; a video's id is its index in this list.

        Raises:
            UserError: for a missing teacher, and for options that do not fit the videos.
        """
        if self.wants_teacher and not hasattr(self, "teacher"):
            raise UserError(
                "method.teacher is empty, and this method learns from one; set a checkpoint"
            )
        if self.removal is not None:
            self.removal.set_videos(records)

    def backbone_to_cluster(self) -> Backbone | None:
        """Return the backbone whose features of all videos become pseudo-labels, or None."""
        return None

    def embed_behind_views(self, encoder: nn.Module, views: Tensor) -> Tensor | None:
        """Return the embeddings (B, M, D) of the non-semantic negatives behind the views, or None.

        Each is a pass of its own. Running statistics of the model's norms remain those of views,
        because evaluation uses them for views.

        Args:
            encoder: (B, C, T, H, W) -> (B, D).
            views: (B, V + M, C, T, H, W) in [0, 1].
        """
        with frozen_statistics(self.model):
            z = [encoder(views[:, v]) for v in range(self.views, views.shape[1])]
        return torch.stack(z, 1) if z else None

    def network_to_measure(self) -> Callable[[Tensor], Tensor] | None:
        """Return a network, clips -> logits, or None.

        The loss depends on the accuracy of this network on training clips. Training measures it
        (`training/measured_accuracy.py`) and calls `record_accuracy`.
        """
        return None

    def record_accuracy(self, accuracy: float) -> None:
        """Use the accuracy of `network_to_measure`, in [0, 1], from the next step on."""

    def start_epoch(self) -> None:
        """Prepare for an epoch, before its first step; a resume within an epoch does not call it.

        State that this method changes must therefore be in checkpoints.
        """
        if self.removal is not None:
            self.removal.start_epoch()

    def report(self, last: bool = False) -> dict[str, float]:
        """Return numbers of the epoch that has ended, for the log.

        Args:
            last: it was the last epoch of the run.
        """
        return {} if self.removal is None else self.removal.report(last)


def negative_cosine(z: Tensor, negatives: Tensor | None) -> dict[str, Tensor]:
    """Return {"negative_cosine": (B,)}, the mean cosine of anchors and their own negatives.

    It is a number for the log; {} without negatives.

    Args:
        z: anchors (B, D).
        negatives: embeddings (B, M, D) of non-semantic negatives, or None.
    """
    if negatives is None:
        return {}
    return {"negative_cosine": cosines([z.detach()], negatives.detach()).mean(1)}
