"""Evaluate a checkpoint: kNN, probe, attacks, corruptions, report."""

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vidrobust import checkpoint, config
from vidrobust.attacks import BadSamples, Predict, ThreatModel, eot, self_checks
from vidrobust.corruptions import expand
from vidrobust.data import (
    ClipDataset,
    Record,
    SourceVideos,
    corrupted_videos,
    doubt_of_twins,
    eval_dataset,
    few_labels,
    is_image,
    records_sha,
    second_cues,
    source_videos,
    texture_twins,
    write_chosen,
)
from vidrobust.evaluation.adversarial.attack_settings import AttackSettings, check_suite
from vidrobust.evaluation.adversarial.cost_estimate import (
    LEAST_S,
    OnlyEstimated,
    estimate_attacks,
    videos_left,
)
from vidrobust.evaluation.adversarial.micro_batches import MicroBatches
from vidrobust.evaluation.adversarial.rows import evaluate_robust, without
from vidrobust.evaluation.adversarial.targets import Unit, clip_units, video_units
from vidrobust.evaluation.adversarial.transfer_rows import (
    TransferSource,
    check_transfer,
    evaluate_transfer,
    sources_sha,
    unlike_protocol,
)
from vidrobust.evaluation.identity import protocol_of
from vidrobust.evaluation.loading import build_lists, make_norms_precise
from vidrobust.evaluation.measured_model import (
    MeasuredModel,
    checkpoint_name,
    known_labels,
    load_run,
    load_source,
    unlike_card,
    used_card,
)
from vidrobust.evaluation.natural.bias import check_bias, evaluate_bias
from vidrobust.evaluation.natural.bias_summary import CLEAN, BiasTable, bias_table
from vidrobust.evaluation.natural.corruption import (
    check_corruptions,
    evaluate_corruptions,
    without_effect,
)
from vidrobust.evaluation.natural.corruption_summary import (
    CorruptionTable,
    corruption_table,
    read_baseline,
    relative_to,
)
from vidrobust.evaluation.natural.open_set import OpenSet, evaluate_open_set, unknown_records
from vidrobust.evaluation.natural.shift import Shared, evaluate_shift, other_records
from vidrobust.evaluation.own_head import Head, own_head
from vidrobust.evaluation.report.baseline import remembered_baseline
from vidrobust.evaluation.report.card import check_card_options, earlier_card, write_card
from vidrobust.evaluation.report.markdown import write_report
from vidrobust.evaluation.report.projector import write_projector
from vidrobust.evaluation.representation.class_accuracy import (
    write_class_tables,
    write_precision_table,
)
from vidrobust.evaluation.representation.knn import knn_scores
from vidrobust.evaluation.representation.knn_and_probe import (
    Accuracy,
    Representation,
    measure_representation,
    probe_accuracy,
)
from vidrobust.evaluation.representation.multi_label import (
    is_multi_label,
    measure_multi_label,
    require_multi_label_options,
)
from vidrobust.evaluation.representation.protocol_spec import FitInputs, Fitted
from vidrobust.evaluation.representation.protocols import PROTOCOLS
from vidrobust.evaluation.representation.space import (
    ALIGNED,
    geometry_of,
    sensitivity_of,
    video_margins,
)
from vidrobust.evaluation.results import (
    claim,
    decoding_failures,
    identify,
    model_faults,
    read_checks,
)
from vidrobust.evaluation.retrieval_protocol import NAME as RETRIEVAL
from vidrobust.evaluation.retrieval_protocol import check_retrieval, evaluate_retrieval
from vidrobust.evaluation.retrieval_summary import RetrievalTable
from vidrobust.evaluation.settings import MeasureSettings
from vidrobust.evaluation.summary import (
    Summary,
    add_attacks,
    learned_nothing,
    read_summary,
    summary_of_data,
    unlike_published,
    write_summary,
)
from vidrobust.models import AttentiveHead, Model, outputs_of
from vidrobust.models.complexity import model_complexity
from vidrobust.models.fast_passes import to_measure, with_amp_of_machine
from vidrobust.models.feature_store import DiskStore, Features
from vidrobust.models.inference import evaluation_mode, evenly, extract
from vidrobust.models.stages import PooledStages, require_stages
from vidrobust.utils import distributed
from vidrobust.utils.atomic_files import replacing
from vidrobust.utils.errors import UndecodedVideos, UserError
from vidrobust.utils.logging import log
from vidrobust.utils.text import visible

_OLD_FEATURES = "features.pt"  # file of features of revisions before the feature store
_STORE = "features"  # folder of the feature store

# training videos, test videos, names of the classes
Lists = tuple[list[Record], list[Record], list[str]]


