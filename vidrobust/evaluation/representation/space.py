"""Summarise geometry and sensitivity for summary.json."""

import dataclasses
import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from vidrobust import config
from vidrobust.attacks import Predict
from vidrobust.data import ClipDataset, Record, eval_dataset, train_dataset
from vidrobust.evaluation.adversarial.targets import clip_units
from vidrobust.evaluation.representation.geometry import Geometry, describe, margins
from vidrobust.evaluation.representation.sensitivity import Sensitivity, measure_sensitivity
from vidrobust.models import Model
from vidrobust.models.feature_store import Features, SharedStore
from vidrobust.models.inference import extract
from vidrobust.utils import distributed
from vidrobust.utils.logging import log

ALIGNED = 1000  # largest number of test videos whose augmented views are compared


def geometry_of(
    cfg: config.Config,
    models: list[Model],
    queries: list[Features],
    some: list[Record],
    device: torch.device,
) -> dict[str, Geometry] | None:
    """Return the geometry of features under the trained and under the random weights.

    Args:
        cfg: its data, augment and eval options are used.
        models: the trained and the random model, in evaluation mode.
        queries: features of the test videos under each model.
        some: videos of which two augmented views are compared, for the alignment.
        device: device of the models.

    Returns:
        "trained" and "random" -> what `describe` returns; None on ranks other than the first.
    """
    # The views are those of training, without corruptions. A video that does not decode is left
    # out; training would replace it by another one.
    pairs = train_dataset(
        cfg.data, dataclasses.replace(cfg.augment, corruptions=[]), some, 2, cfg.seed
    )
    pairs.replace = False
    views = extract(
        [model.backbone for model in models],
        pairs,
        device,
        batch_size=cfg.eval.batch_size,
        workers=cfg.data.workers,
        title="views",
        augmented=True,
        store=SharedStore(len(models)),
    )
    if distributed.rank() > 0:
        return None
    return {
        name: describe(test.features, test.labels, pair.features)
        for name, test, pair in zip(("trained", "random"), queries, views, strict=False)
    }


def video_margins(videos: Features) -> dict[str, float]:
    """Return uid -> margin of the middle clip of each video; nothing for fewer than two classes.

    Args:
        videos: features of the test videos.
    """
    if len(videos.labels.unique()) < 2 or bool((videos.labels < 0).any()):
        return {}
    middle = videos.features[:, videos.features.shape[1] // 2].float()
    found = margins(middle, videos.labels).sample.tolist()
    # features that are not finite have no margin
    return {
        uid: margin for uid, margin in zip(videos.uids, found, strict=True) if math.isfinite(margin)
    }


def sensitivity_of(
    cfg: config.Config, model: Model, predict: Predict, some: list[Record], device: torch.device
) -> Sensitivity | None:
    """Measure the sensitivity of the representation on the centre clips of some videos.

    Args:
        cfg: its data and eval options, and the seed, are used.
        model: the trained model, in evaluation mode.
        predict: the classifier.
        some: the videos.
        device: device of the model.

    Returns:
        What `measure_sensitivity` returns; None for no videos. The ranks share the batches.

    Raises:
        UserError: if fewer than two videos decode.
    """
    if not some:
        return None
    log.info(f"sensitivity of {len(some)} clips at {len(cfg.eval.sensitivity_eps)} budgets")
    dataset = eval_dataset(cfg.data, some, 1)
    clips = partial(_read_clips, cfg, dataset, predict, device)
    budgets = sorted(cfg.eval.sensitivity_eps)
    return measure_sensitivity(model.backbone, predict, clips, budgets, seed=cfg.seed)


def _read_clips(
    cfg: config.Config, dataset: ClipDataset, predict: Predict, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield this rank's batches of clips and labels; one is empty if none of its videos decodes.

    Clips are decoded again for each budget, as the pixels of all of them would not fit in memory.

    Args:
        cfg: its batch size and number of workers are used.
        dataset: the clips.
        predict: the classifier.
        device: device that the clips are moved to.
    """
    batch_size = cfg.eval.batch_size
    numbers = list(range(len(dataset.records)))
    batches = [numbers[i : i + batch_size] for i in range(0, len(numbers), batch_size)]
    own = batches[distributed.rank() :: distributed.world()]
    for unit in clip_units(predict, dataset, own, cfg.data.workers, device):
        yield unit.x, unit.labels
