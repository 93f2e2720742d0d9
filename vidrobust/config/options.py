"""Every option, as typed dataclasses with defaults, help and ranges.

They are the only list of options. `vidrobust.config` fills them and refuses what does not fit.
"""

from dataclasses import dataclass, field
from typing import Any


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A field with its help line and what its values may be: low <= value <= high, value > above,
    or a choice.
    """
    metadata = {"help": help, "low": low, "high": high, "above": above, "choices": choices}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class MotionShapes:
    seed: int = option(0, "seed of the drawing", low=0)
    train_per_class: int = option(40, "training videos of each of the eight classes", low=1)
    test_per_class: int = option(
        16, "test videos of each class, in each of the two test lists", low=1
    )
    frames: int = option(40, "frames of a video", low=8)
    size: int = option(48, "height and width of a video, pixels", low=24)
    textures: int = option(
        14, "size of the texture pool; the first eight belong to the classes", low=9
    )
    texture_correlation: float = option(
        0.7, "share of training clips whose foreground texture is their class's", low=0, high=1
    )
    shape_correlation: float = option(
        0.8, "share of training clips whose shape is their class's", low=0, high=1
    )
    background_contrast: float = option(
        0.3, "contrast of the background's texture; 1: as the shape's", low=0, high=1
    )


@dataclass
class DataConfig:
    name: str = option("ucf101", "format of the data set (docs/data.md)")
    root: str = option("datasets/ucf101", "folder that holds the data set; ${oc.env:VAR} works")
    twins: str = option(
        "",
        "folder of the textures of its files, what datasets/prepare.py texture wrote; for "
        "method.negatives.names=[texture]",
    )
    manifest: str = option(
        "", "what datasets/prepare.py scan wrote; empty: files are taken as they are"
    )
    fold: int = option(
        1,
        "which official split: 1, 2, 3 (UCF101, HMDB51); 2 is texture-swapped (motionshapes)",
        low=1,
    )
    validation: float = option(
        0.0,
        "share of the training list held out, whole sources at a time, and evaluated on instead of"
        " the test list",
        low=0,
        high=0.9,
    )
    frames: int = option(16, "frames of a clip, T; 1 for an image", low=1, high=2**16)
    stride: int = option(2, "source frames from one sampled frame to the next", low=1)
    sampling: str = option("random", "training clips (docs/data.md)")
    policy: str = option(
        "repeat_last",
        "what a video shorter than a clip does",
        choices=("repeat_last", "loop", "error"),
    )
    short_side: int = option(
        128,
        "evaluation's short side, pixels, of which data.size is the central crop",
        low=8,
        high=2**14,
    )
    size: int = option(
        112, "height and width of the crop the model sees, pixels", low=8, high=2**14
    )
    series: str = option(
        "",
        "folders of frames with several series of images: which is the video, such as img_ or"
        " img_*.jpg",
    )
    backend: str = option(
        "auto",
        "decoder of videos; auto: the manifest's, or else pyav",
        choices=("auto", "pyav", "decord", "torchcodec"),
    )
    timeout_s: float = option(
        60.0,
        "seconds that reading a sample may take before its video is bad; 0: no limit",
        low=0,
        high=10**6,
    )
    workers: int = option(
        2, "loader processes of each rank; 0 decodes in the training process", low=0
    )
    motionshapes: MotionShapes = field(default_factory=MotionShapes)


@dataclass
class AugmentConfig:
    scale: list[float] = option(
        [0.2, 1.0], "area of the random resized crop: from, to", above=0, high=1
    )
    shift: int = option(
        0,
        "pixels of data.size by which the evaluation's centre crop is moved, at most, each way, "
        "black beyond the frame; 0: a random resized crop",
        low=0,
    )
    original_shift: int = option(
        0,
        "advcl, air: the same of the view beside the augmented ones, which is then mirrored as "
        "well; 0: as an evaluation sees it",
        low=0,
    )
    flip: float = option(0.5, "probability of a horizontal flip", low=0, high=1)
    jitter: list[float] = option(
        [0.4, 0.4, 0.4, 0.1], "strength of brightness, contrast, saturation, hue jitter", low=0
    )
    jitter_prob: float = option(0.8, "probability of jitter", low=0, high=1)
    gray: float = option(0.2, "probability of grayscale", low=0, high=1)
    blur: float = option(0.5, "probability of Gaussian blur", low=0, high=1)
    solarize: float = option(
        0.0, "probability of solarising: inverting what is brighter than 0.5", low=0, high=1
    )
    motion: float = option(
        0.0,
        "probability that a view shows its temporal differences alone: motion, no appearance",
        low=0,
        high=1,
    )
    fade: bool = option(
        False, "whether all but the flip weaken to nothing over the run, in twenty stages (DynACL)"
    )
    corruptions: list[str] = option(
        [],
        "corruptions of which a training clip gets one: names or sets as in eval.corruption.names;"
        " empty: none",
    )
    corruption_prob: float = option(0.5, "probability that a training clip gets one", low=0, high=1)
    corruption_severities: list[int] = option(
        [1, 2, 3], "at one of which severities", low=1, high=5
    )


@dataclass
class ModelConfig:
    backbone: str = option("r2plus1d_18", "backbone")
    width: int = option(
        0, "channels of the first stage, where the trunk has the option; 0: its default", low=0
    )
    stem: str = option(
        "", "resnets: imagenet or cifar; empty: its default", choices=("", "imagenet", "cifar")
    )
    weights: str = option(
        "", "trunk weights to start from: a backbone.pt or a checkpoint; empty: random"
    )
    hidden: int = option(512, "width of the projector's hidden layer; 0: a linear projector", low=0)
    head_norm: bool = option(
        False,
        "a batch norm in the projector, behind its hidden layer, as ACL and its successors "
        "have it; BYOL's and SimSiam's have theirs anyway",
    )
    head_layers: int = option(
        0, "linear layers of a projector with norms: 2, simsiam 3; 0: the method's own", low=0
    )
    head_norm_out: bool = option(
        False, "head_norm: another norm at the projector's end (ACL's code)"
    )
    dim: int = option(128, "width of the embedding the contrastive loss sees", low=1)


@dataclass
class AdversaryConfig:
    name: str = option("none", "how adversarial views are made and paired")
    threats: list[str] = option(
        [],
        "what the perturbation may be, as linf-4/255 (docs/threat_models.md); "
        "empty: the method's own",
    )
    combine: str = option(
        "average",
        "several threats: the loss is averaged over them, each clip takes the worst, or "
        "each has a norm branch",
        choices=("average", "worst", "branches"),
    )
    selector: bool = option(
        False,
        "combine=branches: the model learns which branch a clip should go through, for "
        "eval.branch=select (simclr, supcon, supervised)",
    )
    steps: int = option(-1, "steps of the attack; -1: the method's own", low=-1)
    step: float = option(
        0.0, "size of a step as a share of eps; 0: the method's own", low=0, high=2
    )
    start: str = option(
        "", "where the attack begins; empty: the method's own", choices=("", "clip", "random")
    )
    schedule: str = option(
        "constant",
        "of eps over the run: constant; linear: climbs during warmup; curriculum: "
        "climbs to the end; adaptive: drawn, as likely as its loss is large",
        choices=("constant", "linear", "curriculum", "adaptive"),
    )
    warmup: float = option(
        0.1, "schedule=linear: share of the run in which eps climbs from 0", low=0, high=1
    )
    first: float = option(0.25, "schedule=curriculum: share of eps at the beginning", low=0, high=1)
    momentum: float = option(
        0.0,
        "momentum of the adversarial branches' norm statistics; 0: the method's own",
        low=0,
        high=1,
    )
    alpha: float = option(1.0, "clae, taro: weight of the adversarial loss", low=0)
    faithful: bool = option(
        False,
        "clae as published: eps of the normalised clip (0.03 by default), nothing clamped, "
        "the attack moves norm statistics",
    )
    regularizer: float = option(
        1 / 256, "rocl: weight of the loss between x_adv and x2, 1 / lambda", low=0
    )
    pairing: str = option(
        "ds", "acl: two streams, both views adversarial, or one", choices=("ds", "a2a", "a2s")
    )
    key_encoder: bool = option(
        True,
        "dynacl: the second view goes through a momentum encoder, as released; "
        "eval.average then measures that; false: both through the model",
    )
    gamma: float = option(
        2.0, "deacl: weight of the similarity of adversarial and clean features", low=0
    )
    clusters: list[int] = option(
        [2, 10, 50, 100, 500], "advcl: k-means clusters of the teacher's features", low=2
    )
    ce_weight: float = option(0.2, "advcl: weight of the pseudo-labels' cross-entropy", low=0)
    radius: float = option(
        8.0, "advcl: frequencies that the high-frequency view lacks, cycles a frame", low=0
    )
    asymmetry: float = option(
        0.5,
        "A-InfoNCE: weight of a clean anchor's loss with an adversarial positive, and 1 "
        "less it of an adversarial anchor's (0.2 there); 0.5: as without",
        low=0,
        high=1,
    )
    pair_weight: float = option(
        1.0, "asymmetry: factor of both (1 there with rocl; 0.7 to 1.2 with advcl)", above=0
    )
    hardness: float = option(
        0.0,
        "A-InfoNCE: beta, by which hard negatives count more in adversarial losses (1 "
        "there); 0: all alike, as without",
        low=0,
    )
    debias: float = option(
        0.12, "hardness: share of the negatives that is taken to be false", low=0, high=0.99
    )
    sir: float = option(0.0, "acl, dynacl: weight of AIR's term of clean views (0.5 there)", low=0)
    air: float = option(
        0.0, "acl, dynacl: weight of AIR's term of adversarial views (0.5 there)", low=0
    )
    air_kl: bool = option(
        False,
        "sir, air: the paper's divergences; false: the released code's sums, which have q for "
        "log q",
    )
    beta: float = option(6.0, "trades: weight of the divergence from the clean prediction", low=0)
    replays: int = option(4, "free: steps on the same batch, the perturbation going on", low=1)


@dataclass
class FalseNegativesConfig:
    rule: str = option("none", "which negatives are taken for false (docs/methods.md)")
    action: str = option(
        "eliminate", "what becomes of them", choices=("eliminate", "attract", "downweight")
    )
    siblings: bool = option(True, "clips of the same source are found besides, whatever the rule")
    encoder: str = option(
        "own",
        "whose embeddings are looked at; moco's keys are momentum",
        choices=("own", "momentum"),
    )
    threshold: float = option(
        0.7,
        "cosine similarity above which (fixed, topk_threshold, adaptive_threshold's end)",
        low=-1,
        high=1,
    )
    start: float = option(0.95, "adaptive_threshold: where the threshold begins", low=-1, high=1)
    k: int = option(10, "topk, topk_threshold: so many of each anchor", low=1)
    rate: float = option(
        0.0,
        "quantile, adaptive_rate: share of an anchor's negatives; 0: 1 / classes, or 0.05 without"
        " labels",
        low=0,
        high=1,
    )
    over: str = option(
        "anchor", "quantile: of each anchor, or of the whole batch", choices=("anchor", "batch")
    )
    warmup: float = option(
        0.1, "adaptive rules: share of the run in which nothing is found", low=0, high=1
    )
    sigmas: float = option(2.5, "mean_std: standard deviations above the mean", low=0)
    clusters: int = option(0, "cluster: how many; 0: as many as classes", low=0)


@dataclass
class NegativesConfig:
    names: list[str] = option(
        [],
        "negatives of diminished semantics, made of each video's first view "
        "(docs/methods.md): patch, patch_frames, tube, shuffle, freeze, loop, reverse, "
        "tube_shuffle, texture (of data.twins); empty: none",
    )
    count: int = option(1, "so many of each, but of texture one", low=0)
    alpha: float = option(
        2.0,
        "factor of their similarity in the loss (simclr, supcon, moco, plain), or weight of "
        "their term (byol, simsiam); 0: no negatives",
        low=0,
    )
    patch_px: list[int] = option(
        [16, 72], "side of a patch, from and to, in a frame of 224 pixels; scaled for others", low=1
    )
    turn: bool = option(False, "flip patches and turn them by right angles at random")
    tube: int = option(4, "tube: frames of one", low=1)
    grid: int = option(4, "tube_shuffle: tubes a side", low=2)


@dataclass
class MethodConfig:
    name: str = option("simclr", "what is learned (docs/methods.md)")
    temperature: float = option(0.5, "temperature of the contrastive loss", above=0)
    clips_per_video: int = option(2, "views of a video, positives of each other", low=2)
    chunk: int = option(
        0, "simclr, supcon: anchors of the loss at a time, which saves memory; 0: all", low=0
    )
    joint_views: bool = option(
        False,
        "simclr, supcon: all views are one pass, one batch for the norms (SimCLR's, "
        "SupCon's and ACL's code), not a pass each (CLAE's)",
    )
    loss_scale: float = option(
        1.0,
        "simclr, supcon: factor of the contrastive loss; SupCon's code has temperature / "
        "0.07, on which its learning rates count",
        above=0,
    )
    momentum: float = option(
        0.99,
        "momentum encoder: share of it that a step keeps (moco, byol, dynacl, detection)",
        low=0,
        high=1,
    )
    momentum_climbs: bool = option(True, "along a cosine to 1 (BYOL); false: it stays (MoCo)")
    queue: int = option(4096, "moco: keys that are kept as negatives", low=1)
    norm: str = option(
        "shuffle",
        "batch norms on several ranks: moco's keys in shuffled batches, statistics of all ranks"
        " together, or of each rank's own",
        choices=("shuffle", "sync", "own"),
    )
    clusters: int = option(
        0,
        "supervised: k-means clusters of the trunk's first features in place of labels; 0: labels",
        low=0,
    )
    clusters_from: str = option(
        "",
        "clusters: the norm branch of model.weights whose features are clustered (clean "
        "in DynACL++); empty: that which the trunk begins with",
    )
    clusters_metric: str = option(
        "cosine",
        "clusters: of unit features, or of features as they are",
        choices=("cosine", "euclidean"),
    )
    head_first: float = option(
        0.0,
        "supervised: share of the run in which the head is trained alone, on clean clips",
        low=0,
        high=1,
    )
    teacher: str = option(
        "", "distill, advcl: a training checkpoint, or the backbone.pt of one with the same model.*"
    )
    student: str = option(
        "teacher",
        "distill: weights it begins with, unless model.weights are given: the teacher's "
        "(DeACL's code) or random",
        choices=("teacher", "random"),
    )
    predictor: int = option(512, "byol, simsiam: width of the predictor's hidden layer", low=1)
    adversary: AdversaryConfig = field(default_factory=AdversaryConfig)
    false_negatives: FalseNegativesConfig = field(default_factory=FalseNegativesConfig)
    negatives: NegativesConfig = field(default_factory=NegativesConfig)


@dataclass
class OptimConfig:
    name: str = option("sgd", "optimizer")
    lr: float = option(
        0.1, "peak learning rate for the whole (global) batch; never rescaled", above=0
    )
    momentum: float = option(0.9, "momentum (sgd, lars)", low=0, high=1)
    weight_decay: float = option(1e-4, "weight decay", low=0)
    decay_norms: bool = option(
        False, "norms and biases decay as well, as in the SGD of most papers' code"
    )
    lars_exclude: bool = option(
        True,
        "lars: norms and biases take plain steps (SimCLR's code); false: their rate is "
        "adapted as all others' (ACL's, RoCL's)",
    )
    schedule: str = option("cosine", "learning rate over the run")
    milestones: list[float] = option(
        [0.6, 0.8],
        "schedule=step: shares of the run, behind the warm-up, at which the "
        "rate is multiplied by gamma",
        low=0,
        high=1,
    )
    gamma: float = option(0.1, "schedule=step: factor of the rate at each milestone", above=0)
    head_lr: float = option(
        0.0,
        "constant rate while the head is trained alone (method.head_first), before the "
        "schedule begins; 0: no rate of its own",
        low=0,
    )
    fix_predictor: bool = option(
        False, "byol, simsiam: the predictor's rate stays at lr (SimSiam's code)"
    )
    warmup: float = option(0.1, "share of the run in which the rate climbs linearly", low=0, high=1)
    clip_norm: float = option(0.0, "largest gradient norm; 0: no clipping", low=0)


@dataclass
class TrainConfig:
    batch_size: int = option(64, "videos in a batch over all ranks", low=1)
    epochs: int = option(100, "passes over the training list", low=1)
    max_steps: int = option(0, "stop after so many steps; 0: epochs decide", low=0)
    amp: str = option(
        "auto", "bf16 autocast; auto: on GPUs that have it", choices=("auto", "bf16", "fp32")
    )
    average: float = option(
        0.0,
        "momentum of a running average of the weights, which checkpoints hold for "
        "eval.average; 0: none",
        low=0,
        high=1,
    )
    channels_last: bool = option(
        False, "weights with channels last in memory, which GPUs may like in bf16"
    )
    compile: bool = option(False, "torch.compile of the trunk; needs a C++ compiler")
    log_every: int = option(10, "steps between log lines", low=1)
    checkpoint_every: int = option(200, "steps between checkpoints", low=1)
    max_bad: float = option(
        0.05,
        "share of the videos that may be bad, and replaced, before the run stops",
        low=0,
        high=1,
    )
    keep: int = option(2, "how many step_*.pt are kept besides last.pt", low=1)


@dataclass
class CorruptionConfig:
    names: list[str] = option(
        [],
        "corruptions after which accuracy is measured: names, or imagenet-c, mini-kinetics-c,"
        " ssv2-c, ucf101-p, quick, all (docs/corruptions.md); empty: none",
    )
    severities: list[int] = option([1, 2, 3, 4, 5], "at which severities", low=1, high=5)
    place: str = option(
        "source",
        "source: frames as in the file, before crop and resize; view: the crop that the model sees",
        choices=("source", "view"),
    )
    baseline: str = option(
        "", "summary.json of another model's corruptions, to which mCE is relative; empty: none"
    )


@dataclass
class ShiftConfig:
    name: str = option(
        "",
        "format of another data set, on whose videos of the same classes accuracy is measured: "
        "hmdb51, class_folder, ...; empty: none",
    )
    root: str = option("", "its folder; empty: data.root, of which another fold has other videos")
    fold: int = option(1, "its official split", low=1)


@dataclass
class EvalConfig:
    enabled: bool = option(True, "measure at the end of training")
    name: str = option("pgd", "folder of the results, under the run's eval/")
    batch_size: int = option(32, "clips in an evaluation batch", low=1)
    clips: int = option(3, "clips of a video for kNN, probe and features", low=1)
    sampling: str = option(
        "uniform", "which clips; uniform: over the whole length, dense: back to back"
    )
    knn_k: int = option(20, "neighbours that vote", low=1)
    knn_temperature: float = option(0.1, "temperature of the votes", above=0)
    probe_l2: float = option(1e-3, "L2 penalty of the linear probe on standardised features", low=0)
    suite: str = option("pgd", "autoattack, one of its versions, or one attack")
    threats: list[str] = option(
        ["linf-0", "linf-0.5/255", "linf-1/255", "linf-2/255", "linf-4/255"],
        "budgets: [support[k][@place]-]norm-eps, as linf-4/255, flicker-linf-8/255, frames4-l2-0.5,"
        " patch30-linf-1; empty: no attack",
    )
    steps: int = option(20, "steps of a single attack such as pgd", low=1)
    restarts: int = option(1, "restarts of a single attack; the best of a sample counts", low=1)
    queries: int = option(
        5000, "queries of a single black-box attack, forward passes a clip", low=4
    )
    effort: float = option(
        1.0, "share of AutoAttack's steps and queries; below 1 it is not AutoAttack", above=0
    )
    unit: str = option(
        "clip",
        "clip: one centre clip a video is attacked; video: its source frames, through the average"
        " of eval.clips clips and eval.crops crops",
        choices=("clip", "video"),
    )
    crops: int = option(
        1, "unit=video: crops of each clip, 1 (centre) or 3 (along the longer side)", low=1, high=3
    )
    h264: int = option(
        0,
        "CRF of an H.264 round trip after which accuracy is told as well, such as 23; 0: none",
        low=0,
        high=51,
    )
    checks: int = option(
        8, "clips on which model and attack are checked before a number is believed; 0: none", low=0
    )
    average: bool = option(
        False,
        "measure not the last weights but their average: of train.average, or dynacl's "
        "momentum encoder",
    )
    branch: str = option(
        "clean",
        "norm branch that is evaluated: clean, adv, adv2, ..., or all of them: average, or select,"
        " by the model's own selector",
    )

    limit: int = option(0, "attack only so many test videos, evenly over the list; 0: all", low=0)
    sensitivity: int = option(
        0,
        "test clips on which it is measured, without labels, how far an attack moves their"
        " representation and whose it becomes (docs/methods.md); 0: none, or at least 2",
        low=0,
    )
    sensitivity_eps: list[float] = option([0.05], "at which Linf budgets", above=0, high=1)
    pictures: int = option(2, "clips drawn in the report, beside their adversarial twins", low=0)
    bias: list[str] = option(
        [],
        "what a model looks at: accuracy on clips that lack a cue, or whose cues disagree"
        " (docs/methods.md): patch, patch_frames, tube, texture, shuffle, freeze, loop, reverse,"
        " tube_shuffle, background, motion, conflict, swapped, swapped_frozen; empty: none",
    )
    corruption: CorruptionConfig = field(default_factory=CorruptionConfig)
    shift: ShiftConfig = field(default_factory=ShiftConfig)


@dataclass
class Config:
    seed: int = option(
        0, "seed of weights, sampling, augmentation and attacks", low=0, high=2**63 - 1
    )
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps")
    deterministic: bool = option(
        False, "deterministic kernels: slower on a GPU; CPU runs are exact without it"
    )
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
