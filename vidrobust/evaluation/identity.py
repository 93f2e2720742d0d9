"""Refuse to mix rows of different models, data or protocols in one folder.

`<stem>.identity.json` records what the rows of `<stem>.jsonl` were measured on: the model, the list
of videos, the protocol and the seed. It does not record which threats, corruptions and videos of
the list were measured: these are columns and rows of the table, and may be added.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from vidrobust import checkpoint
from vidrobust.attacks import Predict, reachable_modules
from vidrobust.attacks.reach import batch_norms_in_training
from vidrobust.data import ClipDataset, CorruptedVideos, SourceVideos, records_sha
from vidrobust.evaluation.results import rank_files
from vidrobust.utils import distributed
from vidrobust.utils.atomic_files import read_json, replacing
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log

Dataset = ClipDataset | SourceVideos | CorruptedVideos
# tolerances of outputs, relative to the largest one
_CLOSE = 1e-2  # with equal weights: another device or batch size may change outputs
_ALIKE = 1e-4  # without weights, when only outputs distinguish models
_OUTPUTS = 64  # outputs on the probe clip that are kept
# function -> the name that it had in earlier revisions, whose files are still read
_RECORDED_NAMES = {"_without_rng": "_nothing_drawn"}


def identify_model(
    predict: Predict, dataset: Dataset, device: torch.device, identity: str = ""
) -> dict[str, Any]:
    """Return the entries by which a model is recognised.

    Args:
        predict: (B, 3, T, H, W) in [0, 1] -> (B, K) logits.
        dataset: decides the shape of the probe clip.
        device: device of the probe clip.
        identity: the model's name, such as the hash of its checkpoint. Empty: the hash of the
            weights of all modules that `predict` is or holds, and its outputs on one fixed clip of
            random pixels. Outputs are needed for closures without visible modules; a model with
            random outputs, or one that fails on the clip, has none.
    """
    if identity:
        return {"name": identity}
    modules = reachable_modules(predict)
    norms = batch_norms_in_training(predict)
    if norms:
        log.warning(
            f"{', '.join(norms)} in training mode: predictions depend on the other clips of a "
            "batch, and the weights change; call eval() on the model"
        )
    states = {
        f"{i}.{key}": value
        for i, module in enumerate(modules)
        for key, value in _state(module).items()
    }
    return {
        "state": checkpoint.state_sha(states) if states else None,
        "outputs": _outputs(predict, dataset, device),
    }


def _state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {
        key: value for key, value in module.state_dict().items() if isinstance(value, torch.Tensor)
    }


@torch.no_grad()
def _outputs(predict: Predict, dataset: Dataset, device: torch.device) -> list[float | None] | None:
    """Return the first outputs on the probe clip, None for NaN; None if two calls differ.

    Args:
        predict: the model.
        dataset: decides the shape of the clip.
        device: device of the clip.
    """
    size = dataset.size if isinstance(dataset, SourceVideos) else dataset.reader.view.size
    shape = (1, 3, dataset.spec.frames, size, size)
    clip = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            first, again = (
                torch.as_tensor(predict(clip.clone())).flatten()[:_OUTPUTS].tolist()
                for _ in range(2)
            )
        except Exception as error:  # any error of a model; the evaluation itself will raise it
            log.warning(
                f"the model fails on the clip of random pixels that identifies models: {error!r}"
            )
            return None
    kept = [_rounded(value) for value in first]
    return kept if _agree(kept, [_rounded(value) for value in again], 1e-5) else None


def _rounded(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _agree(one: list[float | None], other: list[float | None], close: float) -> bool:
    """Return whether outputs are alike.

    Args:
        one: outputs of a model; None for NaN.
        other: outputs of the same or another model.
        close: tolerance, relative to the largest output in `one`.
    """
    largest = max((abs(value) for value in one if value is not None), default=0.0)
    return len(one) == len(other) and all(
        a == b if a is None or b is None else abs(a - b) <= close * largest
        for a, b in zip(one, other, strict=True)
    )


def protocol_of(dataset: Dataset, view_average: str = "logits", **more: Any) -> dict[str, Any]:
    """Return which clips of a video are measured, and other options that decide rows."""
    # EVAL_SAMPLERS are partials of one function, so this name is the same for all of them. Values
    # of eval.sampling are distinguished by config_sha in identity.json alone (`results.claim`).
    sampler = getattr(dataset.reader.sample_clips, "func", dataset.reader.sample_clips)
    spec = asdict(dataset.spec)
    # Options that came later: at their defaults they have no entry, as in rows of earlier versions.
    later = {"fps": spec.pop("fps")}
    view: dict[str, Any]
    if isinstance(dataset, SourceVideos):
        view = {"short_side": dataset.short_side, "size": dataset.size}
        later["resize"] = list(dataset.resize or ())
        interpolation = dataset.reader.interpolation
    else:
        center = dataset.reader.view.center
        view = {
            "size": dataset.reader.view.size,
            "center": list(center) if isinstance(center, tuple) else center,
        }
        interpolation = dataset.reader.view.interpolation
    later["interpolation"] = "" if interpolation == "bilinear" else interpolation
    later["view_average"] = "" if view_average == "logits" else view_average
    view |= {key: value for key, value in later.items() if value}
    name = getattr(sampler, "__name__", "")
    return spec | {"sampler": _RECORDED_NAMES.get(name, name)} | view | more


def videos_of(dataset: Dataset) -> str:
    """Return the hash of the data set's list."""
    return records_sha(list(dataset.records))


