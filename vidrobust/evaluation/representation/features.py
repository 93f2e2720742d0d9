"""Extract features of models into files: of clips, of videos, of stages, and tokens."""

import re
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidrobust import checkpoint, config
from vidrobust.data import Record, build_records, eval_dataset, records_sha
from vidrobust.data.given import loose_records
from vidrobust.evaluation.loading import load_method, make_norms_precise
from vidrobust.evaluation.measured_model import load_source
from vidrobust.evaluation.representation.feature_files import (
    FORMATS,
    FeatureFile,
    FeatureRows,
    stem_of,
    write_feature_file,
)
from vidrobust.models import Backbone, Model
from vidrobust.models.fast_passes import to_measure, with_amp_of_machine
from vidrobust.models.feature_store import DiskStore
from vidrobust.models.inference import compute_outputs, evaluation_mode, log_notes
from vidrobust.models.stages import stage_names, stage_tokens
from vidrobust.models.stored_features import Counts, no_video_decodes
from vidrobust.utils import distributed
from vidrobust.utils.atomic_files import held, sign
from vidrobust.utils.errors import UserError
from vidrobust.utils.seeds import seed_everything

_EXTRACTS = "another process extracts into {}; wait for it or stop it, or set --output FILE"

# options that decide which frames and pixels a clip has
_CLIP_OPTIONS = (
    *(f"data.{name}" for name in ("frames", "stride", "fps", "policy", "series", "backend")),
    *(f"data.{name}" for name in ("size", "short_side", "resize", "interpolation")),
    "eval.clips",
    "eval.sampling",
)
# options that decide which videos a split has
_SPLIT_OPTIONS = (
    *(f"data.{name}" for name in ("name", "root", "archive", "manifest", "fold", "validation")),
    *(f"data.motionshapes.{item.name}" for item in fields(config.DataConfig().motionshapes)),
)


@dataclass(frozen=True)
class FeatureSettings:
    """Say which features are extracted, and into which kind of file.

    Attributes:
        videos: loose videos in place of the data set; see `loose_records`.
        per_video: whether to average the features of each video over its clips.
        stages: names of stages whose average-pooled outputs are taken; ("all",): every stage; ():
            the backbone's features.
        tokens: whether to keep all tokens of a stage; without stages, those of the last one.
        half: whether numbers are float16.
        format: auto, npz or npy.
        overwrite: whether to replace files that hold other features.
    """

    videos: str = ""
    per_video: bool = False
    stages: tuple[str, ...] = ()
    tokens: bool = False
    half: bool = False
    format: str = "auto"
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.tokens and self.per_video:
            raise UserError(
                "--tokens: tokens belong to a clip, and --per-video averages clips; remove one of"
                " them"
            )
        if self.format not in FORMATS:
            raise UserError(f"--format {self.format}: choose {', '.join(FORMATS)}")
        if "" in self.stages or ("all" in self.stages and len(self.stages) > 1):
            raise UserError(
                f"--stages {','.join(self.stages)}: give names with commas between them, or all"
            )


@dataclass(frozen=True)
class FeatureSource:
    """Name a model whose features are extracted, and how it is loaded.

    Attributes:
        name: of the model, for messages.
        cfg: the configuration.
        load: number of classes -> the model, and what `meta` says of its weights.
        path: file of its features; names of stages are inserted before the suffix.
    """

    name: str
    cfg: config.Config
    load: Callable[[int], tuple[Model, dict[str, Any]]]
    path: Path


@dataclass(frozen=True)
class Written:
    """Name a file of features.

    Attributes:
        path: the file.
        shape: of its features: (rows, D) or (rows, tokens, D).
    """

    path: Path
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Output:
    """Hold one output of a model: its file, and what `meta` says of it."""

    file: FeatureFile
    meta: dict[str, Any]


