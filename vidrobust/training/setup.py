"""Set up data, model and optimizer for the first step or a resume."""

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vidrobust import checkpoint, config
from vidrobust.corruptions import OVER_TIME, expand
from vidrobust.data import (
    ClipDataset,
    Record,
    build_records,
    eval_dataset,
    records_sha,
    require_labels,
    train_dataset,
)
from vidrobust.data.scan import stamp
from vidrobust.methods import METHODS, Method, build_method
from vidrobust.methods.registry import fixed_options
from vidrobust.methods.revisions import REVISION, changed_since
from vidrobust.models import Backbone, branch_names
from vidrobust.models.inference import evaluation_mode, extract
from vidrobust.training.ema import Average
from vidrobust.training.optim import build_optimizer, learning_rate
from vidrobust.training.teacher import read_teacher
from vidrobust.utils import distributed
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log
from vidrobust.utils.seeds import seed_everything
from vidrobust.views import count_numbers, require_room

# options of the model and the optimizer that decide what is in a checkpoint
_FIXED = (
    "model.backbone",
    "model.width",
    "model.stem",
    "model.hidden",
    "model.dim",
    "model.head_norm",
    "model.head_layers",
    "model.head_norm_out",
    "optim.name",
)


@dataclass
class Run:
    """What the loop works on; `start` and `total` are steps of the whole run."""

    cfg: config.Config
    out: Path
    device: torch.device
    records: list[Record]
    dataset: ClipDataset
    method: Method
    optimizer: torch.optim.Optimizer
    start: int
    total: int
    average: Average | None = None
    bad: dict[int, str] = field(
        default_factory=dict
    )  # videos that did not decode, and why, on any rank
    notes: list[str] = field(default_factory=list)  # what the log says once it is open
    saved: int = -1  # steps of the newest checkpoint in `out`, -1 for none

    @property
    def per_epoch(self) -> int:
        return len(self.records) // self.cfg.train.batch_size

    @property
    def too_many_bad(self) -> bool:
        return len(self.bad) > self.cfg.train.max_bad * len(self.records)

    def changed_ns(self, index: int) -> int:
        """When the file of a video, or its texture twin, was last changed."""
        path, twins = self.records[index].path, self.dataset.twins
        return max(stamp(each)[1] for each in ([path] if twins is None else [path, twins(path)]))

    def save(self, step: int) -> Path:
        """Write a checkpoint after `step` steps.

        Raises NonFinite, and writes nothing, where weights are not finite.
        """
        method = {
            key: value
            for key, value in self.method.state_dict().items()
            if not key.startswith("model.")
        }
        state = {
            "format": checkpoint.FORMAT,
            "method_revision": REVISION,
            "step": step,
            "epoch": step // self.per_epoch,
            "model": self.method.model.state_dict(),
            "method": method,
            "optimizer": self.optimizer.state_dict(),
            "rng": checkpoint.rng_state(),
            "config": config.to_yaml(self.cfg),
            "manifest_sha": records_sha(self.records),
            "bad_videos": {
                index: [reason, self.changed_ns(index)] for index, reason in self.bad.items()
            },
        }
        if self.average is not None:
            state["average"] = self.average.state
        folder = self.out / "checkpoints"
        checkpoint.require_finite(state, step, folder)
        path = checkpoint.save(folder, state, self.cfg.train.keep)
        self.saved = step
        return path


