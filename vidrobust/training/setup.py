"""Set up data, model and optimizer for the first step or a resume."""

import copy
from pathlib import Path

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from vidrobust import checkpoint, config
from vidrobust.corruptions import OVER_TIME, expand
from vidrobust.data import (
    ClipDataset,
    Record,
    build_records,
    eval_dataset,
    require_labels,
    train_dataset,
)
from vidrobust.methods import Method, build_method, build_negatives, options_with_labels
from vidrobust.models import AttentiveHead, Backbone, branch_names
from vidrobust.models.complexity import Complexity, model_complexity
from vidrobust.models.fast_passes import arrange_passes
from vidrobust.models.feature_store import SharedStore
from vidrobust.models.inference import evaluation_mode, extract
from vidrobust.models.low_rank_branch import LowRankBranch
from vidrobust.models.recompute import recompute_blocks
from vidrobust.models.stages import blocks_of
from vidrobust.training.auto_rate import AutoRate
from vidrobust.training.ema import Average
from vidrobust.training.optim import build_optimizer, learning_rate
from vidrobust.training.resume import restore
from vidrobust.training.teacher import read_teacher
from vidrobust.training.training_run import TrainingRun
from vidrobust.utils import distributed
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log
from vidrobust.utils.seeds import seed_everything
from vidrobust.utils.threads import loads_seldom, use_threads
from vidrobust.views import NegativeSpec, count_numbers, require_room


def build_run(
    cfg: config.Config, out: Path, device: torch.device, resume: Path | None
) -> TrainingRun:
    """Return data, model and optimizer as the next step needs them.

    Nothing is written. `total_steps` and `learning_rate` are called here so that their refusals
    come before anything is written.

    Args:
        cfg: the configuration.
        out: folder of the run.
        device: of the model.
        resume: checkpoint to continue from; None: the first step is next.

    Raises:
        UserError: for options that do not fit each other, the data or the checkpoint.
    """
    # rank 0 first: it may have to render the built-in synthetic data set
    with distributed.main_first():
        records, classes = build_records(cfg.data, "train")
    seed_everything(cfg.seed, cfg.deterministic)
    total = total_steps(cfg, len(records))
    learning_rate(0, total, cfg.optim, cfg.method.head_first)  # refuses an unknown schedule
    _require_for_method(cfg, records, device)

    # Model. From here on, the order of calls decides which random numbers initialise what.
    method = build_method(cfg, len(classes))
    if not cfg.method.freeze and not any(True for _ in method.model.backbone.parameters()):
        raise UserError(
            f"model.backbone={cfg.model.backbone}: it has no weights to train; return a module, or"
            " train its head alone with method.freeze=true"
        )
    # non-semantic negatives are made from views by the loop, or brought by the loader (twins)
    negatives, twins = build_negatives(cfg.method.negatives)
    _require_room(negatives, cfg.data)
    _load_weights(cfg, method)
    method.to(device).prepare(records)
    shape = (3, cfg.data.frames, cfg.data.size, cfg.data.size)
    complexity = model_complexity(method.model, shape)
    seldom = _loads_seldom(cfg, method, complexity)
    ranks = distributed.ranks_on_these_cores()
    use_threads(cfg.data.workers, ranks=ranks, seldom=seldom)
    bf16 = arrange(method, cfg.train)
    if resume is None:  # a checkpoint holds the pseudo-labels
        _make_pseudo_labels(cfg, method, records, device)

    # Data, optimizer, and what follows the weights
    # Loading processes that have cores of their own make the views too. A large network computes
    # with all cores: its views take little of a step, and much memory in batches that wait.
    views = device.type == "cpu" and cfg.data.workers > 0 and not seldom
    dataset = _training_clips(cfg, records, method, total, negatives, twins=twins, views=views)
    optimizer = build_optimizer(method, cfg.optim, method.model.backbone)
    run = TrainingRun(cfg, out, device, records, dataset, method, optimizer, 0, total, bf16)
    run.negatives = negatives
    run.complexity = complexity
    if cfg.train.average:
        run.average = Average(method.model, cfg.train.average)
    if cfg.optim.schedule == "auto":
        epochs = _epochs(run.total, run.per_epoch)
        run.auto = AutoRate(cfg.optim.milestones, cfg.optim.gamma, cfg.optim.patience, epochs)
    run.notes += _notes(cfg)
    if resume:
        restore(run, resume)
    return run


def _loads_seldom(cfg: config.Config, method: Method, complexity: Complexity) -> bool:
    """Return whether loading takes little of a step, as `loads_seldom` does."""
    flops = complexity.flops_per_clip or 0
    videos = cfg.train.batch_size // distributed.world()
    # a backward pass costs two forward ones
    return loads_seldom(3 * method.views * videos * flops, videos, cfg.data.frames)


