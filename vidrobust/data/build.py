"""Build the configured records and data sets."""

import functools
import logging
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

from vidrobust import config
from vidrobust.corruptions import Corrupt, MissingEncoder, expand, require_encoders
from vidrobust.data.attack_source import SourceVideos
from vidrobust.data.corrupted import CorruptedVideos, Place
from vidrobust.data.dataset import (
    ClipDataset,
)
from vidrobust.data.decoding.pyav import require_backend
from vidrobust.data.formats import (
    class_folder,
    frame_folder,
    frame_list,
    hmdb51,
    image_folder,
    kinetics,
    path_label_list,
    torchvision_images,
    ucf101,
    video_folder,
)
from vidrobust.data.motionshapes import make_motionshapes, texture_classes
from vidrobust.data.prepare.texture_twins import Twins
from vidrobust.data.records import (
    Parsed,
    Record,
    file_path,
    require_root,
    split_by_group,
)
from vidrobust.data.sampling import (
    EVAL_SAMPLERS,
    TRAIN_SAMPLERS,
    ClipSpec,
    Policy,
)
from vidrobust.data.sampling import Sampler as ClipSampler
from vidrobust.data.scan import apply_manifest
from vidrobust.utils.errors import UserError, lookup
from vidrobust.views import AugmentSpec

log = logging.getLogger("vidrobust")

FORMATS: dict[str, Callable[[Path, str, int], Parsed]] = {
    "ucf101": ucf101,
    "hmdb51": hmdb51,
    "kinetics": kinetics,
    "list": path_label_list,
    "folder": video_folder,
    "frames": frame_list,
    "frame_folder": frame_folder,
    "class_folder": class_folder,
    "image_folder": image_folder,
    "cifar10": functools.partial(torchvision_images, "CIFAR10"),
    "cifar100": functools.partial(torchvision_images, "CIFAR100"),
    "motionshapes": ucf101,  # drawn on first use, then read as UCF101 is
}


FOLDED = ("ucf101", "hmdb51", "motionshapes")  # formats in which data.fold chooses a split


def find_format(name: str) -> Callable[[Path, str, int], Parsed]:
    """The parser of a data.name: an entry of FORMATS, or of `torchvision:NAME`. UserError for an
    unknown one.
    """
    kind, _, inner = name.partition(":")
    if kind == "torchvision" and inner:
        return functools.partial(torchvision_images, inner)
    return lookup(FORMATS, name, "data.name")


def build_records(cfg: config.DataConfig, split: str) -> Parsed:
    """(records, classes) of split "train" or "test" of the configured data set, with what its
    manifest knows.

    With data.validation, "train" is the rest of the training list and "test" the part held out.
    Training videos that the manifest calls bad are left out, and said; test videos stay, and fail.
    """
    if cfg.validation:
        listed, classes = _parse(cfg, "train", cfg.fold)
        records = split_by_group(listed, cfg.validation)[split == "test"]
    else:
        records, classes = _parse(cfg, split, cfg.fold)
    if cfg.manifest:
        root, manifest = Path(cfg.root).expanduser(), Path(cfg.manifest).expanduser()
        records = apply_manifest(records, manifest, root)
        bad = [record for record in records if record.bad]
        if bad:
            what = "left out" if split == "train" else "not read, and wrong where predictions count"
            log.warning(
                f"{len(bad)} of {len(records)} {split} videos are bad by {manifest} and {what}, "
                f"first {bad[0].uid}: {bad[0].bad}"
            )
        if split == "train":
            records = [record for record in records if not record.bad]
            if not records:
                raise UserError(
                    f"by {manifest} every training video is bad; {manifest}.bad.txt has the reasons"
                )
    return records, classes


