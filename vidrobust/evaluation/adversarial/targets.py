"""What is attacked: one clip, or the source frames behind all clips of a video."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vidrobust.attacks import Predict
from vidrobust.data import ClipDataset, Failure, Source, SourceVideos, batch_loader, worker_deaths
from vidrobust.models.inference import to_clips
from vidrobust.views import to_float


@dataclass
class Unit:
    """Some videos as an attack sees them. x: (B, 3, T, H, W) in [0, 1]; predict: x -> (B, K)
    logits; fps: (B,).

    views: clips that the model sees of each.
    """

    x: Tensor
    labels: Tensor
    uids: list[str]
    index: list[int]
    fps: list[float]
    failed: list[Failure]
    predict: Predict
    views: int = 1


def clip_units(
    predict: Predict,
    dataset: ClipDataset,
    groups: list[list[int]],
    workers: int,
    device: torch.device,
) -> Iterator[Unit]:
    """A unit a group of videos: the one clip that the data set cuts from each."""
    with worker_deaths(dataset):
        for batch in batch_loader(
            dataset, [[(0, index) for index in group] for group in groups], workers
        ):
            x = to_clips(batch, device) if batch.uids else torch.empty(0, 3, 1, 1, 1)
            yield Unit(
                x,
                batch.labels.to(device),
                batch.uids,
                batch.index.tolist(),
                batch.fps.tolist(),
                batch.failed,
                predict,
            )


def video_units(
    predict: Predict,
    videos: SourceVideos,
    groups: list[list[int]],
    crops: int,
    device: torch.device,
) -> Iterator[Unit]:
    """A unit a video: its source frames. Its logits are the mean over all clips and crops, of which
    all show them.
    """
    for index in (index for group in groups for index in group):
        source = videos[index]
        if isinstance(source, Failure):
            yield Unit(
                torch.empty(0, 3, 1, 1, 1),
                torch.empty(0, dtype=torch.long),
                [],
                [],
                [],
                [source],
                predict,
            )
            continue
        x = to_float(torch.from_numpy(source.frames).unsqueeze(0).to(device))
        record = source.record
        yield Unit(
            x,
            torch.tensor([record.label], device=device),
            [record.uid],
            [index],
            [source.fps],
            [],
            through_clips(predict, source, crops, videos.size),
            len(source.clips) * crops,
        )


def through_clips(predict: Predict, source: Source, crops: int, size: int) -> Predict:
    """predict of source frames (B, 3, F, H, W): logits averaged over the K clips and the crops of
    each.

    crops: 1, the centre, or 3 along the longer side, of `size` pixels. Clips that overlap read the
    same frames, so that the gradient of a frame is summed over all that show it.
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
        return logits.float().view(len(x), len(frames) * len(places), -1).mean(1)

    return average


def crop_places(height: int, width: int, size: int, crops: int) -> list[tuple[int, int]]:
    """(top, left) of the crops: the centre; or both ends of the longer side as well."""
    room, across = max(height, width) - size, (min(height, width) - size) // 2
    along = [room // 2] if crops == 1 else [0, room // 2, room]
    return [(across, at) if width >= height else (at, across) for at in along]
