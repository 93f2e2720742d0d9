"""ProtocolSpec: an entry of the registry of protocols, and what its fit receives and returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from vidrobust import config
from vidrobust.data import Record
from vidrobust.models import Backbone
from vidrobust.models.feature_store import Features


@dataclass(frozen=True)
class FitInputs:
    """Hold what a classifier is fitted to.

    Attributes:
        cfg: the configuration; a fit uses its `protocol`, `data`, `augment` and `seed`.
        backbone: the frozen backbone, in evaluation mode, on `device`.
        train: training videos whose labels may be used.
        features: of their clips, (N, K, D), in the order of `train` without those that failed.
        test: features of the test videos.
        classes: number of classes.
        device: of the computation.
        folder: for files that let a killed fit continue; it is deleted after the evaluation.
        name: "trained" or "random", whose weights the backbone has.
    """

    cfg: config.Config
    backbone: Backbone
    train: list[Record]
    features: Features
    test: Features
    classes: int
    device: torch.device
    folder: Path
    name: str


@dataclass(frozen=True)
class Fitted:
    """Hold a fitted classifier.

    Attributes:
        head: features (..., D) -> logits (..., K), on the device, without gradient of its
            parameters; it is attacked together with the backbone.
        settings: what was chosen, for the report, such as {"rate": 0.1}.
        chosen_on: which videos chose it.
        warnings: reasons to doubt it.
    """

    head: nn.Module
    settings: dict[str, float] = field(default_factory=dict)
    chosen_on: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class ProtocolSpec:
    """A protocol: an entry of the registry.

    Attributes:
        help: a phrase for tables.
        source: who reports it so, for docs/protocols.md.
        fit: fits a classifier to frozen features; None: kNN or the linear probe, which every
            evaluation has, or a training run.
        trains: a training run comes first, whose `method`, `optim`, `augment` and `train` are those
            of configs/protocols/<name>.yaml.
        options: keys of `protocol.*` that it uses.
        check: (configuration, training videos): raises UserError for videos that it cannot be
            fitted to, before anything is written.
        refusal: (configuration, that of the model's training or None) -> why they do not go
            together, or "".
    """

    help: str
    source: str
    fit: Callable[[FitInputs], Fitted] | None = None
    trains: bool = False
    options: frozenset[str] = frozenset()
    check: Callable[[config.Config, list[Record]], object] = lambda cfg, train: None
    refusal: Callable[[config.Config, config.Config | None], str] = lambda cfg, trained: ""
