"""Write clip features to .npz files."""

import json
import shutil
import zipfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from vidrobust import checkpoint, config
from vidrobust.data import build_records, eval_dataset, records_sha
from vidrobust.evaluation.evaluate import load_method
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
    per_video: bool = False,
    overwrite: bool = False,
) -> tuple[int, int]:
    """Extract the trunk's features of a split into `path` (.npz); returns (rows, dim).

    features (N, D) float32, labels, uids, clip_index, start_frame, fps (N,), meta (a JSON string).
    N counts clips in the order of the list, `eval.clips` of each video, or videos (means over
    clips, clip_index -1, start_frame of the first) with per_video. Features are written to
    `<path>.partial/` as they are computed: an extraction that was killed goes on, and under
    torchrun the ranks share the work. Raises UserError when `path` holds other features (overwrite:
    they are replaced), and, after writing those that do, when videos do not decode.
    """
    device = distributed.start(cfg.device)
    with distributed.main_first():
        records, classes = build_records(cfg.data, split)
    seed_everything(cfg.seed, cfg.deterministic)
    method = load_method(cfg, state, len(classes))
    meta = {
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
        "step": state["step"],
        "weights_sha": checkpoint.state_sha(checkpoint.weights(state, average=cfg.eval.average)),
        "manifest_sha": records_sha(records),
    }
    there = _meta(path)
    if path.is_file() and not overwrite and there != meta:
        raise UserError(f"{path} holds other features; set --output FILE, or --overwrite")
    model = method.model.to(device)
    partial = path.with_name(f"{path.name}.partial")
    # options that change features, and that files of earlier versions do not name
    identity = meta | {
        name: getattr(cfg.data, name) for name in ("policy", "short_side", "series", "backend")
    }
    with ExitStack() as folder:
        with distributed.together():
            if distributed.rank() == 0:
                partial.mkdir(parents=True, exist_ok=True)
                folder.enter_context(held(partial / ".lock", _EXTRACTS))
        with evaluation_mode(model, branch=cfg.eval.branch):
            (found,) = extract(
                [model.backbone],
                eval_dataset(cfg.data, records, cfg.eval.clips, cfg.eval.sampling),
                device,
                batch_size=cfg.eval.batch_size,
                workers=cfg.data.workers,
                title=split,
                store=DiskStore(partial, split, 1, identity),
            )
        distributed.patient_barrier()  # no rank reads the parts any more
        with distributed.together():
            if distributed.rank() == 0:
                _write(path, found, meta)
                shutil.rmtree(partial)
    if found.failed:
        raise UserError(
            f"{len(found.failed)} of {len(records)} videos do not decode and have no rows in"
            f" {path}; the first: {found.failed[0].reason}"
        )
    videos, clips, dim = found.features.shape
    return videos * (1 if per_video else clips), dim


def _write(path: Path, found: Features, meta: dict[str, Any]) -> None:
    """Write features to a file, all of it or nothing."""
    videos, clips, _ = found.features.shape
    per_video = meta["per_video"]
    rows = 1 if per_video else clips
    features = found.features.mean(1) if per_video else found.features.flatten(0, 1)
    with replacing(path) as file:
        np.savez(
            file,
            features=features.numpy().astype(np.float32, copy=False),
            labels=found.labels.repeat_interleave(rows).numpy(),
            uids=np.repeat(np.array(found.uids), rows),
            clip_index=np.full(videos, -1) if per_video else np.tile(np.arange(clips), videos),
            start_frame=found.start[:, :rows].flatten().numpy(),
            fps=found.fps.repeat_interleave(rows).numpy(),
            meta=json.dumps(
                meta | {"failed": [{"uid": f.uid, "reason": f.reason} for f in found.failed]}
            ),
        )


def _meta(path: Path) -> object:
    """What a file of features says about itself, but for videos that failed; None if it is no such
    file.
    """
    try:
        with np.load(path) as saved:
            found = json.loads(str(saved["meta"]))
            found.pop("failed", None)
            return found
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
