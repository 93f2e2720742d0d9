"""Run the protocol "retrieval": recall at k, clean and under attack without labels.

Test videos are the queries, training videos the gallery. N queries, M gallery videos, D feature
dimension.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidrobust import config
from vidrobust.attacks import Predict
from vidrobust.data import ClipDataset, Record, SourceVideos, eval_dataset, source_videos
from vidrobust.evaluation.adversarial.attack_settings import AttackSettings
from vidrobust.evaluation.adversarial.retrieval_attack import (
    Attacked,
    FeatureAttack,
    Side,
    attack_features,
)
from vidrobust.evaluation.representation.finite import require_finite
from vidrobust.evaluation.representation.retrieval import (
    SIMILARITIES,
    Recall,
    Space,
    first_ranks,
    nearest,
    recalls,
    space_of,
)
from vidrobust.evaluation.retrieval_summary import (
    RetrievalPoint,
    RetrievalTable,
    budget_warnings,
    retrieval_curve,
)
from vidrobust.models.feature_store import Features
from vidrobust.utils import distributed
from vidrobust.utils.atomic_files import replacing
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log

NAME = "retrieval"
_NEAREST = 5  # gallery videos that a row names

Row = dict[str, Any]


class Pool:
    """Clean features of the queries or of the gallery, under one model.

    Attributes:
        means: features of the videos that decode, the mean over their clips, (N, D).
        labels: their classes, (N,).
        index: their indices in `records`, on the CPU.
        uids: their names.
        failed: index of a video that does not decode -> why.
        records: all videos of the list.
    """

    def __init__(self, features: Features, records: list[Record], device: torch.device) -> None:
        """Average the features (N, K, D) of K clips, and move them to the device."""
        self.means = features.features.float().mean(1).to(device)
        self.labels = features.labels.to(device)
        self.index: list[int] = features.index.tolist()
        self.uids = features.uids
        self.failed = {failure.index: failure.reason for failure in features.failed}
        self.records = records


@dataclass(frozen=True)
class Search:
    """The measured model, its clean videos, and how they are compared.

    Attributes:
        cfg: the configuration.
        backbone: clips (B, 3, T, H, W) -> features (B, D), in evaluation mode.
        queries: the test videos.
        gallery: the training videos.
        space: where they are compared.
        out: folder of the evaluation.
        device: of all tensors.
    """

    cfg: config.Config
    backbone: Predict
    queries: Pool
    gallery: Pool
    space: Space
    out: Path
    device: torch.device

    @property
    def gallery_vectors(self) -> Tensor:
        """Unit vectors of the clean gallery, (M, D)."""
        return self.space.gallery(self.gallery.means)


def check_retrieval(
    cfg: config.Config, train: Sequence[Record], test: Sequence[Record], attack: AttackSettings
) -> None:
    """Refuse what the protocol is not defined for, before anything is decoded.

    Args:
        cfg: the configuration.
        train: training videos.
        test: test videos.
        attack: threats and attacks.

    Raises:
        UserError: for lists without a gallery, a gallery of one class, queries that are files of
            the gallery, and options that retrieval has no meaning for.
    """
    if cfg.protocol.name != NAME:
        return
    if not train:
        raise UserError("protocol.name=retrieval: training videos are the gallery; give some")
    if len({record.label for record in train}) < 2:
        raise UserError(
            "protocol.name=retrieval: all gallery videos are of one class, so that any answer is"
            " right; give training videos of at least two classes"
        )
    files = {(os.path.realpath(record.path), record.series) for record in train}
    both = [r.uid for r in test if (os.path.realpath(r.path), r.series) in files]
    if both:
        raise UserError(
            f"protocol.name=retrieval: {len(both)} of {len(test)} queries are files of the gallery,"
            f" first {both[0]}, and would find themselves; leave them out of one of the lists"
        )
    if attack.threats and cfg.eval.suite != "pgd":
        raise UserError(
            f"eval.suite={cfg.eval.suite}: retrieval is attacked without labels, by PGD on"
            " features; set eval.suite=pgd, or eval.threats=[]"
        )
    if cfg.eval.eot > 1:
        raise UserError(f"eval.eot={cfg.eval.eot}: features are not averaged; set it to 1")
    if cfg.eval.crops > 1:
        raise UserError(f"eval.crops={cfg.eval.crops}: features are of one crop; set it to 1")


def evaluate_retrieval(
    cfg: config.Config,
    backbone: Predict,
    features: tuple[list[Features], list[Features]],
    lists: tuple[list[Record], list[Record]],
    indices: list[int],
    attack: AttackSettings,
    out: Path,
    device: torch.device,
) -> RetrievalTable:
    """Measure recall at k, and write out/retrieval.jsonl. Every rank calls it.

    The file has a row per query, clean and under each threat and attack: uid, label, rank of the
    first right video, and the nearest videos. Attacked features are kept in out/features until the
    evaluation is finished, so that a call that was killed continues.

    Args:
        cfg: the configuration.
        backbone: the trained backbone, clips -> features, in evaluation mode.
        features: clean features of training and of test videos, under trained and random weights
            each.
        lists: training videos and test videos.
        indices: test videos that are attacked.
        attack: threats.
        out: the folder.
        device: of the backbone.

    Raises:
        UserError: for clean features that are NaN or infinite.
    """
    recall: dict[str, dict[str, list[Recall]]] = {}
    searches: list[Search] = []
    for weights, train, test in zip(("trained", "random"), *features, strict=False):
        gallery, queries = Pool(train, lists[0], device), Pool(test, lists[1], device)
        require_finite(queries.means, f"features of the queries ({weights} weights)", queries.uids)
        require_finite(gallery.means, f"features of the gallery ({weights} weights)", gallery.uids)
        space = space_of(cfg.protocol.similarity, queries.means, gallery.means)
        search = Search(cfg, backbone, queries, gallery, space, out, device)
        recall[weights] = {name: _clean_recall(search, name) for name in SIMILARITIES}
        searches.append(search)
    search = searches[0]  # of the trained weights
    table = RetrievalTable(
        n=len(lists[1]),
        gallery=len(search.gallery.means),
        clips=features[1][0].features.shape[1],
        chance=_chance(search),
        recall=recall,
        similarity=cfg.protocol.similarity,
        warnings=_classes_without_gallery(search),
    )
    rows = _clean_rows(search)
    if attack.threats:
        table, attacked_rows = _under_attack(search, table, indices, attack, rows)
        rows += attacked_rows
    if distributed.rank() == 0:
        with replacing(out / "retrieval.jsonl") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
    return table


# --- Clean ---


def _clean_recall(search: Search, similarity: str) -> list[Recall]:
    """Return recall of clean queries in the clean gallery.

    Args:
        search: the clean videos.
        similarity: one of SIMILARITIES.
    """
    queries, gallery = search.queries, search.gallery
    space = space_of(similarity, queries.means, gallery.means)
    vectors = space.queries(queries.means), space.gallery(gallery.means)
    ranks = first_ranks(*vectors, queries.labels, gallery.labels)
    return recalls(ranks.tolist(), len(gallery.means), len(queries.records))


def _clean_rows(search: Search) -> list[Row]:
    """Return a row per query without an attack, in the order of the list."""
    names = {"side": "clean", "threat": None, "attack": None}
    queries = search.queries
    vectors = search.space.queries(queries.means)
    rows = _rows(search, queries.index, vectors, search.gallery_vectors, names)
    failed = [_failed_row(search, i, names, reason) for i, reason in queries.failed.items()]
    return sorted(rows + failed, key=lambda row: row["index"])


def _rows(
    search: Search, index: list[int], vectors: Tensor, gallery_vectors: Tensor, names: Row
) -> list[Row]:
    """Return a row per query.

    Args:
        search: names and classes of the videos.
        index: of n queries.
        vectors: their unit vectors (n, D).
        gallery_vectors: those of the gallery (M, D).
        names: entries that all rows share.
    """
    records, gallery = search.queries.records, search.gallery
    labels = torch.tensor([records[i].label for i in index], device=vectors.device)
    ranks = first_ranks(vectors, gallery_vectors, labels, gallery.labels).tolist()
    places = nearest(vectors, gallery_vectors, _NEAREST).tolist()
    return [
        {
            "index": i,
            "uid": records[i].uid,
            "label": records[i].label,
            **names,
            "rank": rank or None,
            "nearest": [gallery.uids[place] for place in found],
            "nearest_labels": [int(gallery.labels[place]) for place in found],
            "error": None,
        }
        for i, rank, found in zip(index, ranks, places, strict=True)
    ]


def _failed_row(search: Search, index: int, names: Row, error: str) -> Row:
    """Return the row of a query that does not decode, or has no finite features.

    Args:
        search: names and classes.
        index: of the query.
        names: entries that all rows share.
        error: the reason.
    """
    record = search.queries.records[index]
    nothing: Row = {"rank": None, "nearest": [], "nearest_labels": [], "error": error}
    return {"index": index, "uid": record.uid, "label": record.label, **names, **nothing}


def _chance(search: Search) -> float:
    """Return the probability that a random gallery video has the class of a random query."""
    both = (search.queries.labels, search.gallery.labels)
    classes = int(max(labels.max() for labels in both)) + 1
    fractions = [torch.bincount(each, minlength=classes).double() / len(each) for each in both]
    return float(fractions[0] @ fractions[1])


def _classes_without_gallery(search: Search) -> list[str]:
    """Return a warning, or none, of queries whose class no gallery video has."""
    lost = int((~torch.isin(search.queries.labels, search.gallery.labels)).sum())
    if not lost:
        return []
    return [f"retrieval: {lost} queries can find nothing, as no gallery video has their class"]


# --- Under attack ---


def _under_attack(
    search: Search,
    table: RetrievalTable,
    indices: list[int],
    attack: AttackSettings,
    clean_rows: list[Row],
) -> tuple[RetrievalTable, list[Row]]:
    """Return the table with the curve of attacks, and their rows.

    Args:
        search: the model and the clean videos.
        table: clean results.
        indices: queries that are attacked, or that search in an attacked gallery.
        attack: threats and seed.
        clean_rows: of all queries, in the order of the list.
    """
    cfg = search.cfg
    settings = FeatureAttack(
        attack.ordered,
        cfg.eval.steps,
        cfg.eval.restarts,
        attack.seed,
        max(1, min(cfg.protocol.neighbors, table.gallery // 2)),
        cfg.eval.step,
    )
    curve: list[RetrievalPoint] = []
    rows: list[Row] = []
    warnings = list(table.warnings)
    asked = set(indices)
    clean = [row["rank"] or 0 for row in clean_rows if row["index"] in asked]
    both = cfg.protocol.attacked == "both"
    for name in ("queries", "gallery") if both else (cfg.protocol.attacked,):
        results = _attack(search, name, indices, settings)
        by_condition = _attacked_rows(search, name, indices, settings, results)
        ranks = [[row["rank"] or 0 for row in part] for part in by_condition]
        rows += [row for part in by_condition for row in part]
        curve += retrieval_curve(name, settings, results, ranks, clean, table.gallery)
        warnings += _failures(name, results)
    table = replace(
        table,
        attacked=len(indices),
        unit=cfg.eval.unit,
        suite=str(attack.suite),
        neighbors=settings.neighbors,
        curve=curve,
        warnings=warnings + budget_warnings(curve),
    )
    return table, rows


def _attack(search: Search, name: str, indices: list[int], settings: FeatureAttack) -> Attacked:
    """Return the attacked features of the queries or of the gallery.

    Args:
        search: the model and the clean videos.
        name: "queries" or "gallery".
        indices: queries that are attacked; a gallery is attacked whole.
        settings: threats and settings.
    """
    cfg, e = search.cfg, search.cfg.eval
    pool = search.queries if name == "queries" else search.gallery
    wanted = indices if name == "queries" else range(len(pool.records))
    decoded = set(pool.index)
    dataset: ClipDataset | SourceVideos
    if e.unit == "video":
        dataset = source_videos(cfg.data, pool.records, e.clips, e.sampling)
    else:
        dataset = eval_dataset(cfg.data, pool.records, e.clips, e.sampling)
    side = Side(
        name,
        dataset,
        [i for i in wanted if i in decoded],
        search.space.queries if name == "queries" else search.space.gallery,
        search.gallery_vectors,
    )
    what = "source frames" if e.unit == "video" else f"{side.clips} clips of each"
    log.info(
        f"retrieval: attacking {len(side.indices)} videos of the {name} ({what}),"
        f" {len(settings.conditions)} times PGD with {settings.steps} steps"
    )
    return attack_features(
        search.backbone,
        side,
        settings,
        search.out / "features",
        e.batch_size,
        cfg.data.workers,
        search.device,
    )


def _failures(name: str, attacked: Attacked) -> list[str]:
    """Return a warning, or none, of videos that an attack left without finite features.

    Args:
        name: "queries" or "gallery".
        attacked: results of the attacks.
    """
    errors = list(attacked.errors.values())
    if not errors:
        return []
    effect = "find nothing" if name == "queries" else "are never found"
    return [
        f"retrieval, attack on the {name}: {len(errors)} videos {effect}, as they have no finite"
        f" features under attack; the first: {errors[0]}"
    ]


def _attacked_rows(
    search: Search,
    name: str,
    indices: list[int],
    settings: FeatureAttack,
    attacked: Attacked,
) -> list[list[Row]]:
    """Return the rows of all queries in `indices`, a list per condition.

    Args:
        search: the clean videos, which are the opponents.
        name: "queries" or "gallery", what was attacked.
        indices: of the queries.
        settings: threats and settings.
        attacked: results of the attacks.
    """
    results = []
    for number, (threat, loss) in enumerate(settings.conditions):
        names = {"side": name, "threat": str(threat), "attack": loss}
        vectors = attacked.features[number].to(search.device)
        if name == "queries":
            index = attacked.index.tolist()
            rows = _rows(
                search, index, search.space.queries(vectors), search.gallery_vectors, names
            )
            for row in rows:
                video = attacked.videos[row["index"]][number]
                row |= {"measured": video.measured, "in_budget": video.in_budget}
            errors = search.queries.failed | attacked.errors
        else:
            index = [i for i in indices if i not in search.queries.failed]
            rows = _queries_in(search, attacked, vectors, index, names)
            errors = search.queries.failed
        rows += [_failed_row(search, i, names, errors[i]) for i in indices if i in errors]
        results.append(sorted(rows, key=lambda row: row["index"]))
    return results


def _queries_in(
    search: Search, attacked: Attacked, features: Tensor, index: list[int], names: Row
) -> list[Row]:
    """Return the rows of clean queries in an attacked gallery.

    A gallery video without finite features under the attack is never found.

    Args:
        search: the clean videos.
        attacked: the attacked gallery.
        features: of its videos under one condition, (m, D).
        index: of n queries.
        names: entries that all rows share.
    """
    place_of = {i: place for place, i in enumerate(search.gallery.index)}
    places = [place_of[i] for i in attacked.index.tolist()]
    gallery = torch.full_like(search.gallery.means, torch.nan)
    gallery[places] = search.space.gallery(features)
    query_place = {i: place for place, i in enumerate(search.queries.index)}
    queries = search.queries.means[[query_place[i] for i in index]]
    return _rows(search, index, search.space.queries(queries), gallery, names)
