"""Write clip features to .npz files."""

import json
import shutil
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vidrobust import checkpoint, config
from vidrobust.data import Record, build_records, eval_dataset, records_sha
from vidrobust.data.given import loose_records
from vidrobust.evaluation.loading import load_method, make_norms_precise
from vidrobust.evaluation.measured_model import load_source
from vidrobust.models import Model
from vidrobust.models.feature_store import DiskStore, Features
from vidrobust.models.inference import evaluation_mode, extract
from vidrobust.utils import distributed
from vidrobust.utils.atomic_files import held, replacing
from vidrobust.utils.errors import UserError
from vidrobust.utils.seeds import seed_everything

_EXTRACTS = "another process extracts into {}; wait for it or stop it, or set --output FILE"


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

    Features are written to `<path>.partial/` as they are computed. A killed extraction can be
    repeated, and continues where it stopped. Under torchrun the ranks share the work.

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
        UserError: if `path` holds other features. Also if videos do not decode, after the others
            were written.
    """
    sha = checkpoint.state_sha(checkpoint.weights(state, average=cfg.eval.average))
    weights = {"step": state["step"], "weights_sha": sha}
    return _write_features(
        cfg,
        lambda classes: (load_method(cfg, state, classes).model, weights),
        path,
        split,
        videos=videos,
        per_video=per_video,
        overwrite=overwrite,
    )


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
    measured = load_source(cfg, spec, weights)
    named = {"model": spec, "weights_sha": measured.weights_sha}
    return _write_features(
        cfg,
        lambda classes: (measured.model, named),
        path,
        split,
        videos=videos,
        per_video=per_video,
        overwrite=overwrite,
    )


def _write_features(
    cfg: config.Config,
    load: Callable[[int], tuple[Model, dict[str, Any]]],
    path: Path,
    split: str,
    *,
    videos: str,
    per_video: bool,
    overwrite: bool,
) -> tuple[int, int]:
    """Extract the features of a split; see `write_features`.

    Args:
        cfg: the configuration.
        load: number of classes -> the model, and what `meta` says of its weights.
        path: the file to write.
        split: "train" or "test"; with videos, a name for messages.
        videos: loose videos in place of the data set; see `loose_records`.
        per_video: whether to average the features of each video.
        overwrite: whether to replace a file that holds other features.
    """
    device = distributed.start(cfg.device)
    with distributed.main_first():
        loose = (loose_records(videos, cfg.data.frames), list[str]()) if videos else None
        records, classes = loose or build_records(cfg.data, split)
    seed_everything(cfg.seed, cfg.deterministic)
    model, weights = load(len(classes))
    model = model.to(device)
    meta = _describe(cfg, weights, records, classes, split, per_video=per_video)
    if path.is_file() and not overwrite and _read_meta(path) != meta:
        raise UserError(f"{path} holds other features; set --output FILE, or --overwrite")
    if cfg.eval.precise_bn:
        train, _ = build_records(cfg.data, "train")
        make_norms_precise(cfg, model.backbone, train, device)
    features = _extract(cfg, model, records, path, meta, device)
    if features.failed:
        raise UserError(
            f"{len(features.failed)} of {len(records)} videos do not decode and have no rows in"
            f" {path}; the first: {features.failed[0].reason}"
        )
    count, clips, dim = features.features.shape
    return count * (1 if per_video else clips), dim


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
        "interpolation": "" if interpolation == "bilinear" else interpolation,
    }


def _extract(
    cfg: config.Config,
    model: Model,
    records: list[Record],
    path: Path,
    meta: dict[str, Any],
    device: torch.device,
) -> Features:
    """Compute the features of all clips, and write them to a file.

    Args:
        cfg: its data and eval options are used.
        model: the model, on the device.
        records: the videos.
        path: the file to write.
        meta: what the features are computed from.
        device: device of the model.

    Returns:
        The features, and the videos that do not decode.
    """
    split = meta["split"]
    partial = path.with_name(f"{path.name}.partial")
    # These options also change features, but `meta` does not name them: files of earlier versions
    # have no such entries.
    identity = meta | {
        name: getattr(cfg.data, name) for name in ("policy", "short_side", "series", "backend")
    }
    identity["rows"] = "with ends"  # unfinished files of earlier versions begin anew
    with ExitStack() as lock:
        # Only one process may write to the folder; the first rank holds it for all.
        with distributed.together():
            if distributed.rank() == 0:
                partial.mkdir(parents=True, exist_ok=True)
                lock.enter_context(held(partial / ".lock", _EXTRACTS))
        with evaluation_mode(model, branch=cfg.eval.branch):
            (features,) = extract(
                [model.backbone],
                eval_dataset(cfg.data, records, cfg.eval.clips, cfg.eval.sampling),
                device,
                batch_size=cfg.eval.batch_size,
                workers=cfg.data.workers,
                title=split,
                store=DiskStore(partial, split, 1, identity),
            )
        distributed.patient_barrier()  # no rank reads the partial files any more
        with distributed.together():
            if distributed.rank() == 0:
                _write(path, features, meta)
                shutil.rmtree(partial)
    return features


def _write(path: Path, features: Features, meta: dict[str, Any]) -> None:
    """Write features to a file, whole or not at all."""
    videos, clips, _ = features.features.shape
    per_video = meta["per_video"]
    rows = 1 if per_video else clips  # per video
    values = features.features.mean(1) if per_video else features.features.flatten(0, 1)
    failed = [{"uid": failure.uid, "reason": failure.reason} for failure in features.failed]
    fps = torch.where(features.fps > 0, features.fps, torch.nan)[:, None]
    ends = features.end.amax(1, keepdim=True) if per_video else features.end
    with replacing(path) as file:
        np.savez(
            file,
            features=values.numpy().astype(np.float32, copy=False),
            labels=features.labels.repeat_interleave(rows).numpy(),
            uids=np.repeat(np.array(features.uids), rows),
            clip_index=np.full(videos, -1) if per_video else np.tile(np.arange(clips), videos),
            start_frame=features.start[:, :rows].flatten().numpy(),
            fps=features.fps.repeat_interleave(rows).numpy(),
            start_s=(features.start[:, :rows] / fps).flatten().numpy(),
            end_s=(ends / fps).flatten().numpy(),
            meta=json.dumps(meta | {"failed": failed}),
        )


def _read_meta(path: Path) -> object:
    """Return the `meta` of a file of features, without the videos that failed.

    None for any other file.
    """
    try:
        with np.load(path) as saved:
            meta = json.loads(str(saved["meta"]))
            meta.pop("failed", None)
            return meta
    except (
        OSError,
        ValueError,
        KeyError,
        AttributeError,
        EOFError,
        RecursionError,
        zipfile.BadZipFile,
    ):
        return None
