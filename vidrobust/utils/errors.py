"""UserError, and lookup by name with suggestions."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TypeVar

from vidrobust.utils.text import shortened, visible

Value = TypeVar("Value")


class UserError(Exception):
    """A mistake that the user can correct; its message is one line with value and remedy.

    The tools print it without a traceback and exit with status 1. Line ends and control characters
    in names and values are escaped. A message of more than 1,500 characters is shortened.
    """

    def __init__(self, message: str) -> None:
        super().__init__(shortened(visible(message), 1500))


class UndecodedVideos(UserError):
    """Ends an evaluation that is finished, but has videos that do not decode."""


# options of PySlowFast's config files -> vidrobust's option of the same meaning
_SLOWFAST = {
    "TRAIN.DATASET": "data.name",
    "TEST.DATASET": "data.name",
    "DATA.PATH_TO_DATA_DIR": "data.root",
    "DATA.NUM_FRAMES": "data.frames",
    "DATA.SAMPLING_RATE": "data.stride",
    "DATA.TRAIN_CROP_SIZE": "data.size",
    "DATA.TEST_CROP_SIZE": "data.size",
    "DATA.DECODING_BACKEND": "data.backend",
    "DATA_LOADER.NUM_WORKERS": "data.workers",
    "MODEL.ARCH": "model.backbone",
    "MODEL.MODEL_NAME": "model.backbone",
    "RESNET.WIDTH_PER_GROUP": "model.width",
    "SOLVER.BASE_LR": "optim.lr",
    "SOLVER.MAX_EPOCH": "train.epochs",
    "SOLVER.WEIGHT_DECAY": "optim.weight_decay",
    "SOLVER.MOMENTUM": "optim.momentum",
    "SOLVER.OPTIMIZING_METHOD": "optim.name",
    "SOLVER.LR_POLICY": "optim.schedule",
    "SOLVER.WARMUP_EPOCHS": "optim.warmup",
    "SOLVER.CLIP_GRAD_L2NORM": "optim.clip_norm",
    "TRAIN.CHECKPOINT_PERIOD": "train.checkpoint_every",
    "TRAIN.CHECKPOINT_FILE_PATH": "model.weights",
    "TRAIN.MIXED_PRECISION": "train.amp",
    "TRAIN.ENABLE": "train.epochs",
    "LOG_PERIOD": "train.log_every",
    "TEST.BATCH_SIZE": "eval.batch_size",
    "TEST.NUM_ENSEMBLE_VIEWS": "eval.clips",
    "TEST.NUM_SPATIAL_CROPS": "eval.crops",
    "TEST.ENABLE": "eval.enabled",
    "RNG_SEED": "seed",
    "CONTRASTIVE.T": "method.temperature",
    "CONTRASTIVE.DIM": "model.dim",
    "CONTRASTIVE.TYPE": "method.name",
    "CONTRASTIVE.MOMENTUM": "method.momentum",
    "CONTRASTIVE.QUEUE_LEN": "method.queue",
}
# options of PySlowFast's config files -> what replaces them on the command line
_SLOWFAST_OTHERS = {
    "OUTPUT_DIR": "--output-dir",
    "NUM_GPUS": "torchrun --nproc_per_node",
    "NUM_SHARDS": "torchrun",
    "TRAIN.AUTO_RESUME": "--resume",
}


def nearest(name: str, known: list[str]) -> str:
    """Return a suggestion for an unknown name, such as `"; did you mean 'x'?"`.

    PySlowFast's options have fixed suggestions. Otherwise the nearest known name is suggested,
    ignoring case. If no name is near, a short list of known names is returned whole.
    """
    if name in _SLOWFAST_OTHERS:
        return f"; use {_SLOWFAST_OTHERS[name]}"
    same = _SLOWFAST.get(name, next((key for key in known if key.lower() == name.lower()), ""))
    if same in known:
        return f"; did you mean {same!r}?"
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(sorted(known))}" if len(known) <= 20 else "; --help lists all"


def lookup(registry: Mapping[str, Value], name: str, key: str) -> Value:
    """Return an entry of a registry.

    Args:
        registry: entries by name.
        name: name of the entry.
        key: option that holds the name, for the message.

    Raises:
        UserError: for an unknown name; it suggests the nearest known one.
    """
    if name not in registry:
        raise UserError(f"{key}: unknown name {name!r}{nearest(name, list(registry))}")
    return registry[name]
