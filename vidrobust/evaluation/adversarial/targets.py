"""Units of attack: one clip of a video, or the source frames of all its clips."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vidrobust.attacks import Predict
from vidrobust.data import (
    ClipDataset,
    ClipSpec,
    Failure,
    Source,
    SourceVideos,
    batch_loader,
    worker_deaths,
)
from vidrobust.evaluation.view_average import average_views
from vidrobust.models.inference import to_clips
from vidrobust.views import to_float


@dataclass
class Unit:
    """Videos that are attacked together.

    Attributes:
        x: (B, 3, T, H, W) in [0, 1], what the attack may change.
        labels: (B,).
        uids: names of the videos.
        index: indices of the videos in the test split.
        fps: frame rates of the videos.
        failed: videos that do not decode, and videos that were left out later.
        predict: x -> (B, K) logits.
        views: clips of each video that the model receives in a pass.
        spec: how x is sampled from the frames of a video; None: x is these frames.
        shown: (K, T), which frames of x each of K clips shows; None: x is the clip.
    """

    x: Tensor
    labels: Tensor
    uids: list[str]
    index: list[int]
    fps: list[float]
    failed: list[Failure]
    predict: Predict
    views: int = 1
    spec: ClipSpec | None = None
    shown: np.ndarray | None = None

    @property
    def rates(self) -> list[float]:
        """Frames per second of x; 0 where that of the video is unknown."""
        if self.spec is None:
            return self.fps
        return [(self.spec.fps or fps) / self.spec.stride for fps in self.fps]


def clip_units(
    predict: Predict,
    dataset: ClipDataset,
    groups: list[list[int]],
    workers: int,
    device: torch.device,
) -> Iterator[Unit]:
    """Yield a unit per group of videos: the one clip that the data set cuts from each.

    Args:
        predict: (B, 3, T, H, W) in [0, 1] -> (B, K) logits.
        dataset: one clip per video.
        groups: indices of videos.
        workers: processes that load.
        device: of the clips.
    """
    keys = [[(0, index) for index in group] for group in groups]  # (epoch, index)
    with worker_deaths(dataset):
        for batch in batch_loader(dataset, keys, workers):
            yield Unit(
                x=to_clips(batch, device) if batch.uids else _no_clips(),
                labels=batch.labels.to(device),
                uids=batch.uids,
                index=batch.index.tolist(),
                fps=batch.fps.tolist(),
                failed=batch.failed,
                predict=predict,
                spec=dataset.spec,
            )


def video_units(
    predict: Predict,
    videos: SourceVideos,
    groups: list[list[int]],
    crops: int,
    device: torch.device,
    view_average: str = "logits",
) -> Iterator[Unit]:
    """Yield a unit per video: its source frames, with outputs averaged over all clips and crops.

    Args:
        predict: (B, 3, T, H, W) in [0, 1] -> (B, K) logits of clips.
        videos: source frames, and which of them each clip shows.
        groups: indices of videos.
        crops: of each clip, 1 or 3.
        device: of the frames.
        view_average: see `average_views`.
    """
    for index in (index for group in groups for index in group):
        source = videos[index]
        if isinstance(source, Failure):
            labels = torch.empty(0, dtype=torch.long)
            yield Unit(_no_clips(), labels, [], [], [], [source], predict)
            continue
        yield Unit(
            x=to_float(torch.from_numpy(source.frames).unsqueeze(0).to(device)),
            labels=torch.tensor([source.record.label], device=device),
            uids=[source.record.uid],
            index=[index],
            fps=[source.fps],
            failed=[],
            predict=through_clips(predict, source, crops, videos.size, view_average),
            views=len(source.clips) * crops,
            shown=source.clips,
        )


def _no_clips() -> Tensor:
    return torch.empty(0, 3, 1, 1, 1)


def through_clips(
    predict: Predict, source: Source, crops: int, size: int, view_average: str = "logits"
) -> Predict:
    """Return the prediction for source frames (B, 3, F, H, W): the average over clips and crops.

    Clips that overlap show the same frames, so that the gradient of a frame is the sum over all
    clips that show it.

    Args:
        predict: (B, 3, T, H, W) -> (B, K) logits of clips.
        source: frames of a video, and which of them each of K clips shows.
        crops: 1, the centre, or 3 along the longer side.
        size: of a crop, in pixels.
        view_average: see `average_views`.
    """
    frames = torch.from_numpy(source.clips)
    height, width = source.frames.shape[1:3]
    places = crop_places(height, width, size, crops)

    def average(x: Tensor) -> Tensor:
        clips = x[:, :, frames.to(x.device)].transpose(1, 2)  # (B, K, 3, T, H, W)
        views = torch.stack(
            [clips[..., top : top + size, left : left + size] for top, left in places], 2
        )
        logits = predict(views.flatten(0, 2))
        by_view = logits.float().view(len(x), len(frames) * len(places), -1)
        return average_views(by_view, view_average)

    return average


def crop_places(height: int, width: int, size: int, crops: int) -> list[tuple[int, int]]:
    """Return (top, left) of each crop.

    Args:
        height: of a frame.
        width: of a frame.
        size: of a crop.
        crops: 1, the centre, or 3: also both ends of the longer side.
    """
    room = max(height, width) - size  # along the longer side
    across = (min(height, width) - size) // 2
    along = [room // 2] if crops == 1 else [0, room // 2, room]
    return [(across, each) if width >= height else (each, across) for each in along]
