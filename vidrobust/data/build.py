"""Build the configured records and data sets."""

import functools
import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

from vidrobust import config
from vidrobust.corruptions import Corrupt, MissingEncoder, expand, require_encoders
from vidrobust.data.action_formats import charades, diving48, finegym, kinetics, ssv2
from vidrobust.data.attack_source import SourceVideos
from vidrobust.data.corrupted import CorruptedVideos, Place
from vidrobust.data.dataset import ClipDataset
from vidrobust.data.decoding.pyav import require_backend
from vidrobust.data.few_labels import few_labels
from vidrobust.data.format_spec import FormatSpec
from vidrobust.data.formats import (
    class_folder,
    frame_folder,
    frame_list,
    hmdb51,
    image_folder,
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
from vidrobust.data.scan import apply_manifest
from vidrobust.data.tar_tree import find_archives, unpacked
from vidrobust.utils.errors import UserError, lookup, nearest
from vidrobust.utils.text import shown
from vidrobust.views import AugmentSpec

log = logging.getLogger("vidrobust")


def _draw_motionshapes(root: Path, cfg: config.DataConfig) -> None:
    """Draw the built-in synthetic data set with the configured options, unless it exists."""
    make_motionshapes(root, **asdict(cfg.motionshapes))


# The formats by the values of data.name. To add one, write a parser in formats.py, an entry here,
# and a test; --help and the table in docs/data.md are derived from the entry.
FORMATS: dict[str, FormatSpec] = {
    "ucf101": FormatSpec(
        ucf101,
        "`videos/<class>/*.avi` (or `UCF-101/`), `ucfTrainTestlist/` with the official lists;"
        " `data.fold=1..3`",
        folds=(1, 2, 3),
    ),
    "hmdb51": FormatSpec(
        hmdb51,
        "`videos/<class>/*.avi` (or `hmdb51_org/`),"
        " `testTrainMulti_7030_splits/*_test_split<fold>.txt`",
        folds=(1, 2, 3),
    ),
    "kinetics": FormatSpec(
        kinetics,
        "`train.csv`, `val.csv` (or `validate.csv`) as published; `<id>_<start>_<end>.mp4`, or"
        " `<id>.mp4`, in any folder below",
    ),
    **{
        f"kinetics{classes}": FormatSpec(
            functools.partial(kinetics, classes=classes),
            f"as `kinetics`; refused unless the training list has {classes} classes",
        )
        for classes in (400, 600, 700)
    },
    "ssv2": FormatSpec(
        ssv2,
        "Something-Something v2: `labels.json`, `train.json`, `validation.json` (or"
        " `something-something-v2-*.json`); `<id>.webm` in `20bn-something-something-v2/` or"
        " `videos/`",
    ),
    "diving48": FormatSpec(
        diving48,
        "`Diving48_vocab.json`, `Diving48_V2_train.json`, `Diving48_V2_test.json` (or those of V1,"
        " without `V2_`); `<vid_name>.mp4` in `rgb/` or `videos/`",
    ),
    **{
        f"gym{classes}": FormatSpec(
            functools.partial(finegym, classes=classes),
            f"FineGym: `gym{classes}_train_element_v1.1.txt`, `gym{classes}_val_element.txt`,"
            f" `gym{classes}_categories.txt`; a clip `<id>.mp4` per element in `subactions/` or"
            " `videos/`",
        )
        for classes in (99, 288)
    },
    "charades": FormatSpec(
        charades,
        "`Charades_v1_classes.txt`, `Charades_v1_train.csv`, `Charades_v1_test.csv`; `<id>.mp4` in"
        " `Charades_v1_480/`, `Charades_v1/` or `videos/`; several labels per video",
    ),
    "list": FormatSpec(
        path_label_list,
        "`train.csv` and `test.csv` (or `.txt`, or `val`), lines `path label`; optionally"
        " `classes.txt`",
    ),
    "folder": FormatSpec(
        video_folder, "`train/<class>/<video>` and `test/<class>/<video>` (or `val`)"
    ),
    "frames": FormatSpec(frame_list, "lists as `list`, lines `folder n_frames label`"),
    "frame_folder": FormatSpec(
        frame_folder, "`train/<class>/<clip>/<image>`: a folder of frames is a clip"
    ),
    "class_folder": FormatSpec(
        class_folder,
        "`<class>/<image or video>`, one list: another data set for `eval.shift`, or with"
        " `data.validation`",
        other_split="train",
    ),
    "image_folder": FormatSpec(
        image_folder, "`train/<class>/<image>`: an image is a clip of one frame"
    ),
    "cifar10": FormatSpec(
        functools.partial(torchvision_images, "CIFAR10"),
        "what torchvision.datasets has downloaded there",
        has_files=False,
    ),
    "cifar100": FormatSpec(
        functools.partial(torchvision_images, "CIFAR100"),
        "what torchvision.datasets has downloaded there",
        has_files=False,
    ),
    "motionshapes": FormatSpec(
        ucf101,  # drawn in the layout of UCF101
        "nothing: it is generated there on first use (below)",
        folds=(1, 2),
        draw=_draw_motionshapes,
        copies_as="ucf101",  # read as motionshapes, a copy would be refused for its options
        second_cues=texture_classes,
        has_files=False,
    ),
}
# names of the formats in which data.fold chooses one of several official splits
FOLDED = tuple(name for name, spec in FORMATS.items() if spec.folds)


def find_format(name: str) -> FormatSpec:
    """Return the format of a data.name: an entry of FORMATS, or one for `torchvision:NAME`.

    Raises UserError for an unknown name.
    """
    kind, _, inner = name.partition(":")
    if kind == "torchvision" and inner:
        return FormatSpec(
            functools.partial(torchvision_images, inner),
            "any classification data set of torchvision.datasets that has training and test splits,"
            " or one list, by its class's name, such as `torchvision:SVHN`",
            has_files=False,
        )
    return lookup(FORMATS, name, "data.name")


def build_records(cfg: config.DataConfig, split: str) -> Parsed:
    """Return the records and classes of one split, with what the manifest says about the files.

    With data.validation, "train" is the rest of the training list and "test" the held-out part.
    Training videos that the manifest calls bad are left out, and a warning counts them. Bad test
    videos stay, and fail when they are read.

    Args:
        cfg: the configured data set.
        split: "train" or "test".

    Returns:
        (records, names of the classes).
    """
    # With data.validation, "train" and "test" are parts of the training list, split by groups.
    if cfg.validation:
        listed, classes = _of_classes(cfg, _parse(cfg, "train", cfg.fold))
        records = split_by_group(listed, cfg.validation)[split == "test"]
    else:
        records, classes = _of_classes(cfg, _parse(cfg, split, cfg.fold))
    if cfg.manifest:
        root = Path(cfg.root).expanduser()
        manifest = Path(cfg.manifest).expanduser()
        records = apply_manifest(records, manifest, root)
        bad = [record for record in records if record.bad]
        if bad:
            if split == "train":
                consequence = "left out"
            else:
                consequence = "not read, and count as wrong predictions"
            log.warning(
                f"{len(bad)} of {len(records)} {split} videos are bad according to {manifest} and"
                f" {consequence}, first {bad[0].uid}: {bad[0].bad}"
            )
        # A test video that does not decode counts against a model, and is not left out.
        if split == "train":
            records = [record for record in records if not record.bad]
            if not records:
                raise UserError(
                    f"data.manifest={manifest}: every training video is bad; {manifest}.bad.txt has"
                    " the reasons"
                )
    # of the videos that are left, so that a bad one is not among few
    if split == "train" and cfg.labels:
        records = few_labels(records, classes, cfg.labels, cfg.labels_seed)
    return records, classes


def all_records(cfg: config.DataConfig) -> list[Record]:
    """Return the records of both splits and of every fold, each file once.

    Lists that are missing or wrong are counted in a warning. UserError is raised if none is left.
    """
    records_by_path: dict[str, Record] = {}
    refused: list[UserError] = []
    # The configured fold comes first, so that the result begins with its files.
    other_folds = (fold for fold in find_format(cfg.name).folds if fold != cfg.fold)
    folds = [cfg.fold, *other_folds]
    for fold in folds:
        for split in ("train", "test"):
            try:
                records, _ = _parse(cfg, split, fold)
            except UserError as error:
                refused.append(error)
            else:
                records_by_path |= {record.path: record for record in records}
    if not records_by_path:
        raise refused[0]
    if refused:
        log.warning(f"lists left out: {len(refused)}, first: {refused[0]}")
    return list(records_by_path.values())


def _of_classes(cfg: config.DataConfig, parsed: Parsed) -> Parsed:
    """Return the records of data.classes, with labels that count these classes alone.

    Args:
        cfg: the data options.
        parsed: records and classes of the data set.

    Raises:
        UserError: for unknown classes, and for videos with several labels.
    """
    records, classes = parsed
    if not cfg.classes:
        return parsed
    for name in cfg.classes:
        if name not in classes:
            raise UserError(f"data.classes: no class '{shown(name)}'{nearest(name, classes)}")
    if any(record.labels is not None for record in records):
        raise UserError("data.classes: videos of this data set have several labels; leave it empty")
    kept = [name for name in classes if name in cfg.classes]
    labels = {classes.index(name): label for label, name in enumerate(kept)}
    return [
        replace(record, label=labels[record.label]) for record in records if record.label in labels
    ], kept


def _parse(cfg: config.DataConfig, split: str, fold: int) -> Parsed:
    """Return the records and classes of one split of one fold, without the manifest."""
    spec = find_format(cfg.name)
    # A root such as `a:b` is made absolute, as FFmpeg would read "a:" as a protocol.
    root = Path(file_path(Path(cfg.root).expanduser()))
    if cfg.archive and not spec.has_files:
        raise UserError(
            f"data.archive={cfg.archive}: data.name={cfg.name} is not read from files that an"
            " archive could hold; set data.archive= to run without"
        )
    if spec.draw is not None:
        spec.draw(root, cfg)
    if cfg.archive:
        records, classes = _parse_archives(cfg, root, split, fold)
    else:
        records, classes = spec.parse(require_root(root, cfg.name), split, fold)
    if cfg.series:
        records = [replace(record, series=cfg.series) for record in records]
    return records, classes


def _parse_archives(cfg: config.DataConfig, root: Path, split: str, fold: int) -> Parsed:
    """Return the records and classes of one split of a data set in archives.

    Args:
        cfg: the data options.
        root: data.root, where archives seem to be unpacked.
        split: "train" or "test".
        fold: number of the official split.
    """
    spec = find_format(cfg.name)
    top, tree = unpacked(find_archives(cfg.archive), root)
    try:
        records, classes = spec.parse(top, split, fold)
    except UserError as error:
        raise UserError(f"{error}{tree.hint()}") from None
    return [tree.located(record) for record in records], classes


def train_dataset(  # noqa: PLR0913  (public function, whose signature stays)
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
    views: bool = False,
) -> ClipDataset:
    """Return random, augmented clips; a video that does not decode is replaced by another one.

    Args:
        cfg: the data options; data.sampling names the sampler of the clips.
        augment: the augmentation options.
        records: the training videos.
        clips: number of clips of each video.
        seed: seed of the run.
        epochs: number of epochs over which augmentations weaken if augment.fade is set.
        original: whether the last clip shows the frames of the first one in the centre crop of an
            evaluation, flipped at random and shifted by up to augment.original_shift.
        twins: whether the texture twin of the first clip, from data.twins, is added.
        numbers: random numbers per video from which negatives are made.
        views: whether batches bring their views; see `ClipDataset`.

    Returns:
        A ClipDataset over the records.

    Raises:
        UserError: a video has no twin, the sampler does not fit the number of clips, or an encoder
            that a corruption needs is missing.
    """
    view = _augmented(cfg, augment)
    # Interval samplers return two clips; an original is a copy of one of them.
    if cfg.sampling.startswith("interval_") and clips - original != 2:
        raise UserError(
            f"data.sampling={cfg.sampling} draws pairs of clips, and this method takes"
            f" {clips - original} per video; choose another sampler"
        )
    sampler = lookup(TRAIN_SAMPLERS, cfg.sampling, "data.sampling")
    corrupt = _corruption(augment)
    original_view = _original(cfg, augment) if original else None
    twin_files = _twins(cfg, records) if twins else None
    return ClipDataset(
        records,
        _clip_spec(cfg, clips),
        sampler,
        view,
        seed=seed,
        backend=cfg.backend,
        timeout_s=cfg.timeout_s,
        replace=True,
        views=views,
        in_memory=cfg.in_memory,
        corrupt=corrupt,
        fade=epochs if augment.fade else 0,
        original=original_view,
        twins=twin_files,
        numbers=numbers,
    )


def _clip_spec(cfg: config.DataConfig, clips: int) -> ClipSpec:
    """Return the configured clips; raise UserError if the configured decoder does not load."""
    require_backend(cfg.backend)
    policy = cast(Policy, cfg.policy)  # the configuration has checked the name
    return ClipSpec(cfg.frames, cfg.stride, clips, policy, cfg.fps)


def _center_of(cfg: config.DataConfig) -> float | tuple[float, float]:
    """Return the part of a frame that the centre crop of data.size shows; see `AugmentSpec`."""
    if cfg.resize:
        return cfg.size / cfg.resize[0], cfg.size / cfg.resize[1]
    return cfg.size / cfg.short_side


def _augmented(cfg: config.DataConfig, augment: config.AugmentConfig) -> AugmentSpec:
    """Return the view of a training clip."""
    brightness, contrast, saturation, hue = augment.jitter
    return AugmentSpec(
        size=cfg.size,
        scale=(augment.scale[0], augment.scale[1]),
        flip=augment.flip,
        jitter=(brightness, contrast, saturation, hue),
        jitter_prob=augment.jitter_prob,
        gray=augment.gray,
        blur=augment.blur,
        solarize=augment.solarize,
        motion=augment.motion,
        shift=augment.shift,
        # a shift moves the evaluation's centre crop, and replaces the random resized crop
        center=_center_of(cfg) if augment.shift else 0.0,
        interpolation=cfg.interpolation,
    )


def _corruption(augment: config.AugmentConfig) -> Corrupt | None:
    """Return the corruption of training clips, or None.

    Raises UserError if PyAV does not have an encoder that it needs.
    """
    try:
        require_encoders(expand(augment.corruptions))
    except MissingEncoder as error:
        raise UserError(f"augment.corruptions: {error}") from None
    if not augment.corruptions:
        return None
    return Corrupt(augment.corruptions, augment.corruption_severities, augment.corruption_prob)


def _centre(cfg: config.DataConfig) -> AugmentSpec:
    """Return the view of an evaluation: the centre crop of a clip."""
    return AugmentSpec(size=cfg.size, center=_center_of(cfg), interpolation=cfg.interpolation)


def _original(cfg: config.DataConfig, augment: config.AugmentConfig) -> AugmentSpec:
    """Return the view of the clip that accompanies the augmented ones.

    It is the evaluation's centre crop, possibly shifted and flipped.
    """
    return replace(
        _centre(cfg),
        shift=augment.original_shift,
        flip=augment.flip,
        jitter_prob=0.0,
        gray=0.0,
        blur=0.0,
    )


def _twins(cfg: config.DataConfig, records: list[Record]) -> Twins:
    """Return the texture twins of the data set; raise UserError if a record has none."""
    if not cfg.twins:
        raise UserError(
            "data.twins is empty: texture, of method.negatives.names or eval.bias, needs the folder"
            " that datasets/prepare.py texture writes; set data.twins to it"
        )
    twins = _twins_of(cfg)
    twins.require(records)
    return twins


def _twins_of(cfg: config.DataConfig) -> Twins:
    """Return where the texture twins of the data set are, unchecked."""
    return Twins(cfg.root, cfg.twins, find_archives(cfg.archive) if cfg.archive else ())


def eval_dataset(
    cfg: config.DataConfig,
    records: list[Record],
    clips: int,
    sampling: str = "uniform",
    crops: int = 1,
) -> ClipDataset:
    """Return crops of clips, neither augmented nor replaced.

    Args:
        cfg: the data options.
        records: the videos.
        clips: number of clips of each video.
        sampling: a name of EVAL_SAMPLERS.
        crops: number of crops of each clip, 1 (the centre) or 3 (along the longer side). All crops
            of a clip follow each other, as if they were clips of the video.
    """
    sampler = lookup(EVAL_SAMPLERS, sampling, "eval.sampling")
    return ClipDataset(
        records,
        _clip_spec(cfg, clips * crops),
        sampler,
        _centre(cfg),
        backend=cfg.backend,
        timeout_s=cfg.timeout_s,
        in_memory=cfg.in_memory,
        crops=crops,
    )


def texture_twins(
    cfg: config.DataConfig, records: list[Record], clips: int, sampling: str = "uniform"
) -> ClipDataset:
    """Return `eval_dataset` of the records' texture twins in data.twins.

    Args:
        cfg: the data options.
        records: the videos.
        clips: number of clips of each video.
        sampling: a name of EVAL_SAMPLERS.

    Raises:
        UserError: a video has no twin.
    """
    twins = _twins(cfg, records)
    return eval_dataset(
        cfg, [replace(record, path=twins(record.path)) for record in records], clips, sampling
    )


def doubt_of_twins(cfg: config.DataConfig) -> str:
    """Return why data.twins may be the textures of another data set; "" for no doubt."""
    return _twins_of(cfg).doubt()


def second_cues(
    cfg: config.DataConfig, records: list[Record], classes: list[str]
) -> dict[int, int]:
    """Return the class that a second cue of each video suggests, if the format defines one.

    In motionshapes it is the class that the texture of the shape belongs to.

    Args:
        cfg: the data options.
        records: the videos.
        classes: names of the classes.

    Returns:
        Index of a record -> label of the class.
    """
    find_cues = find_format(cfg.name).second_cues
    if find_cues is None:
        return {}
    cue_class = find_cues(Path(cfg.root).expanduser())
    return {
        i: classes.index(cue_class[record.uid])
        for i, record in enumerate(records)
        if cue_class[record.uid] in classes
    }


def source_videos(
    cfg: config.DataConfig, records: list[Record], clips: int, sampling: str = "uniform"
) -> SourceVideos:
    """Return the source frames of clips, from which an attack cuts the clips itself.

    Args:
        cfg: the data options.
        records: the videos.
        clips: number of clips of each video.
        sampling: a name of EVAL_SAMPLERS.
    """
    spec = _clip_spec(cfg, clips)
    return SourceVideos(
        records,
        spec,
        lookup(EVAL_SAMPLERS, sampling, "eval.sampling"),
        short_side=cfg.short_side,
        size=cfg.size,
        resize=(cfg.resize[0], cfg.resize[1]) if cfg.resize else None,
        interpolation=cfg.interpolation,
        backend=cfg.backend,
        timeout_s=cfg.timeout_s,
    )


def corrupted_videos(
    cfg: config.DataConfig, records: list[Record], clips: int, sampling: str, place: str, seed: int
) -> CorruptedVideos:
    """Return clips, cut as `eval_dataset` cuts them, to be corrupted; its `work` is still empty.

    Args:
        cfg: the data options.
        records: the videos.
        clips: number of clips of each video.
        sampling: a name of EVAL_SAMPLERS.
        place: "source" or "view", where corruptions are applied; see `CorruptedVideos`.
        seed: seed of the corruptions.
    """
    spec = _clip_spec(cfg, clips)
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
