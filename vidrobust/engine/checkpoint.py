"""Checkpoints: written atomically, read with weights_only, resumed exactly.

{format, step, epoch, model, method, optimizer, rng, config, manifest_sha}: tensors and primitives only.
"""

import hashlib
import os
from collections import Counter
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from vidrobust import config
from vidrobust.engine.log import log
from vidrobust.errors import UserError
from vidrobust.files import replacing
from vidrobust.models.branch_norm import MIXTURES, branch_of, without_branch

FORMAT = 1
KEYS = {"step", "epoch", "model", "method", "optimizer", "rng", "config", "manifest_sha"}


def write_atomic(path: Path, state: Any) -> None:
    """torch.save into `path`, all of it or nothing."""
    with replacing(path) as file:
        torch.save(state, file)


def save(folder: Path, state: dict[str, Any], keep: int) -> Path:
    """Write step_*.pt, point last.pt to it and delete all but the newest `keep`."""
    path = folder / f"step_{state['step']:08d}.pt"
    write_atomic(path, state)
    link = folder / ".last.partial"
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)  # no second copy on disk
        os.replace(link, folder / "last.pt")
    except OSError:  # a file system without hard links
        write_atomic(folder / "last.pt", state)
    for old in sorted(folder.glob("step_*.pt"))[:-keep]:
        old.unlink()
    return path


def drop_after(folder: Path, step: int) -> None:
    """Delete the step_*.pt of later steps than `step`: the future of a run that goes on from there."""
    for path in folder.glob("step_*.pt"):
        if int(path.stem.removeprefix("step_")) > step:
            path.unlink()


def read(path: str | Path) -> Any:
    """What a .pt file holds, on the CPU. Raises UserError for a missing file and one that is cut short."""
    path = Path(path)
    if path.is_dir():
        path = path / "checkpoints" / "last.pt" if (path / "checkpoints").is_dir() else path / "last.pt"
    if not path.is_file():
        raise UserError(f"no checkpoint {path}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        older = [p.name for p in sorted(path.parent.glob("step_*.pt")) if p != path]
        remedy = f"; use {older[-1]} beside it" if older else ""
        unsafe = isinstance(error, UnpicklingError)
        reason = "more than tensors and plain values, or no torch file" if unsafe else "torch cannot read it"
        raise UserError(f"{path}: not a checkpoint, or cut short ({reason}){remedy}") from None


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A training checkpoint of this package. Raises UserError for anything else."""
    state = read(path)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path}: not a training checkpoint of format {FORMAT}; backbone.pt goes to model.weights")
    if not state.keys() >= KEYS:
        raise UserError(f"{path}: a checkpoint without {', '.join(sorted(KEYS - state.keys()))}; take another")
    return state


def weights(state: dict[str, Any], *, average: bool) -> dict[str, Tensor]:
    """The model's last weights in a checkpoint, or their running average. Raises UserError where there is none."""
    if average and "average" not in state:
        raise UserError("eval.average: the checkpoint was trained without train.average; set eval.average=false")
    found: dict[str, Tensor] = state["average" if average else "model"]
    return found


def rng_state() -> dict[str, Any]:
    """torch's global generators, the CPU's and this rank's GPU's (dropout, the starts of attacks in training).

    They are alike on all ranks, which draw as much; everything else is drawn from (seed, epoch, index).
    """
    return {"torch": torch.get_rng_state(), "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []}


def set_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state(state["cuda"][0])


def load_state(module: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load all of `state` into all of `module`, or raise UserError naming what does not fit, by prefix.

    A module with norm branches takes the state of one without.
    """
    own = module.state_dict()
    # a plain norm's entry fills all branches, see branch_norm
    origin = {key: key if key in state else without_branch(key) for key in own}
    used = set(origin.values())
    missing = [key for key in own if origin[key] not in state]
    unexpected = [key for key in state if key not in used]
    shapes = [k for k in own if origin[k] in state and state[origin[k]].shape != own[k].shape]
    if missing or unexpected or shapes:
        parts = [
            f"{label} {_by_prefix(keys)}"
            for label, keys in (("missing", missing), ("unexpected", unexpected), ("other shape", shapes))
            if keys
        ]
        raise UserError(f"{source} is of another architecture: {'; '.join(parts)}; check model.* and data.*")
    module.load_state_dict(state)


def trunk_state(path: str) -> dict[str, Tensor]:
    """Trunk weights from a backbone.pt, a training checkpoint of this package, or a plain state dict.

    Prefixes that other code puts before a trunk (`module.`, `encoder.`, `backbone.`, `trunk.`) are stripped,
    classifiers (`fc.`, `head.`) and selectors dropped. Of a training checkpoint it is `measured_trunk`.
    """
    state = read(path)
    if isinstance(state, dict) and state.keys() >= KEYS:
        trunk, whole = measured_trunk(state), state["model"]
    else:
        whole = state
        for name in ("state_dict", "model_state", "model"):
            whole = whole.get(name, whole) if isinstance(whole, dict) else whole
        if not isinstance(whole, dict) or not all(
            isinstance(key, str) and isinstance(value, Tensor) for key, value in whole.items()
        ):
            raise UserError(f"{path}: holds no state dict of a model")
        trunk = _trunk(whole, "clean")
    if len(trunk) < len(whole):
        log.info(f"{path}: {len(trunk)} tensors of the trunk taken, {len(whole) - len(trunk)} others left out")
    return trunk


def measured_trunk(state: dict[str, Any]) -> dict[str, Tensor]:
    """The trunk of a training checkpoint as its own configuration measures it: the branch of eval.branch, or the clean
    one where that is a mixture, of the weights or of their average (eval.average).
    """
    cfg = config.loads(state["config"])
    branch = "clean" if cfg.eval.branch in MIXTURES else cfg.eval.branch
    return _trunk(weights(state, average=cfg.eval.average), branch)


def _trunk(state: dict[str, Tensor], branch: str) -> dict[str, Tensor]:
    trunk = {}
    for key, value in state.items():
        if branch_of(key) not in (None, branch):
            continue
        while key.split(".")[0] in ("module", "encoder", "backbone", "trunk"):
            key = key.partition(".")[2]
        if key.split(".")[0] not in ("fc", "head", "selector"):
            trunk[without_branch(key)] = value
    return trunk


def state_sha(state: dict[str, Tensor]) -> str:
    """First 16 hex digits of the SHA-256 of the weights: which model a result belongs to."""
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode())
        digest.update(state[key].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _by_prefix(keys: list[str]) -> str:
    """`backbone.trunk.layer4 (12), head (2)`: the first levels of the names, and how many tensors each has."""
    groups = Counter(".".join(key.split(".")[:-1][: 4 if key.startswith("model.") else 3]) for key in keys)
    shown = [f"{prefix} ({count})" for prefix, count in sorted(groups.items())]
    return ", ".join(shown[:6]) + (f" and {len(shown) - 6} more groups" if len(shown) > 6 else "")