def own_folder(out: Path, stem: str, asked: Mapping[str, Any]) -> None:
    """Write out/<stem>.identity.json, or check that it is the same. Every rank calls it.

    Args:
        out: the folder.
        stem: of the file of rows.
        asked: model (`identify_model`), videos, protocol and, where they decide the rows, suite and
            seed.

    Raises:
        UserError: for a folder with rows of something else, with what differs and the remedy.
    """
    path = out / f"{stem}.identity.json"
    held = _held(out, stem, path, asked)
    if held is not None:
        other = [key for key in asked if not _same(key, held.get(key), asked[key])]
        if other:
            differences = " and ".join(_difference(key, held.get(key), asked[key]) for key in other)
            raise UserError(
                f"out={out}: {stem}.jsonl holds rows of another {differences}; choose another"
                f" folder, or delete {stem}.jsonl and {path.name}"
            )
    distributed.patient_barrier()  # rank 0 writes only what every rank has read
    if held is None and distributed.rank() == 0:
        with replacing(path) as file:
            file.write((json.dumps(asked, indent=2) + "\n").encode())


def _held(out: Path, stem: str, path: Path, asked: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return what existing rows were measured on, or None without rows.

    Args:
        out: the folder.
        stem: stem of the file of rows.
        path: <stem>.identity.json.
        asked: as in `own_folder`.

    Raises:
        UserError: if there are rows, and nothing records what they were measured on.
    """
    if not any(file.stat().st_size for file in rank_files(out, stem)):
        return None  # a call that failed before its first row has claimed nothing
    if path.is_file():
        return read_json(path, f"delete it and {stem}.jsonl, or choose another folder")
    claimed = out / "identity.json"  # of the command line; earlier versions wrote only this one
    checkpoint_name = (
        json.loads(claimed.read_text()).get("checkpoint") if claimed.is_file() else None
    )
    if checkpoint_name and asked["model"].get("name") == checkpoint_name:
        return None
    raise UserError(
        f"out={out}: {stem}.jsonl holds rows, but {path.name}, which records what they were "
        f"measured on, is missing; choose another folder, or delete {stem}.jsonl"
    )


def _same(key: str, held: Any, asked: Any) -> bool:
    """Return whether an entry in the folder and that of this call are the same.

    Args:
        key: name of the entry.
        held: its value in the folder.
        asked: its value in this call.
    """
    if key == "model" and held:
        return _same_model(held, asked)
    # `held` was JSON, which has no tuples
    return held == json.loads(json.dumps(asked))


def _same_model(held: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    if "name" in held or "name" in asked:
        return held.get("name") == asked.get("name")
    states, outputs = (held["state"], asked["state"]), (held["outputs"], asked["outputs"])
    if None not in states and states[0] != states[1]:
        return False
    if None not in outputs:
        return _agree(*outputs, _ALIKE if None in states else _CLOSE)
    if None in states:
        log.warning(
            "this model cannot be recognised, because it has no visible module and no fixed"
            " outputs: the rows of the folder are assumed to be its own; identity=NAME keeps models"
            " apart"
        )
    return True


def _difference(key: str, held: Any, asked: Any) -> str:
    """Return which entry differs and its values, in words; arguments as in `_same`."""
    if key == "model":
        return "model"  # its hashes and outputs mean nothing to a reader
    name_of_entry = "list of videos" if key == "videos" else key
    if isinstance(held, dict) and isinstance(asked, dict):
        differ = [name for name in asked if held.get(name) != asked[name]]
        values = ", ".join(f"{name} {held.get(name)}, here {asked[name]}" for name in differ)
        return f"{name_of_entry} ({values})"
    return f"{name_of_entry} ({held}, here {asked})"
