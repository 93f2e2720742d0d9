"""Evaluate a checkpoint: kNN, probe, attacks, corruptions, report."""

import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vidrobust import checkpoint, config
from vidrobust.attacks import BadSamples, ThreatModel, self_checks
from vidrobust.corruptions import expand
from vidrobust.data import (
    ClipDataset,
    Record,
    build_records,
    corrupted_videos,
    doubt_of_twins,
    eval_dataset,
    is_image,
    records_sha,
    require_labels,
    second_cues,
    shared_sources,
    source_videos,
    texture_twins,
)
from vidrobust.evaluation.adversarial.micro_batches import MicroBatches
from vidrobust.evaluation.adversarial.rows import evaluate_robust, without
from vidrobust.evaluation.adversarial.suites import Suite, check_suite
from vidrobust.evaluation.adversarial.targets import clip_units
from vidrobust.evaluation.natural.bias import bias_table, check_bias, evaluate_bias
from vidrobust.evaluation.natural.corruption import (
    check_corruptions,
    corruption_table,
    evaluate_corruptions,
    read_baseline,
    relative_to,
    without_effect,
)
from vidrobust.evaluation.natural.shift import Shared, evaluate_shift, other_records
from vidrobust.evaluation.report.markdown import read_summary, write_report
from vidrobust.evaluation.representation.knn_and_probe import Representation, measure_representation
from vidrobust.evaluation.representation.space import ALIGNED, geometry_of, sensitivity_of
from vidrobust.evaluation.results import claim, decoding_failures, identify, model_faults
from vidrobust.evaluation.settings import MeasureSettings
from vidrobust.evaluation.summary import about, attacked, learned_nothing
from vidrobust.methods import Method, build_method
from vidrobust.models import Model, add_branches, branch_names
from vidrobust.models.branch_norm import MIXTURES, branch_of
from vidrobust.models.feature_store import DiskStore, Features
from vidrobust.models.inference import evaluation_mode, evenly, extract
from vidrobust.utils import distributed
from vidrobust.utils.atomic_files import replacing
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log
from vidrobust.utils.seeds import seed_everything


def load_method(cfg: config.Config, state: dict[str, Any], classes: int) -> Method:
    """The configured method with the weights of a checkpoint's `state`, its own linear head
    included.

    Raises UserError for another architecture, and for an eval.branch that the model was trained
    without.
    """
    branch, known = (
        cfg.eval.branch,
        {"clean"} | {name for key in state["model"] if (name := branch_of(key))},
    )
    if branch not in known and (branch not in MIXTURES or len(known) == 1):
        raise UserError(
            f"eval.branch={branch}: the checkpoint was trained without it; it has"
            f" {', '.join(sorted(known))}"
        )
    if branch == "select" and "backbone.selector.weight" not in state["model"]:
        raise UserError(
            "eval.branch=select: the checkpoint was trained without method.adversary.selector; take"
            " average"
        )
    weights = checkpoint.weights(state, average=cfg.eval.average)
    own = weights.get("head.weight")  # a linear head's; a projector has head.0.weight
    method = build_method(cfg, classes if own is None else len(own))
    branches = dict.fromkeys(
        name for key in weights if key.startswith("head.") and (name := branch_of(key))
    )
    if (
        branches and len(branch_names(method.model.head)) == 1
    ):  # advcl's, before its head was shared by branches
        add_branches(method.model.head, [name for name in branches if name != "clean"])
    checkpoint.load_state(method.model, weights, f"checkpoint of step {state['step']}")
    return method


