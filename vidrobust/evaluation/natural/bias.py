"""Measure which cues a model uses: shape, texture, background, motion."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidrobust import config
from vidrobust.attacks import Predict, finite_logits
from vidrobust.data import Batch, ClipDataset, Record, batch_loader, texture_twins, worker_deaths
from vidrobust.evaluation.adversarial.micro_batches import MicroBatches
from vidrobust.evaluation.identity import identify_model, own_folder, protocol_of, videos_of
from vidrobust.evaluation.input_checks import logits_of, require_work
from vidrobust.evaluation.results import (
    Row,
    appending,
    decoding_failures,
    fault,
    merged,
    model_faults,
    require_label,
    unfinished,
)
from vidrobust.models.inference import evenly, to_clips
from vidrobust.utils import distributed
from vidrobust.utils.errors import UserError, lookup
from vidrobust.utils.intervals import wilson
from vidrobust.views import NEGATIVES, NegativeSpec, draw_numbers, negatives
from vidrobust.views.cues import background, differences, swapped, swapped_frozen
from vidrobust.views.negatives import TEMPORAL
from vidrobust.views.texture_synthesis import patch_side, patches_of, show, synthesize

_STEM, CLEAN = "bias", "clean"
_PARTNER, _VIEW = 4, 5  # streams of the seed
Rngs = Sequence[np.random.Generator]


def conflict(x: Tensor, other: Tensor, rngs: Rngs) -> Tensor:
    """The shapes of images x in the texture of others, (B, C, 1, H, W): cue conflict (Geirhos et
    al. 2019's kind).
    """
    made = []
    for a, b, rng in zip(x.cpu(), other.cpu(), rngs, strict=True):
        size = a.shape[-1]
        image = (b.permute(1, 2, 3, 0) * 255).round().byte().numpy()
        examples = patches_of(image, patch_side(96, size), rng)
        places = synthesize(examples, size, rng, a[:, 0].mean(0).numpy())
        made.append(torch.from_numpy(next(show(examples, places))))
    return (torch.stack(made).permute(0, 3, 1, 2)[:, :, None].float() / 255).to(x)


def _negative(name: str) -> Callable[[Tensor, Rngs], Tensor]:
    spec = NegativeSpec((name,))
    return lambda x, rngs: negatives(x, spec, draw_numbers(spec, x.shape[2:], rngs))[:, 0]


# what a clip alone becomes, and what a clip and one of another class become, whose cues then
# disagree
ALONE: dict[str, Callable[[Tensor, Rngs], Tensor]] = {
    **{name: _negative(name) for name in NEGATIVES},
    "background": lambda x, rngs: background(x),
    "motion": lambda x, rngs: differences(x),
}
PAIRED: dict[str, Callable[[Tensor, Tensor, Rngs], Tensor]] = {
    "conflict": conflict,
    "swapped": lambda x, other, rngs: swapped(x, other),
    "swapped_frozen": lambda x, other, rngs: swapped_frozen(x, other),
}
_MOVING = {*TEMPORAL, "background", "motion", "swapped", "swapped_frozen"}
# what of a video a prediction of its class follows, and what of it one of the other class does
CUES = {
    "conflict": ("shape", "texture"),
    "swapped": ("what moves", "background"),
    "swapped_frozen": ("what moves, frozen", "background"),
    CLEAN: ("motion", "texture"),
}


def check_bias(cfg: config.Config, test: list[Record]) -> None:
    """Raises UserError for an unknown name of eval.bias, and for one that clips, or test videos, do
    not have.
    """
    names = cfg.eval.bias
    classes = len({test[i].label for i in evenly(len(test), cfg.eval.limit)})
    _require_cues(names, cfg.data.frames, cfg.data.size, classes)
    if "texture" in names:
        texture_twins(cfg.data, test, 1)


def _require_cues(names: Sequence[str], frames: int, size: int, classes: int) -> None:
    """Raise UserError for names that stand twice, are unknown, or that clips of this shape lack.

    Args:
        names: of eval.bias.
        frames: of a clip, T.
        size: of its sides, pixels.
        classes: how many the videos have.
    """
    for name in names:
        require_cue(name, frames, size)
        if name in PAIRED and classes < 2:
            raise UserError(f"eval.bias={name}: two classes are needed for two cues to disagree")
    if len(set(names)) < len(names):
        raise UserError(f"eval.bias=[{','.join(names)}]: list different ones")


def require_cue(name: str, frames: int, size: int) -> None:
    """Raises UserError for a name that eval.bias does not know, and for one that clips of this
    shape do not have.
    """
    lookup({**ALONE, **PAIRED, "texture": None}, name, "eval.bias")
    if frames == 1 and name in _MOVING:
        raise UserError(f"eval.bias={name}: it is of clips, and these have one frame")
    if frames > 1 and name == "conflict":
        raise UserError(
            "eval.bias=conflict: it is of images (data.frames=1); swapped is that of clips"
        )
    if name == "conflict" and size < 9:
        raise UserError(f"eval.bias=conflict: images of {size} pixels have no texture; 9 at least")


def evaluate_bias(
    predict: Predict,
    videos: Callable[[], ClipDataset],
    twins: ClipDataset | None,
    indices: list[int],
    names: Sequence[str],
    out: Path,
    *,
    seed: int,
    others: dict[int, int],
    batch_size: int,
    workers: int,
    device: torch.device,
    identity: str = "",
) -> list[Row]:
    """Classify videos as they are and with cues taken away -> their rows; every rank calls it.

    Streams a row per video and name to out/bias.jsonl; goes on where it was killed; under torchrun
    each rank takes a part. A video that does not decode, or on which the model gives NaN, has no
    prediction, and the reason.

    A folder is of one model, list of videos, protocol and seed (out/bias.identity.json); another is
    refused. Other
    videos and names may be added: rows that are there stay.

    Args:
        predict: (B, 3, T, H, W) in [0, 1] -> (B, K) logits, in evaluation mode, averaged over a
            video's clips.
        videos: called for a data set of the test clips.
        twins: the videos' textures, for the name "texture".
        indices: of the videos.
        names: of ALONE, PAIRED or "texture". A PAIRED one takes a partner of another class, drawn
            from (seed, index).
        out: the folder; it exists.
        seed: of all random numbers.
        others: index -> the class that another cue of a video, as it is, stands for.
        batch_size: clips at a time.
        workers: processes that load.
        device: where clips go.
        identity: a name of the model, such as its checkpoint's hash; empty: see `identify_model`.

    Raises:
        UserError: for a folder of something else, for what is no logits, and for labels out of
            range.
    """
    dataset = videos()
    require_work(indices, len(dataset.records), batch_size)
    classes = len({record.label for record in dataset.records})
    _require_cues(names, dataset.spec.frames, dataset.reader.view.size, classes)
    if "texture" in names and twins is None:
        raise UserError("eval.bias=texture: the videos' textures are missing; give twins")
    own_folder(
        out,
        _STEM,
        {
            "model": identify_model(predict, dataset, device, identity),
            "videos": videos_of(dataset),
            "protocol": protocol_of(dataset),
            "seed": seed,
        },
    )
    at_once = max(1, batch_size // dataset.spec.clips)
    parts = [indices[i : i + at_once] for i in range(0, len(indices), at_once)]
    groups = [[(index, name) for index in part] for name in (CLEAN, *names) for part in parts]
    left, _ = unfinished(out, _STEM, "name", groups)
    todo = left[distributed.rank() :: distributed.world()]
    bounded = MicroBatches(predict, batch_size)
    with appending(out, _STEM) as append:
        for name in (CLEAN, *names):
            mine = [[index for index, _ in groups[n]] for n in todo if groups[n][0][1] == name]
            partners = partners_of(dataset, indices, seed) if name in PAIRED else {}
            source = twins if name == "texture" and twins is not None else dataset
            labels = (
                {i: dataset.records[j].label for i, j in partners.items()} if partners else others
            )
            seen = _batches(source, mine, workers)
            beside = (
                _batches(videos(), [[partners[i] for i in part] for part in mine], workers)
                if partners
                else None
            )
            for part in mine:
                batch = next(seen)
                other = next(beside) if beside is not None else None
                append(
                    _rows(
                        name,
                        part,
                        batch,
                        other,
                        partners,
                        dataset,
                        labels if name in (CLEAN, *PAIRED) else {},
                        bounded,
                        seed,
                        device,
                    )
                )
    rows = merged(out, _STEM, "name", groups)
    # rows that were there may be of a call that asked for other cues
    return [
        row | {"other": others.get(row["index"])} if row["name"] == CLEAN else row for row in rows
    ]


def partners_of(dataset: ClipDataset, indices: Sequence[int], seed: int) -> dict[int, int]:
    """Return index -> the index of a video of another class of the list, drawn from (seed,
    index).
    """
    labels = np.array([record.label for record in dataset.records])
    found = {}
    for index in indices:
        choices = np.flatnonzero(labels != dataset.records[index].label)
        rng = np.random.default_rng([seed, _PARTNER, index])
        found[index] = int(choices[rng.integers(len(choices))])
    return found


def _batches(dataset: ClipDataset, parts: Sequence[Sequence[int]], workers: int) -> Any:
    with worker_deaths(dataset):
        yield from batch_loader(
            dataset, [[(0, index) for index in part] for part in parts], workers
        )


@torch.no_grad()
def _rows(
    name: str,
    part: Sequence[int],
    batch: Batch,
    other: Batch | None,
    partners: dict[int, int],
    dataset: ClipDataset,
    labels: dict[int, int],
    predict: MicroBatches,
    seed: int,
    device: torch.device,
) -> list[Row]:
    """A row a video of the part; a video that does not decode, or whose partner does not, has no
    prediction.
    """
    errors = {
        failure.index: failure.reason
        for found in (batch, other)
        if found
        for failure in found.failed
    }
    at = {index: row for row, index in enumerate(batch.index.tolist())}
    beside = {} if other is None else {index: row for row, index in enumerate(other.index.tolist())}
    whole = [i for i in part if i in at and (other is None or partners[i] in beside)]
    answers: dict[int, int] = {}
    if whole:
        clips = dataset.spec.clips
        x = to_clips(batch, device).unflatten(0, (-1, clips))[[at[i] for i in whole]].flatten(0, 1)
        rngs = [np.random.default_rng([seed, _VIEW, i, k]) for i in whole for k in range(clips)]
        if other is not None:
            y = (
                to_clips(other, device)
                .unflatten(0, (-1, clips))[[beside[partners[i]] for i in whole]]
                .flatten(0, 1)
            )
            x = PAIRED[name](x, y, rngs)
        elif name in ALONE:
            x = ALONE[name](x, rngs)
        logits = logits_of(predict(x), len(x))
        for i in whole:
            require_label(dataset.records[i].uid, dataset.records[i].label, logits.shape[1])
        finite = finite_logits(logits).view(len(whole), clips).all(1).tolist()
        predicted = logits.view(len(whole), clips, -1).mean(1).argmax(1).tolist()
        answers = {i: answer for i, answer, ok in zip(whole, predicted, finite, strict=True) if ok}
        lost = [i for i, ok in zip(whole, finite, strict=True) if not ok]
        reason = f"NaN or infinite logits as {name}"
        errors |= {i: fault(dataset.records[i].uid, reason) for i in lost}
    return [
        {
            "index": i,
            "uid": dataset.records[i].uid,
            "label": dataset.records[i].label,
            "name": name,
            "predicted": answers.get(i),
            "other": labels.get(i),
            "error": errors.get(i) or errors.get(partners.get(i, -1)),
        }
        for i in part
    ]


def bias_table(rows: Sequence[Row], classes: Sequence[str]) -> dict[str, Any]:
    """What rows of `evaluate_bias` say; accuracies are fractions, and a video that does not decode
    is wrong.

    n, and views: name -> acc, ci95, per_class (class -> acc), kept (acc over that of the videos as
    they are, None where that is 0), and where two cues disagree: cues (what is followed where the
    answer is the video's class, and where it is the other), apart (how many videos), own and other
    (shares of these that are answered so), and bias = own / (own + other) with bias_ci95: the shape
    bias of Geirhos et al. 2019 for "conflict"; None where neither was answered.
    """
    found: dict[str, Any] = {}
    for name in dict.fromkeys(row["name"] for row in rows):
        here = [row for row in rows if row["name"] == name]
        right = [row["predicted"] == row["label"] for row in here]
        entry: dict[str, Any] = {
            "acc": sum(right) / len(here),
            "ci95": list(wilson(sum(right), len(here))),
            "per_class": _per_class(here, classes),
        }
        apart = [row for row in here if row["other"] is not None and row["other"] != row["label"]]
        if apart:
            own = sum(row["predicted"] == row["label"] for row in apart)
            other = sum(row["predicted"] == row["other"] for row in apart)
            entry |= {
                "cues": list(CUES[name]),
                "apart": len(apart),
                "own": own / len(apart),
                "other": other / len(apart),
                "bias": own / (own + other) if own + other else None,
                "bias_ci95": list(wilson(own, own + other)) if own + other else None,
            }
        found[name] = entry
    clean = found[CLEAN]["acc"]
    for entry in found.values():
        entry["kept"] = entry["acc"] / clean if clean else None
    table = {
        "n": sum(row["name"] == CLEAN for row in rows),
        "views": found,
        "failed": decoding_failures(rows),
    }
    warnings = model_faults(rows)
    return table | {"warnings": warnings} if warnings else table


def _per_class(rows: Sequence[Row], classes: Sequence[str]) -> dict[str, float]:
    by_label: dict[int, list[bool]] = {}
    for row in rows:
        by_label.setdefault(row["label"], []).append(row["predicted"] == row["label"])
    return {classes[label]: sum(hits) / len(hits) for label, hits in sorted(by_label.items())}
