"""Find the model that a command line names, and the configuration of the protocol for it."""

import argparse
import copy
from dataclasses import replace
from pathlib import Path

import yaml

from vidrobust import checkpoint, config
from vidrobust.cli import common
from vidrobust.cli.common import other_data, without_lists
from vidrobust.evaluation import evaluate, evaluate_source
from vidrobust.evaluation.measured_model import OWN
from vidrobust.evaluation.representation.protocols import PROTOCOLS
from vidrobust.models import branch_names, configured_backbone
from vidrobust.models.sources import build_source
from vidrobust.protocols import Subject
from vidrobust.training.weights_options import with_weights_options
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log

_SPLIT = "{split}"  # in --checkpoint
# options of an evaluation that belong to the weights of the run, and not to a finetuned model
_OF_WEIGHTS = ("name", "branch", "average", "classifier", "precise_bn", "card")


def asked_splits(args: argparse.Namespace) -> list[int]:
    """Return the official splits that a command line asks for; none for data.fold alone.

    Raises:
        UserError: for splits together with data.fold, and for {split} without splits.
    """
    splits: list[int] = config.value_given("protocol.splits", args.overrides, args.cfg) or []
    if splits and "data.fold" in config.keys_given(args.overrides, args.cfg):
        raise UserError(f"protocol.splits={splits}: data.fold is set too; remove one")
    if not splits and _SPLIT in str(args.checkpoint or ""):
        raise UserError(
            f"--checkpoint {args.checkpoint}: {{split}} stands for the numbers of protocol.splits;"
            " set them, such as protocol.splits=[1,2,3]"
        )
    return splits


def check_protocol_options(args: argparse.Namespace, cfg: config.Config) -> None:
    """Warn of options of other protocols, and refuse a classifier beside the protocol's own.

    Raises:
        UserError: for eval.classifier with a protocol that fits its own classifier.
    """
    name = cfg.protocol.name
    spec = PROTOCOLS[name]
    if spec.fit is not None and cfg.eval.classifier != "auto":
        raise UserError(
            f"eval.classifier={cfg.eval.classifier}: protocol.name={name} fits the classifier that"
            " is measured; leave it out"
        )
    used = {"name", "splits", "stages", *spec.options}
    given = [word.split("=")[0] for word in args.overrides if word.startswith("protocol.")]
    if idle := [key for key in given if key.removeprefix("protocol.") not in used]:
        log.warning(f"no effect with protocol.name={name}: {', '.join(idle)}")


def subject_of(
    args: argparse.Namespace, split: int | None = None, *, only_estimate: bool = False
) -> tuple[config.Config, Subject]:
    """Return the configuration and the model that a command line names.

    For a protocol that trains, the configuration is that of the training run: data and model are
    those of the checkpoint, and all else is that of the protocol's file and the command line.

    Args:
        args: of `common.add_checkpoint`, with `model`.
        split: official split in place of data.fold, and of {split} in --checkpoint; None: none.
        only_estimate: end where the cost of the attacks is known.

    Raises:
        UserError: as `common.load_checkpoint` and `common.model_config` do.
    """
    args = copy.copy(args)
    if split is not None:
        args.overrides = [*args.overrides, f"data.fold={split}"]
        if args.checkpoint:
            args.checkpoint = Path(str(args.checkpoint).replace(_SPLIT, str(split)))
    # a run's own configuration may name the protocol that it was trained by
    name = config.value_given("protocol.name", args.overrides, args.cfg)
    trains = name in PROTOCOLS and PROTOCOLS[name].trains
    if args.model:
        return _source(args, trains=trains, only_estimate=only_estimate)
    if trains:
        state = checkpoint.read_checkpoint(args.checkpoint)
        trained = checkpoint.configuration(state, str(args.checkpoint))
        cfg = _finetuned(args, trained)
        folder = common.run_folder(args.checkpoint)
    else:
        cfg, state, folder = common.load_checkpoint(args)
        trained = checkpoint.configuration(state, str(args.checkpoint))
    return cfg, Subject(
        folder,
        lambda cfg, out, overwrite: evaluate(
            cfg, state, out, overwrite=overwrite, only_estimate=only_estimate
        ),
        trained,
        trains,
    )


def _source(
    args: argparse.Namespace, *, trains: bool, only_estimate: bool
) -> tuple[config.Config, Subject]:
    """Return the configuration for a model of another package, and the model.

    Args:
        args: of the command line.
        trains: the protocol trains, from the model's weights.
    """
    cfg, folder = common.model_config(args)
    if trains:
        _require_trained(args)
        cfg = replace(cfg, model=replace(cfg.model, weights=args.weights))
        if args.weights:
            cfg = _with_sha(with_weights_options(cfg))
    return cfg, Subject(
        folder,
        lambda cfg, out, overwrite: evaluate_source(
            cfg,
            args.model,
            args.weights,
            out,
            overwrite=overwrite,
            only_estimate=only_estimate,
        ),
        finetuned=trains,
    )


def _finetuned(args: argparse.Namespace, trained: config.Config) -> config.Config:
    """Return the configuration of a run that begins with the weights of another one.

    Args:
        args: of the command line.
        trained: configuration of the other run.
    """
    whole = yaml.safe_load(config.to_yaml(trained))
    kept = {key: whole[key] for key in ("seed", "device", "deterministic", "data", "model")}
    kept["model"]["weights"] = str(args.checkpoint)
    kept["model"]["weights_sha"] = ""
    if other_data(args, trained):
        kept["data"] = without_lists(kept["data"])
    kept["eval"] = {key: v for key, v in whole["eval"].items() if key not in _OF_WEIGHTS}
    source = f"{args.checkpoint} and command line"
    return _with_sha(config.loads(yaml.safe_dump(kept), args.overrides, source, args.cfg))


def _with_sha(cfg: config.Config) -> config.Config:
    """Return the configuration of a run with the hash of the weights that it begins with.

    A finished run is recognised by its options. The path of its weights alone would not show that
    they have been trained further since.
    """
    backbone = configured_backbone(cfg.model)
    state = checkpoint.backbone_state(
        cfg.model.weights,
        branches=branch_names(backbone),
        head_key=backbone.head_key,
        keys=backbone.stored.state_dict().keys(),
    )
    return replace(cfg, model=replace(cfg.model, weights_sha=checkpoint.state_sha(state)))


def _require_trained(args: argparse.Namespace) -> None:
    """Refuse to finetune a model of random weights, which only a fault would do."""
    spec = args.model
    if args.weights or spec.startswith(OWN) or spec.partition(":")[0] in ("python", "torchscript"):
        return  # weights of own code are unknown
    if not build_source(spec, lambda card: card).trained:
        raise UserError(
            f"--model {spec}: has random weights, and the protocol begins with trained ones; give"
            " a file with --weights, or train with tools/train_net.py"
        )