def evaluate(
    cfg: config.Config, state: dict[str, Any], out: Path, *, overwrite: bool = False
) -> dict[str, Any]:
    """Measure a checkpoint's `state` on the test list; fills `out` and returns its summary. Every
    rank calls it.

    Writes predictions.jsonl (a row a video), results.jsonl (a row a video and budget),
    corruptions.jsonl (a row a video and corruption), summary.json, report.md and its pictures.
    Killed and called again it goes on where it was, with the same summary. Raises UserError for a
    folder that holds another evaluation (overwrite: it is replaced), and, after everything is
    written, when videos did not decode.
    """
    device = distributed.start(cfg.device)
    suite, threats = check_suite(cfg)
    c = cfg.eval.corruption
    names = check_corruptions(c.names)
    with distributed.main_first():
        train, test, classes = build_lists(cfg.data)
    check_bias(cfg, test)
    others = other_records(cfg, classes, train + test)
    identity = identify(cfg, state, train, test, others[0])
    same = {
        "manifest_sha": identity["manifest_sha"],
        "n": len(evenly(len(test), cfg.eval.limit)),
        "unit": cfg.eval.unit,
    }
    baseline = read_baseline(c.baseline, names, c.severities, c.place, same)
    seed_everything(cfg.seed, cfg.deterministic)
    fresh = build_method(cfg, len(classes))  # the random weights of the run's seed
    method = load_method(cfg, state, len(classes))
    main = distributed.rank() == 0
    with ExitStack() as folder:
        with distributed.together():
            if main:
                folder.enter_context(
                    claim(out, identity, cfg, overwrite=overwrite, classes=classes)
                )
        done = out / "summary.json"
        if done.is_file():
            summary = read_summary(done)
        else:
            summary = (
                _measure(
                    cfg,
                    suite,
                    threats,
                    method.model.to(device),
                    fresh.model.to(device),
                    train,
                    test,
                    others,
                    classes,
                    out,
                    identity["checkpoint"],
                )
                | identity
            )
        if summary["corruption"]:
            # another baseline costs nothing
            summary["corruption"] = relative_to(summary["corruption"], baseline) | {
                "baseline": c.baseline or None
            }
        with distributed.together():
            if main:
                _write(done, json.dumps(summary, indent=2) + "\n")
                (out / _FEATURES).unlink(missing_ok=True)
                shutil.rmtree(out / _STORE, ignore_errors=True)
                write_report(out, summary, classes)
    if summary["failed"]:
        raise UserError(
            f"videos that do not decode: {len(summary['failed'])}; those of test lists count as"
            f" wrong in {done}; the first: {summary['failed'][0]}"
        )
    return summary


def check_evaluation(cfg: config.Config) -> None:
    """What `evaluate` would refuse of options and data, before days of training. Raises
    UserError.
    """
    check_suite(cfg)
    known, test, classes = build_lists(cfg.data)
    check_bias(cfg, test)
    other_records(cfg, classes, known + test)


def build_lists(cfg: config.DataConfig) -> tuple[list[Record], list[Record], list[str]]:
    """(training records, test records, classes) that an evaluation may use; warns of what makes its
    numbers doubtful.

    Raises UserError when labels are missing.
    """
    train, classes = build_records(cfg, "train")
    test, _ = build_records(cfg, "test")
    for records, what in (
        (train, "evaluation (eval.enabled=false does without)"),
        (test, "evaluation"),
    ):
        require_labels(records, what)
    if len(classes) < 2:
        raise UserError(
            f"data.name={cfg.name}: {cfg.root} has one class, {classes[0]!r}: there is "
            "nothing to distinguish; eval.enabled=false trains without evaluation"
        )
    leaked = shared_sources(train, test)
    if leaked:
        log.warning(
            f"{len(leaked)} of {len(test)} test videos share their source with a training video,"
            f" first {leaked[0]}: accuracies will be too high"
        )
    absent = sorted({record.label for record in test} - {record.label for record in train})
    if absent:
        log.warning(f"no training video of {len(absent)} test classes, first {classes[absent[0]]}")
    return train, test, classes


def _measure(
    cfg: config.Config,
    suite: Suite,
    threats: list[ThreatModel],
    model: Model,
    random: Model,
    train: list[Record],
    test: list[Record],
    others: tuple[list[Record], Shared],
    classes: list[str],
    out: Path,
    checkpoint_name: str,
) -> dict[str, Any]:
    device = next(model.parameters()).device
    indices = evenly(len(test), cfg.eval.limit)
    with evaluation_mode(model, random, branch=cfg.eval.branch):
        gallery, queries = _features(cfg, model, random, train, test, out, device)
        head = None if cfg.method.clusters else _own_head(model, len(classes))
        found = measure_representation(gallery, queries, len(classes), cfg.eval, device, head)
        if found.probe is not None:
            distributed.broadcast(found.probe.parameters())
        if distributed.rank() == 0:
            _write(
                out / "predictions.jsonl", "".join(json.dumps(row) + "\n" for row in found.rows())
            )
        predict = _classifier(model, head, found, device)
        measured = {"n": len(indices)} | about(cfg, found, gallery[0], classes)
        seen = [test[i] for i in evenly(len(test), ALIGNED)]
        moved = (
            [test[i] for i in evenly(len(test), cfg.eval.sensitivity)]
            if cfg.eval.sensitivity
            else []
        )
        measured["geometry"] = geometry_of(cfg, [model, random], queries, seen, device)
        measured["sensitivity"] = sensitivity_of(cfg, model, predict, moved, device)
        name = checkpoint_name  # which model the rows are of
        measured["shift"] = evaluate_shift(cfg, predict, others, test, out, device, identity=name)
        corruption = _corruptions(cfg, predict, test, indices, classes, out, device, name)
        measured["bias"] = _bias(cfg, predict, test, indices, classes, out, device, name)
        if measured["bias"]:
            measured["clean_acc"] = measured["bias"]["views"]["clean"]["acc"]
        if corruption:
            measured["clean_acc"] = corruption["clean_acc"]
        measured |= (
            {"clean_acc": None}
            | measured
            | _attacks(cfg, suite, threats, predict, test, indices, out, device, name)
        )
        measured["corruption"] = corruption
        measured["warnings"] += learned_nothing(measured["representation"])
        for part in (corruption, measured["bias"], measured["shift"], measured["sensitivity"]):
            measured["warnings"] += (part or {}).get("warnings", [])
        if "texture" in cfg.eval.bias and (doubt := doubt_of_twins(cfg.data)):
            measured["warnings"].append(doubt)
        for part in (corruption or {}, measured["bias"] or {}, measured["shift"] or {}):
            measured["failed"] += [
                line for line in part.get("failed", []) if line not in measured["failed"]
            ]
    failed = measured["failed"]
    if failed:
        more = f"; and {len(failed) - 5} more" if len(failed) > 5 else ""
        measured["warnings"].append(
            f"{len(failed)} videos do not decode: {'; '.join(failed[:5])}{more}"
        )
    return measured


