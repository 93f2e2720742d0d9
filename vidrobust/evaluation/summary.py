"""Summary: the contents of summary.json, how they are built, read and written."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from vidrobust import config
from vidrobust.data import FOLDED
from vidrobust.evaluation.adversarial.attack_row import AttackRow
from vidrobust.evaluation.adversarial.attack_settings import AttackSettings
from vidrobust.evaluation.adversarial.curve import (
    CurvePoint,
    median_norms,
    robust_curve,
    robust_to_all,
    suite_warnings,
)
from vidrobust.evaluation.adversarial.transfer_rows import Transfer
from vidrobust.evaluation.calibration import Calibration, calibration_of
from vidrobust.evaluation.natural.bias_summary import BiasTable
from vidrobust.evaluation.natural.corruption_summary import CorruptionTable
from vidrobust.evaluation.natural.open_set import OpenSet
from vidrobust.evaluation.natural.shift import Shift
from vidrobust.evaluation.representation.geometry import Geometry
from vidrobust.evaluation.representation.knn_and_probe import Accuracy, Representation
from vidrobust.evaluation.representation.multi_label import MeanAveragePrecision
from vidrobust.evaluation.representation.sensitivity import Sensitivity
from vidrobust.evaluation.retrieval_summary import RetrievalTable
from vidrobust.models.complexity import Complexity
from vidrobust.models.feature_store import Features
from vidrobust.models.input_spec import InputSpec, Published
from vidrobust.utils.atomic_files import read_json, replacing
from vidrobust.utils.errors import UserError
from vidrobust.utils.intervals import wilson
from vidrobust.utils.readable import percent
from vidrobust.utils.typed_json import from_json


@dataclass(frozen=True)
class KnnSettings:
    """Settings of kNN: the number of neighbours that vote, and the temperature of their votes."""

    k: int
    temperature: float


@dataclass(frozen=True)
class LargestThreat:
    """The largest threat of an evaluation with one family of threats; fields of `ThreatModel`."""

    norm: str
    support: str
    k: int
    eps: float


@dataclass(kw_only=True)
class Summary:
    """Results of an evaluation, the contents of summary.json. Accuracies are fractions.

    Fields with a default may be missing in files of earlier revisions. A field is None, "" or
    empty where its subject was not measured.

    Attributes:
        n: number of test videos that are attacked, corrupted and shown without cues.
        dataset: name of the data set.
        split: which of its videos, such as "test, fold 1".
        unit: what is attacked, a "clip" of each video or the "video".
        branch: norm branch.
        views: views (clips x crops) per video of "attack" and of "representation".
        view_average: what is averaged over views, "logits" or "probabilities".
        chance: accuracy of guessing.
        classifier: what is attacked, "own head", "linear probe" or "kNN".
        representation: classifier -> its accuracy; "trained_probe", "random_probe", "trained_knn",
            "random_knn", and "head" for a model with its own classifier.
        protocol: name of the protocol.
        train_videos: number of training videos that kNN and probes learn from.
        labels: the part of the training videos that `data.labels` has kept, such as "10%"; "": all.
        average_precision: probe -> mean average precision, in place of `representation`, for
            videos with several labels each.
        fitted: settings of the classifier that the protocol has fitted.
        chosen_on: which videos chose these settings.
        stages: stage of the backbone -> accuracy of a linear probe on its pooled output.
        knn: settings of kNN.
        failed: why videos do not decode.
        model: size and cost of the model.
        input: what a model of another package expects; None for a run of this package.
        eot: passes over which a random model was averaged.
        precise_bn: training clips from which batch-norm statistics were recomputed.
        bf16: the backbone computed in bf16 (eval.amp).
        geometry: "trained" and "random" -> geometry of their features; None on ranks above 0.
        sensitivity: how far small perturbations move the representation.
        retrieval: recall at k of the protocol "retrieval", clean and under attack.
        shift: accuracy on another data set.
        open_set: how well confidence separates another data set's unknown classes.
        bias: accuracy on clips without a cue.
        clean_acc: accuracy on the unchanged clips of the attacks. Without attacks it is that of
            the corruptions, and without these that of the cues.
        clean_acc_h264: the same after H.264.
        robust_acc: fraction of videos that withstand every threat; with one family of threats,
            this is the accuracy under its largest.
        robust_acc_uint8: the same after rounding to uint8.
        ci95: 95 % interval of robust_acc (Wilson).
        threat: the largest threat; None for several families.
        threats: names of the threats.
        suite: name of the suite with its counts, such as "pgd-20x5".
        median_norm: kind of threat -> median size of the smallest perturbations; None unless the
            attack finds smallest perturbations.
        attacks: names of the attacks that ran.
        checks: number of clips of the self-checks; None without attacks, and in files of earlier
            revisions.
        curve: accuracy under each threat.
        calibration: whether confidence matches accuracy, on clean clips and under each threat.
        warnings: reasons to doubt the numbers.
        corruption: accuracy under corruptions.
        transfer: accuracy on adversarial clips that other evaluations saved.
        checkpoint: step and hash of the weights.
        config_sha: hash of the options.
        manifest_sha: hash of the lists of videos.
        shift_sha: hash of the list of videos of `shift`.
        open_set_sha: hash of the list of videos of `open_set`.
        textures: how texture twins were made.
        transfer_sha: hash of the clips of `transfer`.
    """

    # The order of the fields is that of the entries in summary.json. So the corruptions come last,
    # apart from other natural changes.

    # Data and protocol
    n: int
    dataset: str
    split: str
    unit: str = "clip"
    branch: str
    views: dict[str, str]
    view_average: str = "logits"
    chance: float
    # Model and representation
    classifier: str = "linear probe"
    representation: dict[str, Accuracy]
    protocol: str = "auto"
    train_videos: int = 0
    labels: str = ""
    average_precision: dict[str, MeanAveragePrecision] = field(default_factory=dict)
    fitted: dict[str, float] = field(default_factory=dict)
    chosen_on: str = ""
    stages: dict[str, Accuracy] = field(default_factory=dict)
    knn: KnnSettings | None = None
    failed: list[str]
    model: Complexity | None = None
    input: InputSpec | None = None
    precise_bn: int = 0
    bf16: bool = False
    eot: int = 1
    geometry: dict[str, Geometry] | None
    sensitivity: Sensitivity | None = None
    retrieval: RetrievalTable | None = None
    # Another data set, and cues
    shift: Shift | None = None
    open_set: OpenSet | None = None
    bias: BiasTable | None = None
    # Attacks
    clean_acc: float | None = None
    clean_acc_h264: float | None = None
    robust_acc: float | None = None
    robust_acc_uint8: float | None = None
    ci95: list[float] | None = None
    threat: LargestThreat | None = None
    threats: list[str] = field(default_factory=list)
    suite: str | None = None
    median_norm: dict[str, float | None] | None = None
    attacks: list[str] = field(default_factory=list)
    checks: int | None = None
    curve: list[CurvePoint]
    calibration: list[Calibration] = field(default_factory=list)
    warnings: list[str]
    # Corruptions
    corruption: CorruptionTable | None
    transfer: list[Transfer] = field(default_factory=list)
    # Identity of model, options and videos, from `results.identify`
    checkpoint: str = ""
    config_sha: str = ""
    manifest_sha: str = ""
    shift_sha: str = ""
    open_set_sha: str = ""
    textures: str = ""
    transfer_sha: str = ""


# --- Names of classifiers ---

# Name of a classifier, as in `Summary.classifier` -> its key in `Summary.representation`.
_KEYS = {"own head": "head", "linear probe": "trained_probe", "kNN": "trained_knn"}
_TRAINED = "trained_"


def classifier_key(name: str) -> str:
    """Return the key of a classifier in `representation`, predictions.jsonl and per_class.csv.

    A classifier that a protocol has fitted has the name of the protocol.
    """
    return _KEYS.get(name, f"{_TRAINED}{name}")


def classifier_name(key: str) -> str:
    """Return the name of the classifier that has a key, the way back from `classifier_key`."""
    names = {value: name for name, value in _KEYS.items()}
    return names.get(key, key.removeprefix(_TRAINED))


# --- Files ---


def read_summary(path: Path) -> Summary:
    """Read a summary.json.

    Raises:
        UserError: if it is damaged, with the remedy.
    """
    remedy = "delete it and evaluate again, which keeps the rows"
    try:
        return from_json(Summary, read_json(path, remedy))
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); {remedy}") from None


def write_summary(path: Path, summary: Summary) -> None:
    """Write a summary.json, whole or not at all."""
    with replacing(path) as file:
        file.write((json.dumps(asdict(summary), indent=2) + "\n").encode())


# --- Parts ---


def summary_of_data(
    cfg: config.Config,
    n: int,
    representation: Representation,
    gallery: Features | None,
    classes: list[str],
) -> Summary:
    """Return a summary with data, protocol and representation; other parts are added later.

    Args:
        cfg: the configuration.
        n: number of test videos that are attacked and corrupted.
        representation: predictions of kNN, the probes and the model's own head.
        gallery: features of the training videos; None without any.
        classes: names of the classes.
    """
    data, e = cfg.data, cfg.eval
    failures = (gallery.failed if gallery else []) + representation.asked.failed
    knn = None
    if gallery:
        # no more neighbours than the gallery has
        knn = KnnSettings(min(e.knn_k, gallery.features.shape[0] * e.clips), e.knn_temperature)
    return Summary(
        n=n,
        dataset=data.name,
        split=split_of(data),
        unit=e.unit,
        branch=e.branch,
        views={
            "attack": f"{e.clips}x{e.crops}" if e.unit == "video" else "1x1",
            "representation": f"{e.clips}x{e.crops}",
        },
        view_average=e.view_average,
        chance=1 / len(classes),
        protocol=cfg.protocol.name,
        train_videos=gallery.features.shape[0] if gallery else 0,
        labels=data.labels,
        representation=representation.accuracies(),
        knn=knn,
        failed=[failure.reason for failure in failures],
        geometry=None,
        curve=[],
        warnings=[],
        corruption=None,
    )


def split_of(data: config.DataConfig) -> str:
    """Return which videos of a data set are measured, such as "test, fold 1"."""
    split = f"validation {data.validation:g}" if data.validation else "test"
    return f"{split}, fold {data.fold}" if data.name in FOLDED else split


def learned_nothing(accuracies: dict[str, Accuracy]) -> list[str]:
    """Return a warning if the probe is not better than one on random weights; otherwise []."""
    if "random_probe" not in accuracies:
        return []
    trained, random = accuracies["trained_probe"].acc, accuracies["random_probe"].acc
    if trained > random:
        return []
    return [
        f"the probe on trained weights ({percent(trained)}) is not above that on random ones "
        f"({percent(random)}): a model that predicts little may appear robust"
    ]


# name of a data set as model cards write it -> value of data.name
_DATA_SETS = {"Kinetics-400": "kinetics400", "ImageNet-1K": "torchvision:ImageNet"}
_TOLERANCE = 0.02  # of an accuracy: views and decoders differ this much


def published_beside(summary: Summary) -> tuple[Published, float] | None:
    """Return what the authors of the model report, and our accuracy, on the same data set; or None.

    Ours is that of the model's own head.
    """
    published = summary.input.published if summary.input else None
    head = summary.representation.get("head")
    if published is None or head is None:
        return None
    names = (published.dataset, _DATA_SETS.get(published.dataset))
    return (published, head.acc) if summary.dataset in names else None


def unlike_published(summary: Summary) -> list[str]:
    """Return a warning, or none, of an accuracy far from what the authors of the model report."""
    both = published_beside(summary)
    if both is None or abs(both[1] - both[0].acc) <= _TOLERANCE:
        return []
    published, acc = both
    return [
        f"the model's own head is right on {percent(acc)}, but"
        f" {published.source or 'its input card'} reports {percent(published.acc)}"
        + (f" with {published.views} views" if published.views else "")
        + "; check, in this order: range of"
        " the pixels, mean and std, order of the channels, resize, choice of frames, order of the"
        " classes"
    ]


def add_attacks(
    summary: Summary,
    cfg: config.Config,
    rows: list[AttackRow],
    attack: AttackSettings,
    doubts: list[str],
) -> None:
    """Write the results of attacks into a summary.

    Args:
        summary: changed in place.
        cfg: the configuration.
        rows: rows of all videos and threats, those of a video next to each other.
        attack: threats and attacks.
        doubts: warnings of checks before the attacks.
    """
    threats = attack.ordered
    curve = robust_curve(rows, threats)
    videos = rows[:: len(curve)]  # one row per video: clean predictions are alike in all of them
    robust = robust_to_all(rows)
    robust_uint8 = robust_to_all(rows, lambda row: row.uint8_right)
    summary.clean_acc = sum(row.clean_right for row in videos) / len(videos)
    if cfg.eval.h264:
        right = [row.clean_h264_pred == row.label for row in videos]
        summary.clean_acc_h264 = sum(right) / len(videos)
    summary.robust_acc = sum(robust) / len(robust)
    summary.robust_acc_uint8 = sum(robust_uint8) / len(robust_uint8)
    summary.ci95 = list(wilson(sum(robust), len(robust)))
    if len(attack.families) == 1:
        largest = curve[-1]
        summary.threat = LargestThreat(largest.norm, largest.support, largest.k, largest.eps)
    summary.threats = [str(each) for each in threats]
    summary.suite = str(attack.suite)
    if attack.suite.smallest:
        summary.median_norm = median_norms(rows, threats)
    summary.attacks = sorted({name for point in curve for name in point.passes})
    summary.checks = min(cfg.eval.checks, len(videos))
    summary.curve = curve
    summary.calibration = calibration_of(rows, threats)
    summary.warnings += doubts + suite_warnings(rows, curve)