@dataclass(frozen=True)
class _Evaluation:
    """The data, settings and folder of an evaluation.

    Attributes:
        cfg: the configuration.
        attack: threats and attacks.
        train: training videos.
        test: test videos.
        classes: names of the classes.
        others: videos of eval.shift, and the classes that both data sets share.
        unknown: videos of eval.open_set.
        sources: adversarial clips of eval.transfer.
        out: the folder.
        device: device of the models.
        identity: step and hash of the checkpoint, kept with rows.
        only_estimate: end where the cost of the attacks is known.
    """

    cfg: config.Config
    attack: AttackSettings
    train: list[Record]
    test: list[Record]
    classes: list[str]
    others: tuple[list[Record], Shared]
    unknown: list[Record]
    sources: list[TransferSource]
    out: Path
    device: torch.device
    identity: str
    only_estimate: bool = False

    @property
    def indices(self) -> list[int]:
        """Test videos that are attacked and corrupted."""
        return evenly(len(self.test), self.cfg.eval.limit)

    @property
    def attacks_classifier(self) -> bool:
        """True if the classifier is attacked; the protocol "retrieval" attacks features."""
        return bool(self.attack.threats) and self.cfg.protocol.name != RETRIEVAL

    def settings(self, predict: Predict) -> MeasureSettings:
        """Return how a classifier is measured."""
        cfg = self.cfg
        workers = cfg.data.workers
        return MeasureSettings(
            predict,
            self.out,
            cfg.eval.batch_size,
            workers,
            self.device,
            self.identity,
            cfg.eval.view_average,
        )


def evaluate(
    cfg: config.Config,
    state: dict[str, Any],
    out: Path,
    *,
    overwrite: bool = False,
    only_estimate: bool = False,
) -> Summary:
    """Measure a checkpoint on the test split, and return the summary. Every rank calls it.

    Writes predictions.jsonl (a row per video), results.jsonl (a row per video and threat),
    corruptions.jsonl (a row per video and corruption), bias.jsonl (a row per video and view),
    shift.jsonl (a row per video of eval.shift, and per own test video of the shared classes),
    open_set.jsonl (a row per video of eval.open_set, and per own test video), transfer.jsonl (a row
    per clip of eval.transfer), retrieval.jsonl (a row per query, clean and under each attack),
    summary.json, card.json, report.md and its pictures. A call that was killed can be repeated: it
    continues, with the same summary.

    Args:
        cfg: the configuration.
        state: the checkpoint.
        out: the folder.
        overwrite: replace another evaluation in the folder.
        only_estimate: measure the representation, and end with what the attacks will cost.

    Raises:
        OnlyEstimated: for `only_estimate`, with the cost as text.
        UserError: for a folder that holds another evaluation, and, after everything is written, for
            videos that do not decode.
    """
    name = checkpoint_name(cfg, state)
    return _evaluate(
        cfg,
        partial(load_run, cfg, state),
        name,
        out,
        overwrite=overwrite,
        only_estimate=only_estimate,
    )


def evaluate_source(
    cfg: config.Config,
    spec: str,
    weights: str,
    out: Path,
    *,
    overwrite: bool = False,
    only_estimate: bool = False,
) -> Summary:
    """Measure a model of another package as `evaluate` measures a checkpoint.

    Args:
        cfg: the configuration; its `model.*` is not used but for mean and std.
        spec: such as `torchvision:r3d_18`; see `sources.SOURCES`.
        weights: file of weights; "": those that the spec names.
        out: the folder.
        overwrite: replace another evaluation in the folder.
        only_estimate: as in `evaluate`.

    Raises:
        UserError: as `evaluate`, for an unknown model, and for weights that do not fit.
    """
    measured = load_source(cfg, spec, weights)
    return evaluate_model(cfg, measured, out, overwrite=overwrite, only_estimate=only_estimate)


def evaluate_model(
    cfg: config.Config,
    measured: MeasuredModel,
    out: Path,
    *,
    overwrite: bool = False,
    lists: Lists | None = None,
    only_estimate: bool = False,
) -> Summary:
    """Measure a loaded model as `evaluate` measures a checkpoint.

    Args:
        cfg: the configuration.
        measured: the model.
        out: the folder.
        overwrite: replace another evaluation in the folder.
        lists: training videos, which may be none, test videos and names of the classes; None: those
            of the configured data set.
        only_estimate: as in `evaluate`.

    Raises:
        UserError: as `evaluate`.
    """
    return _evaluate(
        cfg,
        lambda classes: measured,
        measured.name,
        out,
        overwrite=overwrite,
        lists=lists,
        only_estimate=only_estimate,
    )


