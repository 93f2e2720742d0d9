"""Write and read card.json: an evaluation as an entry of a leaderboard.

The fields are those of the model cards of RobustBench (Croce et al. 2021, RobustBench), and what
videos need in addition. `card.schema.json` describes them; cards are validated when they are
written and read.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from vidrobust import config
from vidrobust.attacks import ATTACKS, BLACK_BOX, parse_threat
from vidrobust.evaluation.accuracy_limits import CLEAN, MPC, clean_accuracy, parse_percents
from vidrobust.evaluation.adversarial.curve import curve_warnings
from vidrobust.evaluation.adversarial.suites import SUITES
from vidrobust.evaluation.report.measured_videos import sha_of_test_videos
from vidrobust.evaluation.results import read_doubts
from vidrobust.evaluation.summary import Summary, learned_nothing
from vidrobust.models.sources import is_spec
from vidrobust.utils.atomic_files import read_json, replacing
from vidrobust.utils.environment import read_environment
from vidrobust.utils.errors import UserError
from vidrobust.utils.intervals import wilson
from vidrobust.utils.text import shown
from vidrobust.utils.typed_json import from_json

FILE = "card.json"
_NO_DATA = "none"  # value of eval.card.additional_data
_ROUNDING = 1e-9  # of an accuracy and its interval


@dataclass(frozen=True)
class CleanAccuracy:
    """Accuracy without an attack, with its 95 % interval (Wilson) and the number of videos."""

    accuracy: float
    ci95: list[float]
    n: int


@dataclass(frozen=True)
class RobustAccuracy:
    """Accuracy under one threat; fields as in `CurvePoint`.

    Attributes:
        threat: the budget, as `eval.threats` names it.
        norm: its norm.
        support: what may be changed.
        eps: size of the budget.
        accuracy: fraction of videos that no attack breaks.
        ci95: its 95 % interval (Wilson).
        accuracy_uint8: the same after rounding to uint8.
        n: number of videos.
    """

    threat: str
    norm: str
    support: str
    eps: float
    accuracy: float
    ci95: list[float]
    accuracy_uint8: float
    n: int


@dataclass(frozen=True)
class CorruptedAccuracy:
    """Mean accuracy under corruptions (mPC), and which these were."""

    mpc: float
    corruptions: list[str]
    severities: list[int]


@dataclass(frozen=True)
class Checks:
    """Checks of model and attack before results count: clips (None: unknown) and doubts."""

    clips: int | None
    doubts: list[str]


@dataclass(frozen=True)
class Hashes:
    """Step and hash of the weights, and hashes of what they were measured with.

    Attributes:
        checkpoint: step and hash of the weights.
        config: hash of the options.
        videos: of the lists of training and test videos, in order.
        test_videos: of names and classes of the test videos; "": unknown.
    """

    checkpoint: str
    config: str
    videos: str
    test_videos: str = ""


@dataclass(frozen=True, kw_only=True)
class Card:
    """The contents of card.json. Accuracies are fractions; None: unknown or not measured.

    Attributes:
        format: version of these fields.
        name: of the model.
        authors: of the model.
        venue: where it is published.
        link: address of the paper or its code.
        additional_data: whether it was trained on other data than that of `dataset`.
        additional_data_names: which.
        reported: "clean", "mpc" or a threat -> accuracy that the authors report.
        architecture: backbone.
        training: method and adversary.
        dataset: name of the data set.
        split: which of its videos.
        chance: accuracy of guessing.
        classifier: what is attacked.
        protocol: how it was fitted.
        labels: the part of the training labels that was used; "": all.
        branch: norm branch.
        input: frames, stride, size and other fields of the input card that clips were made by.
        views: views (clips x crops) per video of "attack" and of "representation".
        view_average: what is averaged over views.
        unit: what is attacked, a "clip" of each video or the "video".
        number_forward_passes: passes over which a random model was averaged.
        clean: accuracy without an attack.
        robust: accuracy under each threat with a budget above 0.
        corrupted: accuracy under corruptions.
        suite: name of the suite with its counts; "": no attack.
        attacks: names of the attacks that ran.
        effort: fraction of AutoAttack's steps and queries; None for another suite.
        checks: checks of model and attack.
        unreliable: there are reasons to doubt the robust accuracies.
        unreliable_reasons: the reasons.
        parameters: of the model.
        gflops_per_view: of a forward pass of one clip, in 10^9 operations.
        gflops_per_prediction: the same for all views and passes of an attacked prediction.
        hashes: of weights, options and videos.
        vidrobust: version that measured; "": unknown.
        date: day of the measurement; "": unknown.
    """

    format: int = 1
    # The model, as its authors describe it
    name: str = ""
    authors: str = ""
    venue: str = ""
    link: str = ""
    additional_data: bool | None = None
    additional_data_names: str = ""
    reported: dict[str, float]
    architecture: str
    training: str
    # Data and protocol
    dataset: str
    split: str
    chance: float
    classifier: str
    protocol: str
    labels: str
    branch: str
    input: dict[str, Any]
    views: dict[str, str]
    view_average: str
    unit: str
    number_forward_passes: int
    # Results
    clean: CleanAccuracy | None
    robust: list[RobustAccuracy]
    corrupted: CorruptedAccuracy | None
    suite: str
    attacks: list[str]
    effort: float | None
    checks: Checks | None
    unreliable: bool
    unreliable_reasons: list[str]
    # Cost and identity
    parameters: int | None
    gflops_per_view: float | None
    gflops_per_prediction: float | None
    hashes: Hashes
    vidrobust: str
    date: str


# --- Files ---


def check_card_options(cfg: config.CardConfig) -> None:
    """Raise UserError for options `eval.card.*` that no card can hold, before anything is measured.

    Args:
        cfg: the options.
    """
    parse_percents(cfg.reported, "eval.card.reported:")
    # a page of a leaderboard shows it as a link
    if cfg.link and not re.fullmatch(r"https?://\S+", cfg.link):
        raise UserError(f"eval.card.link={shown(cfg.link)}: must begin with https:// or http://")


def earlier_card(out: Path) -> Card | None:
    """Return the card that an earlier call has written to a folder, or None.

    An evaluation calls this before it measures: a card that it could not follow is refused then.

    Raises:
        UserError: if it does not validate.
    """
    path = out / FILE
    return read_card(path) if path.is_file() else None


def write_card(out: Path, summary: Summary, cfg: config.CardConfig) -> None:
    """Write out/card.json.

    Args:
        out: folder of the evaluation.
        summary: what it measured.
        cfg: what is known of the model. Where an option is empty, an earlier card.json is followed.

    Raises:
        UserError: for wrong options, and for an earlier card.json that does not validate.
    """
    check_card_options(cfg)
    path = out / FILE
    card = make_card(out, summary, cfg, earlier_card(out))
    text = json.dumps(_plain(asdict(card)), indent=2, allow_nan=False) + "\n"
    if problem := _problem(json.loads(text)):
        raise ValueError(f"{path}: {problem}")  # a fault of this package
    with replacing(path) as file:
        file.write(text.encode())


def read_card(path: Path) -> Card:
    """Read a card.json.

    Raises:
        UserError: if it does not validate, with the entry and the remedy.
    """
    remedy = "correct it, or delete it and write it again with tools/test_net.py --report-only"
    content = read_json(path, remedy)
    problem = _problem(content)
    if not problem:
        try:
            return from_json(Card, content)
        except ValueError as error:
            problem = str(error)
    raise UserError(f"{path}: no valid card: {problem}; {remedy}")


# Field -> what its text must be.
_FORMS = {
    "link": "must begin with https:// or http:// and have no spaces",
    "threat": "must be a threat such as linf-1/255",
    "reported": "must be a threat such as linf-1/255, or clean or mpc",
    "attack": "must be clips x crops, such as 3x1",
    "representation": "must be clips x crops, such as 3x1",
}


def _problem(content: dict[str, Any]) -> str:
    """Return why a card does not validate; "" if it does."""
    error = best_match(_validator().iter_errors(content))
    if error is not None:
        place = error.json_path.removeprefix("$").removeprefix(".")
        reason = shown(error.message, 200)
        if error.validator == "pattern":  # nobody wants to read a regular expression
            reason = f"{shown(error.instance)} {_FORMS[place.rpartition('.')[2]]}"
        return f"{shown(place)}: {reason}" if place else reason
    places = _threats(content)
    for place, name in places.items():
        try:
            written = str(parse_threat(name))
        except ValueError as reason:
            return f"{place}: {shown(name)}: {reason}"
        if written != name:
            return f"{place}: write {written} for {shown(name)}"
    names = [entry["threat"] for entry in content["robust"]]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        return f"robust: {shown(twice)} is there twice"
    return _contradiction(content) or _unwritable(content)


def _threats(content: dict[str, Any]) -> dict[str, str]:
    """Return the threats that a card names, by their place in it."""
    robust = {f"robust[{n}].threat": each["threat"] for n, each in enumerate(content["robust"])}
    reported = {f"reported.{key}": key for key in content["reported"] if key not in (CLEAN, MPC)}
    return robust | reported


def _contradiction(content: dict[str, Any]) -> str:
    """Return which entries of a card contradict each other; "" for none."""
    places = {f"robust[{n}]": entry for n, entry in enumerate(content["robust"])}
    for place, entry in places.items():
        threat = parse_threat(entry["threat"])
        for key in ("norm", "support"):
            if entry[key] != getattr(threat, key):
                return (
                    f"{place}.{key}: {entry[key]} is not that of {threat}, {getattr(threat, key)}"
                )
        if threat.eps == 0:
            return f"{place}.threat: {threat} changes nothing; that accuracy is clean"
        # a name has 12 digits
        if not math.isclose(entry["eps"], threat.eps, rel_tol=1e-9):
            return f"{place}.eps: {entry['eps']:g} is not that of {threat}, {threat.eps:g}"
    for place, entry in (places | {"clean": content["clean"] or {}}).items():
        low, high = entry.get("ci95", (0, 1))
        if low > high:
            return f"{place}.ci95: {low:g} is above {high:g}"
        if not low - _ROUNDING <= entry.get("accuracy", low) <= high + _ROUNDING:
            return (
                f"{place}.accuracy: {entry['accuracy']:g} is outside of ci95, {low:g} to {high:g}"
            )
    return ""


def _unwritable(value: Any, place: str = "") -> str:
    """Return which value of a card no file of JSON can hold, and why; "" for none.

    Python reads NaN, infinity and halves of surrogate pairs, and no limit of the schema refuses
    them.

    Args:
        value: the card, or a part of it.
        place: of the part.
    """
    if isinstance(value, dict):
        parts = [(f"{place}.{key}" if place else key, part) for key, part in value.items()]
    elif isinstance(value, list):
        parts = [(f"{place}[{number}]", part) for number, part in enumerate(value)]
    else:
        if isinstance(value, float) and not math.isfinite(value):
            return f"{place}: holds a number that is NaN or infinite"
        if value != _plain(value):
            return f"{place}: {shown(value)} holds half of a surrogate pair"
        return ""
    return next(filter(None, (_unwritable(part, name) for name, part in parts)), "")


def _plain(value: Any) -> Any:
    """Return the contents of a card with bytes that are not text, as of file names, escaped."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return value


