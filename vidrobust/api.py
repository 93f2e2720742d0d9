"""Measure a model from Python: load_model, wrap and evaluate."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vidrobust import config
from vidrobust.evaluation import Summary
from vidrobust.evaluation.evaluate import evaluate_model
from vidrobust.evaluation.measured_model import (
    OWN,
    MeasuredModel,
    card_options,
    load_source,
    measured_source,
)
from vidrobust.models import Backbone
from vidrobust.models.input_spec import InputSpec, overridden
from vidrobust.models.sources.own_code import wrapped
from vidrobust.utils.errors import UserError


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
    """Return a model of another package, or weights of other code in a backbone of this package.

    Args:
        spec: such as "torchvision:r2plus1d_18"; see docs/models.md.
        weights: file of weights; "": those that the spec names, or random ones.
        overrides: fields of `InputSpec` in place of the model's input card, such as
            mean=[0.45, 0.45, 0.45]; for a backbone of this package, options of `model.*`.

    Raises:
        UserError: for an unknown model, and for weights that cannot be read or do not fit.

    Example:
        model = load_model("torchvision:r2plus1d_18", weights="my.pth")
    """
    section = "model" if spec.startswith(OWN) else "model.input"
    words = [f"{section}.{key}={_written(value)}" for key, value in overrides.items()]
    return _loaded(load_source(config.loads("", words), spec, str(weights)))


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
    try:
        card = overridden(InputSpec(), **input_spec)
    except (OSError, TypeError, ValueError) as error:
        raise UserError(f"wrap: {error}") from None
    name = type(model).__name__ if isinstance(model, nn.Module) else "function"
    return _loaded(measured_source(config.Config(), wrapped(model, card, name), None, name))


def evaluate(
    model: LoadedModel,
    data: str,
    *,
    root: str | Path = "",
    threats: Sequence[str] = (),
    corruptions: str | Sequence[str] = (),
    output: str | Path = "outputs/evaluation",
    options: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> Evaluation:
    """Measure a model on a data set: representation, attacks, corruptions, report.

    A call that was stopped can be repeated, and continues.

    Args:
        model: of `load_model` or `wrap`.
        data: name of the data set, as `data.name`.
        root: its folder; "": the default of `data.root`.
        threats: budgets, such as "linf-2/255"; none: no attack.
        corruptions: names or a set of names, such as "quick"; none: no corruptions.
        output: folder of the results.
        options: further options by their keys, such as {"eval.suite": "autoattack"}.
        overwrite: replace another evaluation in the folder.

    Raises:
        UserError: for wrong options, for a folder with another evaluation, and for videos that do
            not decode, after everything is written.
    """
    names = [corruptions] if isinstance(corruptions, str) else list(corruptions)
    given: dict[str, Any] = {
        "data.name": data,
        **({"data.root": root} if root else {}),
        "eval.threats": list(threats),
        "eval.corruption.names": [name for name in names if name],
        **(options or {}),
    }
    words = [f"{key}={_written(value)}" for key, value in given.items()]
    cfg = config.loads(card_options(model.input), words, "vidrobust.evaluate")
    path = Path(output)
    return Evaluation(evaluate_model(cfg, model.measured, path, overwrite=overwrite), path)


def _loaded(measured: MeasuredModel) -> LoadedModel:
    """Return a measured model with its parts."""
    assert measured.input is not None  # only runs of this package have none
    has_head = isinstance(measured.model.head, nn.Linear)
    classifier = measured.model if has_head else None
    return LoadedModel(measured.model.backbone, classifier, measured.input, measured)


def _written(value: Any) -> str:
    """Return a value as the command line writes it."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(str, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)
