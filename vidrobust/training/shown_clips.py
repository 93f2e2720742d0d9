"""Show clips of a run in TensorBoard: their views, and what the adversary makes of them."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vidrobust.methods import Adversary
from vidrobust.methods.adversarial.adversary import RecordedViews
from vidrobust.training.training_run import TrainingRun
from vidrobust.utils.logging import Metrics

_SHARE = 0.01  # of the time of the run, which pictures may take
_PICTURES = 20  # at most, spread evenly over the epochs
_FRAMES = 8  # of a clip, at most
_SIDE = 80  # pixels, at most
_COLUMNS = 6  # views of a clip, at most
_GAP = 2  # pixels between clips


class ShownClips:
    """Writes clips of the first step, of ends of epochs, and of the last step.

    A batch of a step is shown as it is trained on. Nothing is computed by the model, and no random
    number is used, so that a run is the same with and without.
    """

    def __init__(self, run: TrainingRun, metrics: Metrics | None) -> None:
        """Set what is shown.

        Args:
            run: the run.
            metrics: its TensorBoard; None on ranks above 0, which show nothing.
        """
        self.clips = run.cfg.train.shown_clips
        self.method = run.method
        self.metrics = metrics
        self.total = run.total
        self.per_epoch = run.per_epoch
        epochs = max(1, run.total // run.per_epoch)
        self.every = run.per_epoch * -(-epochs // _PICTURES)  # steps
        self.began = time.perf_counter()
        self.spent_s = 0.0

    @contextmanager
    def of_step(self, step: int, views: Tensor) -> Iterator[None]:
        """Write the clips of a step, once it has been taken inside, if it is the turn of the step.

        Args:
            step: number of the step.
            views: (B, V, C, T, H, W) in [0, 1].
        """
        metrics = self.metrics
        if metrics is None or not self._is_turn(step):
            yield
            return
        with ExitStack() as stack:
            recorded = [
                stack.enter_context(module.recording(self.clips))
                for module in self.method.modules()
                if isinstance(module, Adversary)
            ]
            yield
        start = time.perf_counter()
        first = views[: self.clips, :_COLUMNS].detach().float().cpu()
        metrics.write_clips("clips/views", grid([list(clip) for clip in first]), step)
        for tag, attacked in _by_tag(recorded).items():
            metrics.write_clips(tag, grid(_attacked_rows(attacked)), step)
        self.spent_s += time.perf_counter() - start

    def _is_turn(self, step: int) -> bool:
        """Return whether the clips of a step are shown."""
        done = step + 1
        if not self.clips:
            return False
        if step == 0 or done == self.total:
            return True
        elapsed = time.perf_counter() - self.began
        return done % self.every == 0 and self.spent_s <= _SHARE * elapsed


def _by_tag(recorded: Sequence[list[RecordedViews]]) -> dict[str, RecordedViews]:
    """Return the first views of each threat of each adversary, under the names of pictures."""
    by_tag: dict[str, RecordedViews] = {}
    for number, views in enumerate(recorded):
        for each in views:
            suffix = f" {number + 1}" if number else ""
            by_tag.setdefault(f"clips/adversarial {each.threat}{suffix}", each)
    return by_tag


def _attacked_rows(views: RecordedViews) -> list[list[Tensor]]:
    """Return (clip, adversarial view, amplified difference) for each clip."""
    rows = []
    for x, x_adv in zip(views.x, views.x_adv, strict=True):
        delta = (x_adv - x).nan_to_num()
        # to the full range of colours, around grey
        amplified = 0.5 + 0.5 * delta / delta.abs().amax().clamp(min=1e-12)
        rows.append([x, x_adv, amplified])
    return rows


def grid(rows: Sequence[Sequence[Tensor]]) -> np.ndarray:
    """Return one clip that shows several, (T, H, W, 3) uint8.

    Args:
        rows: rows of clips (3, T, H, W) in [0, 1], all of one size. Frames are left out and made
            smaller, so that the result stays small.
    """
    lines = []
    for row in rows:
        cells = [F.pad(_small(clip), (0, _GAP, 0, _GAP), value=1.0) for clip in row]
        lines.append(torch.cat(cells, 3))
    whole = torch.cat(lines, 2)[:, :, :-_GAP, :-_GAP]
    return (
        (whole.nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 3, 0).numpy()
    )


def _small(clip: Tensor) -> Tensor:
    """Return some frames of a clip (3, T, H, W), of a limited size."""
    frames = clip.shape[1]
    if frames > _FRAMES:
        clip = clip[:, [i * frames // _FRAMES for i in range(_FRAMES)]]
    longest = max(clip.shape[2:])
    if longest <= _SIDE:
        return clip
    height, width = (max(1, side * _SIDE // longest) for side in clip.shape[2:])
    return F.adaptive_avg_pool2d(clip, (height, width))
