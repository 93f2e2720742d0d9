"""Write features of test videos for the projector of TensorBoard."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from vidrobust import config
from vidrobust.data import Record, batch_loader, eval_dataset, worker_deaths
from vidrobust.models.feature_store import Features
from vidrobust.models.inference import evenly
from vidrobust.utils.atomic_files import replacing
from vidrobust.utils.own_files import PROJECTOR_FILES, delete_files
from vidrobust.utils.text import visible
from vidrobust.views import to_float

_SIDE = 32  # pixels of a thumbnail
_FOLDER = "tensorboard"
_LAST = "projector_config.pbtxt"  # the file that is written when all others are
_CONFIG = """embeddings {
  tensor_name: "features of test videos"
  tensor_path: "tensors.tsv"
  metadata_path: "metadata.tsv"
  sprite {
    image_path: "sprite.png"
    single_image_dim: %d
    single_image_dim: %d
  }
}
"""


def write_projector(
    cfg: config.Config,
    features: Features,
    records: Sequence[Record],
    classes: Sequence[str],
    out: Path,
) -> None:
    """Write out/tensorboard: features of eval.embeddings test videos, with class and thumbnail.

    Files that an earlier call has written are kept.

    Args:
        cfg: the configuration.
        features: of the test videos under the trained model; videos with NaN are left out.
        records: the test videos.
        classes: names of the classes.
        out: folder of the evaluation.
    """
    if (out / _FOLDER / _LAST).exists():
        return
    means = features.features.float().mean(1)
    sound = means.isfinite().all(1).nonzero().flatten().tolist()
    rows = [sound[place] for place in evenly(len(sound), cfg.eval.embeddings)]
    if not rows or not cfg.eval.embeddings:
        return
    folder = out / _FOLDER
    delete_files(out, PROJECTOR_FILES)
    _write_text(folder / "tensors.tsv", ["\t".join(f"{x:.6g}" for x in means[i]) for i in rows])
    # visible() also escapes tabs and line ends
    lines = ["class\tvideo"]
    for row in rows:
        label = int(features.labels[row])
        name = classes[label] if 0 <= label < len(classes) else "unknown"
        lines.append(f"{visible(name)}\t{visible(features.uids[row])}")
    _write_text(folder / "metadata.tsv", lines)
    _write_sprite(cfg, records, [int(features.index[row]) for row in rows], folder / "sprite.png")
    # the projector looks for these files only in folders with an event file
    from torch.utils.tensorboard import SummaryWriter  # slow to import

    SummaryWriter(str(folder)).close()
    _write_text(folder / _LAST, [(_CONFIG % (_SIDE, _SIDE)).rstrip("\n")])


def _write_sprite(
    cfg: config.Config, records: Sequence[Record], indices: Sequence[int], path: Path
) -> None:
    """Write the thumbnails of videos, row by row in a square: the middle frame of the centre clip.

    Args:
        cfg: the configuration.
        records: the test videos.
        indices: which of them.
        path: the picture.
    """
    from PIL import Image

    columns = int(np.ceil(np.sqrt(len(indices))))
    sprite = np.zeros((columns * _SIDE, columns * _SIDE, 3), np.uint8)
    # a video that does not decode any more stays black
    place_of = {index: place for place, index in enumerate(indices)}
    size = cfg.eval.batch_size
    keys = [[(0, index) for index in indices[i : i + size]] for i in range(0, len(indices), size)]
    dataset = eval_dataset(cfg.data, list(records), 1)
    with worker_deaths(dataset):
        for batch in batch_loader(dataset, keys, cfg.data.workers):
            if not batch.uids:
                continue
            clips = to_float(batch.clips[:, 0])
            frames = F.adaptive_avg_pool2d(clips[:, :, clips.shape[2] // 2], (_SIDE, _SIDE))
            pixels = (frames * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
            for index, thumbnail in zip(batch.index.tolist(), pixels, strict=True):
                top, left = (_SIDE * each for each in divmod(place_of[index], columns))
                sprite[top : top + _SIDE, left : left + _SIDE] = thumbnail
    with replacing(path) as file:
        Image.fromarray(sprite).save(file, "PNG")


def _write_text(path: Path, lines: Sequence[str]) -> None:
    with replacing(path) as file:
        file.write(("\n".join(lines) + "\n").encode("utf-8", "backslashreplace"))