def checkpoint_source(
    cfg: config.Config, state: dict[str, Any], path: Path, name: str = "the run"
) -> FeatureSource:
    """Return the model of a run as a source of features.

    Args:
        cfg: configuration of the run.
        state: checkpoint of the run.
        path: the file to write.
        name: of the run, for messages.
    """
    sha = checkpoint.state_sha(checkpoint.weights(state, average=cfg.eval.average))
    weights = {"step": state["step"], "weights_sha": sha}

    def load(classes: int) -> tuple[Model, dict[str, Any]]:
        return load_method(cfg, state, classes).model, weights

    return FeatureSource(name, cfg, load, path)


def model_source(cfg: config.Config, spec: str, weights: str, path: Path) -> FeatureSource:
    """Return a model of another package as a source of features.

    Args:
        cfg: the configuration.
        spec: such as `torchvision:r3d_18`.
        weights: file of weights; "": those that the spec names.
        path: the file to write.

    Raises:
        UserError: as `load_source`.
    """
    measured = load_source(cfg, spec, weights)
    meta = {"model": spec, "weights_sha": measured.weights_sha}
    return FeatureSource(spec, cfg, lambda classes: (measured.model, meta), path)


def write_features(
    cfg: config.Config,
    state: dict[str, Any],
    path: Path,
    split: str,
    *,
    videos: str = "",
    per_video: bool = False,
    overwrite: bool = False,
) -> tuple[int, int]:
    """Extract the backbone's features of a split into an .npz file.

    The file holds, for N rows in the order of the list:

    - features: (N, D) float32.
    - labels, uids, clip_index, start_frame, fps: (N,).
    - start_s, end_s: (N,), when the clip begins and ends, in seconds; NaN where the frame rate is
      unknown, as of images.
    - meta: a JSON string that says what the features were computed from.

    A row is a clip, `eval.clips` of each video. With per_video, a row is a video: features are
    means over its clips, clip_index is -1, start_frame is that of the first clip, and end_s that of
    the last.

    Args:
        cfg: configuration of the run.
        state: checkpoint of the run.
        path: the file to write.
        split: "train" or "test"; with videos, a name for messages.
        videos: loose videos in place of the data set; see `loose_records`.
        per_video: whether to average the features of each video.
        overwrite: whether to replace a file that holds other features.

    Returns:
        (number of rows, feature dimension).

    Raises:
        UserError: see `extract_files`.
    """
    settings = FeatureSettings(
        videos=videos, per_video=per_video, overwrite=overwrite, format="npz"
    )
    (written,) = extract_files([checkpoint_source(cfg, state, path)], split, settings)
    return written.shape[0], written.shape[1]


def write_source_features(
    cfg: config.Config,
    spec: str,
    weights: str,
    path: Path,
    split: str,
    *,
    videos: str = "",
    per_video: bool = False,
    overwrite: bool = False,
) -> tuple[int, int]:
    """Extract the features of a model of another package, as `write_features` does of a checkpoint.

    Args:
        cfg: the configuration.
        spec: such as `torchvision:r3d_18`.
        weights: file of weights; "": those that the spec names.
        path: the file to write.
        split: "train" or "test"; with videos, a name for messages.
        videos: loose videos in place of the data set; see `loose_records`.
        per_video: whether to average the features of each video.
        overwrite: whether to replace a file that holds other features.

    Returns:
        (number of rows, feature dimension).

    Raises:
        UserError: as `write_features`, and as `load_source`.
    """
    settings = FeatureSettings(
        videos=videos, per_video=per_video, overwrite=overwrite, format="npz"
    )
    (written,) = extract_files([model_source(cfg, spec, weights, path)], split, settings)
    return written.shape[0], written.shape[1]