def _attacks(
    cfg: config.Config,
    suite: Suite,
    threats: list[ThreatModel],
    predict: Callable[[Tensor], Tensor],
    test: list[Record],
    indices: list[int],
    out: Path,
    device: torch.device,
    checkpoint_name: str,
) -> dict[str, Any]:
    """What a summary says of attacks."""
    if not threats:
        none = dict.fromkeys(("robust_acc", "robust_acc_uint8", "ci95", "threat", "suite"))
        return none | {"threats": [], "curve": [], "warnings": []}
    clips = eval_dataset(cfg.data, test, 1)
    doubts = (
        _checks(cfg, predict, clips, indices, threats[-1], out, device)
        if distributed.rank() == 0
        else []
    )
    what = "a clip of each" if cfg.eval.unit == "clip" else "source frames"
    log.info(f"attacking {len(indices)} videos ({what}), {suite}, {len(threats)} budgets")
    videos = (
        clips
        if cfg.eval.unit == "clip"
        else source_videos(cfg.data, test, cfg.eval.clips, cfg.eval.sampling)
    )
    rows = evaluate_robust(
        predict,
        videos,
        indices,
        threats,
        out,
        suite=suite,
        seed=cfg.seed,
        batch_size=cfg.eval.batch_size,
        workers=cfg.data.workers,
        device=device,
        pictures=cfg.eval.pictures,
        crops=cfg.eval.crops,
        h264_crf=cfg.eval.h264,
        identity=checkpoint_name,
    )
    return attacked(cfg, rows, threats, suite, doubts)


def _corruptions(
    cfg: config.Config,
    predict: Callable[[Tensor], Tensor],
    test: list[Record],
    indices: list[int],
    classes: list[str],
    out: Path,
    device: torch.device,
    checkpoint_name: str,
) -> dict[str, Any] | None:
    """What a summary says of corruptions."""
    c, views = cfg.eval.corruption, cfg.eval.clips if cfg.eval.unit == "video" else 1
    names = expand(c.names)
    if not names:
        return None
    idle = without_effect(
        names, cfg.data.frames, images=all(is_image(record.path) for record in test)
    )
    if idle and distributed.rank() == 0:
        log.warning(idle[0])
    log.info(
        f"corrupting {len(indices)} videos ({views} clips of each), {len(names)} x"
        f" {len(c.severities)}"
    )
    videos = corrupted_videos(cfg.data, test, views, cfg.eval.sampling, c.place, cfg.seed)
    settings = MeasureSettings(
        predict, out, cfg.eval.batch_size, cfg.data.workers, device, checkpoint_name
    )
    rows = evaluate_corruptions(settings, videos, indices, names, c.severities)
    return corruption_table(rows, c.severities, classes) | {
        "place": c.place,
        "views": f"{views}x1",
        "failed": decoding_failures(rows),
        "warnings": idle + model_faults(rows),
    }


