"""A checkpoint becomes numbers: kNN and probe beside random weights, then robust accuracy, then the report."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vidrobust import config
from vidrobust.attacks import ThreatModel
from vidrobust.data import Record, build_records, eval_dataset, records_sha
from vidrobust.engine import checkpoint, distributed
from vidrobust.engine.log import log
from vidrobust.errors import UserError
from vidrobust.evaluation.knn import knn_scores
from vidrobust.evaluation.predict import Features, evaluation_mode, extract
from vidrobust.evaluation.probe import fit_probe
from vidrobust.evaluation.report import write_report
from vidrobust.evaluation.robust import evaluate_robust, robust_curve
from vidrobust.evaluation.statistics import wilson
from vidrobust.methods import build_method


def load_method(cfg: config.Config, state: dict[str, Any], classes: int) -> tuple[nn.Module, nn.Module]:
    """(the method with the checkpoint's weights, the same with the random weights of its seed)."""
    torch.manual_seed(cfg.seed)
    fresh = build_method(cfg, classes)
    trained = build_method(cfg, classes)
    whole = {f"model.{key}": value for key, value in state["model"].items()} | state["method"]
    checkpoint.load_state(trained, whole, f"checkpoint of step {state['step']}")
    return trained, fresh


def evaluate(cfg: config.Config, state: dict[str, Any], out: Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Measure a checkpoint's `state` on the test list; fills `out` and returns its summary.

    Writes predictions.jsonl (a row a video), results.jsonl (a row a video and budget), summary.json, report.md and
    its pictures. Killed and called again it goes on where it was, with the same summary. Raises UserError for a
    folder that holds another evaluation, and, after everything is written, when videos did not decode.
    """
    device = distributed.start(cfg.device)
    train, classes = build_records(cfg.data, "train")
    test, _ = build_records(cfg.data, "test")
    _claim(out, _identity(cfg, state, train, test), overwrite)
    method, fresh = load_method(cfg, state, len(classes))
    model, random = method.model.to(device), fresh.model.to(device)

    with evaluation_mode(model, random, branch=cfg.eval.branch):
        measured, predict, failed = _representation(cfg, model, random, train, test, len(classes), out, device)
        indices = _evenly(len(test), cfg.eval.limit)
        log.info(f"attacking {len(indices)} videos, PGD-{cfg.eval.steps}, {len(cfg.eval.eps)} budgets")
        rows = evaluate_robust(
            predict, eval_dataset(cfg.data, test, 1), indices, [ThreatModel("linf", e) for e in cfg.eval.eps], out,
            steps=cfg.eval.steps, restarts=cfg.eval.restarts, seed=cfg.seed, batch_size=cfg.eval.batch_size,
            workers=cfg.data.workers, device=device, pictures=cfg.eval.pictures,
        )  # fmt: skip
    curve = robust_curve(rows)
    head = rows[:: len(cfg.eval.eps)]   # one row a video
    summary = {
        "dataset": cfg.data.name, "split": f"test, fold {cfg.data.fold}", "n": len(indices),
        "clean_acc": sum(row["clean_pred"] == row["label"] for row in head) / len(head),
        "robust_acc": curve[-1]["robust_acc"], "robust_acc_uint8": curve[-1]["robust_acc_uint8"],
        "ci95": curve[-1]["ci95"], "threat": {"norm": "linf", "support": "dense", "eps": curve[-1]["eps"]},
        "suite": [f"pgd-{cfg.eval.steps}x{cfg.eval.restarts}"], "unit": "clip", "branch": cfg.eval.branch,
        "views": {"attack": "1x1", "representation": f"{cfg.eval.clips}x1"}, "curve": curve, "chance": 1 / len(classes),
        **measured, **_identity(cfg, state, train, test), "warnings": _warnings(curve, failed, train, test),
    }  # fmt: skip
    _write(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    write_report(out, summary, classes)
    if failed:
        raise UserError(
            f"{len(failed)} of {len(train) + len(test)} videos do not decode; test videos among them count as "
            f"wrong in {out / 'summary.json'}; the first: {failed[0]}"
        )
    return summary


def _representation(
    cfg: config.Config, model: nn.Module, random: nn.Module, train: list[Record], test: list[Record], classes: int,
    out: Path, device: torch.device,
) -> tuple[dict[str, Any], Any, list[str]]:  # fmt: skip
    """(accuracies of trained and random weights, the classifier to attack, reasons of videos that failed)."""
    trunks = [model.backbone, random.backbone]
    options = {"batch_size": cfg.eval.batch_size, "workers": cfg.data.workers}
    log.info(f"features of {len(train)} + {len(test)} videos, {cfg.eval.clips} clips of each")
    gallery = extract(trunks, eval_dataset(cfg.data, train, cfg.eval.clips), device, **options)
    queries = extract(trunks, eval_dataset(cfg.data, test, cfg.eval.clips), device, **options)
    found: dict[str, Any] = {}
    predictions: dict[str, Tensor] = {}
    probes = []
    for name, seen, asked in zip(("trained", "random"), gallery, queries, strict=True):
        clips, labels = seen.features.flatten(0, 1), seen.labels.repeat_interleave(cfg.eval.clips)
        probe = fit_probe(clips, labels, classes, l2=cfg.eval.probe_l2)
        votes = knn_scores(
            asked.features, clips, labels, classes, k=cfg.eval.knn_k, temperature=cfg.eval.knn_temperature
        )  # fmt: skip
        with torch.no_grad():
            predictions[f"{name}_probe"] = probe(asked.features).mean(1).argmax(1)
        predictions[f"{name}_knn"] = votes.argmax(1)
        probes.append(probe.to(device))
    supervised = isinstance(model.head, nn.Linear)
    if supervised:
        with torch.no_grad():
            logits = model.head(queries[0].features.to(device)).mean(1)
        predictions["head"] = logits.argmax(1).cpu()
    n = len(test)
    for name, predicted in predictions.items():
        hits = int((predicted == queries[0].labels).sum())   # a video that failed is a miss
        found[name] = {"acc": hits / n, "ci95": list(wilson(hits, n)), "n": n}
    _write_predictions(out / "predictions.jsonl", queries[0], predictions)
    top = model.head if supervised else probes[0].requires_grad_(False)
    failed = [f.reason for f in gallery[0].failed + queries[0].failed]
    found["classifier"] = "head" if supervised else "linear probe"
    return {"representation": found}, (lambda x: top(model.backbone(x).float())), failed


def _write_predictions(path: Path, asked: Features, predictions: dict[str, Tensor]) -> None:
    rows = [
        {"uid": uid, "label": int(asked.labels[i]), **{k: int(v[i]) for k, v in predictions.items()}, "error": None}
        for i, uid in enumerate(asked.uids)
    ]
    rows += [
        {"uid": f.uid, "label": f.label, **dict.fromkeys(predictions), "error": f.reason} for f in asked.failed
    ]
    _write(path, "".join(json.dumps(row) + "\n" for row in rows))


def _identity(
    cfg: config.Config, state: dict[str, Any], train: list[Record], test: list[Record]
) -> dict[str, str]:
    """What two runs of an evaluation must share to be the same one."""
    asked = config.Config(
        seed=cfg.seed, data=cfg.data, model=cfg.model, method=cfg.method, eval=cfg.eval
    )  # fmt: skip
    return {
        "checkpoint": f"step {state['step']}, weights {checkpoint.state_sha(state['model'])}",
        "config_sha": config.config_sha(asked, ignore=("data.workers", "data.root", "eval.name", "eval.enabled")),
        "manifest_sha": records_sha(train + test),
    }


def _claim(out: Path, identity: dict[str, str], overwrite: bool) -> None:
    """Make the folder, or go on in one that holds the same evaluation; refuse any other."""
    path = out / "identity.json"
    if out.is_dir() and any(out.iterdir()):
        held = json.loads(path.read_text()) if path.is_file() else None
        if held != identity and not overwrite:
            raise UserError(f"{out} holds another evaluation; set eval.name=NAME, or --overwrite")
        if held != identity:
            for old in (p for p in out.rglob("*") if p.is_file()):
                old.unlink()
    out.mkdir(parents=True, exist_ok=True)
    _write(path, json.dumps(identity))


def _evenly(n: int, limit: int) -> list[int]:
    """`limit` indices spread evenly over range(n); all of them for limit 0."""
    return list(range(n)) if not limit or limit >= n else [i * n // limit for i in range(limit)]


def _warnings(
    curve: list[dict[str, Any]], failed: list[str], train: list[Record], test: list[Record]
) -> list[str]:
    found = [f"{c['out_of_budget']} adversarial clips exceed {c['threat']}" for c in curve if c["out_of_budget"]]
    if failed:
        found.append(f"{len(failed)} of {len(train) + len(test)} videos do not decode: {'; '.join(failed[:5])}")
    return found


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)
