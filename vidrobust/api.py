"""Measure a model from Python: load_model, wrap and evaluate."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor, nn

from vidrobust import checkpoint, config
from vidrobust.data import build_records
from vidrobust.data.given import Labelled, names_of, records_of_clips, records_of_files
from vidrobust.evaluation import Summary
from vidrobust.evaluation.evaluate import Lists, evaluate_model
from vidrobust.evaluation.loading import checked_lists
from vidrobust.evaluation.measured_model import (
    OWN,
    MeasuredModel,
    card_options,
    configured_card,
    load_run,
    load_source,
    measured_source,
)
from vidrobust.evaluation.representation.protocols import PROTOCOLS
from vidrobust.models import Backbone, outputs_of
from vidrobust.models.input_spec import InputSpec, overridden
from vidrobust.models.sources.own_code import wrapped
from vidrobust.utils.errors import UserError, lookup
from vidrobust.utils.text import places_of

Files = Sequence[Labelled]
Clips = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class LoadedModel:
    """A model that `evaluate` measures.

    Attributes:
        encoder: clips (B, 3, T, H, W) in [0, 1] -> features (B, D).
        classifier: clips -> logits (B, K); None for a model without a classifier.
        input: what the model expects.
        measured: for `evaluate`.
    """

    encoder: Backbone
    classifier: nn.Module | None
    input: InputSpec
    measured: MeasuredModel


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`.

    Attributes:
        summary: what was measured, the contents of summary.json.
        path: folder of report.md, summary.json and the rows of all videos.
    """

    summary: Summary
    path: Path


def load_model(spec: str, weights: str | Path = "", **overrides: Any) -> LoadedModel:
    """Return a model of another package, a run, or weights of other code in a backbone of this one.

    Args:
        spec: such as "torchvision:r2plus1d_18", or the folder of a run; see docs/models.md.
        weights: file of weights; "": those that the spec names, or random ones.
        overrides: fields of `InputSpec` in place of the model's input card, such as
            mean=[0.45, 0.45, 0.45]; for a backbone of this package, options of `model.*`.

    Raises:
        UserError: for an unknown model, and for weights that cannot be read or do not fit.

    Example:
        model = load_model("torchvision:r2plus1d_18", weights="my.pth")
    """
    if ":" not in spec and Path(spec).exists():
        if weights or overrides:
            raise UserError(f"load_model: the run {spec} has its own weights and input")
        return _loaded(_run(Path(spec)))
    if spec.startswith(OWN):
        words = [f"model.{key}={_written(value)}" for key, value in overrides.items()]
        return _loaded(load_source(config.loads("", words), spec, str(weights)))

    def change(card: InputSpec) -> InputSpec:
        return _overridden(card, overrides, spec)

    return _loaded(load_source(config.Config(), spec, str(weights), change))


def wrap(model: Callable[[Tensor], Any], **input_spec: Any) -> LoadedModel:
    """Return a module or function of your own as a model that `evaluate` measures.

    Args:
        model: maps clips to logits (B, K), or to an object with a field `logits`. It sees clips as
            the input card says; attacks see them in [0, 1].
        input_spec: fields of `InputSpec`, such as mean, std, frames, size and layout; see
            `overridden`.

    Raises:
        UserError: the model fails on clips of this card, or returns no logits.

    Example:
        model = wrap(network, mean=(0.45,) * 3, std=(0.225,) * 3, frames=16, size=(112, 112))
    """
    card = _overridden(InputSpec(), input_spec, "wrap")
    name = type(model).__name__ if isinstance(model, nn.Module) else "function"
    return _loaded(measured_source(config.Config(), wrapped(model, card, name), None, name))