def _evaluate(
    cfg: config.Config,
    load: Callable[[int], MeasuredModel],
    name: str,
    out: Path,
    *,
    overwrite: bool,
    lists: Lists | None = None,
    only_estimate: bool = False,
) -> Summary:
    """Measure a model; see `evaluate`.

    Args:
        cfg: the configuration.
        load: number of classes -> the model. It is called when all else has been checked.
        name: of its weights.
        out: the folder.
        overwrite: replace another evaluation in the folder.
        lists: see `evaluate_model`.
        only_estimate: see `evaluate`.
    """
    device = distributed.start(cfg.device)
    cfg = with_amp_of_machine(cfg, device)

    # 1. Refuse what does not fit, before anything is written
    attack = check_suite(cfg)
    check_corruptions(cfg.eval.corruption.names)
    check_card_options(cfg.eval.card)
    train, test, classes = _lists(cfg, lists)
    if is_multi_label(test):
        require_multi_label_options(cfg)
    check_bias(cfg, test)
    PROTOCOLS[cfg.protocol.name].check(cfg, train)
    check_retrieval(cfg, train, test, attack)
    others = other_records(cfg, classes, train + test)
    unknown = unknown_records(cfg, classes, train + test)
    sources = check_transfer(cfg, test, out)
    transfer = sources_sha(sources) if sources else ""
    # fields of Summary
    identity: dict[str, Any] = identify(cfg, name, train, test, others[0], unknown, transfer)
    baseline = _baseline(cfg, identity, len(evenly(len(test), cfg.eval.limit)))

    # 2. Models: the trained one, and one with random weights
    measured = load(len(classes))
    run = _Evaluation(
        cfg=cfg,
        attack=replace(attack, classes=classes),
        train=train,
        test=test,
        classes=classes,
        others=others,
        unknown=unknown,
        sources=sources,
        out=out,
        device=device,
        identity=identity["checkpoint"],
        only_estimate=only_estimate,
    )

    main = distributed.rank() == 0
    with ExitStack() as folder:
        with distributed.together():
            if main:
                claimed = claim(
                    out,
                    identity,
                    cfg,
                    overwrite=overwrite,
                    classes=classes,
                    planned=_planned_rows(run),
                )
                folder.enter_context(claimed)
                # a damaged card.json is refused now, not after hours of attacks
                earlier_card(out)
                if cfg.data.labels:
                    write_chosen(train, classes, out / "labels")

        # 3. Measure, unless it is measured already
        summary_path = out / "summary.json"
        kept = read_summary(summary_path) if summary_path.is_file() else None
        summary = kept or _measure(run, measured)
        summary = replace(summary, **identity)
        if summary.corruption:
            # computed anew, because another baseline needs no measurement
            relative = relative_to(summary.corruption, baseline)
            file = cfg.eval.corruption.baseline or None
            summary = replace(summary, corruption=replace(relative, baseline=file))

        # 4. Write
        with distributed.together():
            if main:
                if summary != kept:
                    write_summary(summary_path, summary)
                _delete_features(out)
                write_report(out, summary, classes, remembered_baseline(out, summary))
                write_card(out, summary, cfg.eval.card)
    _require_decoded(summary, summary_path)
    return summary


def _planned_rows(run: _Evaluation) -> dict[str, int]:
    """Return how many rows each file of rows will have, but for that of retrieval.

    The keys are stems of files, such as "results".
    """
    videos = len(run.indices)
    options = run.cfg.eval
    corruptions = expand(options.corruption.names)
    if is_multi_label(run.test):
        return {}
    others, shared = run.others
    own = sum(record.label in shared.own for record in run.test)
    rows = {
        "results": videos * len(run.attack.threats) if run.attacks_classifier else 0,
        "corruptions": videos * (1 + len(corruptions)) if corruptions else 0,
        "bias": videos * (1 + len(options.bias)) if options.bias else 0,
        "shift": len(others) + own if others else 0,
        "open_set": len(run.unknown) + videos if run.unknown else 0,
        "transfer": sum(len(each.indices) * len(each.threats) for each in run.sources),
    }
    return {stem: number for stem, number in rows.items() if number}


def _lists(cfg: config.Config, lists: Lists | None) -> Lists:
    """Return the lists of an evaluation; see `evaluate_model`.

    Raises:
        UserError: for lists that cannot be read, and for missing training videos that are needed.
    """
    with distributed.main_first():
        needs_train = cfg.eval.classifier != "head"
        train, test, classes = lists or build_lists(cfg.data, needs_train=needs_train)
    if lists and train and cfg.data.labels:
        train = few_labels(train, classes, cfg.data.labels, cfg.data.labels_seed)
    fits = PROTOCOLS[cfg.protocol.name].fit is not None or cfg.protocol.stages
    if not train and (fits or cfg.eval.precise_bn or cfg.eval.classifier in ("probe", "knn")):
        raise UserError(
            "without training videos there is no kNN, no linear probe and no eval.precise_bn; give"
            " some, or set eval.classifier=head and protocol.name=auto"
        )
    return train, test, classes


def _baseline(cfg: config.Config, identity: dict[str, Any], n: int) -> CorruptionTable | None:
    """Read the table of eval.corruption.baseline, which must be of the same videos.

    Args:
        cfg: its eval options.
        identity: of this evaluation.
        n: videos that are measured.
    """
    corruption = cfg.eval.corruption
    same = {"manifest_sha": identity["manifest_sha"], "n": n, "unit": cfg.eval.unit}
    return read_baseline(
        corruption.baseline,
        check_corruptions(corruption.names),
        corruption.severities,
        corruption.place,
        same,
    )


def _require_decoded(summary: Summary, path: Path) -> None:
    """Raise UndecodedVideos if there are any, after everything is written."""
    if summary.failed:
        raise UndecodedVideos(
            f"videos that do not decode: {len(summary.failed)}; those of test lists count as"
            f" wrong in {path}; the first: {summary.failed[0]}"
        )


