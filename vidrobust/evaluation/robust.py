"""Robust accuracy: the worst that an attack finds within a budget, row by row."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from vidrobust.attacks import Loss, ThreatModel, contains, measure, pgd
from vidrobust.data import Batch, ClipDataset, EvalBatches, loader, worker_deaths
from vidrobust.evaluation.predict import to_clips
from vidrobust.evaluation.statistics import wilson
from vidrobust.files import replacing

Predict = Callable[[Tensor], Tensor]
Row = dict[str, Any]


def threat_name(threat: ThreatModel) -> str:
    """`linf-4/255`."""
    return f"{threat.norm}-{threat.eps * 255:g}/255"


def misclassification_loss(predict: Predict, y: Tensor) -> Loss:
    """Cross-entropy, raised by a constant where the prediction is wrong -> loss(x) (B,) for an attack.

    The constant has no gradient; it makes "the best iterate" a misclassified one whenever there is one, which
    cross-entropy alone does not.
    """

    def loss(x: Tensor) -> Tensor:
        logits = predict(x).float()
        return F.cross_entropy(logits, y, reduction="none") + 1e3 * (logits.argmax(1) != y)

    return loss


def evaluate_robust(
    predict: Predict,
    dataset: ClipDataset,
    indices: list[int],
    threats: Sequence[ThreatModel],
    out: Path,
    *,
    steps: int,
    restarts: int,
    seed: int,
    batch_size: int,
    workers: int,
    device: torch.device,
    pictures: int = 0,
) -> list[Row]:
    """Attack one centre clip of each video with PGD under each of `threats`, from small to large.

    A sample broken under one threat, before and after rounding to uint8, is broken under the next, which holds it, and
    costs nothing more.
    predict: (B, 3, T, H, W) in [0, 1] -> (B, K) logits, in evaluation mode. Streams a row a video and threat to
    out/results.jsonl, and up to `pictures` broken clips to out/clips/*.npz. Killed and called again it goes on,
    and the rows are the same: every batch has its own generator. Returns all rows.
    """
    path = out / "results.jsonl"
    groups = EvalBatches(indices, batch_size).batches
    finished, rows = _finished(path, groups, dataset, len(threats))
    batches = EvalBatches(indices[finished * batch_size :], batch_size)
    bar = tqdm(total=len(groups), initial=finished, desc="attack", leave=False, disable=not sys.stderr.isatty())
    with open(path, "a") as file, worker_deaths(dataset):
        for number, batch in enumerate(loader(dataset, batches, workers), finished):
            generator = torch.Generator().manual_seed(int(np.random.SeedSequence([seed, number]).generate_state(1)[0]))

            def attack(loss: Loss, x: Tensor, threat: ThreatModel, generator: torch.Generator = generator) -> Tensor:
                return pgd(loss, x, threat, steps=steps, restarts=restarts, generator=generator)

            new = list(_attack_batch(predict, batch, threats, attack, device, out / "clips", pictures))
            file.write("".join(json.dumps(row) + "\n" for row in new))
            file.flush()
            os.fsync(file.fileno())
            rows += new
            bar.update()
    bar.close()
    return rows


def _finished(path: Path, groups: list[list[int]], dataset: ClipDataset, threats: int) -> tuple[int, list[Row]]:
    """How many batches have all their rows, and those rows; the file is cut down to them."""
    rows: list[Row] = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:  # the line at which a kill cut the file
            break
    finished, end = 0, 0
    for group in groups:
        if len(rows) < end + threats * len(group):
            break
        end += threats * len(group)
        finished += 1
    with replacing(path) as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows[:end]).encode())
    return finished, rows[:end]


def _attack_batch(
    predict: Predict,
    batch: Batch,
    threats: Sequence[ThreatModel],
    attack: Callable[[Loss, Tensor, ThreatModel], Tensor],
    device: torch.device,
    folder: Path,
    pictures: int,
) -> Iterator[Row]:
    """The rows of a batch, in the order of videos, then threats."""
    for failure in batch.failed:
        for threat in threats:
            yield {
                "uid": failure.uid, "label": failure.label, "clean_pred": None, "threat": threat_name(threat),
                "eps": threat.eps, "adv_pred": None, "robust": False, "killed_by": "error", "measured": None,
                "in_budget": None, "uint8_pred": None, "error": failure.reason,
            }  # fmt: skip
    if not batch.uids:
        return
    x, y = to_clips(batch, device), batch.labels.to(device)
    with torch.no_grad():
        clean = predict(x).argmax(1)
    x_adv, adv, uint8_adv = x.clone(), clean, clean
    alive = uint8_alive = clean == y
    killed_by = [None if ok else "clean" for ok in alive.tolist()]
    columns = []
    for threat in threats:
        # a clip whose wrong prediction rounding undoes goes on being attacked: a larger budget may break that, too
        tried, x_new = alive | uint8_alive, x_adv.clone()
        if tried.any():
            x_new[tried] = attack(misclassification_loss(predict, y[tried]), x[tried], threat)
        with torch.no_grad():
            new, uint8_new = predict(x_new).argmax(1), predict((x_new * 255).round() / 255).argmax(1)
        x_adv = torch.where(alive.view(-1, *[1] * (x.ndim - 1)), x_new, x_adv)
        adv, uint8_adv = torch.where(alive, new, adv), torch.where(uint8_alive, uint8_new, uint8_adv)
        broken = alive & (adv != y)
        alive, uint8_alive = alive & ~broken, uint8_alive & (uint8_adv == y)
        killed_by = ["pgd" if b else k for b, k in zip(broken.tolist(), killed_by, strict=True)]
        _keep_pictures(folder, pictures, batch, broken, x, x_adv, clean, adv, threat)
        columns.append((
            threat, adv.tolist(), alive.tolist(), killed_by, measure(threat, x, x_adv).tolist(),
            contains(threat, x, x_adv).tolist(), uint8_adv.tolist(),
        ))  # fmt: skip
    for i, uid in enumerate(batch.uids):
        for threat, adv_pred, robust, killer, measured, in_budget, uint8_pred in columns:
            yield {
                "uid": uid, "label": int(y[i]), "clean_pred": int(clean[i]), "threat": threat_name(threat),
                "eps": threat.eps, "adv_pred": adv_pred[i], "robust": robust[i], "killed_by": killer[i],
                "measured": measured[i], "in_budget": in_budget[i], "uint8_pred": uint8_pred[i], "error": None,
            }  # fmt: skip


def _keep_pictures(
    folder: Path, most: int, batch: Batch, broken: Tensor, x: Tensor, x_adv: Tensor, clean: Tensor, adv: Tensor,
    threat: ThreatModel,
) -> None:  # fmt: skip
    """Save the first clips that break, losslessly: they feed the report, and anyone who wants to look closer."""
    if not most or not broken.any():
        return
    folder.mkdir(parents=True, exist_ok=True)
    for i in broken.nonzero().flatten().tolist():
        path = folder / f"{int(batch.index[i]):06d}.npz"
        if len([p for p in folder.glob("*.npz") if p != path]) >= most:
            return
        np.savez_compressed(
            path, clip=(x[i] * 255).round().to(torch.uint8).cpu().numpy(), adversarial=x_adv[i].cpu().numpy(),
            uid=batch.uids[i], label=int(batch.labels[i]), clean_pred=int(clean[i]), adv_pred=int(adv[i]),
            threat=threat_name(threat),
        )  # fmt: skip


def robust_curve(rows: list[Row]) -> list[Row]:
    """Rows -> one entry a threat, from small to large: accuracy, after rounding to uint8, 95 % interval, counts."""
    curve = []
    for name in dict.fromkeys(row["threat"] for row in rows):
        here = [row for row in rows if row["threat"] == name]
        n, hits = len(here), sum(row["robust"] for row in here)
        curve.append({
            "threat": name, "eps": here[0]["eps"], "n": n, "robust_acc": hits / n,
            "robust_acc_uint8": sum(row["uint8_pred"] == row["label"] for row in here) / n,
            "ci95": list(wilson(hits, n)),
            "max_measured": max((row["measured"] for row in here if row["measured"] is not None), default=0.0),
            "out_of_budget": sum(row["in_budget"] is False for row in here),
        })  # fmt: skip
    return curve
