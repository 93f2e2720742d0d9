"""Warn of training videos that are bad or unusual."""

from torch import Tensor

from vidrobust.data import Batch, Failure
from vidrobust.training.training_run import TrainingRun
from vidrobust.utils import distributed
from vidrobust.utils.logging import log


def count_bad_videos(run: TrainingRun, replaced: list[Failure]) -> None:
    """Record videos that did not decode on any rank; each is logged once.

    Args:
        run: keeps the list.
        replaced: videos of this rank's batch in whose place others were read.
    """
    new = {failure.index: failure.reason for failure in replaced if failure.index not in run.bad}
    # every rank keeps the same list, as `train.max_bad` must end all of them at the same step
    if distributed.any_rank(bool(new), run.device):
        for index, reason in sorted(distributed.merged(new).items()):
            run.bad[index] = reason
            if run.main:
                log.warning(f"bad video, another takes its place: {reason}")


def warn_unchanged_negatives(views: Tensor, negatives: Tensor) -> None:
    """Warn of clips that are their own negatives: nothing moves in them, or they have one colour.

    Args:
        views: (B, 1, C, T, H, W), the clips.
        negatives: (B, M, C, T, H, W), made of them.
    """
    unchanged = (negatives == views).flatten(2).all(2).any(1)
    if unchanged.any():
        log.warning(
            f"method.negatives: {int(unchanged.sum())} of {len(views)} clips of the first batch are"
            " their own negative, because nothing moves in them or they have one colour"
        )


class UnusualVideos:
    """Videos of the first epoch whose clips repeat frames, or whose frames had several sizes."""

    def __init__(self, run: TrainingRun) -> None:
        """Begin with none."""
        self.run = run
        self._seen: set[int] = set()
        self._repeats: set[int] = set()
        self._resized: set[int] = set()
        self._reported = False

    def add(self, batch: Batch | None) -> None:
        """Record the videos of a batch, in the first epoch."""
        if self._reported or batch is None:
            return
        self._seen |= set(batch.index.tolist())
        self._repeats |= set(batch.repeats)
        self._resized |= set(batch.resized)

    def report(self) -> None:
        """Log once how many there are, over all ranks."""
        if self._reported:
            return
        self._reported = True
        counts = []
        for videos in (self._repeats, self._resized, self._seen):
            counts.append(len(distributed.merged(dict.fromkeys(videos, ""))))
        if self.run.main:
            for line in self.run.dataset.notes(*counts):
                log.warning(line)
