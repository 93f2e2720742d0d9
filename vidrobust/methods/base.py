"""Method: the base class of all learning methods."""

from collections.abc import Sequence

from torch import Tensor, nn

from vidrobust.data import Record
from vidrobust.losses.cosine import cosines
from vidrobust.methods.false_negatives.removal import Removal
from vidrobust.methods.pseudo_labels import PseudoLabels
from vidrobust.models import Backbone, Model
from vidrobust.utils.errors import UserError
from vidrobust.views import NegativeSpec


class Method(nn.Module):
    """`method(views, ids, labels) -> {"loss": (B,), ...}` around the model that it trains.

    views (B, `views` + M, C, T, H, W) in [0, 1], ids (B,) one a video, labels (B,). The M behind
    the views are negatives of the first one: its texture `twin`, and what `negatives` says. Losses
    are per video: the caller reduces. Entries other than "loss" are its parts, for the log. What
    else a method keeps (a queue, a momentum encoder) is in its state dict.
    """

    views: int  # clips of each video
    original: bool = False  # whether the last of them shows the frames of the first, not augmented
    model: Model
    skips: bool = False  # whether some weights have no gradient in some steps
    replays: int = 1  # how often a batch is taken in a row, each time with a step of the optimizer
    progress: float = 0.0  # the share of training done, set before each step
    negatives: NegativeSpec = NegativeSpec()  # of diminished semantics (paper C)
    twin: bool = False  # whether a texture twin, which the loader brings, comes before them
    alpha_negatives: float = 1.0  # how much they count
    wants_teacher: bool = False  # `learn_from` one before `prepare`
    # buffers that all ranks keep alike, by what they gather or were given
    alike = ("removal.", "queue", "position", "steps", "pseudo.", "teacher.")

    def __init__(self, removal: Removal | None = None) -> None:
        super().__init__()
        self.removal = removal
        self.pseudo: PseudoLabels | None = (
            None  # what is made of the features that `looks_with` gives
        )

    def learn_from(self, teacher: Backbone) -> None:
        """Keep a trained trunk as the teacher: in eval mode, without gradient."""
        self.teacher = teacher.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Method":
        super().train(mode)
        if hasattr(self, "teacher"):
            self.teacher.eval()
        return self

    def prepare(self, records: Sequence[Record]) -> None:
        """Before the first step, the model's weights loaded: learn what may be known of the videos.

        records: a video's index is its id. Raises UserError for what does not fit them, and for a
        teacher that lacks.
        """
        if self.wants_teacher and not hasattr(self, "teacher"):
            raise UserError(
                "method.teacher is empty, and this method learns from one; set a checkpoint"
            )
        if self.removal is not None:
            self.removal.know(records)

    def looks_with(self) -> Backbone | None:
        """The trunk whose features of all videos the method wants to cluster before the first step;
        None: no wish.
        """
        return None

    def start_epoch(self) -> None:
        """Before the first step of an epoch."""
        if self.removal is not None:
            self.removal.start_epoch()

    def report(self, last: bool = False) -> dict[str, float]:
        """What the log shall say of the epoch that has ended; last: the run has, too."""
        return {} if self.removal is None else self.removal.report(last)


def negative_cosine(z: Tensor, negatives: Tensor | None) -> dict[str, Tensor]:
    """Return {"negative_cosine": (B,)} of anchors (B, D) with their non-semantic negatives."""
    if negatives is None:
        return {}
    return {"negative_cosine": cosines([z.detach()], negatives.detach()).mean(1)}