def extract_files(
    sources: Sequence[FeatureSource], split: str, settings: FeatureSettings
) -> list[Written]:
    """Extract features of a split under several models, decoding each clip once.

    There is one file for each model and stage: an .npz file (see `write_features`), or `NAME.npy`
    with the features, `NAME.table.npy` with a row of names and numbers for each row of features,
    and `NAME.json` with what they were computed from. The .npy file appears when all three are
    complete. With tokens, features are (N, tokens, D).

    Features are written to `<path>.partial/` of the first file as they are computed. A killed
    extraction can be repeated, and continues where it stopped, with the same bytes. Under torchrun
    the ranks share the work. Memory holds a batch of clips and a chunk of features.

    Args:
        sources: the models. Options of the clips must be the same for all.
        split: "train" or "test"; with videos, a name for messages.
        settings: which features.

    Returns:
        The files, of the first model and its stages first.

    Raises:
        UserError: for models that do not take the same clips, for an unknown stage, and for a file
            that holds other features. Also if videos do not decode, after the others were written.
    """
    _require_same_clips(sources, settings)
    cfg = sources[0].cfg
    device = distributed.start(cfg.device)
    with distributed.main_first():
        loose = (
            (loose_records(settings.videos, cfg.data.frames), list[str]())
            if settings.videos
            else None
        )
        records, classes = loose or build_records(cfg.data, split)
    extractors, outputs = _load(sources, records, classes, split, settings, device)
    _require_files(outputs, sources, settings)
    for source, extractor in zip(sources, extractors, strict=True):
        if source.cfg.eval.precise_bn:
            train, _ = build_records(cfg.data, "train")
            make_norms_precise(source.cfg, extractor.backbone, train, device)
    with ExitStack() as modes:
        for source, extractor in zip(sources, extractors, strict=True):
            mode = evaluation_mode(extractor.backbone, branch=source.cfg.eval.branch)
            modes.enter_context(mode)
        paths, shapes, counts = _extract(cfg, extractors, records, outputs, settings, device)
    if counts.failed:
        raise UserError(
            f"{len(counts.failed)} of {len(records)} videos do not decode and have no rows in"
            f" {paths[0]}; the first: {counts.failed[0].reason}"
        )
    return [Written(path, shape) for path, shape in zip(paths, shapes, strict=True)]


def _require_same_clips(sources: Sequence[FeatureSource], settings: FeatureSettings) -> None:
    """Raise UserError for models whose options give other clips than those of the first one."""
    first = sources[0]
    keys = _CLIP_OPTIONS if settings.videos else (*_SPLIT_OPTIONS, *_CLIP_OPTIONS)
    for other in sources[1:]:
        for key in keys:
            ours, theirs = config.get(first.cfg, key), config.get(other.cfg, key)
            if ours != theirs:
                raise UserError(
                    f"{key}={theirs} of {other.name}, and {ours} of {first.name}: models of one"
                    f" extraction share their clips; set {key}, or extract them one by one"
                )


def _load(
    sources: Sequence[FeatureSource],
    records: list[Record],
    classes: list[str],
    split: str,
    settings: FeatureSettings,
    device: torch.device,
) -> tuple[list["_Extractor"], list[_Output]]:
    """Load the models.

    Args:
        sources: the models.
        records: videos of the split.
        classes: names of the classes.
        split: name of the split.
        settings: which features.
        device: where the models go.

    Returns:
        (what computes the outputs of each model, the outputs of all models).
    """
    extractors: list[_Extractor] = []
    outputs: list[_Output] = []
    for source in sources:
        seed_everything(source.cfg.seed, source.cfg.deterministic)
        model, weights = source.load(len(classes))
        cfg = with_amp_of_machine(source.cfg, device)
        model = to_measure(model, device, cfg.eval)
        meta = _describe(cfg, weights, records, classes, split, per_video=settings.per_video)
        with evaluation_mode(model, branch=source.cfg.eval.branch):
            extractors.append(_extractor(source, model.backbone, settings, device))
        outputs += _outputs(source, meta, extractors[-1], settings)
    return extractors, outputs