def _delete_features(out: Path) -> None:
    """Delete the features of all videos, which only an unfinished evaluation needs."""
    (out / _OLD_FEATURES).unlink(missing_ok=True)
    shutil.rmtree(out / _STORE, ignore_errors=True)


def check_evaluation(cfg: config.Config) -> None:
    """Refuse options and data that `evaluate` would refuse, before days of training.

    Raises:
        UserError: as `evaluate` does.
    """
    attack = check_suite(cfg)
    check_card_options(cfg.eval.card)
    train, test, classes = build_lists(cfg.data)
    if is_multi_label(test):
        require_multi_label_options(cfg)
    check_bias(cfg, test)
    check_retrieval(cfg, train, test, attack)
    other_records(cfg, classes, train + test)
    unknown_records(cfg, classes, train + test)
    check_transfer(cfg, test)


def _measure(run: _Evaluation, measured: MeasuredModel) -> Summary:
    """Return the summary of all measurements.

    Args:
        run: data, settings and folder.
        measured: the trained model, and one with random weights.
    """
    cfg, device = run.cfg, run.device
    model = to_measure(measured.model, device, cfg.eval)
    models = [model, *([to_measure(measured.random, device, cfg.eval)] if measured.random else [])]
    precise_bn = make_norms_precise(cfg, model.backbone, run.train, device)
    complexity = model_complexity(model, (3, cfg.data.frames, cfg.data.size, cfg.data.size))
    with evaluation_mode(*models, branch=cfg.eval.branch):
        if is_multi_label(run.test):
            summary = _several_labels(run, models)
            bf16 = model.backbone.bf16
            return replace(summary, model=complexity, precise_bn=precise_bn, bf16=bf16)
        summary, queries, predict = _represent(run, measured, models)
        _announce_cost(run, predict)
        summary.model = complexity
        summary.precise_bn = precise_bn
        summary.bf16 = model.backbone.bf16
        if all(bool(each.features.isfinite().all()) for each in queries):
            aligned = [run.test[i] for i in evenly(len(run.test), ALIGNED)]
            # of each clip, the central crop
            crops = cfg.eval.crops
            centres = [
                replace(each, features=each.features[:, crops // 2 :: crops]) for each in queries
            ]
            summary.geometry = geometry_of(cfg, models, centres, aligned, device)
        else:
            summary.warnings.append("geometry is not measured: some features are NaN or infinite")
        moved = []
        if cfg.eval.sensitivity:
            moved = [run.test[i] for i in evenly(len(run.test), cfg.eval.sensitivity)]
        summary.sensitivity = sensitivity_of(cfg, model, predict, moved, device)

        # Other measurements, of the classifier
        summary.shift = evaluate_shift(
            cfg, predict, run.others, run.test, run.out, device, identity=run.identity
        )
        summary.open_set = _open_set(run, predict)
        summary.corruption = _corruptions(run, predict)
        summary.bias = _bias(run, predict)
        # Each of these has a clean accuracy, on its own clips. The summary has that of attacks, or
        # else of corruptions, or else of cues: a later one replaces an earlier one.
        if summary.bias:
            summary.clean_acc = summary.bias.views[CLEAN].acc
        if summary.corruption:
            summary.clean_acc = summary.corruption.clean_acc
        if run.attacks_classifier:
            _attack(run, predict, summary)
        if run.sources:
            _transfer(run, predict, summary)

    with distributed.together():
        if distributed.rank() == 0:
            # last, as it decodes videos again and no number depends on it
            write_projector(cfg, queries[0], run.test, run.classes, run.out)
    _collect_warnings(run, summary)
    return summary


def _several_labels(run: _Evaluation, models: Sequence[Model]) -> Summary:
    """Measure the representation of videos with several labels each.

    Args:
        run: data, settings and folder.
        models: the trained model, and one with random weights.
    """
    gallery, queries = _features(run, models)
    if not gallery:
        raise UserError("videos with several labels are scored by a linear probe, which needs some")
    classes = len(run.classes)
    result = measure_multi_label(
        gallery, queries, run.train, run.test, classes, run.cfg.eval, run.device
    )
    if distributed.rank() == 0:
        lines = [json.dumps(row) + "\n" for row in result.rows(run.test)]
        _write(run.out / "predictions.jsonl", "".join(lines))
        by_probe = {name: each.per_class for name, each in result.precisions().items()}
        counts = result.targets.sum(0).tolist()
        write_precision_table(run.out, by_probe, counts, run.classes)
    none = Representation(queries[0], classes)
    summary = summary_of_data(run.cfg, len(run.indices), none, gallery[0], run.classes)
    summary.average_precision = result.precisions()
    summary.knn = None
    summary.warnings += [f"{len(summary.failed)} videos do not decode"] if summary.failed else []
    return summary


def _represent(
    run: _Evaluation, measured: MeasuredModel, models: Sequence[Model]
) -> tuple[Summary, list[Features], Predict]:
    """Measure the representation, and choose the classifier that all other parts measure.

    Args:
        run: data, settings and folder.
        measured: the trained model, and one with random weights.
        models: the same, on the device and in evaluation mode.

    Returns:
        (the summary of the representation, features of the test videos, the classifier).
    """
    cfg, model = run.cfg, models[0]
    head, doubts = (None, []) if cfg.method.clusters else own_head(measured, run.classes)
    doubts = doubts + unlike_card(cfg, measured) + known_labels(cfg, measured)
    for line in doubts:
        log.warning(line)
    _require_head(run, measured, head)
    if cfg.protocol.stages:
        require_stages(model.backbone)
    # An attentive head takes tokens, which are too many to be kept: its logits are computed
    # together with the features.
    whole = Model(model.backbone, head) if isinstance(head, AttentiveHead) else None
    gallery, queries = _features(run, models, whole)
    fitted = _fit_protocol(run, models, gallery, queries)
    heads: dict[str, tuple[int, nn.Module]] = {
        f"{key}_{cfg.protocol.name}": (i, each.head) for i, (key, each) in enumerate(fitted)
    }
    if head is not None:
        heads["head"] = (len(models), nn.Identity()) if whole else (0, head)
    representation = measure_representation(
        gallery, queries, len(run.classes), cfg.eval, run.device, heads
    )
    if representation.probe is not None:
        distributed.broadcast(representation.probe.parameters())
    if distributed.rank() == 0:
        margin_of = video_margins(queries[0])
        rows = [row | {"margin": margin_of.get(row["uid"])} for row in representation.rows()]
        _write(run.out / "predictions.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        write_class_tables(run.out, representation.confusions(), run.classes)
    first = gallery[0] if gallery else None
    own = fitted[0][1].head if fitted else None
    name, predict = _classifier(run, model, head, representation, first, own)
    attacked = "" if cfg.protocol.name == RETRIEVAL else " and attacked"
    log.info(f"what is measured{attacked}: {name}")
    summary = summary_of_data(cfg, len(run.indices), representation, first, run.classes)
    if fitted:
        summary.fitted = fitted[0][1].settings
        summary.chosen_on = fitted[0][1].chosen_on
        summary.warnings += [line for _, each in fitted for line in each.warnings]
    if cfg.protocol.stages and gallery:
        summary.stages = _stages(run, model)
    summary.classifier = name
    summary.warnings += doubts + representation.faults()
    summary.input = used_card(cfg, measured)
    summary.eot = cfg.eval.eot
    if cfg.protocol.name == RETRIEVAL:
        summary.retrieval = _retrieval(run, model, (gallery, queries))
    return summary, queries[: len(models)], predict


def _fit_protocol(
    run: _Evaluation,
    models: Sequence[Model],
    gallery: Sequence[Features],
    queries: Sequence[Features],
) -> list[tuple[str, Fitted]]:
    """Fit the protocol's classifier to features of trained and of random weights.

    Args:
        run: data, settings and folder.
        models: the trained model, and one with random weights.
        gallery: features of the training videos under each.
        queries: features of the test videos under each.

    Returns:
        "trained" and "random" with what was fitted; nothing for a protocol without a fit.
    """
    spec = PROTOCOLS[run.cfg.protocol.name]
    if spec.fit is None:
        return []
    fitted = []
    parts = zip(("trained", "random"), models, gallery, queries, strict=False)
    for name, model, features, test in parts:
        inputs = FitInputs(
            cfg=run.cfg,
            backbone=model.backbone,
            train=run.train,
            features=features,
            test=test,
            classes=len(run.classes),
            device=run.device,
            folder=run.out / _STORE,
            name=name,
        )
        fitted.append((name, spec.fit(inputs)))
        # ranks may round differently, and all of them attack the same classifier
        distributed.broadcast(fitted[-1][1].head.parameters())
    return fitted


def _stages(run: _Evaluation, model: Model) -> dict[str, Accuracy]:
    """Return the accuracy of a linear probe on the pooled output of each stage.

    Args:
        run: data, settings and folder.
        model: the trained model.
    """
    data = run.cfg.data
    clip = torch.zeros(1, 3, data.frames, data.size, data.size, device=run.device)
    stages = PooledStages(model.backbone, clip)
    train, test = _extracted(run, [stages], "stages-")
    return {
        stage: probe_accuracy(
            replace(train[0], features=ours),
            replace(test[0], features=theirs),
            len(run.classes),
            run.cfg.eval,
            run.device,
        )
        for stage, ours, theirs in zip(
            stages.names,
            train[0].features.split(stages.sizes, 2),
            test[0].features.split(stages.sizes, 2),
            strict=True,
        )
    }


def _collect_warnings(run: _Evaluation, summary: Summary) -> None:
    """Add the warnings of all parts to those of the summary, and their failures to its failures."""
    summary.warnings += learned_nothing(summary.representation)
    for line in unlike_published(summary):
        log.warning(line)
        summary.warnings.append(line)
    measured = (summary.corruption, summary.bias, summary.shift, summary.open_set)
    for part in (*measured, summary.sensitivity, summary.retrieval):
        summary.warnings += part.warnings if part else []
    if "texture" in run.cfg.eval.bias and (doubt := doubt_of_twins(run.cfg.data)):
        summary.warnings.append(doubt)
    failed = list(summary.failed)
    for part in measured:
        # a video that fails in several parts has the same reason in all of them
        failed += [line for line in (part.failed if part else []) if line not in failed]
    summary.failed = failed
    if failed:
        more = f"; and {len(failed) - 5} more" if len(failed) > 5 else ""
        summary.warnings.append(
            f"{len(failed)} videos do not decode: {'; '.join(failed[:5])}{more}"
        )


def _announce_cost(run: _Evaluation, predict: Predict) -> None:
    """Log what the attacks will cost on this machine, unless it is less than a minute.

    Args:
        run: data, settings and folder.
        predict: the classifier.

    Raises:
        OnlyEstimated: where only the estimate is asked for, also of less than a minute.
    """
    text = ""
    with distributed.together():
        if distributed.rank() == 0 and run.attacks_classifier:
            text = _cost_of_attacks(run, predict)
    if run.only_estimate:
        raise OnlyEstimated(text or "attacks: nothing is left to attack")
    if text:
        log.info(text)


def _cost_of_attacks(run: _Evaluation, predict: Predict) -> str:
    """Return what the attacks will cost, or why that is unknown; "" where it is too little."""
    left = videos_left(run.out, run.attack, run.indices)
    unit = _some_videos(run, predict) if left else None
    if unit is None or not unit.uids:
        return ""
    try:
        estimate = estimate_attacks(
            unit,
            run.attack,
            left,
            ranks=distributed.world(),
            least_s=0 if run.only_estimate else LEAST_S,
        )
    except (ValueError, RuntimeError) as error:
        # the attacks may go on: without the videos that cause it, or with smaller batches
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        if run.only_estimate:
            raise UserError(f"the cost of the attacks cannot be measured: {reason}") from None
        return f"attacks: cost unknown: {visible(reason)}"
    return f"attacks: {estimate}" if estimate else ""


def _some_videos(run: _Evaluation, predict: Predict) -> Unit:
    """Return a batch of videos from all over the split, or one video where all its clips count.

    Args:
        run: data, settings and folder.
        predict: the classifier.
    """
    cfg = run.cfg
    if cfg.eval.eot > 1:
        predict = eot(predict, cfg.eval.eot)
    bounded = MicroBatches(predict, cfg.eval.batch_size)
    places = evenly(len(run.indices), cfg.eval.batch_size)
    some = [run.indices[place] for place in places]
    # no workers: they take seconds to start
    if cfg.eval.unit == "clip":
        (unit,) = clip_units(bounded, eval_dataset(cfg.data, run.test, 1), [some], 0, run.device)
        return unit
    videos = source_videos(cfg.data, run.test, cfg.eval.clips, cfg.eval.sampling)
    one = [some[len(some) // 2]]
    (unit,) = video_units(bounded, videos, [one], cfg.eval.crops, run.device, cfg.eval.view_average)
    return unit


def _attack(run: _Evaluation, predict: Predict, summary: Summary) -> None:
    """Attack the videos, and write the results into the summary.

    Args:
        run: data, settings and folder.
        predict: the classifier.
        summary: changed in place.
    """
    cfg, attack = run.cfg, run.attack
    if cfg.eval.eot > 1:
        predict = eot(predict, cfg.eval.eot)
    clips = eval_dataset(cfg.data, run.test, 1)
    doubts = []
    if distributed.rank() == 0:
        doubts = _checks(run, predict, clips, attack.ordered[-1])
    what = "a clip of each" if cfg.eval.unit == "clip" else "source frames"
    log.info(
        f"attacking {len(run.indices)} videos ({what}), {attack.suite},"
        f" {len(attack.threats)} budgets"
    )
    rows = evaluate_robust(run.settings(predict), attack, _attacked(run), run.indices)
    add_attacks(summary, cfg, rows, attack, doubts)


def _transfer(run: _Evaluation, predict: Predict, summary: Summary) -> None:
    """Measure the classifier on saved clips, and write the results into the summary.

    Args:
        run: data, settings and folder.
        predict: the classifier.
        summary: changed in place.
    """
    cfg = run.cfg
    if cfg.eval.eot > 1:
        predict = eot(predict, cfg.eval.eot)
    log.info(f"adversarial clips of {len(run.sources)} other evaluations")
    settings = run.settings(predict)
    results, faults = evaluate_transfer(
        settings, run.sources, cfg.data.size, cfg.eval.crops, run.attack.seed
    )
    summary.transfer = results
    protocol = protocol_of(_attacked(run), cfg.eval.view_average, unit=cfg.eval.unit)
    for source in run.sources:
        summary.warnings += unlike_protocol(source, protocol)
    summary.warnings += faults


def _attacked(run: _Evaluation) -> ClipDataset | SourceVideos:
    """Return what is attacked: one clip of each video, or its source frames."""
    cfg = run.cfg
    if cfg.eval.unit == "video":
        return source_videos(cfg.data, run.test, cfg.eval.clips, cfg.eval.sampling)
    return eval_dataset(cfg.data, run.test, 1)


def _retrieval(
    run: _Evaluation, model: Model, features: tuple[list[Features], list[Features]]
) -> RetrievalTable:
    """Return recall of test videos in the training videos, clean and under attack.

    Args:
        run: data, settings and folder.
        model: the trained model.
        features: of training and of test videos, under each model.
    """
    if run.attack.threats:
        log.info("what is attacked: features of the backbone, as a search compares them")
    return evaluate_retrieval(
        run.cfg,
        model.backbone,
        features,
        (run.train, run.test),
        run.indices,
        run.attack,
        run.out,
        run.device,
    )


def _open_set(run: _Evaluation, predict: Predict) -> OpenSet | None:
    """Return how well confidence separates unknown classes; None without eval.open_set."""
    known = [run.test[i] for i in run.indices]
    return evaluate_open_set(
        run.cfg, predict, run.unknown, known, run.out, run.device, identity=run.identity
    )


def _corruptions(run: _Evaluation, predict: Predict) -> CorruptionTable | None:
    """Return accuracies under corruptions; None if there are no eval.corruption.names."""
    cfg = run.cfg
    corruption = cfg.eval.corruption
    views = cfg.eval.clips if cfg.eval.unit == "video" else 1
    names = expand(corruption.names)
    if not names:
        return None
    images = all(is_image(record.path) for record in run.test)
    idle = without_effect(names, cfg.data.frames, images=images)
    if idle and distributed.rank() == 0:
        log.warning(idle[0])
    log.info(
        f"corrupting {len(run.indices)} videos ({views} clips of each), {len(names)} x"
        f" {len(corruption.severities)}"
    )
    videos = corrupted_videos(
        cfg.data, run.test, views, cfg.eval.sampling, corruption.place, cfg.seed
    )
    rows = evaluate_corruptions(
        run.settings(predict), videos, run.indices, names, corruption.severities
    )
    return replace(
        corruption_table(rows, corruption.severities, run.classes),
        place=corruption.place,
        views=f"{views}x1",
        failed=decoding_failures(rows),
        warnings=idle + model_faults(rows),
    )


def _bias(run: _Evaluation, predict: Predict) -> BiasTable | None:
    """Return accuracies on clips without a cue; None if eval.bias is empty."""
    cfg = run.cfg
    if not cfg.eval.bias:
        return None
    clips, sampling = cfg.eval.clips, cfg.eval.sampling
    log.info(
        f"cues of {len(run.indices)} videos ({clips} clips of each): {', '.join(cfg.eval.bias)}"
    )
    twins = None
    if "texture" in cfg.eval.bias:
        twins = texture_twins(cfg.data, run.test, clips, sampling)
    rows = evaluate_bias(
        run.settings(predict),
        lambda: eval_dataset(cfg.data, run.test, clips, sampling),
        twins,
        run.indices,
        cfg.eval.bias,
        seed=cfg.seed,
        others=second_cues(cfg.data, run.test, run.classes),
    )
    return replace(bias_table(rows, run.classes), views_of=f"{clips}x1")


def _checks(
    run: _Evaluation, predict: Predict, dataset: ClipDataset, threat: ThreatModel
) -> list[str]:
    """Return reasons to doubt the numbers, from checks on some clips, made once per evaluation.

    Args:
        run: data, settings and folder.
        predict: the classifier.
        dataset: one clip per video.
        threat: the budget of the checks.
    """
    cfg = run.cfg
    path = run.out / "checks.json"
    kept = read_checks(run.out)
    if kept is not None or not cfg.eval.checks:
        return kept or []
    # spread evenly over the split, which is sorted by class
    some = [run.indices[i] for i in evenly(len(run.indices), cfg.eval.checks)]
    (unit,) = clip_units(predict, dataset, [some], cfg.data.workers, run.device)
    lines: list[str] = []
    while unit.uids:
        generator = torch.Generator().manual_seed(cfg.seed)
        try:
            lines += self_checks(
                MicroBatches(predict, cfg.eval.batch_size),
                unit.x,
                unit.labels,
                threat,
                random=cfg.eval.suite == "rand" or cfg.eval.eot > 1,
                batch_size=cfg.eval.batch_size,
                generator=generator,
            )
            break
        except BadSamples as error:
            # begin anew without these clips, as the attacks will
            unit = without(unit, error)
            reasons = "; ".join(failure.reason for failure in unit.failed)
            lines = [f"checks left out clips: {reasons}"]
        except ValueError as error:
            raise UserError(f"checking the model under {threat}: {error}") from None
    else:
        reasons = "; ".join(failure.reason for failure in unit.failed)
        lines = [f"model and attack were not checked: no clip can be used: {reasons}"]
    for line in lines:
        log.warning(line)
    _write(path, json.dumps(lines) + "\n")
    return lines


def _features(
    run: _Evaluation, models: Sequence[Model], classifier: Model | None = None
) -> tuple[list[Features], list[Features]]:
    """Return the features of training and of test videos, under trained and random weights each.

    Those of training videos are empty if there are none. The logits of a classifier for the test
    videos come last.

    They are written to a folder as they are computed, and kept until the evaluation is finished: a
    call that is repeated after a kill continues with bitwise the same features. Under torchrun the
    ranks share the work.

    Args:
        run: data, settings and folder.
        models: the trained model, and one with random weights.
        classifier: a model whose logits are needed too, or None.
    """
    cfg = run.cfg
    path = run.out / _OLD_FEATURES
    if path.is_file():
        train, test = (
            [Features.from_dict(each) for each in split] for split in checkpoint.read(path)
        )
        return train, test
    log.info(
        f"features of {len(run.train)} + {len(run.test)} videos, {cfg.eval.clips} clips of each"
    )
    test_only = [] if classifier is None else [classifier]
    return _extracted(run, [model.backbone for model in models], test_only=test_only)


def _extracted(
    run: _Evaluation,
    encoders: Sequence[Callable[[Tensor], Tensor]],
    prefix: str = "",
    test_only: Sequence[Callable[[Tensor], Tensor]] = (),
) -> tuple[list[Features], list[Features]]:
    """Return the features of training and of test videos under each encoder; see `_features`.

    Args:
        run: data, settings and folder.
        encoders: clips -> features.
        prefix: of the names of the files.
        test_only: further encoders, of test videos alone.
    """
    cfg = run.cfg
    splits: list[list[Features]] = []
    # training videos are shown by their centre crops, test videos by eval.crops
    for split, records, crops in (("train", run.train, 1), ("test", run.test, cfg.eval.crops)):
        if not records:
            splits.append([])
            continue
        dataset = eval_dataset(cfg.data, records, cfg.eval.clips, cfg.eval.sampling, crops)
        identity = records_sha(records)
        name = f"{prefix}{split}"
        maps = [*encoders, *(test_only if split == "test" else ())]
        splits.append(
            extract(
                maps,
                dataset,
                run.device,
                batch_size=cfg.eval.batch_size,
                workers=cfg.data.workers,
                title=f"{split} features",
                store=DiskStore(run.out / _STORE, name, len(maps), identity),
            )
        )
    return splits[0], splits[1]


def _require_head(run: _Evaluation, measured: MeasuredModel, head: Head | None) -> None:
    """Raise UserError for a head that is asked for or needed, and that the model does not have.

    Args:
        run: data and settings.
        measured: the model.
        head: its own classifier of the data set's classes, or None.
    """
    outputs = outputs_of(measured.model.head)
    has = f"one of {outputs} classes" if outputs else "no linear classifier at all"
    if run.cfg.eval.classifier == "head" and head is None:
        raise UserError(
            "eval.classifier=head: the model has no classifier of the data set's"
            f" {len(run.classes)} classes, but {has}; use probe, and for saved adversarial clips"
            " eval.transfer"
        )
    if not run.train and head is None:
        raise UserError(
            f"the model has no classifier of the data set's {len(run.classes)} classes, but"
            f" {has}, and without training videos there is no linear probe; give training videos,"
            " or the names of the model's classes (model.input.classes)"
        )


def _classifier(
    run: _Evaluation,
    model: Model,
    head: Head | None,
    representation: Representation,
    gallery: Features | None,
    fitted: nn.Module | None = None,
) -> tuple[str, Predict]:
    """Return the name of what is attacked, as eval.classifier says, and clips -> its logits.

    Args:
        run: data, settings and folder.
        model: the trained model.
        head: its own classifier, or None.
        representation: has the probe.
        gallery: features of the training videos, for kNN; None without any.
        fitted: classifier of features that the protocol has fitted, or None.
    """
    asked = run.cfg.eval.classifier
    device = run.device
    if fitted is not None:
        return run.cfg.protocol.name, lambda x: fitted(model.backbone(x).float())
    if asked == "knn":
        assert gallery is not None  # as refused above
        clips = gallery.features.flatten(0, 1).to(device)
        labels = gallery.labels.repeat_interleave(gallery.features.shape[1]).to(device)
        classes = len(run.classes)
        return "kNN", partial(_knn_logits, run.cfg.eval, model.backbone, clips, labels, classes)
    if head is not None and asked != "probe":
        whole = Model(model.backbone, head)
        return "own head", lambda x: whole(x).float()
    assert representation.probe is not None
    probe = representation.probe.to(device)
    return "linear probe", lambda x: probe(model.backbone(x).float())


def _knn_logits(
    cfg: config.EvalConfig,
    backbone: nn.Module,
    gallery: Tensor,
    labels: Tensor,
    classes: int,
    x: Tensor,
) -> Tensor:
    """Return the logarithms of the votes of kNN for clips x, (B, classes).

    Args:
        cfg: eval.knn_k and eval.knn_temperature.
        backbone: clips -> features.
        gallery: features of the clips that vote, (M, D).
        labels: their classes, (M,).
        classes: number of classes.
        x: clips, (B, 3, T, H, W).
    """
    votes = knn_scores(
        backbone(x).float()[:, None],
        gallery,
        labels,
        classes,
        k=cfg.knn_k,
        temperature=cfg.knn_temperature,
    )
    # classes without a vote get a finite logit, which an attack can still raise
    return votes.clamp(min=1e-12).log()


def _write(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write(text.encode())
