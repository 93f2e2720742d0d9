"""Measure a model on adversarial clips that evaluations of other models have saved."""

import hashlib
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidrobust import config
from vidrobust.attacks import Predict, finite_logits
from vidrobust.data import Record, Source, records_sha
from vidrobust.evaluation.adversarial.micro_batches import MicroBatches
from vidrobust.evaluation.adversarial.saved_clips import FOLDER, stem_of, threat_folder
from vidrobust.evaluation.adversarial.targets import through_clips
from vidrobust.evaluation.identity import own_folder
from vidrobust.evaluation.input_checks import logits_of
from vidrobust.evaluation.results import (
    appending,
    fault,
    merged,
    model_faults,
    require_label,
    unfinished,
)
from vidrobust.evaluation.settings import MeasureSettings
from vidrobust.utils import distributed
from vidrobust.utils.atomic_files import read_json, read_rows
from vidrobust.utils.errors import UserError
from vidrobust.utils.intervals import wilson
from vidrobust.utils.logging import log

_REMEDY = "evaluate that model again with eval.save=all"


# --- What other evaluations have saved ---


@dataclass(frozen=True)
class TransferSource:
    """Adversarial clips that an evaluation has saved.

    Attributes:
        name: its folder, as eval.transfer names it.
        about: content of saved.json.
        rows: threat -> rows of clips.jsonl, by index of the video.
    """

    name: str
    about: Mapping[str, Any]
    rows: Mapping[str, Mapping[int, dict[str, Any]]]

    @property
    def threats(self) -> list[str]:
        """Names of the threats, in the order of the evaluation."""
        return list(self.rows)

    @property
    def indices(self) -> list[int]:
        """Indices of the videos that were attacked."""
        return list(next(iter(self.rows.values())))

    @property
    def protocol(self) -> Mapping[str, Any]:
        """Protocol by which the clips were cut; see `identity.protocol_of`."""
        protocol: Mapping[str, Any] = self.about["protocol"]
        return protocol

    def condition(self, threat: str) -> str:
        """Return the key of the rows of a threat in transfer.jsonl."""
        return f"{threat} {self.name}"

    def stem(self, threat: str, index: int) -> Path:
        """Return the path of the files of a clip, without suffix."""
        return stem_of(Path(self.name), threat, index)


def check_transfer(
    cfg: config.Config, test: Sequence[Record], out: Path | None = None
) -> list[TransferSource]:
    """Return the evaluations of eval.transfer, and refuse what eval.save cannot save.

    Args:
        cfg: its eval.*, data.frames and data.size are used.
        test: test videos.
        out: folder of this evaluation; None: unknown.

    Raises:
        UserError: for eval.save without an attack on a classifier; for a folder without all of its
            adversarial clips, of other videos or of clips of another shape, and for one named
            twice.
    """
    e = cfg.eval
    if e.save != "none" and (not e.threats or cfg.protocol.name == "retrieval"):
        reason = "protocol.name=retrieval attacks features" if e.threats else "eval.threats is []"
        raise UserError(
            f"eval.save={e.save}: {reason}, so there are no adversarial clips of a classifier; set"
            " eval.save=none"
        )
    sources: list[TransferSource] = []
    folders: set[Path] = set() if out is None else {out.resolve()}
    for name in e.transfer:
        if Path(name).resolve() in folders:
            raise UserError(f"eval.transfer: {name} is named twice, or is this evaluation itself")
        folders.add(Path(name).resolve())
        source = read_source(name)
        _require_fit(source, cfg, records_sha(list(test)))
        sources.append(source)
    return sources


def read_source(name: str) -> TransferSource:
    """Read which clips an evaluation has saved.

    Args:
        name: its folder.

    Raises:
        UserError: for a folder without all adversarial clips.
    """
    out = Path(name)
    path = out / FOLDER / "saved.json"
    inside = sorted(out.glob(f"eval/*/{FOLDER}/saved.json"))
    if not path.is_file() and inside:
        names = ", ".join(str(each.parents[1]) for each in inside)
        raise UserError(f"eval.transfer: {name} is a run; name one of its evaluations: {names}")
    if not path.is_file():
        raise UserError(f"eval.transfer: {name} has no saved adversarial clips; {_REMEDY}")
    about = read_json(path, f"delete it and {_REMEDY}")
    needed = {"save", "threats", "model", "videos", "protocol"}
    if not needed <= about.keys() or not about["threats"]:
        raise UserError(f"{path}: damaged; delete it and {_REMEDY}")
    if about["save"] != "all":
        raise UserError(
            f"eval.transfer: {name} has saved only the clips that its attack broke"
            f" (eval.save={about['save']}); {_REMEDY}"
        )
    rows = {threat: _rows_of(out, threat) for threat in about["threats"]}
    if len({tuple(each) for each in rows.values()}) > 1:
        raise UserError(f"eval.transfer: {name} has other videos by threat; {_REMEDY}")
    return TransferSource(name, about, rows)