def total_steps(cfg: config.Config, videos: int) -> int:
    """Return the steps of the whole run.

    Args:
        cfg: its `train.*`.
        videos: in the training list.

    Raises:
        UserError: for a batch that is larger than the data set, or uneven over ranks.
    """
    size = cfg.train.batch_size
    world = distributed.world()
    if size > videos:
        raise UserError(f"train.batch_size={size} is larger than the data set ({videos} videos)")
    if size % world:
        raise UserError(
            f"train.batch_size={size} is global: it must be a multiple of the {world} ranks"
        )
    # one video has no negatives, and its batch norm no variance
    if size < 2 * world:
        raise UserError(
            f"train.batch_size={size}: batch norms and contrastive losses need two videos on each"
            " rank"
        )
    # an epoch drops the videos that do not fill a batch
    steps = cfg.train.epochs * (videos // size)
    return min(steps, cfg.train.max_steps) if cfg.train.max_steps else steps


def arrange(method: Method, cfg: config.TrainConfig) -> bool:
    """Apply the options of memory and speed; weights and their names stay the same.

    They are `train.channels_last`, `amp`, `compile`, `micro_batch` and `checkpoint_activations`.

    Args:
        method: the method, on its device.
        cfg: `train.*`.

    Returns:
        Whether the method computes in bf16.

    Raises:
        UserError: for micro-batches that do not fit the batch or the method.
    """
    _save_memory(method, cfg)
    device = next(method.parameters()).device
    bf16 = arrange_passes(method, device, channels_last=cfg.channels_last, amp=cfg.amp)
    if cfg.compile:
        # each norm branch has its own graphs, in train and eval mode, with and without gradient
        graphs = 4 * len(branch_names(method.model))
        limit = torch._dynamo.config.cache_size_limit
        torch._dynamo.config.cache_size_limit = max(limit, graphs)
        method.model.backbone.trunk.compile()
    return bf16


def _save_memory(method: Method, cfg: config.TrainConfig) -> None:
    """Apply `train.micro_batch` and `train.checkpoint_activations`; see `arrange`."""
    if size := cfg.micro_batch:
        share = cfg.batch_size // distributed.world()
        if share % size:
            of_rank = " of a rank" if distributed.world() > 1 else ""
            best = _largest_divisor(share, size)
            remedy = f"{best}, or 0" if best > 1 else "0"  # 1 suits few networks, see below
            raise UserError(
                f"train.micro_batch={size} does not divide the batch{of_rank}, {share} videos; set"
                f" {remedy} for the whole batch"
            )
        # One clip gives a batch norm no variance where a stage ends with a single place. Heads
        # receive the whole batch.
        norms = (isinstance(module, _BatchNorm) for module in method.model.backbone.modules())
        if size == 1 and any(norms):
            raise UserError(
                "train.micro_batch=1: batch norms need two clips at a time; set at least 2, or 0"
                " for the whole batch"
            )
        _refuse_other_passes(method, f"train.micro_batch={size}")
        for module in method.modules():
            if isinstance(module, Backbone):
                module.micro_batch = size
    if cfg.checkpoint_activations:
        _refuse_other_passes(method, "train.checkpoint_activations=true")
        try:
            recompute_blocks(blocks_of(method.model.backbone))
        except UserError:
            raise UserError(
                "train.checkpoint_activations=true: this network has no list of blocks; set it to"
                " false"
            ) from None


def _largest_divisor(number: int, limit: int) -> int:
    """Return the largest divisor of a number that is not above a limit."""
    return max(each for each in range(1, limit + 1) if number % each == 0)


def _refuse_other_passes(method: Method, option: str) -> None:
    """Raise UserError for methods whose passes cannot be computed again.

    Args:
        method: the method.
        option: the option that asks for it, with its value.
    """
    kinds = {AttentiveHead: "an attentive head reads a stage", LowRankBranch: "AutoLoRa's branch"}
    for kind, reason in kinds.items():
        if any(isinstance(module, kind) for module in method.modules()):
            raise UserError(f"{option}: not with this method ({reason}); leave it out")


def _require_for_method(cfg: config.Config, records: list[Record], device: torch.device) -> None:
    """Raise UserError for missing labels, and for synchronised norms without GPUs."""
    options = cfg.method
    for option in options_with_labels(options):
        require_labels(records, option)
    if options.norm == "sync" and distributed.world() > 1 and device.type != "cuda":
        raise UserError(f"method.norm=sync needs GPUs, and this is {device}; use shuffle or own")


def _require_room(negatives: NegativeSpec, data: config.DataConfig) -> None:
    """Raise UserError for non-semantic negatives that clips of this size have no room for."""
    try:
        require_room(negatives, data.frames, data.size)
    except ValueError as error:
        raise UserError(f"method.negatives: {error}") from None


def _load_weights(cfg: config.Config, method: Method) -> None:
    """Load `model.weights` and `method.teacher`, where they are set."""
    weights = cfg.model.weights
    backbone = method.model.backbone
    if weights:
        try:
            state = checkpoint.backbone_state(
                weights,
                branches=branch_names(backbone),
                head_key=backbone.head_key,
                keys=backbone.stored.state_dict().keys(),
            )
        except UserError as error:
            raise UserError(f"model.weights: {error}") from None
        expected = cfg.model.weights_sha
        if expected and (found := checkpoint.state_sha(state)) != expected:
            raise UserError(
                f"model.weights: {weights} holds a backbone of hash {found}, and"
                f" model.weights_sha={expected}; give the file of that hash, or begin another run"
            )
        checkpoint.load_state(backbone.stored, state, weights)
        log.info(f"{weights}: training begins with its backbone and a new head")
    if cfg.method.teacher and method.wants_teacher:
        teacher = read_teacher(cfg.method.teacher, cfg)
        method.set_teacher(teacher)
        if method.starts_as_teacher and not weights:
            _start_as(backbone, teacher)


def _start_as(student: Backbone, teacher: Backbone) -> None:
    """Give a student the weights of its teacher. Raise UserError where they do not fit."""
    try:
        checkpoint.load_state(student.stored, teacher.stored.state_dict(), "the teacher")
    except UserError:
        raise UserError(
            "method.student=teacher: the teacher's backbone has another architecture than model.*,"
            " and the student begins with its weights; use the same architecture, or set"
            " method.student=random"
        ) from None


def _make_pseudo_labels(
    cfg: config.Config, method: Method, records: list[Record], device: torch.device
) -> None:
    """Cluster the features of the centre clip of each video, if the method uses pseudo-labels.

    The ranks share the features. Rank 0 clusters them for all ranks.
    """
    backbone = method.backbone_to_cluster()
    if backbone is None or method.pseudo is None:
        return
    # DynACL++ clusters the features of another norm branch than it trains
    if cfg.method.clusters_from:
        weights = cfg.model.weights
        backbone = copy.deepcopy(backbone)
        state = checkpoint.backbone_state(weights, cfg.method.clusters_from)
        checkpoint.load_state(backbone.stored, state, weights)
    if distributed.rank() == 0:
        log.info(
            f"features of {len(records)} videos, to be clustered into {list(method.pseudo.counts)}"
        )
    with evaluation_mode(backbone):
        (features,) = extract(
            [backbone],
            eval_dataset(cfg.data, records, 1),
            device,
            batch_size=cfg.eval.batch_size,
            workers=cfg.data.workers,
            store=SharedStore(1),
        )
    if distributed.rank() == 0:
        if features.failed:
            log.warning(
                f"{len(features.failed)} videos do not decode and get no pseudo-label:"
                f" {features.failed[0].reason}"
            )
        method.pseudo.cluster(features.features[:, 0], features.index)
    distributed.patient_barrier()  # other ranks wait longer than a collective may take
    distributed.broadcast([method.pseudo.labels])


def _training_clips(
    cfg: config.Config,
    records: list[Record],
    method: Method,
    total: int,
    negatives: NegativeSpec,
    *,
    twins: bool,
    views: bool,
) -> ClipDataset:
    """Return the clips that training reads.

    Args:
        cfg: the configuration.
        records: training videos.
        method: says how many views it takes.
        total: steps of the whole run.
        negatives: non-semantic negatives, for which the data set brings random numbers.
        twins: it also brings texture twins.
        views: its workers make the float views.
    """
    per_epoch = len(records) // cfg.train.batch_size
    size = cfg.data.size
    return train_dataset(
        cfg.data,
        cfg.augment,
        records,
        method.views,
        cfg.seed,
        _epochs(total, per_epoch),
        original=method.original,
        twins=twins,
        numbers=count_numbers(negatives, cfg.data.frames, size, size),
        views=views,
    )


def _epochs(total: int, per_epoch: int) -> int:
    """Return the epochs of a run, rounded up.

    Args:
        total: steps of the run.
        per_epoch: steps per epoch.
    """
    return -(-total // per_epoch)


def _notes(cfg: config.Config) -> list[str]:
    """Return warnings of options that probably do not have the effect that was meant."""
    notes = []
    if cfg.method.clusters and not cfg.model.weights:
        notes.append(
            "method.clusters: pseudo-labels are clusters of the features of random weights; start"
            " from a trained backbone with model.weights"
        )
    if cfg.data.frames == 1:
        idle = [name for name in expand(cfg.augment.corruptions) if name in OVER_TIME]
        if idle:
            notes.append(
                "augment.corruptions: no effect on clips of one frame under " + ", ".join(idle)
            )
    return notes