@cache
def _validator() -> Draft202012Validator:
    """Return the validator of cards."""
    text = files("vidrobust.evaluation.report").joinpath("card.schema.json").read_text("utf-8")
    return Draft202012Validator(json.loads(text))


# --- Contents ---


def make_card(
    out: Path, summary: Summary, cfg: config.CardConfig, earlier: Card | None = None
) -> Card:
    """Return the card of an evaluation.

    Args:
        out: its folder, with identity.json, checks.json, environment.json and predictions.jsonl.
        summary: what it measured.
        cfg: what is known of the model.
        earlier: card whose entries are kept where an option is empty.

    Raises:
        UserError: for an identity.json or environment.json that is damaged.
    """
    options = options_of(out)
    made = read_environment(out)
    checks = _checks(out, summary, options)
    effort = _effort(summary.suite)
    reasons = unreliable_reasons(summary, checks, effort)
    return Card(
        **_described(cfg, earlier),
        **_same_as_summary(summary),
        **_cost(summary),
        architecture=_architecture(summary, options),
        training=_training(summary, options),
        input=input_of(summary, options),
        number_forward_passes=summary.eot,
        clean=_clean(summary),
        robust=_robust(summary),
        corrupted=_corrupted(summary),
        suite=summary.suite or "",
        effort=effort,
        checks=checks,
        unreliable=bool(reasons),
        unreliable_reasons=reasons,
        hashes=_hashes(out, summary),
        vidrobust=str(made.get("vidrobust", "")),
        # the day alone: a call that was killed and repeated writes the same card
        date=str(made.get("date", ""))[:10],
    )