def all_records(cfg: config.DataConfig) -> list[Record]:
    """The records of both splits, and of every fold there is, each file once."""
    found: dict[str, Record] = {}
    refused: list[UserError] = []
    for fold in (
        (cfg.fold, *(n for n in (1, 2, 3) if n != cfg.fold)) if cfg.name in FOLDED else (cfg.fold,)
    ):
        for split in ("train", "test"):
            try:
                records, _ = _parse(cfg, split, fold)
            except UserError as error:
                refused.append(error)
            else:
                found |= {record.path: record for record in records}
    if not found:
        raise refused[0]
    if refused:
        log.warning(f"lists left out: {len(refused)}, first: {refused[0]}")
    return list(found.values())


def _parse(cfg: config.DataConfig, split: str, fold: int) -> Parsed:
    parser = find_format(cfg.name)
    root = Path(file_path(Path(cfg.root).expanduser()))
    if cfg.name == "motionshapes":
        make_motionshapes(root, **asdict(cfg.motionshapes))
    records, classes = parser(require_root(root, cfg.name), split, fold)
    if cfg.series:
        records = [replace(record, series=cfg.series) for record in records]
    return records, classes


def train_dataset(
    cfg: config.DataConfig,
    augment: config.AugmentConfig,
    records: list[Record],
    clips: int,
    seed: int,
    epochs: int = 0,
    *,
    original: bool = False,
    twins: bool = False,
    numbers: int = 0,
) -> ClipDataset:
    """Random, augmented clips: `clips` of each video, by the sampler data.sampling; bad videos are
    replaced.

    epochs: of the run, over which augmentations weaken where augment.fade says so. original: the
    last clip is the first one's frames as an evaluation sees them, or moved by
    augment.original_shift. twins: of data.twins, for the first clip. numbers: for negatives. Raises
    UserError where a video has no twin.
    """
    b, c, s, h = augment.jitter
    view = AugmentSpec(
        size=cfg.size,
        scale=(augment.scale[0], augment.scale[1]),
        flip=augment.flip,
        jitter=(b, c, s, h),
        jitter_prob=augment.jitter_prob,
        gray=augment.gray,
        blur=augment.blur,
        solarize=augment.solarize,
        motion=augment.motion,
        shift=augment.shift,
        center=cfg.size / cfg.short_side if augment.shift else 0.0,
    )
    if cfg.sampling.startswith("interval_") and clips - original != 2:
        raise UserError(
            f"data.sampling={cfg.sampling} draws pairs of clips; a method of {clips} view needs"
            " another one"
        )
    sampler = lookup(TRAIN_SAMPLERS, cfg.sampling, "data.sampling")
    try:
        require_encoders(expand(augment.corruptions))
    except MissingEncoder as error:
        raise UserError(f"augment.corruptions: {error}") from None
    corrupt = (
        Corrupt(augment.corruptions, augment.corruption_severities, augment.corruption_prob)
        if augment.corruptions
        else None
    )
    return _dataset(
        cfg,
        records,
        clips,
        sampler,
        view,
        seed,
        replace=True,
        corrupt=corrupt,
        fade=epochs if augment.fade else 0,
        original=_original(cfg, augment) if original else None,
        twins=_twins(cfg, records) if twins else None,
        numbers=numbers,
    )


def _centre(cfg: config.DataConfig) -> AugmentSpec:
    """What an evaluation sees of a clip."""
    return AugmentSpec(size=cfg.size, center=cfg.size / cfg.short_side)


def _original(cfg: config.DataConfig, augment: config.AugmentConfig) -> AugmentSpec:
    """Return the view beside the augmented ones: the centre, where it is not shifted."""
    return replace(
        _centre(cfg),
        shift=augment.original_shift,
        flip=augment.flip,
        jitter_prob=0.0,
        gray=0.0,
        blur=0.0,
    )


def _twins(cfg: config.DataConfig, records: list[Record]) -> Twins:
    if not cfg.twins:
        raise UserError(
            "data.twins is empty: texture, of method.negatives.names or eval.bias, needs the folder"
            " that datasets/prepare.py texture has written"
        )
    twins = Twins(cfg.root, cfg.twins)
    twins.require(records)
    return twins


