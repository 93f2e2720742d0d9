"""Turn files on disk into batches of clips."""

# torch comes before anything that may load decord: the other order crashes in native code.
import torch  # noqa: F401

from vidrobust.data.action_formats import charades, diving48, finegym, kinetics, ssv2
from vidrobust.data.attack_source import Source, SourceVideos
from vidrobust.data.build import (
    FOLDED,
    FORMATS,
    all_records,
    build_records,
    corrupted_videos,
    doubt_of_twins,
    eval_dataset,
    find_format,
    second_cues,
    source_videos,
    texture_twins,
    train_dataset,
)
from vidrobust.data.corrupted import CLEAN, Condition, Corrupted, CorruptedVideos, corrupted_loader
from vidrobust.data.dataset import (
    Batch,
    ClipDataset,
    EvalBatches,
    Failure,
    TrainBatches,
    batch_loader,
    collate,
)
from vidrobust.data.decoding.images import is_image
from vidrobust.data.decoding.read_frames import BACKENDS, DecodeError, open_video, read_frames
from vidrobust.data.few_labels import few_labels, write_chosen, write_list
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
from vidrobust.data.loader import raise_worker_deaths, without_worker_deaths, worker_deaths
from vidrobust.data.motionshapes import make_motionshapes
from vidrobust.data.prepare.reencode import Encoding, reencode
from vidrobust.data.records import (
    Record,
    records_sha,
    require_labels,
    shared_sources,
    split_by_group,
)
from vidrobust.data.sampling import (
    EVAL_SAMPLERS,
    TRAIN_SAMPLERS,
    ClipSpec,
    dense_clips,
    interval_pairs,
    random_clips,
    sampled,
    segment_clips,
    uniform_clips,
)
from vidrobust.data.scan import apply_manifest, read_manifest, scan

__all__ = [
    "BACKENDS",
    "CLEAN",
    "EVAL_SAMPLERS",
    "FOLDED",
    "FORMATS",
    "TRAIN_SAMPLERS",
    "Batch",
    "ClipDataset",
    "ClipSpec",
    "Condition",
    "Corrupted",
    "CorruptedVideos",
    "DecodeError",
    "Encoding",
    "EvalBatches",
    "Failure",
    "FormatSpec",
    "Record",
    "Source",
    "SourceVideos",
    "TrainBatches",
    "all_records",
    "apply_manifest",
    "batch_loader",
    "build_records",
    "charades",
    "class_folder",
    "collate",
    "corrupted_loader",
    "corrupted_videos",
    "dense_clips",
    "diving48",
    "doubt_of_twins",
    "eval_dataset",
    "few_labels",
    "find_format",
    "finegym",
    "frame_folder",
    "frame_list",
    "hmdb51",
    "image_folder",
    "interval_pairs",
    "is_image",
    "kinetics",
    "make_motionshapes",
    "open_video",
    "path_label_list",
    "raise_worker_deaths",
    "random_clips",
    "read_frames",
    "read_manifest",
    "records_sha",
    "reencode",
    "require_labels",
    "sampled",
    "scan",
    "second_cues",
    "segment_clips",
    "shared_sources",
    "source_videos",
    "split_by_group",
    "ssv2",
    "texture_twins",
    "torchvision_images",
    "train_dataset",
    "ucf101",
    "uniform_clips",
    "video_folder",
    "without_worker_deaths",
    "worker_deaths",
    "write_chosen",
    "write_list",
]