def _rows_of(out: Path, threat: str) -> dict[int, dict[str, Any]]:
    """Return the rows of clips.jsonl of a threat, by index.

    Args:
        out: folder of the evaluation that saved the clips.
        threat: name of the threat.

    Raises:
        UserError: if they or the file of a clip are missing.
    """
    path = out / FOLDER / threat_folder(threat) / "clips.jsonl"
    if not path.is_file():
        raise UserError(f"eval.transfer: {out} has no clips under {threat} ({path}); {_REMEDY}")
    rows = {row["index"]: row for row in read_rows(path) if {"index", "error"} <= row.keys()}
    for index, row in rows.items():
        file = stem_of(out, threat, index).with_suffix(".npz")
        if row["error"] is None and not file.is_file():
            raise UserError(f"eval.transfer: {file} is missing; {_REMEDY}")
    if not rows:
        raise UserError(f"{path}: lists no clip; {_REMEDY}")
    return rows


def _require_fit(source: TransferSource, cfg: config.Config, videos: str) -> None:
    """Refuse clips of other videos, or of another shape than the model takes.

    Args:
        source: the saved clips.
        cfg: options of this evaluation.
        videos: hash of its test videos.
    """
    if source.about["videos"] != videos:
        raise UserError(
            f"eval.transfer: {source.name} attacked other test videos than those of"
            f" data.name={cfg.data.name}; evaluate both models on the same list"
        )
    ours = {"unit": cfg.eval.unit, "frames": cfg.data.frames, "size": cfg.data.size}
    options = {"unit": "eval.unit", "frames": "data.frames", "size": "data.size"}
    for key, value in ours.items():
        if source.protocol.get(key) != value:
            raise UserError(
                f"eval.transfer: clips of {source.name} have"
                f" {options[key]}={source.protocol.get(key)}, and this model has"
                f" {options[key]}={value}; evaluate both with the same"
            )


def sources_sha(sources: Iterable[TransferSource]) -> str:
    """Return the first 16 hex digits of a SHA-256 of what was saved by several evaluations."""
    content = [[source.about, list(source.rows.values())] for source in sources]
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# --- Measurement ---


@dataclass(frozen=True)
class TransferRow:
    """The predictions of a model for one saved clip, a line of transfer.jsonl.

    Attributes:
        index: index of the video in the test split.
        uid: its name.
        source: folder of the evaluation that saved the clip.
        threat: the budget.
        label: class of the video.
        clean_pred: class that this model predicts for the clean clip; None for a failed video.
        pred: class that it predicts for the adversarial clip; None for a failed video.
        error: why the video failed, or None.
    """

    index: int
    uid: str
    source: str
    threat: str
    label: int
    clean_pred: int | None
    pred: int | None
    error: str | None = None

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "TransferRow":
        """Return the row of a line of transfer.jsonl."""
        names = {item.name for item in fields(cls)}
        return cls(**{key: value for key, value in row.items() if key in names})


@dataclass(frozen=True)
class Outcome:
    """The accuracy of a model on adversarial clips, which need not be its own.

    Attributes:
        n: number of videos.
        acc: fraction of the adversarial clips that the model classifies rightly.
        ci95: its 95 % interval (Wilson).
        clean_right: number of attacked videos whose clean clip the model classifies rightly. A
            video is attacked if the attacked model classifies its clean clip rightly.
        success: fraction of these whose adversarial clip it classifies wrongly; None if there are
            none.
        success_ci95: its interval.
    """

    n: int
    acc: float
    ci95: list[float]
    clean_right: int
    success: float | None
    success_ci95: list[float]