def eval_dataset(
    cfg: config.DataConfig, records: list[Record], clips: int, sampling: str = "uniform"
) -> ClipDataset:
    """Centre crops of `clips` clips of each video, by the sampler of EVAL_SAMPLERS."""
    view = _centre(cfg)
    return _dataset(cfg, records, clips, lookup(EVAL_SAMPLERS, sampling, "eval.sampling"), view, 0)


def texture_twins(
    cfg: config.DataConfig, records: list[Record], clips: int, sampling: str = "uniform"
) -> ClipDataset:
    """`eval_dataset` of the records' texture twins in data.twins. Raises UserError where a video
    has none.
    """
    twins = _twins(cfg, records)
    return eval_dataset(
        cfg, [replace(record, path=twins(record.path)) for record in records], clips, sampling
    )


def doubt_of_twins(cfg: config.DataConfig) -> str:
    """What speaks against data.twins being the textures of this data set; "" for nothing."""
    return Twins(cfg.root, cfg.twins).doubt()


def second_cues(
    cfg: config.DataConfig, records: list[Record], classes: list[str]
) -> dict[int, int]:
    """index -> the class that another cue of a video stands for, where that is known: the texture
    of motionshapes.
    """
    if cfg.name != "motionshapes":
        return {}
    known = texture_classes(Path(cfg.root).expanduser())
    return {
        i: classes.index(known[record.uid])
        for i, record in enumerate(records)
        if known[record.uid] in classes
    }


def source_videos(
    cfg: config.DataConfig, records: list[Record], clips: int, sampling: str = "uniform"
) -> SourceVideos:
    """The source frames of `clips` clips of each video, by the sampler of EVAL_SAMPLERS."""
    require_backend(cfg.backend)
    spec = ClipSpec(cfg.frames, cfg.stride, clips, cast(Policy, cfg.policy))
    return SourceVideos(
        records,
        spec,
        lookup(EVAL_SAMPLERS, sampling, "eval.sampling"),
        short_side=cfg.short_side,
        size=cfg.size,
        backend=cfg.backend,
        timeout_s=cfg.timeout_s,
    )


def corrupted_videos(
    cfg: config.DataConfig, records: list[Record], clips: int, sampling: str, place: str, seed: int
) -> CorruptedVideos:
    """`clips` clips of each video, as `eval_dataset` cuts them, to be corrupted; its `work` is
    empty as yet.
    """
    require_backend(cfg.backend)
    spec = ClipSpec(cfg.frames, cfg.stride, clips, cast(Policy, cfg.policy))
    return CorruptedVideos(
        records,
        [],
        spec,
        lookup(EVAL_SAMPLERS, sampling, "eval.sampling"),
        _centre(cfg),
        place=cast(Place, place),
        seed=seed,
        backend=cfg.backend,
        timeout_s=cfg.timeout_s,
    )


def _dataset(
    cfg: config.DataConfig,
    records: list[Record],
    clips: int,
    sampler: ClipSampler,
    view: AugmentSpec,
    seed: int,
    *,
    replace: bool = False,
    corrupt: Corrupt | None = None,
    fade: int = 0,
    original: AugmentSpec | None = None,
    twins: Twins | None = None,
    numbers: int = 0,
) -> ClipDataset:
    require_backend(cfg.backend)
    spec = ClipSpec(
        cfg.frames, cfg.stride, clips, cast(Policy, cfg.policy)
    )  # config checks the name
    return ClipDataset(
        records,
        spec,
        sampler,
        view,
        seed=seed,
        backend=cfg.backend,
        timeout_s=cfg.timeout_s,
        replace=replace,
        corrupt=corrupt,
        fade=fade,
        original=original,
        twins=twins,
        numbers=numbers,
    )
