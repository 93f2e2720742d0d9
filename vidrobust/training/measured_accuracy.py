"""Measure accuracies in training, on which the loss or the learning rate depends.

All measurements depend on the state after a number of steps alone, and use random numbers of their
own. A resumed run therefore repeats them, and so do several ranks, each with a part of the batches.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from vidrobust.attacks import ThreatModel, parse_threat, pgd
from vidrobust.data import Batch, ClipDataset, batch_loader, eval_dataset, worker_deaths
from vidrobust.methods import Supervised
from vidrobust.methods.adversarial.adversary import in_mode
from vidrobust.methods.soft_labels import cross_entropy
from vidrobust.models.inference import evenly, to_clips
from vidrobust.training.training_run import TrainingRun
from vidrobust.utils import distributed
from vidrobust.utils.logging import log
from vidrobust.utils.seeds import SeedStream

# clips (B, C, T, H, W), labels (B,), number of the batch -> which clips are classified right (B,)
Judge = Callable[[Tensor, Tensor, int], Tensor]

_STEPS, _STEP = 20, 0.25  # of PGD: 20 steps of 2/255 within 8/255 in the code of AutoLoRa


@dataclass(frozen=True)
class Measured:
    """Counts of clips, one per video, over all ranks.

    Attributes:
        right: clips that are classified right.
        total: clips that decode and have a label.
    """

    right: int
    total: int

    @property
    def accuracy(self) -> float:
        """Fraction of clips that are right; 0 without clips."""
        return self.right / max(1, self.total)


def measure_for_loss(run: TrainingRun, step: int) -> None:
    """Measure the accuracy that weighs the terms of the loss, before the steps where it is due.

    As in the code of AutoLoRa, clips are augmented training clips, and they are measured at the
    start of each epoch and after the first step of each quarter. Here the clips are those of the
    epoch.

    Args:
        run: its method is given the accuracy, if its loss depends on one.
        step: the next one.
    """
    network = run.method.network_to_measure()
    epoch, batch = divmod(step, run.per_epoch)
    quarter = max(1, run.per_epoch // 4)
    if network is None or (batch and (batch - 1) % quarter):
        return
    # its own copy: the loader of training keeps in its data set what its workers read
    dataset = copy.copy(run.dataset)
    dataset.views = False  # they are made below, after the clips are on the device
    measured = _measure(run, dataset, partial(_is_right, network), epoch, augmented=True)
    run.method.record_accuracy(measured.accuracy)


def adapt_rate(run: TrainingRun, done: int) -> dict[str, float]:
    """Let the accuracy under attack decide on the rate and the weights, after each epoch.

    It is measured on the centre clips of training videos, in the network that evaluation measures.
    At the end of the run the method gets its best weights.

    Args:
        run: with `optim.schedule=auto`; any other stays as it is.
        done: number of steps that are done.

    Returns:
        Numbers of the epoch for the log.
    """
    if run.auto is None or (done % run.per_epoch and done < run.total):
        return {}
    dataset = eval_dataset(run.cfg.data, run.records, 1)
    measured = _measure(run, dataset, partial(_withstands, run, done))
    reduced = run.auto.record(measured.accuracy, run.method)
    if done == run.total:
        run.auto.go_back(run.method)
    if run.main and (reduced or done == run.total):
        best = run.auto.best_epoch
        log.info(
            f"step {done}: back to the weights after epoch {best}, with"
            f" {run.auto.accuracies[best]:.1%} of the training videos right under attack"
            + (f"; the rate is now {run.auto.factor:g} of its full value" if reduced else "")
        )
    return {
        "attacked_accuracy": measured.accuracy,
        "attacked_videos": measured.total,
        "rate_factor": run.auto.factor,
    }


def _is_right(
    network: Callable[[Tensor], Tensor], clips: Tensor, labels: Tensor, number: int
) -> Tensor:
    """Return which clips a network classifies right; a `Judge` but for the network."""
    return network(clips).argmax(1) == labels


def _withstands(run: TrainingRun, done: int, clips: Tensor, labels: Tensor, number: int) -> Tensor:
    """Return which clips are right under all threats, after PGD of 20 steps; a `Judge`.

    Args:
        run: has the model and the threats.
        done: number of steps that are done.
        clips: (B, C, T, H, W) in [0, 1].
        labels: (B,), -1 for none.
        number: of the batch.
    """
    model = run.method.model
    # a function of the batch, not of the rank that has it
    rng = np.random.default_rng([run.cfg.seed, SeedStream.MEASURED, done, number])
    generator = torch.Generator(clips.device).manual_seed(int(rng.integers(2**62)))
    right = torch.ones_like(labels, dtype=torch.bool)
    for threat, branch in measured_threats(run):
        with model.use_branch(branch):
            with torch.enable_grad():
                x_adv = pgd(
                    lambda v: cross_entropy(model(v), labels),
                    clips,
                    threat,
                    steps=_STEPS,
                    step_size=_STEP * threat.eps,
                    best=False,  # the last iterate, as in the code of AutoLoRa
                    generator=generator,
                )
            right &= model(x_adv).argmax(1) == labels
    return right


def measured_threats(run: TrainingRun) -> list[tuple[ThreatModel, str]]:
    """Return the threats of the measured accuracy, each with the norm branch that it goes through.

    They are those of `optim.auto_threats`, and otherwise those of training with their full eps.
    """
    adversary = run.method.adversary
    names = run.cfg.optim.auto_threats
    if adversary is None:
        return [(parse_threat(name), "clean") for name in names]
    if names:
        return [(parse_threat(name), adversary.branches[0]) for name in names]
    # one branch per threat, or one for all
    branches = adversary.branches * (len(adversary.threats) // len(adversary.branches))
    return list(zip(adversary.threats, branches, strict=True))


@torch.no_grad()
def _measure(
    run: TrainingRun, dataset: ClipDataset, judge: Judge, epoch: int = 0, *, augmented: bool = False
) -> Measured:
    """Count the clips that are classified right, over all ranks.

    Args:
        run: the run, whose model is in eval mode meanwhile.
        dataset: the clips, one per video.
        judge: says which clips are right.
        epoch: of the keys of the clips.
        augmented: apply the random flips and colours of training.
    """
    method, device = run.method, run.device
    assert isinstance(method, Supervised)
    # running statistics are those of rank 0, as in the next step
    distributed.broadcast(method.model.buffers())
    keys = [(epoch, index) for index in evenly(len(dataset), run.cfg.train.measured)]
    size = run.cfg.eval.batch_size
    batches = [keys[first : first + size] for first in range(0, len(keys), size)]
    numbers = range(distributed.rank(), len(batches), distributed.world())
    counts = torch.zeros(1, 2, dtype=torch.long, device=device)  # right, labelled
    with (
        distributed.together(),
        worker_deaths(dataset),
        in_mode(method.model, False),
        torch.random.fork_rng([device] if device.type == "cuda" else []),
    ):
        own = [batches[number] for number in numbers]
        # without batches, no workers are started
        loader: Iterable[Batch] = batch_loader(dataset, own, run.cfg.data.workers) if own else []
        for number, batch in zip(numbers, loader, strict=True):
            if not batch.uids:  # no video of the batch decodes
                continue
            clips = to_clips(batch, device, augmented=augmented)
            labels = method.targets(batch.index.to(device), batch.labels.to(device))
            labelled = labels >= 0
            with torch.autocast(device.type, torch.bfloat16, enabled=run.bf16):
                right = judge(clips, labels, number)
            counts[0, 0] += (right & labelled).sum()
            counts[0, 1] += labelled.sum()
    right, total = distributed.gather(counts).sum(0).tolist()
    return Measured(right, total)