@dataclass(frozen=True)
class Transfer(Outcome):
    """The outcome for the clips of an evaluation under a threat, an entry of summary.json.

    Attributes:
        source: folder of the evaluation that saved the clips.
        checkpoint: name of the weights that were attacked.
        threat: the budget.
    """

    source: str
    checkpoint: str
    threat: str


def outcome_of(right: Sequence[bool], clean_right: Sequence[bool]) -> Outcome:
    """Return the outcome for videos.

    Args:
        right: is the adversarial clip of each video classified rightly?
        clean_right: was the video attacked, and is its clean clip classified rightly?
    """
    n, kept, clean = len(right), sum(right), sum(clean_right)
    broken = sum(was and not still for was, still in zip(clean_right, right, strict=True))
    return Outcome(
        n=n,
        acc=kept / n,
        ci95=list(wilson(kept, n)),
        clean_right=clean,
        success=broken / clean if clean else None,
        success_ci95=list(wilson(broken, clean)),
    )


def evaluate_transfer(
    settings: MeasureSettings,
    sources: Sequence[TransferSource],
    size: int,
    crops: int = 1,
    seed: int = 0,
) -> tuple[list[Transfer], list[str]]:
    """Measure a model on saved adversarial clips; every rank calls it.

    A row per clip is appended to out/transfer.jsonl. A call that was killed can be repeated: it
    continues, and the rows are the same, also those of a model that draws random numbers from
    torch's global generator: each batch begins with its own seed. Videos that did not decode count
    as wrong.

    Args:
        settings: the model, how to run it, and the folder of the rows.
        sources: the saved clips.
        size: of the model's input, in pixels.
        crops: of each view with eval.unit=video.
        seed: of the random numbers of a random model.

    Returns:
        (results by source and threat, warnings of outputs that are NaN or infinite).

    Raises:
        UserError: for a damaged file, and for a model with other classes.
    """
    own_folder(
        settings.out,
        "transfer",
        {"model": {"name": settings.identity}, "sources": sources_sha(sources)},
    )
    work = _batches(sources, settings.batch_size)
    keys = [
        [(index, source.condition(threat)) for index, threat in product(group, source.threats)]
        for source, group in work
    ]
    missing, _ = unfinished(settings.out, "transfer", "condition", keys)
    with appending(settings.out, "transfer") as append:
        for number in missing[distributed.rank() :: distributed.world()]:
            source, group = work[number]
            with _seeded(seed, number, settings.device):
                rows = _measured(settings, source, group, size, crops)
            append([asdict(row) | {"condition": source.condition(row.threat)} for row in rows])
    lines = merged(settings.out, "transfer", "condition", keys)
    rows = [TransferRow.from_json(line) for line in lines]
    results = [
        transfer_of(source, threat, [r for r in rows if (r.source, r.threat) == (name, threat)])
        for source in sources
        for name, threat in product([source.name], source.threats)
    ]
    return results, model_faults(lines)


def _batches(
    sources: Sequence[TransferSource], batch_size: int
) -> list[tuple[TransferSource, list[int]]]:
    """Return the batches to measure: a source, and indices of some of its videos.

    Args:
        sources: the saved clips.
        batch_size: clips of a batch.
    """
    work = []
    for source in sources:
        # source frames of videos differ in size, so that each is a batch
        step = batch_size if source.protocol["unit"] == "clip" else 1
        indices = source.indices
        work += [(source, indices[i : i + step]) for i in range(0, len(indices), step)]
    return work


@contextmanager
def _seeded(seed: int, number: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generator for a batch, and give it back its state afterwards.

    Args:
        seed: of the evaluation.
        number: of the batch.
        device: of the model, whose generator is seeded too.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(np.random.SeedSequence([seed, number]).generate_state(1)[0]))
        yield


def transfer_of(source: TransferSource, threat: str, rows: Sequence[TransferRow]) -> Transfer:
    """Return the result for a source and threat.

    Args:
        source: the saved clips.
        threat: name of the threat.
        rows: of this source and threat.
    """
    # the clip of a video that the attacked model gets wrong is clean, and no attack failed on it
    saved = source.rows[threat]
    attacked = [saved[row.index]["clean_pred"] == row.label for row in rows]
    outcome = outcome_of(
        [row.pred == row.label for row in rows],
        [each and row.clean_pred == row.label for each, row in zip(attacked, rows, strict=True)],
    )
    return Transfer(
        **asdict(outcome),
        source=source.name,
        checkpoint=source.about["model"].get("name", ""),
        threat=threat,
    )