@dataclass(frozen=True)
class _Extractor:
    """Compute the outputs of one model.

    Attributes:
        backbone: the backbone, in evaluation mode.
        stages: names of the stages; (): the features.
        tokens: whether to keep all tokens.
    """

    backbone: Backbone
    stages: tuple[str, ...]
    tokens: bool

    def __call__(self, clips: Tensor) -> list[Tensor]:
        """Return the outputs of clips (B, 3, T, H, W): (B, D) each, or tokens (B, N, D)."""
        if not self.stages:
            return [self.backbone(clips)]
        tokens = stage_tokens(self.backbone, clips, self.stages)
        return tokens if self.tokens else [each.mean(1) for each in tokens]


@torch.no_grad()
def _extractor(
    source: FeatureSource, backbone: Backbone, settings: FeatureSettings, device: torch.device
) -> _Extractor:
    """Return what computes the outputs of a model; stages are tried on an empty clip first.

    Args:
        source: the model's name and options.
        backbone: its backbone, in evaluation mode and on the device.
        settings: which outputs.
        device: of the backbone.

    Raises:
        UserError: for a stage that the model does not have, or that gives no feature map.
    """
    if not (settings.stages or settings.tokens):
        return _Extractor(backbone, (), tokens=False)
    try:
        stages = tuple(dict.fromkeys(settings.stages))
        if stages == ("all",):
            stages = stage_names(backbone)
        elif not stages:
            stages = stage_names(backbone)[-1:]
        data = source.cfg.data
        clip = torch.zeros(1, 3, data.frames, data.size, data.size, device=device)
        extractor = _Extractor(backbone, stages, settings.tokens)
        extractor(clip)
    except UserError as error:
        option = "--stages" if settings.stages else "--tokens"
        raise UserError(f"{option}: {source.name}: {error}") from None
    return extractor


def _outputs(
    source: FeatureSource, meta: dict[str, Any], extractor: _Extractor, settings: FeatureSettings
) -> list[_Output]:
    """Return the file and the `meta` of each output of a model.

    Args:
        source: the model.
        meta: of the model and its clips.
        extractor: has the stages.
        settings: tokens, float16 and the format.
    """
    path = source.path
    if settings.format == "npy":
        path = path.with_name(f"{stem_of(path)}.npy")
    meta = meta | ({"dtype": "float16"} if settings.half else {})
    if not extractor.stages:
        return [_Output(FeatureFile(path, settings.format), meta)]
    outputs = []
    for stage in extractor.stages:
        name = f"{stem_of(path)}.{re.sub(r'[^A-Za-z0-9._-]', '_', stage)}"
        name += ".tokens" if settings.tokens else ""
        suffix = path.suffix if path.suffix in (".npz", ".npy") else ""
        file = FeatureFile(path.with_name(name + suffix), settings.format)
        own = {"stage": stage} | ({"tokens": True} if settings.tokens else {})
        outputs.append(_Output(file, meta | own))
    return outputs


def _require_files(
    outputs: Sequence[_Output], sources: Sequence[FeatureSource], settings: FeatureSettings
) -> None:
    """Raise UserError for files that two outputs would have, and that hold other features."""
    paths = Counter(output.file.path for output in outputs)
    twice = [path for path, count in paths.items() if count > 1]
    if twice:
        names = ", ".join(source.name for source in sources)
        raise UserError(f"{twice[0]} would hold features of several of {names}; set --output FILE")
    if settings.overwrite:
        return
    with distributed.together():
        for output in outputs:
            output.file.require_unused(output.meta)


def _describe(
    cfg: config.Config,
    weights: dict[str, Any],
    records: list[Record],
    classes: list[str],
    split: str,
    *,
    per_video: bool,
) -> dict[str, Any]:
    """Return the `meta` of a file of features.

    Args:
        cfg: configuration of the run.
        weights: entries about the weights.
        records: videos of the split.
        classes: names of the classes.
        split: name of the split.
        per_video: whether rows are videos.
    """
    return {
        "dataset": cfg.data.name,
        "split": split,
        "fold": cfg.data.fold,
        "backbone": cfg.model.backbone,
        "branch": cfg.eval.branch,
        "clips": cfg.eval.clips,
        "sampling": cfg.eval.sampling,
        "frames": cfg.data.frames,
        "stride": cfg.data.stride,
        "size": cfg.data.size,
        "per_video": per_video,
        "classes": classes,
        **weights,
        "manifest_sha": records_sha(records),
        **{key: value for key, value in _later(cfg).items() if value},
    }


