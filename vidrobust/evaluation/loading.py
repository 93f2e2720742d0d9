"""Load what an evaluation needs: the model of a checkpoint, and lists of videos."""

from typing import Any

import torch

from vidrobust import checkpoint, config
from vidrobust.data import Record, build_records, eval_dataset, require_labels, shared_sources
from vidrobust.evaluation.representation.multi_label import is_multi_label
from vidrobust.methods import Method, build_method
from vidrobust.models import Backbone, add_branches, branch_names
from vidrobust.models.branch_norm import MIXTURES, branch_of
from vidrobust.models.precise_bn import recompute_statistics
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log


def load_method(cfg: config.Config, state: dict[str, Any], classes: int) -> Method:
    """Return the configured method with the weights of a checkpoint, its own linear head included.

    Args:
        cfg: the configuration.
        state: the checkpoint.
        classes: number of classes K of the data set.

    Raises:
        UserError: for another architecture, and for an eval.branch that the model was trained
            without.
    """
    _require_branch(cfg.eval.branch, state)
    weights = checkpoint.weights(state, average=cfg.eval.average)
    # A linear head keeps the number of its outputs, such as clusters, which may differ from K. A
    # projector has head.0.weight instead.
    linear = weights.get("head.weight", weights.get("head.linear.weight"))
    method = build_method(cfg, classes if linear is None else len(linear))
    head_branches = [branch_of(key) for key in weights if key.startswith("head.")]
    adversarial = dict.fromkeys(name for name in head_branches if name and name != "clean")
    # advcl's head had norm branches in earlier revisions
    if adversarial and len(branch_names(method.model.head)) == 1:
        add_branches(method.model.head, list(adversarial))
    checkpoint.load_state(method.model, weights, f"checkpoint of step {state['step']}")
    return method


def _require_branch(branch: str, state: dict[str, Any]) -> None:
    """Raise UserError for an eval.branch that the weights do not have."""
    names = [branch_of(key) for key in state["model"]]
    branches = {"clean", *(name for name in names if name)}
    is_mixture = branch in MIXTURES and len(branches) > 1
    if branch not in branches and not is_mixture:
        raise UserError(
            f"eval.branch={branch}: the checkpoint was trained without it; it has"
            f" {', '.join(sorted(branches))}"
        )
    if branch == "select" and "backbone.selector.weight" not in state["model"]:
        raise UserError(
            "eval.branch=select: the checkpoint was trained without method.adversary.selector; use"
            " average"
        )


def make_norms_precise(
    cfg: config.Config, backbone: Backbone, train: list[Record], device: torch.device
) -> int:
    """Recompute batch-norm statistics as `eval.precise_bn` asks; return the number of clips used.

    With 0 clips the backbone is unchanged. Norms of the head are not part of any measurement.

    Args:
        cfg: the configuration.
        backbone: the backbone, on the device.
        train: training videos, whose centre clips are used.
        device: device of the backbone.

    Raises:
        UserError: if no video of a batch decodes.
    """
    if not cfg.eval.precise_bn:
        return 0
    log.info(f"batch-norm statistics from {min(cfg.eval.precise_bn, len(train))} training clips")
    return recompute_statistics(
        backbone,
        eval_dataset(cfg.data, train, 1),
        device,
        clips=cfg.eval.precise_bn,
        branch=cfg.eval.branch,
        batch_size=cfg.eval.batch_size,
        workers=cfg.data.workers,
    )


def build_lists(
    cfg: config.DataConfig, *, needs_train: bool = True
) -> tuple[list[Record], list[Record], list[str]]:
    """Return (training records, test records, classes) of an evaluation.

    Warns of test videos whose source is also a training video's, and of classes without training
    videos.

    Args:
        cfg: the data options.
        needs_train: False: training videos may be missing, and a warning says so.

    Raises:
        UserError: for missing labels, and for a single class.
    """
    try:
        train, classes = build_records(cfg, "train")
        test, _ = build_records(cfg, "test")
    except UserError as error:
        if needs_train:
            raise
        test, classes = build_records(cfg, "test")
        train = []
        log.warning(f"no training videos, so neither kNN nor the linear probe ({error})")
    return checked_lists(train, test, classes, f"data.name={cfg.name}: {cfg.root}")


def checked_lists(
    train: list[Record], test: list[Record], classes: list[str], name: str = "the data set"
) -> tuple[list[Record], list[Record], list[str]]:
    """Return the lists of an evaluation, with warnings of what makes accuracies doubtful.

    Args:
        train: training videos, or none.
        test: test videos.
        classes: names of the classes.
        name: of the data set, for messages.

    Raises:
        UserError: for missing labels, and for a single class.
    """
    if not is_multi_label(test):
        require_labels(train, "evaluation (eval.enabled=false does without)")
        require_labels(test, "evaluation")
    if len(classes) < 2:
        raise UserError(
            f"{name} has one class, {classes[0]!r}: there is nothing to distinguish;"
            " eval.enabled=false trains without evaluation"
        )
    leaked = shared_sources(train, test)
    if leaked:
        log.warning(
            f"{len(leaked)} of {len(test)} test videos share their source with a training video,"
            f" first {leaked[0]}: accuracies will be too high"
        )
    absent = sorted({record.label for record in test} - {record.label for record in train})
    if absent and train:
        log.warning(f"no training video of {len(absent)} test classes, first {classes[absent[0]]}")
    return train, test, classes