def evaluate(  # noqa: PLR0913  (public function, whose options are named)
    model: LoadedModel,
    data: str | Files | Clips,
    *,
    train: Files | Clips | None = None,
    classes: Sequence[str] | None = None,
    root: str | Path = "",
    threats: str | Sequence[str] = (),
    corruptions: str | Sequence[str] = (),
    protocol: str = "auto",
    output: str | Path = "outputs/evaluation",
    options: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> Evaluation:
    """Measure a model on a data set: representation, attacks, corruptions, report.

    A call that was stopped can be repeated, and continues.

    Args:
        model: of `load_model` or `wrap`.
        data: name of a data set, as `data.name`; or a list of (path, label), where a label is a
            name or a number; or an iterable of (clips, labels), clips (B, 3, T, H, W) or images
            (B, 3, H, W) in [0, 1] or uint8, as large as the model takes them.
        train: training videos of the same kind, for kNN and the linear probe; None: neither, unless
            `data` is a name, and the model's own classifier is measured.
        classes: names of the classes by number; None: those of the model, if all labels are among
            them, or the names in the lists.
        root: folder of a data set by name; "": the default of `data.root`.
        threats: budgets, such as "linf-2/255"; none: no attack.
        corruptions: names or a set of names, such as "quick"; none: no corruptions.
        protocol: how training videos are used, such as "linear_sgd" or "retrieval"; see
            docs/protocols.md. Those that train are for tools/test_net.py.
        output: folder of the results; another model, data or options need another one.
        options: further options by their keys, such as {"eval.suite": "autoattack"}; see
            docs/running.md.
        overwrite: replace another evaluation in the folder.

    Raises:
        UserError: for wrong options and data, for a folder with another evaluation, and for videos
            that do not decode, after everything is written.
    """
    _require_loaded(model)
    lookup(PROTOCOLS, protocol, "evaluate: protocol")
    names = [corruptions] if isinstance(corruptions, str) else list(corruptions)
    given: dict[str, Any] = {
        "eval.threats": [threats] if isinstance(threats, str) else list(threats),
        "eval.corruption.names": [name for name in names if name],
    }
    if protocol != "auto":
        given["protocol.name"] = protocol
    path = Path(output)
    with TemporaryDirectory(prefix="vidrobust-") as folder:
        lists = None
        if not isinstance(data, str):
            lists, shape = _lists(model, data, train, classes, Path(folder))
            given |= {"data.name": "list", **shape}
        elif train is not None or classes is not None:
            raise UserError(
                f"evaluate: data set {data} has its own train= and classes=; remove them"
            )
        else:
            given |= {"data.name": data, **({"data.root": root} if root else {})}
        given |= options or {}
        words = [f"{key}={_written(value)}" for key, value in given.items()]
        cfg = config.loads(card_options(model.input, given), words, "vidrobust.evaluate")
        _require_applicable(cfg)
        summary = evaluate_model(cfg, model.measured, path, overwrite=overwrite, lists=lists)
    return Evaluation(summary, path)


def _require_applicable(cfg: config.Config) -> None:
    """Raise UserError for a protocol that only the command line applies."""
    name = cfg.protocol.name
    spec = lookup(PROTOCOLS, name, "protocol.name")
    if spec.trains:
        raise UserError(
            f"evaluate: protocol {name} trains the model; use tools/test_net.py --model"
        )
    if cfg.protocol.splits:
        raise UserError("evaluate: protocol.splits is for tools/test_net.py; set data.fold")
    if reason := spec.refusal(cfg, None):
        raise UserError(f"protocol.name={name}: {reason}")


def _require_loaded(model: object) -> None:
    """Raise UserError for a model that neither `load_model` nor `wrap` returned."""
    if not isinstance(model, LoadedModel):
        raise UserError(
            f"evaluate: the model is a {type(model).__name__}; wrap it, vidrobust.wrap(model), or"
            " load it by name, vidrobust.load_model(name)"
        )


def _run(path: Path) -> MeasuredModel:
    """Return the model of a run of this package, with its options as input card."""
    state = checkpoint.read_checkpoint(path)
    cfg = checkpoint.configuration(state, str(path))
    try:
        classes = build_records(cfg.data, "train")[1]
    except UserError:  # its data set is elsewhere: the classes have no names
        classes = []
    run = load_run(cfg, state, max(1, len(classes)))
    card = configured_card(cfg, run.model.backbone)
    if classes and outputs_of(run.model.head) == len(classes):
        card = replace(card, classes=tuple(classes))
    return replace(run, input=card)


def _lists(
    model: LoadedModel,
    data: Files | Clips,
    train: Files | Clips | None,
    classes: Sequence[str] | None,
    folder: Path,
) -> tuple[Lists, dict[str, Any]]:
    """Return the records of given videos, and the options that describe given clips.

    Args:
        model: its card and classifier may name the classes.
        data: test videos.
        train: training videos, or None.
        classes: names of the classes, or None.
        folder: gets the files of given clips.
    """
    splits = [_files_or_clips(data)] + ([] if train is None else [_files_or_clips(train)])
    files = [each for each in splits if isinstance(each, list)]
    if files and len(files) < len(splits):
        raise UserError("evaluate: one of data and train is files, the other clips; give one kind")
    names = list(classes or _names(model, list(itertools.chain(*files))))
    if files:
        records = [records_of_files(each, names) for each in files]
        return checked_lists(records[1] if train is not None else [], records[0], names), {}
    records = []
    for number, clips in enumerate(splits):
        found, (frames, size) = records_of_clips(clips, folder / str(number), names)
        records.append(found)
    # the clips as they are: every frame, whole
    options = {"data.frames": frames, "data.stride": 1, "data.fps": 0, "data.resize": []}
    options |= {"data.size": size, "data.short_side": size, "eval.clips": 1}
    return checked_lists(records[1] if train is not None else [], records[0], names), options


def _files_or_clips(videos: Files | Clips) -> Any:
    """Return a list of files, or an iterable of clips whose first batch has not been taken."""
    try:
        items = iter(videos)
    except TypeError:
        raise UserError(
            f"evaluate: data is {type(videos).__name__}; give the name of a data set, a list of"
            " (path, label), or an iterable of (clips, labels)"
        ) from None
    first = next(items, None)
    if isinstance(first, tuple | list) and len(first) and isinstance(first[0], str | Path):
        files = [first, *items]
        if wrong := [
            each for each in files if not isinstance(each, tuple | list) or len(each) != 2
        ]:
            raise UserError(f"evaluate: {wrong[0]!r} is no pair of a path and a label")
        return files
    return itertools.chain([] if first is None else [first], items)


def _names(model: LoadedModel, files: Sequence[Labelled]) -> Sequence[str]:
    """Return the names of the classes of given videos: those of the model, or of the labels.

    Args:
        model: its card or its classifier may name them.
        files: the labelled files; empty for clips, whose labels are numbers.
    """
    outputs = outputs_of(model.measured.model.head)
    known = model.input.classes or ()
    if outputs and len(known) != outputs:
        known = tuple(map(str, range(outputs)))
    labels = [label for _, label in files if isinstance(label, str)]
    if known and None not in places_of(known, labels):
        return known
    if files:
        return names_of(files)
    raise UserError("evaluate: the model does not name its classes; give classes=[...]")


def _loaded(measured: MeasuredModel) -> LoadedModel:
    """Return a measured model with its parts."""
    assert measured.input is not None  # only runs of this package have none
    classifier = measured.model if outputs_of(measured.model.head) else None
    return LoadedModel(measured.model.backbone, classifier, measured.input, measured)


def _overridden(card: InputSpec, values: dict[str, Any], what: str) -> InputSpec:
    """Return a card with other values; raise UserError for values that no model has."""
    try:
        return overridden(card, **values)
    except (OSError, TypeError, ValueError) as error:
        raise UserError(f"{what}: {error}") from None


def _written(value: Any) -> str:
    """Return a value as the command line writes it."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(str, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)