def _later(cfg: config.Config) -> dict[str, Any]:
    """Return options that files of earlier versions do not have, empty at their defaults."""
    interpolation = cfg.data.interpolation
    return {
        "precise_bn": cfg.eval.precise_bn,
        "fps": cfg.data.fps,
        "resize": cfg.data.resize,
        "amp": "" if cfg.eval.amp == "fp32" else cfg.eval.amp,
        "interpolation": "" if interpolation == "bilinear" else interpolation,
    }


def _extract(
    cfg: config.Config,
    extractors: Sequence[_Extractor],
    records: list[Record],
    outputs: Sequence[_Output],
    settings: FeatureSettings,
    device: torch.device,
) -> tuple[list[Path], list[tuple[int, ...]], Counts]:
    """Compute the outputs of all clips, and write each to its file.

    Args:
        cfg: its data and eval options are used.
        extractors: the models, on the device and in evaluation mode.
        records: the videos.
        outputs: their files, and what they are computed from.
        settings: which features.
        device: device of the models.

    Returns:
        (the files, the shapes of their features, what is counted over all videos).
    """
    split = outputs[0].meta["split"]
    partial = [output.file.path.with_name(f"{output.file.path.name}.partial") for output in outputs]
    dataset = eval_dataset(cfg.data, records, cfg.eval.clips, cfg.eval.sampling)

    def compute(clips: Tensor) -> list[Tensor]:
        return [output for extractor in extractors for output in extractor(clips)]

    with ExitStack() as locks:
        # Only one process may write these files; the first rank holds the folders for all.
        with distributed.together():
            if distributed.rank() == 0:
                for folder in partial:
                    folder.mkdir(parents=True, exist_ok=True)
                    sign(locks.enter_context(held(folder / ".lock", _EXTRACTS)))
        # means over clips are rounded once, when they are written
        half = settings.half and not settings.per_video
        store = DiskStore(partial[0], split, len(outputs), _identity(cfg, outputs), half=half)
        compute_outputs(
            compute,
            dataset,
            device,
            store,
            batch_size=cfg.eval.batch_size,
            workers=cfg.data.workers,
            title=split,
        )
        stored = store.stored()
        counts = stored.counts()
        if not stored.videos:
            raise no_video_decodes(counts.failed)
        log_notes(dataset, counts.repeats, counts.resized, stored.videos, split)
        rows = [
            FeatureRows(stored, m, counts, settings.per_video, settings.half)
            for m in range(len(outputs))
        ]
        distributed.patient_barrier()  # no rank reads the partial files any more
        paths = [output.file.path for output in outputs]
        with distributed.together():
            if distributed.rank() == 0:
                paths = [
                    write_feature_file(output.file, each, output.meta, partial[0])
                    for output, each in zip(outputs, rows, strict=True)
                ]
                # the features go last: until then a killed process continues
                for folder in reversed(partial):
                    shutil.rmtree(folder)
    return paths, [each.shape for each in rows], counts


def _identity(cfg: config.Config, outputs: Sequence[_Output]) -> dict[str, Any]:
    """Return what unfinished features belong to.

    Args:
        cfg: the configuration of the clips.
        outputs: have the `meta`.
    """
    # These options also change features, but `meta` does not name them: files of earlier versions
    # have no such entries.
    identity = outputs[0].meta | {
        name: getattr(cfg.data, name) for name in ("policy", "short_side", "series", "backend")
    }
    identity["rows"] = "with ends"  # unfinished files of earlier versions begin anew
    if len(outputs) > 1:
        identity["others"] = [output.meta for output in outputs[1:]]
    return identity
