"""A file on disk becomes clips."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import cast

import numpy as np

from vidrobust import config
from vidrobust.data.dataset import Batch, ClipDataset, EvalBatches, Failure, TrainBatches, collate, loader
from vidrobust.data.decode import DecodeError, open_video, read_frames
from vidrobust.data.records import (
    Parsed,
    Record,
    path_label_list,
    records_sha,
    require_root,
    ucf101,
    video_folder,
)
from vidrobust.data.sampling import ClipSpec, Policy, random_clips, uniform_clips
from vidrobust.data.sampling import Sampler as ClipSampler
from vidrobust.data.synthetic import make_motionshapes
from vidrobust.errors import lookup
from vidrobust.views import AugmentSpec

__all__ = [
    "FORMATS", "Batch", "ClipDataset", "ClipSpec", "DecodeError", "EvalBatches", "Failure", "Record",
    "TrainBatches", "build_records", "collate", "eval_dataset", "loader", "make_motionshapes", "open_video",
    "path_label_list", "random_clips", "read_frames", "records_sha", "train_dataset", "ucf101",
    "uniform_clips", "video_folder",
]  # fmt: skip

FORMATS: dict[str, Callable[[Path, str, int], Parsed]] = {
    "ucf101": ucf101,
    "list": path_label_list,
    "folder": video_folder,
    "motionshapes": ucf101,  # drawn on first use, then read as UCF101 is
}


def build_records(cfg: config.Data, split: str) -> Parsed:
    """(records, classes) of split "train" or "test" of the configured data set."""
    parser = lookup(FORMATS, cfg.name, "data.name")
    root = Path(cfg.root).expanduser()
    if cfg.name == "motionshapes":
        make_motionshapes(root, **asdict(cfg.motionshapes))
    return parser(require_root(root, cfg.name), split, cfg.fold)


def train_dataset(
    cfg: config.Data, augment: config.Augment, records: list[Record], clips: int, seed: int
) -> ClipDataset:
    """Random, augmented clips: `clips` of each video, drawn independently in time and in augmentation."""
    b, c, s, h = augment.jitter
    view = AugmentSpec(
        size=cfg.size, scale=(augment.scale[0], augment.scale[1]), flip=augment.flip, jitter=(b, c, s, h),
        jitter_prob=augment.jitter_prob, gray=augment.gray, blur=augment.blur,
    )  # fmt: skip
    return _dataset(cfg, records, clips, random_clips, view, seed)


def eval_dataset(cfg: config.Data, records: list[Record], clips: int) -> ClipDataset:
    """Centre crops of `clips` clips spread evenly over each video."""
    return _dataset(cfg, records, clips, _uniform, AugmentSpec(size=cfg.size, center=True), 0)


def _uniform(num_frames: int, spec: ClipSpec, rng: np.random.Generator) -> np.ndarray:
    return uniform_clips(num_frames, spec)


def _dataset(
    cfg: config.Data, records: list[Record], clips: int, sampler: ClipSampler, view: AugmentSpec, seed: int
) -> ClipDataset:
    spec = ClipSpec(cfg.frames, cfg.stride, clips, cast(Policy, cfg.policy))  # config checks the name
    return ClipDataset(records, spec, sampler, view, short_side=cfg.short_side, seed=seed, backend=cfg.backend)