def options_of(out: Path) -> dict[str, str]:
    """Return the options of an evaluation, option -> value; empty for one of before identity.json.

    Args:
        out: its folder.

    Raises:
        UserError: for an identity.json that is damaged.
    """
    path = out / "identity.json"
    remedy = "delete it; the card then leaves it out"
    options = read_json(path, remedy).get("options") if path.is_file() else None
    return options if isinstance(options, dict) else {}


def unreliable_reasons(summary: Summary, checks: Checks | None, effort: float | None) -> list[str]:
    """Return reasons why robust accuracies may be too high; none if nothing was attacked.

    Args:
        summary: what was measured.
        checks: checks of model and attack.
        effort: fraction of AutoAttack's steps and queries; None for another suite.
    """
    if not _robust(summary):
        return []
    reasons = []
    if checks is None or checks.clips == 0:
        reasons.append("model and attack were not checked (eval.checks)")
    reasons += checks.doubts if checks else []
    reasons += curve_warnings(summary.curve)
    if summary.attacks and all(name in BLACK_BOX for name in summary.attacks):
        reasons.append("no attack with gradients ran")
    if effort is not None and effort < 1:
        reasons.append(f"AutoAttack ran with {effort:g} of its effort (eval.effort)")
    if summary.eot > 1 or (summary.suite or "").startswith("rand"):
        reasons.append("the model is random: an attack may not have met the passes that are scored")
    return reasons + learned_nothing(summary.representation)