def _bias(
    cfg: config.Config,
    predict: Callable[[Tensor], Tensor],
    test: list[Record],
    indices: list[int],
    classes: list[str],
    out: Path,
    device: torch.device,
    checkpoint_name: str,
) -> dict[str, Any] | None:
    """What a summary says of the cues that are followed."""
    if not cfg.eval.bias:
        return None
    log.info(
        f"what it looks at, of {len(indices)} videos ({cfg.eval.clips} clips of each):"
        f" {', '.join(cfg.eval.bias)}"
    )
    twins = (
        texture_twins(cfg.data, test, cfg.eval.clips, cfg.eval.sampling)
        if "texture" in cfg.eval.bias
        else None
    )
    settings = MeasureSettings(
        predict, out, cfg.eval.batch_size, cfg.data.workers, device, checkpoint_name
    )
    rows = evaluate_bias(
        settings,
        lambda: eval_dataset(cfg.data, test, cfg.eval.clips, cfg.eval.sampling),
        twins,
        indices,
        cfg.eval.bias,
        seed=cfg.seed,
        others=second_cues(cfg.data, test, classes),
    )
    return bias_table(rows, classes) | {"views_of": f"{cfg.eval.clips}x1"}


def _checks(
    cfg: config.Config,
    predict: Callable[[Tensor], Tensor],
    dataset: ClipDataset,
    indices: list[int],
    threat: ThreatModel,
    out: Path,
    device: torch.device,
) -> list[str]:
    """What makes the numbers doubtful, on some of the clips; once an evaluation."""
    path = out / "checks.json"
    if cfg.eval.checks and _read_checks(path) is None:
        some = [
            indices[i] for i in evenly(len(indices), cfg.eval.checks)
        ]  # lists are sorted by class
        (unit,) = clip_units(predict, dataset, [some], cfg.data.workers, device)
        found: list[str] = []
        while unit.uids:
            generator = torch.Generator().manual_seed(cfg.seed)
            try:
                found += self_checks(
                    MicroBatches(predict, cfg.eval.batch_size),
                    unit.x,
                    unit.labels,
                    threat,
                    random=cfg.eval.suite == "rand",
                    batch_size=cfg.eval.batch_size,
                    generator=generator,
                )
                break
            except BadSamples as error:
                unit = without(unit, error)
                found = [
                    "checks left out clips: " + "; ".join(failure.reason for failure in unit.failed)
                ]
            except ValueError as error:
                raise UserError(f"checking the model under {threat}: {error}") from None
        for line in found:
            log.warning(line)
        _write(path, json.dumps(found) + "\n")
    return _read_checks(path) or []


def _read_checks(path: Path) -> list[str] | None:
    """Return the lines of checks.json.

    None where it is missing, or damaged and to be made again.
    """
    try:
        lines = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return (
        lines if isinstance(lines, list) and all(isinstance(line, str) for line in lines) else None
    )


_FEATURES = "features.pt"  # where revisions before the feature store kept them
_STORE = "features"


def _features(
    cfg: config.Config,
    model: Model,
    random: Model,
    train: list[Record],
    test: list[Record],
    out: Path,
    device: torch.device,
) -> tuple[list[Features], list[Features]]:
    """Return the features of training and test videos, each under the trained and the random
    weights.

    They are written to a folder as they are computed, and kept until the evaluation is finished:
    one that was killed goes on with the same bits. Under torchrun the ranks share the work.
    """
    path = out / _FEATURES
    if path.is_file():
        gallery, queries = (
            [Features.from_dict(found) for found in split] for split in checkpoint.read(path)
        )
        return gallery, queries
    log.info(f"features of {len(train)} + {len(test)} videos, {cfg.eval.clips} clips of each")
    gallery, queries = (
        extract(
            [model.backbone, random.backbone],
            eval_dataset(cfg.data, records, cfg.eval.clips, cfg.eval.sampling),
            device,
            batch_size=cfg.eval.batch_size,
            workers=cfg.data.workers,
            title=f"{split} features",
            store=DiskStore(out / _STORE, split, 2, records_sha(records)),
        )
        for split, records in (("train", train), ("test", test))
    )
    return gallery, queries


def _own_head(model: Model, classes: int) -> nn.Linear | None:
    """The model's own classifier, if it has one for as many classes."""
    return (
        model.head
        if isinstance(model.head, nn.Linear) and model.head.out_features == classes
        else None
    )


def _classifier(
    model: Model, head: nn.Linear | None, found: Representation, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """What is attacked: the model's own classifier, or its trunk with the linear probe."""
    if head is not None:
        return lambda x: model(x).float()
    assert found.probe is not None
    probe = found.probe.to(device)
    return lambda x: probe(model.backbone(x).float())


def _write(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write(text.encode())