def _measured(
    settings: MeasureSettings, source: TransferSource, group: Sequence[int], size: int, crops: int
) -> list[TransferRow]:
    """Return the rows of some videos under all threats of a source; see `evaluate_transfer`."""
    first = source.threats[0]
    readable = [index for index in group if source.rows[first][index]["error"] is None]
    answers: dict[tuple[str, int], int | None] = {}  # (threat or "clean", index) -> prediction
    for threat in source.threats:
        clips = [_read_clip(source, threat, index) for index in readable]
        if not clips:
            break
        predict = _predict(settings, clips[0], size, crops)
        if threat == first:
            clean = torch.from_numpy(np.stack([clip["clip"] for clip in clips]))
            # the same operations as in `views.to_float`
            x = clean.to(settings.device).float().div_(255)
            logits = predict(x)
            _require_labels(source, readable, logits)
            answers |= zip(product(["clean"], readable), _classes(logits), strict=True)
        x = torch.from_numpy(np.stack([clip["adversarial"] for clip in clips]))
        logits = predict(x.to(settings.device))
        answers |= zip(product([threat], readable), _classes(logits), strict=True)
    rows = []
    for index, threat in product(group, source.threats):
        row = source.rows[threat][index]
        clean_pred = answers.get(("clean", index))
        pred = answers.get((threat, index))
        error = row["error"]
        if error is None and (clean_pred is None or pred is None):
            error = fault(row["uid"], f"NaN or infinite logits for the clips of {source.name}")
        rows.append(
            TransferRow(
                index, row["uid"], source.name, threat, row["label"], clean_pred, pred, error
            )
        )
    return rows


def _predict(
    settings: MeasureSettings, clip: Mapping[str, np.ndarray], size: int, crops: int
) -> Predict:
    """Return the model of clips, or of source frames where `clip` says which ones views show."""
    predict: Predict = MicroBatches(settings.predict, settings.batch_size)
    if "shown" in clip:
        frames = clip["clip"].transpose(1, 2, 3, 0)
        source = Source(Record("", "", 0), 0, frames, clip["shown"], 0.0)
        predict = through_clips(predict, source, crops, size, settings.view_average)

    @torch.no_grad()
    def logits(x: Tensor) -> Tensor:
        return logits_of(predict(x), len(x))

    return logits


def _require_labels(source: TransferSource, indices: Sequence[int], logits: Tensor) -> None:
    """Raise UserError for a label that the model has no logit for."""
    rows = source.rows[source.threats[0]]
    for index in indices:
        require_label(rows[index]["uid"], rows[index]["label"], logits.shape[1])


def _classes(logits: Tensor) -> list[int | None]:
    """Return the predicted classes of logits (B, K); None where they are not finite."""
    finite = finite_logits(logits).tolist()
    classes = logits.argmax(1).tolist()
    return [each if good else None for each, good in zip(classes, finite, strict=True)]


def _read_clip(source: TransferSource, threat: str, index: int) -> dict[str, np.ndarray]:
    """Read the arrays of a clip.

    Args:
        source: the saved clips.
        threat: name of the threat.
        index: of the video.

    Raises:
        UserError: for a damaged file.
    """
    path = source.stem(threat, index).with_suffix(".npz")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            clip = {name: arrays[name] for name in arrays.files if arrays[name].ndim}
            is_whole = clip["clip"].shape == clip["adversarial"].shape
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: damaged ({error}); {_REMEDY}") from None
    if not is_whole:
        raise UserError(f"{path}: damaged (arrays of two shapes); {_REMEDY}")
    return clip


def unlike_protocol(source: TransferSource, protocol: Mapping[str, Any]) -> list[str]:
    """Return a warning, or none, of clips that were cut otherwise than this model's own.

    Args:
        source: the saved clips.
        protocol: of this model's own clips.
    """
    ours = json.loads(json.dumps(protocol))
    differ = [
        f"{key} {source.protocol.get(key)}, here {ours.get(key)}"
        for key in dict.fromkeys([*ours, *source.protocol])
        if key not in ("h264", "crops") and ours.get(key) != source.protocol.get(key)
    ]
    if not differ:
        return []
    line = f"clips of {source.name} were cut otherwise than this model's ({'; '.join(differ)})"
    log.warning(line)
    return [line]
