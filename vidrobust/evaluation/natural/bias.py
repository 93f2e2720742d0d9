"""Measure which cues a model uses: shape, texture, background, motion.

Each test video is classified unchanged and as several views: clips from which a cue was removed, or
clips whose two cues belong to different classes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from vidrobust import config
from vidrobust.attacks import finite_logits
from vidrobust.data import Batch, ClipDataset, Record, batch_loader, texture_twins, worker_deaths
from vidrobust.evaluation.adversarial.micro_batches import MicroBatches
from vidrobust.evaluation.identity import identify_model, own_folder, protocol_of, videos_of
from vidrobust.evaluation.input_checks import logits_of, require_work
from vidrobust.evaluation.natural.bias_summary import CLEAN
from vidrobust.evaluation.results import (
    Row,
    appending,
    fault,
    merged,
    require_label,
    unfinished,
)
from vidrobust.evaluation.settings import MeasureSettings
from vidrobust.evaluation.view_average import average_views
from vidrobust.models.inference import evenly, to_clips
from vidrobust.utils import distributed
from vidrobust.utils.errors import UserError, lookup
from vidrobust.utils.seeds import SeedStream
from vidrobust.views import NEGATIVES, NegativeSpec, draw_numbers, negatives
from vidrobust.views.cues import background, differences, swapped, swapped_frozen
from vidrobust.views.negatives import TEMPORAL
from vidrobust.views.texture_synthesis import patch_side, patches_of, show, synthesize

_STEM = "bias"
_PATCH_PX = 96  # side of the texture patch in a frame of 224 pixels
_LEAST_PX = 9  # smallest patch from which a texture can be synthesised
Rngs = Sequence[np.random.Generator]


# --- Views ---


def conflict(x: Tensor, other: Tensor, rngs: Rngs) -> Tensor:
    """Return images with the shapes of x in the texture of `other`.

    Such images have a cue conflict, as in Geirhos et al. 2019.

    Args:
        x: images that provide the shapes, (B, C, 1, H, W) in [0, 1].
        other: images that provide the textures, of the same shape.
        rngs: one generator per image.

    Returns:
        Images of the shape, type and device of x.
    """
    images = []
    for shape_image, texture_image, rng in zip(x.cpu(), other.cpu(), rngs, strict=True):
        size = shape_image.shape[-1]
        pixels = (texture_image.permute(1, 2, 3, 0) * 255).round().byte().numpy()
        examples = patches_of(pixels, patch_side(_PATCH_PX, size), rng)
        # The texture follows the lightness of the shape image.
        lightness = shape_image[:, 0].mean(0).numpy()
        places = synthesize(examples, size, rng, lightness)
        images.append(torch.from_numpy(next(show(examples, places))))
    return (torch.stack(images).permute(0, 3, 1, 2)[:, :, None].float() / 255).to(x)


def _negative(name: str) -> Callable[[Tensor, Rngs], Tensor]:
    """Return the view that makes the negative `name` with its default options."""
    spec = NegativeSpec((name,))
    return lambda x, rngs: negatives(x, spec, draw_numbers(spec, x.shape[2:], rngs))[:, 0]


# Views made from one clip: a cue is removed.
ALONE: dict[str, Callable[[Tensor, Rngs], Tensor]] = {
    **{name: _negative(name) for name in NEGATIVES},
    "background": lambda x, rngs: background(x),
    "motion": lambda x, rngs: differences(x),
}
# Views made from a clip and a clip of another class: their cues disagree.
PAIRED: dict[str, Callable[[Tensor, Tensor, Rngs], Tensor]] = {
    "conflict": conflict,
    "swapped": lambda x, other, rngs: swapped(x, other),
    "swapped_frozen": lambda x, other, rngs: swapped_frozen(x, other),
}
# Views that need clips of more than one frame.
_MOVING = {*TEMPORAL, "background", "motion", "swapped", "swapped_frozen"}


# --- Checks ---


def check_bias(cfg: config.Config, test: list[Record]) -> None:
    """Refuse names in eval.bias that are unknown, or that these clips or test videos cannot have.

    Raises:
        UserError: with the name and the remedy.
    """
    names = cfg.eval.bias
    classes = len({test[i].label for i in evenly(len(test), cfg.eval.limit)})
    _require_cues(names, cfg.data.frames, cfg.data.size, classes)
    if "texture" in names:
        # Finding the texture twins of the videos raises if one is missing.
        texture_twins(cfg.data, test, 1)


def _require_cues(names: Sequence[str], frames: int, size: int, classes: int) -> None:
    """Refuse names that are listed twice, unknown, or impossible for clips of this shape.

    Args:
        names: names of eval.bias.
        frames: number of frames per clip, T.
        size: side of a frame in pixels.
        classes: number of different classes among the videos.

    Raises:
        UserError: with the name and the remedy.
    """
    for name in names:
        require_cue(name, frames, size)
        if name in PAIRED and classes < 2:
            raise UserError(f"eval.bias={name}: two classes are needed for two cues to disagree")
    if len(set(names)) < len(names):
        raise UserError(f"eval.bias=[{','.join(names)}]: list each name once")


def require_cue(name: str, frames: int, size: int) -> None:
    """Refuse a name that eval.bias does not know, or that clips of this shape cannot have.

    Args:
        name: a name of eval.bias.
        frames: number of frames per clip, T.
        size: side of a frame in pixels.

    Raises:
        UserError: with the name and the remedy.
    """
    lookup({**ALONE, **PAIRED, "texture": None}, name, "eval.bias")
    if frames == 1 and name in _MOVING:
        raise UserError(f"eval.bias={name}: needs clips, and these have one frame")
    if frames > 1 and name == "conflict":
        raise UserError("eval.bias=conflict: needs images (data.frames=1); for clips use swapped")
    if name == "conflict" and size < _LEAST_PX:
        raise UserError(
            f"eval.bias=conflict: images of {size} pixels are too small for a texture; use at"
            f" least {_LEAST_PX}"
        )


# --- Measurement ---


@dataclass(frozen=True)
class _View:
    """Describe one view: its name, its clips, and the class of its second cue.

    Attributes:
        name: name of ALONE or PAIRED, "texture" or CLEAN.
        dataset: test videos; they decide labels and names in the rows.
        source: videos whose clips are shown: `dataset`, or its texture twins.
        partners: index of a video -> index of the video that provides its other cue.
            Empty unless the view is in PAIRED.
        second_classes: index of a video -> class that its second cue stands for.
        seed: seed of all random numbers.
    """

    name: str
    dataset: ClipDataset
    source: ClipDataset
    partners: dict[int, int]
    second_classes: dict[int, int]
    seed: int


def evaluate_bias(
    settings: MeasureSettings,
    videos: Callable[[], ClipDataset],
    twins: ClipDataset | None,
    indices: list[int],
    names: Sequence[str],
    *,
    seed: int,
    others: dict[int, int],
) -> list[Row]:
    """Classify videos unchanged and with cues removed, and return their rows.

    Every rank must call this function. Under torchrun each rank measures a part of the videos.

    One row per video and name is appended to out/bias.jsonl as soon as it is known. A call that
    was killed can be repeated, and continues where it stopped. If a video does not decode, or the
    model returns NaN for it, its row has no prediction and gives the reason.

    A folder belongs to one model, list of videos, protocol and seed (out/bias.identity.json).
    Later calls may add videos and names: existing rows are kept.

    Args:
        settings: the model, how to run it, and the folder of the rows. The logits of a video's
            clips are averaged.
        videos: returns a new data set of the test clips each time it is called.
        twins: texture twins of the videos; needed for the name "texture".
        indices: indices of the videos to measure.
        names: names of ALONE or PAIRED, or "texture". A PAIRED view combines each video with a
            partner of another class, drawn from (seed, index).
        seed: seed of all random numbers.
        others: index of a video -> class that its second cue stands for in the unchanged clip.

    Returns:
        One row per name and video, "clean" first.

    Raises:
        UserError: for a folder of another measurement, outputs that are not logits, and labels
            out of range.
    """
    dataset = videos()
    require_work(indices, len(dataset.records), settings.batch_size)
    classes = len({record.label for record in dataset.records})
    _require_cues(names, dataset.spec.frames, dataset.reader.view.size, classes)
    if "texture" in names and twins is None:
        raise UserError("eval.bias=texture: the videos' textures are missing; pass twins")
    _claim_folder(settings, dataset, seed)

    # Work is divided into groups, one view of a batch of whole videos each. A resumed call skips
    # finished groups, and the ranks take the unfinished ones in turn.
    at_once = max(1, settings.batch_size // dataset.spec.clips)
    parts = [indices[i : i + at_once] for i in range(0, len(indices), at_once)]
    groups = [[(index, name) for index in part] for name, part in product((CLEAN, *names), parts)]
    unfinished_groups, _ = unfinished(settings.out, _STEM, "name", groups)
    todo = unfinished_groups[distributed.rank() :: distributed.world()]

    predict = MicroBatches(settings.predict, settings.batch_size)
    with appending(settings.out, _STEM) as append:
        for name in (CLEAN, *names):
            # This rank's groups of this view.
            todo_parts = [
                [index for index, _ in groups[number]]
                for number in todo
                if groups[number][0][1] == name
            ]
            partners = partners_of(dataset, indices, seed) if name in PAIRED else {}
            view = _View(
                name,
                dataset,
                twins if name == "texture" and twins is not None else dataset,
                partners,
                _second_classes(name, dataset, partners, others),
                seed,
            )
            partner_videos = videos() if partners else None
            for rows in _measure_view(view, todo_parts, partner_videos, predict, settings):
                append(rows)

    rows = merged(settings.out, _STEM, "name", groups)
    # Clean rows of an earlier call may hold the second cues that were asked for then.
    return [
        row | {"other": others.get(row["index"])} if row["name"] == CLEAN else row for row in rows
    ]


def _claim_folder(settings: MeasureSettings, dataset: ClipDataset, seed: int) -> None:
    """Refuse a folder that holds rows of another model, list of videos, protocol or seed.

    Args:
        settings: the model and the folder.
        dataset: test videos.
        seed: seed of all random numbers.
    """
    identity = {
        "model": identify_model(settings.predict, dataset, settings.device, settings.identity),
        "videos": videos_of(dataset),
        "protocol": protocol_of(dataset, settings.view_average),
        "seed": seed,
    }
    own_folder(settings.out, _STEM, identity)


def partners_of(dataset: ClipDataset, indices: Sequence[int], seed: int) -> dict[int, int]:
    """Draw a partner of another class for each video.

    Args:
        dataset: all videos; partners are drawn from all of them.
        indices: indices of the videos that need a partner.
        seed: with the index, it decides the partner.

    Returns:
        Index of a video -> index of its partner.
    """
    labels = np.array([record.label for record in dataset.records])
    partners = {}
    for index in indices:
        choices = np.flatnonzero(labels != dataset.records[index].label)
        rng = np.random.default_rng([seed, SeedStream.PARTNER, index])
        partners[index] = int(choices[rng.integers(len(choices))])
    return partners


def _second_classes(
    name: str, dataset: ClipDataset, partners: dict[int, int], others: dict[int, int]
) -> dict[int, int]:
    """Return index of a video -> class that its second cue stands for in this view.

    Args:
        name: name of the view.
        dataset: test videos.
        partners: index of a video -> index of its partner.
        others: the classes of the second cues of unchanged clips.
    """
    if partners:
        return {index: dataset.records[partner].label for index, partner in partners.items()}
    return others if name == CLEAN else {}


def _measure_view(
    view: _View,
    parts: Sequence[Sequence[int]],
    partner_videos: ClipDataset | None,
    predict: MicroBatches,
    settings: MeasureSettings,
) -> Iterator[list[Row]]:
    """Yield the rows of each part of the videos.

    Args:
        view: the view to measure.
        parts: indices of the videos, batch by batch.
        partner_videos: a data set to read partners from; None if the view has no partners.
        predict: the model.
        settings: workers and device.
    """
    batches = _batches(view.source, parts, settings.workers)
    partner_batches = None
    if partner_videos is not None:
        partner_parts = [[view.partners[index] for index in part] for part in parts]
        partner_batches = _batches(partner_videos, partner_parts, settings.workers)
    for part in parts:
        batch = next(batches)
        partner_batch = None if partner_batches is None else next(partner_batches)
        yield _rows(view, part, batch, partner_batch, predict, settings)


def _batches(dataset: ClipDataset, parts: Sequence[Sequence[int]], workers: int) -> Iterator[Batch]:
    """Load the videos of each part as one batch."""
    with worker_deaths(dataset):
        keys = [[(0, index) for index in part] for part in parts]
        yield from batch_loader(dataset, keys, workers)


@torch.no_grad()
def _rows(
    view: _View,
    part: Sequence[int],
    batch: Batch,
    partner_batch: Batch | None,
    predict: MicroBatches,
    settings: MeasureSettings,
) -> list[Row]:
    """Return one row per video of the part.

    A row has no prediction if its video or its video's partner does not decode.

    Args:
        view: the view to measure.
        part: indices of the videos.
        batch: holds the videos.
        partner_batch: holds their partners; None if the view has none.
        predict: the model.
        settings: device, and how clips are averaged.
    """
    records = view.dataset.records
    errors = {failure.index: failure.reason for failure in batch.failed}
    decoded = set(batch.index.tolist())
    if partner_batch is None:
        shown = [index for index in part if index in decoded]
    else:
        errors |= {failure.index: failure.reason for failure in partner_batch.failed}
        decoded_partners = set(partner_batch.index.tolist())
        shown = [
            index for index in part if index in decoded and view.partners[index] in decoded_partners
        ]

    predictions: dict[int, int] = {}
    if shown:
        x = _make_clips(view, shown, batch, partner_batch, settings.device)
        logits = logits_of(predict(x), len(x))
        for index in shown:
            require_label(records[index].uid, records[index].label, logits.shape[1])
        # A video is classified by the average of its clips, if the logits of all are finite.
        by_clip = (len(shown), view.dataset.spec.clips)
        finite = finite_logits(logits).view(by_clip).all(1).tolist()
        averaged = average_views(logits.view(*by_clip, -1), settings.view_average)
        classes = averaged.argmax(1).tolist()
        for index, predicted, is_finite in zip(shown, classes, finite, strict=True):
            if is_finite:
                predictions[index] = predicted
            else:
                errors[index] = fault(records[index].uid, f"NaN or infinite logits as {view.name}")
    return [
        {
            "index": index,
            "uid": records[index].uid,
            "label": records[index].label,
            "name": view.name,
            "predicted": predictions.get(index),
            "other": view.second_classes.get(index),
            "error": errors.get(index) or errors.get(view.partners.get(index, -1)),
        }
        for index in part
    ]


def _make_clips(
    view: _View,
    shown: Sequence[int],
    batch: Batch,
    partner_batch: Batch | None,
    device: torch.device,
) -> Tensor:
    """Return the clips of the view, (len(shown) * K, C, T, H, W), K clips per video.

    Args:
        view: the view to make.
        shown: indices of videos that decoded, and whose partners did.
        batch: holds the videos.
        partner_batch: holds their partners; None if the view has none.
        device: device that the clips are moved to.
    """
    clips = view.dataset.spec.clips
    x = _clips_of(batch, shown, clips, device)
    # One generator per clip: the result does not depend on how videos are batched.
    rngs = [
        np.random.default_rng([view.seed, SeedStream.CUE, index, clip])
        for index, clip in product(shown, range(clips))
    ]
    if partner_batch is not None:
        partners = [view.partners[index] for index in shown]
        return PAIRED[view.name](x, _clips_of(partner_batch, partners, clips, device), rngs)
    if view.name in ALONE:
        return ALONE[view.name](x, rngs)
    return x


def _clips_of(batch: Batch, indices: Sequence[int], clips: int, device: torch.device) -> Tensor:
    """Return the clips of some videos of a batch, (len(indices) * clips, C, T, H, W).

    Args:
        batch: holds these and other videos.
        indices: indices of the videos, in the order of the result.
        clips: number of clips per video.
        device: device that the clips are moved to.
    """
    places = {index: place for place, index in enumerate(batch.index.tolist())}
    by_video = to_clips(batch, device).unflatten(0, (-1, clips))
    return by_video[[places[index] for index in indices]].flatten(0, 1)