def _described(cfg: config.CardConfig, earlier: Card | None) -> dict[str, Any]:
    """Return the fields that no measurement shows, from options or an earlier card."""
    fields = ("name", "authors", "venue", "link", "reported")
    data = ("additional_data", "additional_data_names")
    described = {key: getattr(earlier, key) for key in (*fields, *data)} if earlier else {}
    given = {
        "name": cfg.name,
        "authors": cfg.authors,
        "venue": cfg.venue,
        "link": cfg.link,
        "reported": parse_percents(cfg.reported, "eval.card.reported:"),
    }
    described |= {key: value for key, value in given.items() if value}
    if cfg.additional_data:
        described["additional_data"] = cfg.additional_data != _NO_DATA
        described["additional_data_names"] = cfg.additional_data if described[data[0]] else ""
    return {"reported": {}} | described


def _same_as_summary(summary: Summary) -> dict[str, Any]:
    """Return the fields of a card that a summary has too."""
    data = ("dataset", "split", "chance")
    protocol = ("classifier", "protocol", "labels", "branch", "views", "view_average", "unit")
    return {key: getattr(summary, key) for key in (*data, *protocol, "attacks")}


def _hashes(out: Path, summary: Summary) -> Hashes:
    """Return the hashes of weights, options and videos."""
    names = (summary.checkpoint, summary.config_sha, summary.manifest_sha)
    return Hashes(*names, sha_of_test_videos(out))


def _cost(summary: Summary) -> dict[str, Any]:
    """Return the fields of the size and the cost of a model; None where they are unknown."""
    if summary.model is None:
        keys = ("parameters", "gflops_per_view", "gflops_per_prediction")
        return dict.fromkeys(keys)
    flops = summary.model.flops_per_clip
    gflops = None if flops is None else flops / 1e9
    passes = _number_of(summary.views.get("attack", "1x1")) * summary.eot
    return {
        "parameters": summary.model.parameters,
        "gflops_per_view": gflops,
        "gflops_per_prediction": None if gflops is None else gflops * passes,
    }


