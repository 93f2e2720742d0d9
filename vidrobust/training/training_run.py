"""TrainingRun: what the training loop works on."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from vidrobust import checkpoint, config
from vidrobust.data import ClipDataset, Record, records_sha
from vidrobust.data.places import stamp
from vidrobust.methods import Method
from vidrobust.methods.revisions import REVISION
from vidrobust.models.complexity import Complexity
from vidrobust.training.auto_rate import AutoRate
from vidrobust.training.ema import Average
from vidrobust.utils import distributed
from vidrobust.views import NegativeSpec


@dataclass
class TrainingRun:
    """A training run.

    Attributes:
        cfg: its configuration.
        out: its folder.
        device: of the model.
        records: training videos; the id of a video is its index here.
        dataset: their clips.
        method: the method with the model that it trains.
        optimizer: of the weights.
        start: steps that were done before, more than 0 after a resume.
        total: steps of the whole run.
        bf16: compute in bf16, by autocast.
        negatives: non-semantic negatives that are made of the first view.
        average: running average of the weights, or None.
        auto: reduces the rate by accuracy under attack, or None.
        bad: videos that did not decode on any rank, and why.
        notes: warnings to log once the log is open.
        complexity: size and cost of the model, for the log.
        stop: steps after which this process ends; 0: `total`.
        saved: steps of the newest checkpoint that this run has written, -1 for none.
    """

    cfg: config.Config
    out: Path
    device: torch.device
    records: list[Record]
    dataset: ClipDataset
    method: Method
    optimizer: torch.optim.Optimizer
    start: int
    total: int
    bf16: bool = False
    negatives: NegativeSpec = NegativeSpec()
    average: Average | None = None
    auto: AutoRate | None = None
    bad: dict[int, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    complexity: Complexity | None = None
    stop: int = 0
    saved: int = -1

    @property
    def main(self) -> bool:
        """True on rank 0, which writes the log and the checkpoints."""
        return distributed.rank() == 0

    @property
    def per_epoch(self) -> int:
        """Steps per epoch."""
        return len(self.records) // self.cfg.train.batch_size

    @property
    def rate_factor(self) -> float:
        """Factor of the scheduled learning rate."""
        return 1.0 if self.auto is None else self.auto.factor

    @property
    def too_many_bad(self) -> bool:
        """True if more videos are bad than `train.max_bad` allows."""
        return len(self.bad) > self.cfg.train.max_bad * len(self.records)

    def changed_ns(self, index: int) -> int:
        """Return when the file of a video, or its texture twin, was last changed."""
        path = self.records[index].path
        twins = self.dataset.twins
        paths = [path] if twins is None else [path, twins(path)]
        return max(stamp(each)[1] for each in paths)

    def save(self, step: int) -> Path:
        """Write a checkpoint after `step` steps and return its path.

        Raises:
            NonFinite: where weights are not finite; nothing is written.
        """
        # the weights of the model are stored apart, so that they can be read without the method
        method_state = {
            key: value
            for key, value in self.method.state_dict().items()
            if not key.startswith("model.")
        }
        bad = {index: [reason, self.changed_ns(index)] for index, reason in self.bad.items()}
        state = {
            "format": checkpoint.FORMAT,
            "method_revision": REVISION,
            "step": step,
            "bf16": self.bf16,
            "epoch": step // self.per_epoch,
            "model": self.method.model.state_dict(),
            "method": method_state,
            "optimizer": self.optimizer.state_dict(),
            "rng": checkpoint.rng_state(),
            "config": config.to_yaml(self.cfg),
            "manifest_sha": records_sha(self.records),  # ids of videos are places in this list
            "bad_videos": bad,
            "ranks": distributed.world(),
        }
        if self.average is not None:
            state["average"] = self.average.state
        if self.auto is not None:
            state["auto_rate"] = self.auto.state_dict()
        folder = self.out / "checkpoints"
        checkpoint.require_finite(state, step, folder)
        path = checkpoint.save(folder, state, self.cfg.train.keep)
        self.saved = step
        return path
