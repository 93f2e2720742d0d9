"""Every option, as typed dataclasses with defaults, help and allowed ranges.

This file is the only list of options. `vidrobust.config` fills the dataclasses and refuses values
that do not fit. `--help` prints the help texts, `docs/` quotes the keys.
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
    """Return a dataclass field with a help text and limits on its values.

    The limits of a list hold for each of its items.

    Args:
        default: default value; a list is copied for each configuration.
        help: text that `--help` prints.
        low: smallest allowed value.
        high: largest allowed value; None: MAX_WHOLE of `load.py` for integers, no limit for floats.
        above: the value must be greater than this.
        choices: allowed values of a text option; () allows any text.
    """
    metadata = {"help": help, "low": low, "high": high, "above": above, "choices": choices}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


# The order of sections and options below is the order of --help, of config.yaml and of the hash of
# a configuration (config_sha). New options are added, existing ones are never moved.


@dataclass
class MotionShapes:
    """Options `data.motionshapes.*` of the built-in synthetic data set."""

    seed: int = option(0, "random seed of the generated videos", low=0)
    train_per_class: int = option(40, "training videos in each of the eight classes", low=1)
    test_per_class: int = option(
        16, "test videos in each class, in each of the two test splits", low=1
    )
    frames: int = option(40, "frames per video", low=8)
    size: int = option(48, "height and width of a video, pixels", low=24)
    # Textures are a spurious cue: they predict the class in training, not on the second test split.
    textures: int = option(
        14, "number of textures; the first eight are the textures of the eight classes", low=9
    )
    texture_correlation: float = option(
        0.7,
        "fraction of training videos whose shape has the texture of its class",
        low=0,
        high=1,
    )
    shape_correlation: float = option(
        0.8, "fraction of training videos that show the shape of their class", low=0, high=1
    )
    background_contrast: float = option(
        0.3,
        "contrast of the background texture relative to that of the shape; 1: equal",
        low=0,
        high=1,
    )


@dataclass
class DataConfig:
    """Options `data.*`: the data set, and how clips are read from it."""

    # Where the data set is.
    name: str = option("ucf101", "format of the data set (docs/data.md)")
    root: str = option("datasets/ucf101", "folder of the data set; ${oc.env:VAR} is replaced")
    twins: str = option(
        "",
        "folder of texture versions of the files, written by datasets/prepare.py texture; needed by"
        " method.negatives.names=[texture] and eval.bias=[texture]",
    )
    manifest: str = option(
        "",
        "manifest written by datasets/prepare.py scan; empty: files are used without a scan",
    )
    fold: int = option(
        1,
        "official split 1, 2 or 3 (UCF101, HMDB51); motionshapes: 2 is the texture-swapped test"
        " split",
        low=1,
    )
    validation: float = option(
        0.0,
        "fraction of the training split held out by source video; evaluation uses it instead of the"
        " test split",
        low=0,
        high=0.9,
    )
    labels: str = option(
        "",
        "part of the training videos that is used, such as 10% of each class, or 5 of each class:"
        " few labels; empty: all",
    )
    labels_seed: int = option(0, "seed that chooses the videos of data.labels", low=0)
    # Which frames a clip takes.
    frames: int = option(16, "frames per clip, T; 1 for images", low=1, high=2**16)
    stride: int = option(2, "distance between sampled frames, in source frames", low=1)
    fps: float = option(
        0.0,
        "frames per second at which videos are sampled before data.stride counts, those of unknown"
        " rate as if they had 25; 0: every source frame",
        low=0,
        high=10**4,
    )
    sampling: str = option("random", "sampler of training clips (docs/data.md)")
    policy: str = option(
        "repeat_last",
        "what to do with a video shorter than a clip",
        choices=("repeat_last", "loop", "error"),
    )
    # Pixels.
    short_side: int = option(
        128,
        "evaluation: frames are resized to this shorter side, pixels, before the center crop of"
        " data.size",
        low=8,
        high=2**14,
    )
    resize: list[int] = option(
        [],
        "evaluation: height and width to which frames are resized, whatever their shape, in place"
        " of data.short_side; empty: the aspect ratio is kept",
        low=8,
        high=2**14,
    )
    size: int = option(112, "height and width of the model's input, pixels", low=8, high=2**14)
    interpolation: str = option(
        "bilinear", "how frames are resized", choices=("bilinear", "bicubic")
    )
    series: str = option(
        "",
        "frame folders that hold several image series: which one is the video, such as img_ or"
        " img_*.jpg",
    )
    # Decoding.
    backend: str = option(
        "auto",
        "video decoder; auto: the one named in the manifest, otherwise pyav",
        choices=("auto", "pyav", "decord", "torchcodec"),
    )
    timeout_s: float = option(
        60.0,
        "seconds to wait for one sample before its video counts as bad; 0: no limit",
        low=0,
        high=10**6,
    )
    workers: int = option(
        2, "data-loading processes per rank; 0 decodes in the training process", low=0
    )
    motionshapes: MotionShapes = field(default_factory=MotionShapes)
    archive: str = option(
        "",
        "tar archive of the data set, a folder of .tar files or a pattern of them, read in place as"
        " if unpacked in data.root; datasets/prepare.py pack writes one; empty: loose files",
    )
    in_memory: str = option(
        "auto",
        "images of one size are read into memory, once; auto: up to 1.5 GiB on each rank, if more"
        " than half of them are needed",
        choices=("auto", "true", "false"),
    )
    classes: list[str] = option(
        [], "names of the classes whose videos are used, in training and evaluation; empty: all"
    )


@dataclass
class AugmentConfig:
    """Options `augment.*`: random changes of each training clip."""

    # Geometry: either a random resized crop (scale), or a shifted center crop (shift).
    scale: list[float] = option(
        [0.2, 1.0],
        "random resized crop: smallest and largest area, as a fraction of the frame",
        above=0,
        high=1,
    )
    shift: int = option(
        0,
        "shift the center crop of the evaluation by up to this many pixels of data.size in each"
        " direction, filled with black, instead of a random resized crop; 0: random resized crop",
        low=0,
    )
    original_shift: int = option(
        0,
        "advcl, AIR: as augment.shift, for the additional view without color augmentation; this"
        " view is then also flipped at random; 0: the evaluation's center crop",
        low=0,
    )
    flip: float = option(0.5, "probability of a horizontal flip", low=0, high=1)
    # Colors.
    jitter: list[float] = option(
        [0.4, 0.4, 0.4, 0.1],
        "color jitter: strengths of brightness, contrast, saturation and hue",
        low=0,
    )
    jitter_prob: float = option(0.8, "probability of color jitter", low=0, high=1)
    gray: float = option(0.2, "probability of grayscale", low=0, high=1)
    blur: float = option(0.5, "probability of Gaussian blur", low=0, high=1)
    solarize: float = option(
        0.0, "probability of solarization, which inverts pixels brighter than 0.5", low=0, high=1
    )
    # Motion as a positive view: see docs/negatives.md.
    motion: float = option(
        0.0,
        "probability that a view is replaced by its temporal differences: motion without"
        " appearance",
        low=0,
        high=1,
    )
    fade: bool = option(
        False,
        "reduce all augmentations except the flip to zero over the run, in twenty stages (DynACL)",
    )
    # Corruptions as augmentation.
    corruptions: list[str] = option(
        [],
        "apply one of these corruptions to a training clip: names or sets, as in"
        " eval.corruption.names; empty: none",
    )
    corruption_prob: float = option(
        0.5, "probability that a training clip is corrupted", low=0, high=1
    )
    corruption_severities: list[int] = option(
        [1, 2, 3], "severities to choose from, each 1 to 5", low=1, high=5
    )


@dataclass
class InputConfig:
    """Options `model.input.*`: what a model of another package expects, in place of its card.

    At these defaults, the card decides.
    """

    frames: int = option(0, "frames of a clip", low=0, high=2**16)
    stride: int = option(0, "source frames from one frame to the next", low=0)
    fps: float = option(0.0, "frames per second, in place of a stride", low=0, high=10**4)
    short_side: int = option(0, "pixels of the shorter side after the resize", low=0, high=2**14)
    resize: list[int] = option(
        [], "height and width after the resize, whatever the shape of the frames", low=8, high=2**14
    )
    size: list[int] = option([], "height and width of the crop", low=8, high=2**14)
    interpolation: str = option("", "how frames are resized", choices=("", "bilinear", "bicubic"))
    mean: list[float] = option([], "means of the channels, in units of model.input.range")
    std: list[float] = option([], "standard deviations of the channels, in the same units", above=0)
    range: list[float] = option([], "values of black and white, such as [0,255]")
    channels: str = option("", "order of the channels", choices=("", "rgb", "bgr"))
    layout: str = option(
        "",
        "order of the dimensions; pathways: a list of slow and fast clips",
        choices=("", "BCTHW", "BTCHW", "pathways"),
    )
    alpha: int = option(0, "layout=pathways: frames per frame of the slow pathway", low=0)
    slow_frames: str = option(
        "",
        "layout=pathways: which frames the slow pathway takes, as model.slow_frames",
        choices=("", "stride", "linspace"),
    )
    view_average: str = option(
        "",
        "what is averaged over the views of a video",
        choices=("", "logits", "probabilities"),
    )
    classes: str = option(
        "", "file with a class name in each line, in the order of the model's outputs"
    )
    acc: float = option(0.0, "accuracy that the authors report, as a fraction", low=0, high=1)
    acc_dataset: str = option("", "data set of that accuracy, such as ucf101")
    acc_views: str = option("", "its views, such as 10x3")
    acc_source: str = option("", "where it is reported")


@dataclass
class ModelConfig:
    """Options `model.*`: the backbone, and the projector on top of it."""

    backbone: str = option("r2plus1d_18", "architecture of the backbone")
    width: int = option(
        0,
        "channels of the first stage, if the backbone has this option; 0: the backbone's default",
        low=0,
    )
    stem: str = option(
        "",
        "first layers of a ResNet: imagenet or cifar; empty: the backbone's default",
        choices=("", "imagenet", "cifar"),
    )
    weights: str = option(
        "",
        "initial backbone weights: a backbone.pt, a checkpoint, or a file of other code that"
        " docs/models.md lists; empty: random initialization",
    )
    weights_sha: str = option(
        "",
        "hash of the backbone in model.weights, which training then requires; protocols that train"
        " set it, so that other weights are not taken for those of a finished run; empty: any",
    )
    # What a file of weights may need; `model.weights` sets these where they are not set.
    mean: list[float] = option(
        [],
        "means of the RGB channels, subtracted from clips in [0, 1]; empty: the backbone's default",
    )
    std: list[float] = option(
        [],
        "standard deviations of the RGB channels, by which clips are then divided; empty: the"
        " backbone's default",
        above=0,
    )
    stem_padding: int = option(
        0,
        "ResNets: pixels of padding of the first convolution; 0: half of its size. Weights of"
        " solo-learn and DeACL need 2",
        low=0,
    )
    slow_frames: str = option(
        "",
        "SlowFast: frames of the slow pathway, stride (every fourth, as in pytorchvideo) or"
        " linspace (from the first to the last, as in PySlowFast); empty: stride",
        choices=("", "stride", "linspace"),
    )
    dilated: bool = option(
        False,
        "r2plus1d_18: keep the number of frames in the last stage by a dilation; weights of TCLR"
        " need it",
    )
    # The projector.
    hidden: int = option(
        512, "width of the projector's hidden layers; 0: a linear projector", low=0
    )
    head_norm: bool = option(
        False,
        "batch norm after each hidden layer of the projector, as in ACL and its successors; byol"
        " and simsiam always have it",
    )
    head_layers: int = option(
        0,
        "linear layers of a projector with batch norm; 0: the method's default, 3 for simsiam and 2"
        " otherwise",
        low=0,
    )
    head_norm_out: bool = option(
        False, "with head_norm: also a batch norm after the projector's last layer (ACL's code)"
    )
    dim: int = option(128, "dimension of the projected embedding that the loss uses", low=1)
    input: InputConfig = field(default_factory=InputConfig)
    # The classifier of the supervised method.
    head: str = option(
        "linear",
        "supervised: classifier of features (linear), or of tokens by a learned query (attentive:"
        " V-JEPA's attentive probe)",
        choices=("linear", "attentive"),
    )
    head_blocks: int = option(
        1,
        "head=attentive: blocks; 1: cross-attention (V-JEPA); 4: three blocks of self-attention"
        " before it (V-JEPA 2)",
        low=1,
    )
    head_stage: str = option(
        "",
        "head=attentive: stage of the backbone whose tokens it takes, or another module of it;"
        " empty: the last stage",
    )
    head_heads: int = option(
        0, "head=attentive: attention heads; 0: one per 64 channels (V-JEPA)", low=0
    )
    head_mlp_ratio: float = option(
        4.0, "head=attentive: hidden channels of its MLPs per channel", above=0
    )
    head_scale: float = option(
        1.0,
        "supervised: factor of the classifier's initial weights, 0 in DynACL's code, 0.001 in"
        " VideoMAE's",
        low=0,
    )
    head_dropout: float = option(
        0.0, "supervised, head=linear: dropout of the features", low=0, high=0.99
    )
    drop_path: float = option(
        -1.0,
        "rate of stochastic depth of the last block, for networks of other packages that have it;"
        " -1: the network's own",
        low=-1,
        high=0.99,
    )


@dataclass
class AdversaryConfig:
    """Options `method.adversary.*`: adversarial views, and the loss on them."""

    # The threat model.
    name: str = option("none", "method of adversarial training: how views are attacked and paired")
    threats: list[str] = option(
        [],
        "threat models of the attack, such as linf-4/255 (docs/threat_models.md); empty: the"
        " method's default",
    )
    combine: str = option(
        "average",
        "with several threats: average the loss over threats, use the worst threat for each clip,"
        " or give each threat its own batch-norm branch",
        choices=("average", "worst", "branches"),
    )
    selector: bool = option(
        False,
        "with combine=branches: also train a classifier that selects the branch for a clip, for"
        " eval.branch=select (simclr, supcon, supervised)",
    )
    # The attack.
    steps: int = option(-1, "steps of the attack; -1: the method's default", low=-1)
    step: float = option(
        0.0, "step size, as a fraction of eps; 0: the method's default", low=0, high=2
    )
    start: str = option(
        "",
        "start of the attack: the clip itself or a random point within eps; empty: the method's"
        " default",
        choices=("", "clip", "random"),
    )
    schedule: str = option(
        "constant",
        "eps over the run; constant; linear: increases from 0 during the warm-up; curriculum:"
        " increases until the end; adaptive: sampled with a probability proportional to its loss",
        choices=("constant", "linear", "curriculum", "adaptive"),
    )
    warmup: float = option(
        0.1,
        "schedule=linear: fraction of the run in which eps increases from 0 to its full value",
        low=0,
        high=1,
    )
    first: float = option(
        0.25,
        "schedule=curriculum: eps at the start, as a fraction of its full value",
        low=0,
        high=1,
    )
    momentum: float = option(
        0.0,
        "momentum of batch-norm statistics in the adversarial branches; 0: the method's default",
        low=0,
        high=1,
    )
    # Options of single adversaries.
    alpha: float = option(1.0, "clae, taro: weight of the adversarial loss", low=0)
    faithful: bool = option(
        False,
        "clae: as released: eps in units of the normalized clip (paper: 0.03), no clamping to"
        " [0, 1], and the attack updates batch-norm statistics",
    )
    regularizer: float = option(
        1 / 256,
        "rocl: weight of the loss between x_adv and x2, 1 / lambda in the paper",
        low=0,
    )
    pairing: str = option(
        "ds",
        "acl: dual stream (ds), adversarial-to-adversarial (a2a) or adversarial-to-standard (a2s)",
        choices=("ds", "a2a", "a2s"),
    )
    key_encoder: bool = option(
        True,
        "dynacl: embed the second view by a momentum encoder, as in the released code;"
        " eval.average then measures that encoder; false: embed both views by the model",
    )
    gamma: float = option(
        2.0, "deacl: weight of the similarity between adversarial and clean features", low=0
    )
    clusters: list[int] = option(
        [2, 10, 50, 100, 500],
        "advcl: numbers of k-means clusters of the teacher's features, one set of pseudo-labels"
        " each",
        low=2,
    )
    ce_weight: float = option(
        0.2, "advcl: weight of the cross-entropy with the pseudo-labels", low=0
    )
    radius: float = option(
        8.0,
        "advcl: cut-off of the high-pass filter of the high-frequency view, cycles per frame",
        low=0,
    )
    # A-InfoNCE (Yu et al. 2022): asymmetric pairs and hard negatives, with any contrastive method.
    asymmetry: float = option(
        0.5,
        "A-InfoNCE: weight of the loss of a clean anchor with an adversarial positive; the reverse"
        " pair has 1 minus this weight (paper: 0.2); 0.5: symmetric, off",
        low=0,
        high=1,
    )
    pair_weight: float = option(
        1.0,
        "A-InfoNCE with asymmetry: factor of both weights (paper: 1 with rocl, 0.7 to 1.2 with"
        " advcl)",
        above=0,
    )
    hardness: float = option(
        0.0,
        "A-InfoNCE: beta, which gives hard negatives more weight in adversarial losses (paper: 1);"
        " 0: equal weights, off",
        low=0,
    )
    debias: float = option(
        0.12,
        "A-InfoNCE with hardness: assumed fraction of false negatives among the negatives",
        low=0,
        high=0.99,
    )
    # AIR (Xu et al. 2023): invariance terms added to acl and dynacl.
    sir: float = option(0.0, "acl, dynacl: weight of AIR's term on clean views (paper: 0.5)", low=0)
    air: float = option(
        0.0, "acl, dynacl: weight of AIR's term on adversarial views (paper: 0.5)", low=0
    )
    air_kl: bool = option(
        False,
        "AIR: true: the KL divergence of the paper; false: the sum in the released code, which has"
        " q where the paper has log q",
    )
    # Supervised comparators.
    beta: float = option(
        6.0, "trades: weight of the divergence from the prediction for the clean clip", low=0
    )
    replays: int = option(
        4, "free: updates per batch; the perturbation is kept from one to the next", low=1
    )
    rank: int = option(8, "autolora: rank of its branch, per column of a kernel", low=1)
    scale: float = option(
        6.0,
        "autolora: weight of the divergence from the branch's prediction for the clean clip, where"
        " the accuracy of the branch is 1",
        low=0,
    )


@dataclass
class FalseNegativesConfig:
    """Options `method.false_negatives.*`: detection and treatment of false negatives."""

    # Detection.
    rule: str = option("none", "rule that detects false negatives (docs/false_negatives.md)")
    action: str = option(
        "eliminate",
        "what to do with false negatives: drop them from the denominator, use them as positives, or"
        " reduce their weight",
        choices=("eliminate", "attract", "downweight"),
    )
    siblings: bool = option(
        True, "with any rule: clips cut from the same source video are also false negatives"
    )
    encoder: str = option(
        "own",
        "embeddings that the rule compares: the model's own, or those of a momentum encoder; moco's"
        " keys always come from the momentum encoder",
        choices=("own", "momentum"),
    )
    # Parameters of the rules.
    threshold: float = option(
        0.7,
        "fixed, topk_threshold: cosine similarity above which a negative is false;"
        " adaptive_threshold: its final value",
        low=-1,
        high=1,
    )
    start: float = option(
        0.95, "adaptive_threshold: threshold at the end of the warm-up", low=-1, high=1
    )
    k: int = option(
        10, "topk, topk_threshold: number of most similar negatives of each anchor", low=1
    )
    rate: float = option(
        0.0,
        "quantile: fraction of an anchor's negatives that is false; adaptive_rate: its final value;"
        " 0: 1 / classes, or 0.05 if the number of classes is unknown",
        low=0,
        high=1,
    )
    over: str = option(
        "anchor",
        "quantile: take the fraction per anchor, or over the whole batch",
        choices=("anchor", "batch"),
    )
    warmup: float = option(
        0.1,
        "adaptive_threshold, adaptive_rate: fraction of the run before detection starts",
        low=0,
        high=1,
    )
    sigmas: float = option(
        2.5, "mean_std: threshold, in standard deviations above the mean similarity", low=0
    )
    clusters: int = option(
        0, "cluster: number of k-means clusters; 0: the number of classes", low=0
    )


@dataclass
class NegativesConfig:
    """Options `method.negatives.*`: additional negatives with diminished semantics."""

    names: list[str] = option(
        [],
        "additional non-semantic negatives, made from the first view of each video"
        " (docs/negatives.md): patch, patch_frames, tube, shuffle, freeze, loop, reverse,"
        " tube_shuffle, texture (from data.twins); empty: none",
    )
    count: int = option(1, "negatives of each kind per video; always one of texture", low=0)
    alpha: float = option(
        2.0,
        "factor of their similarity in the loss (simclr, supcon, moco, plain), or weight of their"
        " loss term (byol, simsiam); 0: no additional negatives",
        low=0,
    )
    # Shapes of the pieces.
    patch_px: list[int] = option(
        [16, 72],
        "smallest and largest patch side, pixels of a 224-pixel frame; scaled for other sizes",
        low=1,
    )
    turn: bool = option(False, "flip patches and rotate them by multiples of 90 degrees at random")
    tube: int = option(4, "tube: frames per tube", low=1)
    grid: int = option(4, "tube_shuffle: grid cells along each side of the frame", low=2)


@dataclass
class MethodConfig:
    """Options `method.*`: the learning method and its loss."""

    name: str = option("simclr", "learning method (docs/methods.md)")
    # Contrastive losses.
    temperature: float = option(0.5, "temperature of the contrastive loss", above=0)
    clips_per_video: int = option(2, "views per video, which are positives of each other", low=2)
    chunk: int = option(
        0,
        "simclr, supcon: compute the loss for this many anchors at a time to save memory; 0: all at"
        " once",
        low=0,
    )
    joint_views: bool = option(
        False,
        "simclr, supcon: embed all views in one forward pass with shared batch statistics"
        " (SimCLR's, SupCon's and ACL's code); false: one pass per view (CLAE's code)",
    )
    loss_scale: float = option(
        1.0,
        "simclr, supcon: factor of the contrastive loss; SupCon's code uses temperature / 0.07,"
        " which its learning rates assume",
        above=0,
    )
    # Momentum encoders.
    momentum: float = option(
        0.99,
        "moco, byol, dynacl, false_negatives.encoder=momentum: momentum of the momentum encoder",
        low=0,
        high=1,
    )
    momentum_climbs: bool = option(
        True,
        "increase the momentum to 1 along a cosine (BYOL); false: constant (MoCo)",
    )
    queue: int = option(4096, "moco: number of keys kept as negatives", low=1)
    in_batch: bool = option(
        False,
        "moco: keys of a batch are negatives of its other queries (MoCo v3); false: of later"
        " batches (MoCo v2)",
    )
    norm: str = option(
        "shuffle",
        "batch norm on several ranks; shuffle: moco's keys in batches mixed over ranks; sync:"
        " statistics over all ranks; own: statistics of each rank alone",
        choices=("shuffle", "sync", "own"),
    )
    # Pseudo-labels of the supervised method (DynACL++).
    clusters: int = option(
        0,
        "supervised: use this many k-means clusters of the initial backbone's features as"
        " pseudo-labels; 0: labels",
        low=0,
    )
    clusters_from: str = option(
        "",
        "with clusters: batch-norm branch of model.weights whose features are clustered (DynACL++:"
        " clean); empty: the branch that training starts from",
    )
    clusters_metric: str = option(
        "cosine",
        "with clusters: cosine clusters normalized features, euclidean clusters raw features",
        choices=("cosine", "euclidean"),
    )
    head_first: float = option(
        0.0,
        "supervised: fraction of the run in which only the head is trained, on clean clips",
        low=0,
        high=1,
    )
    # Teachers.
    teacher: str = option(
        "",
        "distill, advcl: teacher: a training checkpoint, or its backbone.pt if its model.* options"
        " are the same",
    )
    student: str = option(
        "teacher",
        "distill: initial weights of the student, unless model.weights is set: the teacher's"
        " (DeACL's code) or random",
        choices=("teacher", "random"),
    )
    predictor: int = option(512, "byol, simsiam: width of the predictor's hidden layer", low=1)
    adversary: AdversaryConfig = field(default_factory=AdversaryConfig)
    false_negatives: FalseNegativesConfig = field(default_factory=FalseNegativesConfig)
    negatives: NegativesConfig = field(default_factory=NegativesConfig)
    # Finetuning by the supervised method.
    freeze: bool = option(
        False,
        "supervised: only the head learns; weights and norm statistics of the backbone stay, and"
        " attacks go through both",
    )
    label_smoothing: float = option(
        0.0,
        "supervised: fraction of each label that is spread over all classes",
        low=0,
        high=0.99,
    )
    mixup: float = option(
        0.0,
        "supervised: alpha of mixup, which blends two clips and their labels; 0: none",
        low=0,
    )
    cutmix: float = option(
        0.0,
        "supervised: alpha of CutMix, which pastes a box of another clip, the same in all frames;"
        " 0: none; with mixup, each batch takes one of both at random",
        low=0,
    )


@dataclass
class OptimConfig:
    """Options `optim.*`: the optimizer and its learning rate."""

    name: str = option("sgd", "optimizer")
    lr: float = option(
        0.1,
        "peak learning rate for the global batch; never rescaled by batch size or ranks",
        above=0,
    )
    momentum: float = option(0.9, "momentum (sgd, lars)", low=0, high=1)
    weight_decay: float = option(1e-4, "weight decay", low=0)
    # Norm weights and biases.
    decay_norms: bool = option(
        False,
        "apply weight decay to norm weights and biases too, as the SGD of most papers' code does",
    )
    lars_exclude: bool = option(
        True,
        "lars: no layer-wise rate for norm weights and biases (SimCLR's code); false: adapt their"
        " rate like all others (ACL's and RoCL's code)",
    )
    # The learning rate over the run.
    schedule: str = option("cosine", "schedule of the learning rate")
    milestones: list[float] = option(
        [0.6, 0.8],
        "schedule=step: fractions of the run after the warm-up at which the rate is multiplied by"
        " optim.gamma; schedule=auto: fractions of the run at which it may be",
        low=0,
        high=1,
    )
    gamma: float = option(
        0.1, "schedule=step, auto: factor of the learning rate at each milestone", above=0
    )
    head_lr: float = option(
        0.0,
        "constant learning rate while only the head is trained (method.head_first), before the"
        " schedule starts; 0: use the schedule from the start",
        low=0,
    )
    fix_predictor: bool = option(
        False, "byol, simsiam: keep the predictor's learning rate at optim.lr (SimSiam's code)"
    )
    warmup: float = option(
        0.1,
        "fraction of the run in which the learning rate increases linearly to its peak",
        low=0,
        high=1,
    )
    clip_norm: float = option(0.0, "maximum norm of the gradient; 0: no clipping", low=0)
    # Finetuning.
    layer_decay: float = option(
        1.0,
        "factor of the learning rate from each stage of the backbone to the one before it"
        " (VideoMAE: 0.75); 1: one rate",
        above=0,
        high=1,
    )
    betas: list[float] = option([0.9, 0.999], "adamw: decay of both running averages", low=0)
    eps: float = option(1e-8, "adamw: added to the root of the second average", above=0)
    final_lr: float = option(
        0.0,
        "schedule=cosine, linear: learning rate at the end of the schedule",
        low=0,
    )
    # A rate that depends on accuracy under attack (AutoLoRa).
    patience: float = option(
        0.75,
        "schedule=auto: the rate is reduced at a milestone if accuracy under attack has increased"
        " in less than this fraction of the epochs since the milestone before",
        low=0,
        high=1,
    )
    auto_threats: list[str] = option(
        [],
        "schedule=auto: threat models under which the accuracy is measured; empty: those of"
        " training",
    )


@dataclass
class TrainConfig:
    """Options `train.*`: length, precision and checkpoints of a run."""

    batch_size: int = option(64, "videos per global batch, over all ranks", low=1)
    epochs: int = option(100, "passes over the training split", low=1)
    max_steps: int = option(0, "stop after this many steps; 0: only train.epochs decides", low=0)
    # Precision and speed.
    amp: str = option(
        "auto",
        "automatic mixed precision: bf16, fp32, or auto (bf16 on GPUs that support it, and on CPUs"
        " that do for networks whose 3-D convolutions are all factorised)",
        choices=("auto", "bf16", "fp32"),
    )
    average: float = option(
        0.0,
        "momentum of a running average of the weights, saved in checkpoints for eval.average; 0:"
        " none",
        low=0,
        high=1,
    )
    channels_last: str = option(
        "auto",
        "store weights in channels-last memory format, and on CPUs compute factorised convolutions"
        " in two dimensions; auto: on CPUs, for networks of this package, torchvision and"
        " pytorchvideo",
        choices=("auto", "true", "false"),
    )
    compile: bool = option(False, "compile the backbone with torch.compile; needs a C++ compiler")
    # Logs, checkpoints and faults.
    log_every: int = option(10, "steps between log lines", low=1)
    checkpoint_every: int = option(200, "steps between checkpoints", low=1)
    max_bad: float = option(
        0.05,
        "stop when more than this fraction of the training videos was bad and had to be replaced",
        low=0,
        high=1,
    )
    keep: int = option(2, "number of step_*.pt files to keep in addition to last.pt", low=1)
    measured: int = option(
        0,
        "optim.schedule=auto, autolora: number of training videos, evenly spaced in the list, on"
        " which training measures accuracies; 0: all",
        low=0,
    )
    shown_clips: int = option(
        3,
        "number of clips that TensorBoard shows now and then, with their views and adversarial"
        " views; 0: none",
        low=0,
        high=8,
    )
    # Memory.
    micro_batch: int = option(
        0,
        "clips that pass through the backbone at a time, with the loss of the whole batch; each is"
        " computed twice, and batch norms have the statistics of these clips; 0: the whole batch",
        low=0,
    )
    checkpoint_activations: bool = option(
        False,
        "keep only the inputs of the backbone's blocks, and compute the rest again in the backward"
        " pass: long clips and transformers need less memory, for one more forward pass",
    )


@dataclass
class CorruptionConfig:
    """Options `eval.corruption.*`: accuracy on corrupted test videos."""

    names: list[str] = option(
        [],
        "corruptions to measure accuracy under: names, or imagenet-c, mini-kinetics-c, ssv2-c,"
        " ucf101-p, hmdb51-p, kinetics400-p, ssv2-p, vitta, quick, all (docs/corruptions.md);"
        " empty: none",
    )
    severities: list[int] = option(
        [1, 2, 3, 4, 5], "severities to measure, each 1 to 5", low=1, high=5
    )
    place: str = option(
        "source",
        "what is corrupted; source: frames of the file, before resize and crop; view: the model's"
        " input",
        choices=("source", "view"),
    )
    baseline: str = option(
        "",
        "summary.json of another model, to which mCE is relative (mean corruption error); empty:"
        " none",
    )


@dataclass
class ShiftConfig:
    """Options `eval.shift.*`: accuracy on another data set with some of the same classes."""

    name: str = option(
        "",
        "format of another data set: measure accuracy on its test videos of the shared classes:"
        " hmdb51, class_folder, ...; empty: none",
    )
    root: str = option(
        "", "folder of that data set; empty: data.root, for another fold of the same data set"
    )
    fold: int = option(1, "official split of that data set", low=1)


@dataclass
class OpenSetConfig:
    """Options `eval.open_set.*`: confidence on another data set, none of whose classes is known."""

    name: str = option(
        "",
        "format of another data set: measure how well the confidence separates its test videos of"
        " unknown classes from the own test videos: hmdb51, class_folder, ...; empty: none",
    )
    root: str = option("", "folder of that data set; empty: data.root")
    fold: int = option(1, "official split of that data set", low=1)


@dataclass
class CardConfig:
    """Options `eval.card.*`: what card.json says of a model that no measurement shows."""

    name: str = option("", "name of the model on leaderboards; empty: as card.json already has it")
    authors: str = option("", "authors of the model; empty: as card.json already has them")
    venue: str = option("", "where it is published, such as 'CVPR 2025'; empty: as before")
    link: str = option("", "https address of the paper or its code; empty: as before")
    additional_data: str = option(
        "",
        "training data other than that of data.name, such as 'Kinetics-400'; none: no other data;"
        " empty: as before",
    )
    reported: list[str] = option(
        [],
        "accuracies that the authors report, in per cent: [clean=91.5,linf-1/255=45] (also mpc);"
        " empty: as before",
    )


@dataclass
class EvalConfig:
    """Options `eval.*`: what is measured, and under which attacks."""

    enabled: bool = option(True, "evaluate at the end of training")
    name: str = option("pgd", "name of the results folder, below eval/ in the run's folder")
    batch_size: int = option(32, "clips per evaluation batch", low=1)
    # Clips and classifiers.
    clips: int = option(3, "clips per video for kNN, linear probe and features", low=1)
    sampling: str = option(
        "uniform",
        "positions of these clips; uniform: over the whole video; dense: consecutive clips",
    )
    knn_k: int = option(20, "kNN: number of neighbors", low=1)
    knn_temperature: float = option(
        0.1, "kNN: temperature of the votes, exp(similarity / temperature)", above=0
    )
    probe_l2: float = option(1e-3, "linear probe: L2 penalty, on standardized features", low=0)
    # Attacks.
    suite: str = option("pgd", "attack suite: autoattack, one of its versions, or a single attack")
    threats: list[str] = option(
        ["linf-0", "linf-0.5/255", "linf-1/255", "linf-2/255", "linf-4/255"],
        "threat models [support[k][@place]-]norm-eps, such as linf-4/255, flicker-linf-8/255,"
        " frames4-l2-0.5, patch30-linf-1 (docs/threat_models.md); empty: no attack",
    )
    steps: int = option(20, "single attacks such as pgd: number of steps", low=1)
    step: float = option(
        0.0,
        "single attacks: step size, as a fraction of eps; 0: the attack's default",
        low=0,
        high=2,
    )
    restarts: int = option(
        1, "single attacks: number of restarts; the strongest result per clip counts", low=1
    )
    queries: int = option(
        5000, "single black-box attacks: number of queries, forward passes per clip", low=4
    )
    effort: float = option(
        1.0,
        "factor of AutoAttack's steps and queries; results below 1 are not AutoAttack's",
        above=0,
    )
    view_average: str = option(
        "logits",
        "what is averaged over the clips and crops of a video",
        choices=("logits", "probabilities"),
    )
    unit: str = option(
        "clip",
        "what is attacked; clip: the center clip of each video; video: the source frames, through"
        " the average prediction over eval.clips clips and eval.crops crops",
        choices=("clip", "video"),
    )
    crops: int = option(
        1,
        "crops of each clip of test videos, 1 (center) or 3 (along the longer side), for kNN,"
        " probes and own heads, and with unit=video for attacks",
        low=1,
        high=3,
    )
    h264: int = option(
        0,
        "also report accuracy after an H.264 round trip with this CRF, such as 23; 0: none",
        low=0,
        high=51,
    )
    checks: int = option(
        8,
        "number of clips on which model and attack are checked before results count; 0: no checks",
        low=0,
    )
    # Which weights and batch-norm branch are measured.
    average: bool = option(
        False,
        "evaluate the average of the weights instead of the last ones: that of train.average, or"
        " dynacl's momentum encoder",
    )
    branch: str = option(
        "clean",
        "batch-norm branch to evaluate: clean, adv, adv2, ...; average: mean over all branches;"
        " select: the branch that the model's own selector chooses",
    )
    eot: int = option(
        1,
        "passes over which a random model is averaged, in its predictions and for attacks (EOT);"
        " 1: a single pass",
        low=1,
    )
    classifier: str = option(
        "auto",
        "what is attacked: auto (the model's own classifier where its classes are the data set's,"
        " otherwise the linear probe), head, probe or knn",
        choices=("auto", "head", "probe", "knn"),
    )
    precise_bn: int = option(
        0,
        "number of training clips from which batch-norm statistics of the branch are recomputed"
        " before anything is measured, with fixed weights; 0: keep the running averages",
        low=0,
    )

    # Further measurements.
    limit: int = option(
        0, "attack only this many test videos, evenly spaced in the test split; 0: all", low=0
    )
    sensitivity: int = option(
        0,
        "number of test clips on which to measure, without labels, how far an attack moves their"
        " features (docs/measures.md), at least 2; 0: none",
        low=0,
    )
    sensitivity_eps: list[float] = option(
        [0.05], "Linf budgets of the sensitivity measurement, each in (0, 1]", above=0, high=1
    )
    pictures: int = option(
        6,
        "number of broken clips per kind of threat that are kept and shown in report.html, of as"
        " many classes as possible",
        low=0,
    )
    bias: list[str] = option(
        [],
        "cue bias: accuracy on clips without a cue, or with conflicting cues (docs/measures.md):"
        " patch, patch_frames, tube, texture, shuffle, freeze, loop, reverse, tube_shuffle,"
        " background, motion, conflict, swapped, swapped_frozen; empty: none",
    )
    embeddings: int = option(
        500,
        "number of test videos, evenly spaced, whose features TensorBoard's projector shows; 0:"
        " none",
        low=0,
        high=5000,
    )
    corruption: CorruptionConfig = field(default_factory=CorruptionConfig)
    shift: ShiftConfig = field(default_factory=ShiftConfig)
    open_set: OpenSetConfig = field(default_factory=OpenSetConfig)
    card: CardConfig = field(default_factory=CardConfig)
    # Adversarial clips as data.
    save: str = option(
        "none",
        "adversarial clips to save, without loss, in adversarial/ of the results folder, as a data"
        " set and as floats: none, those that an attack broke, or all (docs/attack_transfer.md)",
        choices=("none", "broken", "all"),
    )
    transfer: list[str] = option(
        [],
        "folders of evaluations with eval.save=all: accuracy of this model on their adversarial"
        " clips; empty: none",
    )
    # Speed. Results of another order differ by rounding, those of bf16 by more.
    channels_last: str = option(
        "auto",
        "order of weights in memory, see train.channels_last; results differ by rounding",
        choices=("auto", "true", "false"),
    )
    amp: str = option(
        "fp32",
        "precision of the backbone, see train.amp; bf16 changes features by 1 % or so, and attacks"
        " and accuracies with them",
        choices=("fp32", "bf16", "auto"),
    )


@dataclass
class ProtocolConfig:
    """Options `protocol.*`: how a representation becomes a classifier, and from which labels."""

    name: str = option("auto", "protocol of a paper's table (docs/protocols.md)")
    splits: list[int] = option(
        [],
        "official splits (values of data.fold) to measure one after the other, with mean and"
        " spread; {split} in --checkpoint stands for their number; empty: data.fold alone",
        low=1,
    )
    stages: bool = option(
        False, "also fit a linear probe to the average-pooled output of each stage of the backbone"
    )
    # Probes by SGD.
    rates: list[float] = option(
        [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0],
        "linear_sgd: learning rates to choose from, each with every decay",
        above=0,
    )
    decays: list[float] = option(
        [0.0, 1e-5, 1e-4], "linear_sgd: weight decays to choose from", low=0
    )
    epochs: int = option(50, "linear_sgd: passes over the training clips", low=1)
    batch_size: int = option(256, "linear_sgd: clips per step", low=1)
    augmented: int = option(
        0,
        "linear_sgd: number of randomly augmented clips of each training video (augment.*) whose"
        " features are learned from; 0: the clips of the evaluation",
        low=0,
    )
    validation: float = option(
        0.2,
        "linear_sgd: fraction of the training videos, by source, that is held out to choose rate"
        " and decay; all of them are learned from afterwards",
        above=0,
        high=0.9,
    )
    # Retrieval.
    similarity: str = option(
        "centered",
        "retrieval: how features are compared under attack; centered: cosine after the mean of the"
        " queries and of the gallery is subtracted; cosine: of the features as they are",
        choices=("centered", "cosine"),
    )
    attacked: str = option(
        "queries",
        "retrieval: whose clips eval.threats perturb, while the others stay clean",
        choices=("queries", "gallery", "both"),
    )
    neighbors: int = option(
        50,
        "retrieval: the stronger attack moves a video away from this many of its nearest gallery"
        " videos, at most half the gallery",
        low=1,
    )


@dataclass
class Config:
    """All options: a few of the whole run, and a section for each part of it."""

    seed: int = option(
        0,
        "random seed of weights, sampling, augmentation and attacks",
        low=0,
        high=2**63 - 1,
    )
    device: str = option("auto", "device: auto, cpu, cuda, cuda:1, mps")
    deterministic: bool = option(
        False,
        "use deterministic kernels: slower on a GPU; runs on a CPU are reproducible without it",
    )
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