def _clean(summary: Summary) -> CleanAccuracy | None:
    """Return the accuracy without an attack, with its interval."""
    clean = clean_accuracy(summary)
    if clean is None:
        return None
    accuracy, n = clean
    return CleanAccuracy(accuracy, list(wilson(round(accuracy * n), n)), n)


def _robust(summary: Summary) -> list[RobustAccuracy]:
    """Return the accuracies under threats with a budget above 0."""
    return [
        RobustAccuracy(
            threat=point.threat,
            norm=point.norm,
            support=point.support,
            eps=point.eps,
            accuracy=point.robust_acc,
            ci95=point.ci95,
            accuracy_uint8=point.robust_acc_uint8,
            n=point.n,
        )
        for point in summary.curve
        if point.eps > 0
    ]


def _corrupted(summary: Summary) -> CorruptedAccuracy | None:
    """Return the accuracy under corruptions."""
    table = summary.corruption
    if table is None:
        return None
    return CorruptedAccuracy(table.mpc, sorted(table.corruptions), table.severities)


def _effort(suite: str | None) -> float | None:
    """Return the effort in a suite's name (`Suite.__str__`); None for a single attack."""
    name, _, rest = (suite or "").partition(", effort ")
    if SUITES.get(name, name) in ATTACKS or name not in SUITES:
        return None
    return float(rest or 1)


def _checks(out: Path, summary: Summary, options: Mapping[str, str]) -> Checks | None:
    """Return the checks of model and attack; None if nothing was attacked."""
    if not _robust(summary):
        return None
    doubts = read_doubts(out)
    clips = summary.checks
    if clips is None:  # of an earlier revision
        asked = _number(options, "eval.checks")
        clips = None if asked is None else int(asked)
    if doubts is None:
        return Checks(0, []) if clips == 0 else None
    return Checks(clips, doubts)


def _architecture(summary: Summary, options: Mapping[str, str]) -> str:
    """Return the backbone: of a run its option, otherwise the model as it was named."""
    if not summary.checkpoint.startswith("step "):
        return summary.checkpoint.rpartition(", weights ")[0]
    backbone = options.get("model.backbone", "")
    if not backbone or is_spec(backbone):
        return backbone
    return f"{backbone}, width {options.get('model.width', '?')}"


def _training(summary: Summary, options: Mapping[str, str]) -> str:
    """Return the method and the adversary of a run; "" for a model of another package."""
    method = options.get("method.name", "")
    if not method or not summary.checkpoint.startswith("step "):
        return ""
    adversary = options.get("method.adversary.name", "none")
    return method if adversary == "none" else f"{method} with {adversary}"


def input_of(summary: Summary, options: Mapping[str, str]) -> dict[str, Any]:
    """Return how clips are made: the input card, or the options of a run of this package."""
    if summary.input:
        card = asdict(summary.input)
        # the one may be long, and the other is another accuracy
        return {key: v for key, v in card.items() if key not in ("classes", "published")}
    size = _number(options, "data.size")
    if size is None:
        return {}
    fps = _number(options, "data.fps")
    resize = re.findall(r"\d+", options.get("data.resize", ""))
    frames, stride, side = (
        int(_number(options, f"data.{key}") or 1) for key in ("frames", "stride", "short_side")
    )
    return {
        "frames": frames,
        "stride": None if fps else stride,
        "fps": fps or None,
        "short_side": None if resize else side,
        "resize": [int(number) for number in resize] or None,
        "size": [int(size), int(size)],
        "interpolation": options.get("data.interpolation", "bilinear"),
    }


def _number(options: Mapping[str, str], key: str) -> float | None:
    """Return the value of an option of identity.json; None for evaluations of before it.

    Raises:
        UserError: if it is no number.
    """
    if key not in options:
        return None
    try:
        return float(options[key])
    except (TypeError, ValueError):
        raise UserError(
            f"identity.json: {key}={shown(options[key])} is no number; evaluate again"
        ) from None


def _number_of(views: str) -> int:
    """Return the number of views of "3x1": clips x crops."""
    return math.prod(int(number) for number in re.findall(r"\d+", views))