def total_steps(cfg: config.Config, videos: int) -> int:
    """Steps of the whole run. Raises UserError when a batch is larger than the data set, or uneven
    over ranks.
    """
    size, world = cfg.train.batch_size, distributed.world()
    if size > videos:
        raise UserError(f"train.batch_size={size} is larger than the data set ({videos} videos)")
    if size % world:
        raise UserError(
            f"train.batch_size={size} is global: it must be a multiple of the {world} ranks"
        )
    if size < 2 * world:
        raise UserError(
            f"train.batch_size={size}: batch norms and contrastive losses need two videos on each"
            " rank"
        )
    steps = cfg.train.epochs * (videos // size)
    return min(steps, cfg.train.max_steps) if cfg.train.max_steps else steps


def build_run(cfg: config.Config, out: Path, device: torch.device, resume: Path | None) -> Run:
    """Data, model and optimizer as the first step, or the step after the checkpoint, finds them.

    `total_steps` and `learning_rate` are asked here so that what they refuse is refused before
    anything is written.
    """
    with distributed.main_first():  # it may have to draw the data set
        records, classes = build_records(cfg.data, "train")
    seed_everything(cfg.seed, cfg.deterministic)
    total = total_steps(cfg, len(records))
    learning_rate(0, total, cfg.optim, cfg.method.head_first)
    if METHODS[cfg.method.name].needs_labels(cfg.method):
        require_labels(records, f"method.name={cfg.method.name}")
    if cfg.method.norm == "sync" and distributed.world() > 1 and device.type != "cuda":
        raise UserError(f"method.norm=sync needs GPUs, and this is {device}; use shuffle or own")
    if cfg.method.false_negatives.rule == "oracle":
        require_labels(records, "method.false_negatives.rule=oracle")
    method = build_method(cfg, len(classes))
    try:
        require_room(method.negatives, cfg.data.frames, cfg.data.size)
    except ValueError as error:
        raise UserError(f"method.negatives: {error}") from None
    if cfg.model.weights:
        try:
            trunk = checkpoint.trunk_state(cfg.model.weights)
        except UserError as error:
            raise UserError(f"model.weights: {error}") from None
        checkpoint.load_state(method.model.backbone.trunk, trunk, cfg.model.weights)
    if cfg.method.teacher and method.wants_teacher:
        teacher = read_teacher(cfg.method.teacher, cfg)
        method.learn_from(teacher)
        if (
            cfg.method.name == "distill"
            and cfg.method.student == "teacher"
            and not cfg.model.weights
        ):
            _begin_as(method.model.backbone, teacher)
    method.to(device).prepare(records)
    arrange(method, cfg.train)
    if resume is None:  # a checkpoint holds what was found
        _look(cfg, method, records, device)
    epochs = -(-total // (len(records) // cfg.train.batch_size))
    dataset = train_dataset(
        cfg.data,
        cfg.augment,
        records,
        method.views,
        cfg.seed,
        epochs,
        original=method.original,
        twins=method.twin,
        numbers=count_numbers(method.negatives, cfg.data.frames, *2 * [cfg.data.size]),
    )
    run = Run(
        cfg, out, device, records, dataset, method, build_optimizer(method, cfg.optim), 0, total
    )
    idle = [
        name
        for name in expand(cfg.augment.corruptions)
        if name in OVER_TIME and cfg.data.frames == 1
    ]
    if cfg.train.average:
        run.average = Average(method.model, cfg.train.average)
    if cfg.method.clusters and not cfg.model.weights:
        run.notes.append(
            "method.clusters: pseudo-labels are clusters of the features of random weights; start"
            " from a trained trunk by model.weights"
        )
    if idle:
        run.notes.append(
            f"augment.corruptions: nothing changes of clips of one frame under {', '.join(idle)}"
        )
    if resume:
        _restore(run, resume)
    return run


def _begin_as(student: Backbone, teacher: Backbone) -> None:
    """Give a student the weights of its teacher. Raises UserError where they do not fit."""
    try:
        checkpoint.load_state(student.trunk, teacher.trunk.state_dict(), "the teacher")
    except UserError:
        raise UserError(
            "method.student=teacher: the teacher's trunk is of another architecture than model.*,"
            " and a student begins with its weights; build it alike, or set method.student=random"
        ) from None


def arrange(method: Method, cfg: config.TrainConfig) -> None:
    """Memory and code as `train.channels_last` and `train.compile` want them; weights and their
    names stay.
    """
    if cfg.channels_last:
        for p in method.parameters():
            if p.ndim > 3:
                p.data = p.data.contiguous(
                    memory_format=torch.channels_last if p.ndim == 4 else torch.channels_last_3d
                )
    if cfg.compile:
        # each branch has graphs of its own, in train and eval mode, with gradient and without
        torch._dynamo.config.cache_size_limit = max(
            torch._dynamo.config.cache_size_limit, 4 * len(branch_names(method.model))
        )
        method.model.backbone.trunk.compile()


def _look(cfg: config.Config, method: Method, records: list[Record], device: torch.device) -> None:
    """Give a method that wants pseudo-labels the features of the centre clip of each video; rank 0
    looks for all.
    """
    trunk = method.looks_with()
    if trunk is None or method.pseudo is None:
        return
    if cfg.method.clusters_from:
        trunk = copy.deepcopy(trunk)
        checkpoint.load_state(
            trunk.trunk,
            checkpoint.trunk_state(cfg.model.weights, cfg.method.clusters_from),
            cfg.model.weights,
        )
    if distributed.rank() == 0:
        log.info(
            f"features of {len(records)} videos, to be clustered into {list(method.pseudo.counts)}"
        )
        with evaluation_mode(trunk):
            (found,) = extract(
                [trunk],
                eval_dataset(cfg.data, records, 1),
                device,
                batch_size=cfg.eval.batch_size,
                workers=cfg.data.workers,
            )
        if found.failed:
            log.warning(
                f"{len(found.failed)} videos do not decode and get no pseudo-label:"
                f" {found.failed[0].reason}"
            )
        method.pseudo.cluster(found.features[:, 0], found.index)
    distributed.patient_barrier()  # a collective by itself gives up after minutes
    distributed.broadcast([method.pseudo.labels])


def _restore(run: Run, path: Path) -> None:
    """Put everything back as it was when the checkpoint was written."""
    state = checkpoint.read_checkpoint(path)
    if state["manifest_sha"] != records_sha(run.records):
        raise UserError(
            f"{path} was trained on another list of videos; train anew in another --output-dir"
        )
    if what := changed_since(run.cfg.method, int(state.get("method_revision", 1))):
        raise UserError(f"{path} is of an earlier revision: {what}")
    changed = config.differences(checkpoint.configuration(state, str(path)), run.cfg)
    kept = tuple(f"{key}=" for key in (*_FIXED, *fixed_options()))  # as config.differences writes
    fixed = [line for line in changed if line.startswith(kept)]
    if fixed:
        raise UserError(
            f"{path}: a resume cannot change {fixed[0]}; train anew in another --output-dir, from"
            " its backbone.pt by model.weights where the architecture is the same"
        )
    try:
        _restore_state(run, state, path)
    except UserError:
        raise
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"{path}: the checkpoint's content is damaged ({type(error).__name__}: "
            f"{reason}); take "
            "another"
        ) from None
    if run.start > run.total:
        raise UserError(
            f"{path} is at step {run.start}, beyond the {run.total} asked for: nothing to train; "
            "tools/test_net.py measures it"
        )
    if changed:
        run.notes.append(
            "resuming with options that differ from the checkpoint's, in brackets: "
            f"{', '.join(changed)}"
        )


def _restore_state(run: Run, state: dict[str, Any], path: Path) -> None:
    """Load weights, optimizer, generators and the list of bad videos of a checkpoint's state."""
    whole = {f"model.{key}": value for key, value in state["model"].items()} | state["method"]
    mine = run.method.state_dict()
    # a watch that a run of an earlier revision did not have begins anew
    whole = {key: value for key, value in mine.items() if key.startswith("watch.")} | whole
    if any(
        k.startswith("teacher.") and k in mine and not torch.equal(mine[k].cpu(), v)
        for k, v in whole.items()
    ):
        raise UserError(
            f"{path}: a resume cannot change the teacher, and"
            f" method.teacher={run.cfg.method.teacher} has other weights; give it the one it"
            " learned from"
        )
    checkpoint.load_state(run.method, whole, str(path))
    if run.average is not None:
        if "average" not in state:
            raise UserError(f"{path} was trained without train.average; set it to 0, or start anew")
        run.average.load(state["average"])
    asked = [
        {k: v for k, v in group.items() if k != "params"} for group in run.optimizer.param_groups
    ]
    run.optimizer.load_state_dict(state["optimizer"])
    for group, options in zip(run.optimizer.param_groups, asked, strict=True):
        group.update(options)  # decay and momentum are the configuration's, as the rate is
    checkpoint.set_rng_state(state["rng"])
    run.start = int(state["step"])
    known = state.get("bad_videos", {}).items()  # but for those that were mended
    run.bad = {
        index: reason
        for index, (reason, changed_ns) in known
        if run.changed_ns(index) == changed_ns
    }
