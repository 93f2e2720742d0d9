"""Summarise geometry and sensitivity for summary.json."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vidrobust import config
from vidrobust.attacks import Predict
from vidrobust.data import Record, eval_dataset, train_dataset
from vidrobust.evaluation.adversarial.targets import clip_units
from vidrobust.evaluation.representation.geometry import describe
from vidrobust.evaluation.representation.sensitivity import measure_sensitivity
from vidrobust.models import Model
from vidrobust.models.feature_store import Features
from vidrobust.models.inference import extract
from vidrobust.utils import distributed
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log

ALIGNED = 1000  # test videos at most, of which two augmented views are compared


def geometry_of(
    cfg: config.Config,
    models: list[Model],
    queries: list[Features],
    some: list[Record],
    device: torch.device,
) -> dict[str, Any] | None:
    """Of the trained and of the random model: `describe` of the test videos' features, alignment of
    views of `some`.
    """
    if distributed.rank() > 0:
        return None
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
    )
    return {
        name: describe(asked.features, asked.labels, seen.features)
        for name, asked, seen in zip(("trained", "random"), queries, views, strict=True)
    }


def sensitivity_of(
    cfg: config.Config, model: Model, predict: Predict, some: list[Record], device: torch.device
) -> dict[str, Any] | None:
    """How the representation of the centre clips of `some` gives way; None for none.

    Raises UserError where fewer than two decode.
    """
    if not some or distributed.rank() > 0:
        return None
    log.info(f"sensitivity of {len(some)} clips at {len(cfg.eval.sensitivity_eps)} budgets")
    numbers = list(range(len(some)))
    batches = [
        numbers[i : i + cfg.eval.batch_size] for i in range(0, len(some), cfg.eval.batch_size)
    ]
    dataset = eval_dataset(cfg.data, some, 1)

    def clips() -> Iterator[tuple[Tensor, Tensor]]:
        """Decode anew for each budget: the pixels of all clips would not fit."""
        decoded = 0
        for unit in clip_units(predict, dataset, batches, cfg.data.workers, device):
            decoded += len(unit.uids)
            if unit.uids:
                yield unit.x, unit.labels
        if decoded < 2:
            raise UserError(
                "eval.sensitivity: distances need two clips, and fewer of the test list decode; set"
                " it to 0"
            )

    return measure_sensitivity(
        model.backbone, predict, clips, sorted(cfg.eval.sensitivity_eps), seed=cfg.seed
    )
