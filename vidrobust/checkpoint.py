"""Write, read and verify checkpoints.

{format, step, epoch, model, method, optimizer, rng, config, manifest_sha}: tensors and primitives
only.
"""

import hashlib
import io
import os
import zipfile
import zlib
from collections import Counter
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any, BinaryIO, cast

import torch
from torch import Tensor, nn

from vidrobust import config
from vidrobust.models.branch_norm import MIXTURES, branch_of, without_branch
from vidrobust.utils.atomic_files import replacing
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log

FORMAT = 1
KEYS = {"step", "epoch", "model", "method", "optimizer", "rng", "config", "manifest_sha"}
_TYPES: dict[str, type] = {
    "step": int,
    "epoch": int,
    "model": dict,
    "method": dict,
    "optimizer": dict,
    "rng": dict,
    "config": str,
    "manifest_sha": str,
    "average": dict,
    "bad_videos": dict,
    "method_revision": int,
}


class NonFinite(UserError):
    """The loss, its gradient or the weights are not numbers any more."""


class _Recording(io.RawIOBase):
    """Remembers the error of a write, because torch.save reports a full disk without its name."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        try:
            return self.file.write(content)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        if not self.file.closed:
            self.file.flush()


def write_atomic(path: Path, state: Any) -> None:
    """Save into `path` as torch.save does, all of it or nothing.

    Raises OSError with the path on a full disk.
    """
    with replacing(path) as file:
        recording = _Recording(file)
        try:
            torch.save(state, cast(IO[bytes], recording))
        except RuntimeError:
            if recording.error is not None:
                raise recording.error from None
            raise


def require_finite(state: dict[str, Any], step: int, folder: Path) -> None:
    """Refuse a checkpoint whose weights or statistics are NaN or infinite.

    Args:
        state: what would be written.
        step: finished steps.
        folder: where earlier checkpoints lie.

    Raises:
        NonFinite: with the first tensor that is not finite and the last good checkpoint.
    """
    key = next(iter(non_finite(state)), None)
    if key is not None:
        raise NonFinite(
            f"{key} is not finite after step {step}, which is not written; last good checkpoint: "
            f"{newest_step(folder) or 'none yet'}; lower optim.lr or set optim.clip_norm"
        )


def non_finite(state: dict[str, Any]) -> list[str]:
    """Return the names of the tensors of a checkpoint that are not finite."""
    return [
        f"{part}.{key}"
        for part in ("model", "method", "average")
        for key, value in (state.get(part) or {}).items()
        if isinstance(value, Tensor)
        and value.is_floating_point()
        and not bool(value.isfinite().all())
    ]


def step_files(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder by step; a step_best.pt is somebody else's."""
    # not `step_*`: a user's step_00000002_mine.pt is theirs
    return sorted(folder.glob(f"step_{'[0-9]' * 8}.pt"))


def newest_step(folder: Path) -> Path | None:
    """Return the step_*.pt of the latest step in a folder, if there is one."""
    return max(step_files(folder), default=None)


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
    for old in step_files(folder)[:-keep]:
        old.unlink()
    return path


def drop_after(folder: Path, step: int) -> None:
    """Delete the step_*.pt of later steps than `step`: the future of a run that goes on from
    there.
    """
    for path in step_files(folder):
        number = path.stem.removeprefix("step_")
        if number.isdigit() and int(number) > step:
            path.unlink()


def drop_partial(folder: Path) -> None:
    """Delete what a killed process has left of checkpoints that it was writing."""
    for path in folder.glob(".*.partial"):
        path.unlink()


def read(path: str | Path) -> Any:
    """Return what a .pt file holds, on the CPU, or the newest sound checkpoint of a run's folder.

    Raises UserError for a missing file, and for one that is cut short or whose checksums do not
    fit.
    """
    path = Path(path)
    if path.is_dir():
        folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
        sound = newest_sound(folder)
        if sound is None:
            raise UserError(f"no checkpoint {folder / 'last.pt'}")
        return sound[1]
    if not path.is_file():
        raise UserError(f"no checkpoint {path}")
    reason = _damage(path)
    try:
        state = None if reason else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        unsafe = isinstance(error, UnpicklingError)
        reason = (
            "more than tensors and plain values, or no torch file"
            if unsafe
            else "torch cannot read it"
        )
    if reason:
        older = [p.name for p in step_files(path.parent) if p != path]
        remedy = f"; use {older[-1]} beside it" if older else ""
        raise UserError(f"{path}: not a checkpoint, or cut short ({reason}){remedy}")
    return state


def _damage(path: Path) -> str:
    """Return what is wrong with the checksums of a .pt file, "" for nothing.

    torch.load does not compare them.
    """
    try:
        if not zipfile.is_zipfile(path):
            # an old file of torch's without checksums, or none of torch's, as reading it will show
            return ""
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
            entries = archive.infolist()
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        zlib.error,
    ) as error:
        return f"its checksums do not fit: {error}"
    if bad is not None:
        return f"its checksums do not fit: {bad}"
    # torch writes all entries alike; what one of them says of itself has no checksum, and one that
    # is called a folder, or compressed, is read as zeros or as what memory held before
    kinds = {
        (e.external_attr, e.internal_attr, e.compress_type, e.flag_bits, e.create_system, e.volume)
        for e in entries
    }
    whole = len({e.filename for e in entries}) == len(entries) and len(kinds) <= 1
    return "" if whole else "its table of contents is damaged"


def newest_sound(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return last.pt, or with a warning the newest sound step_*.pt, and its state.

    None where there are no checkpoints.

    Raises UserError where there are checkpoints, and none of them is sound.
    """
    steps = step_files(folder)[::-1]
    reasons = []
    for path in [folder / "last.pt", *steps]:
        if path.name == "last.pt" and not path.exists():
            if steps:
                reasons.append(f"{path} is missing")
            continue
        try:
            state = read_checkpoint(path)
            bad = non_finite(state)
            if bad:
                raise UserError(f"{path}: {bad[0]} is not finite")
        except UserError as error:
            reasons.append(str(error).partition("; use ")[0])
            continue
        if reasons:
            log.warning(f"{reasons[0]}: {path.name} is used, of step {state['step']}")
        return path, state
    if reasons:
        raise UserError(
            f"{folder} holds no sound checkpoint: {reasons[0]}; --overwrite starts anew"
        )
    return None


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A training checkpoint of this package. Raises UserError for anything else."""
    state = read(path)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(
            f"{path}: not a training checkpoint of format {FORMAT}; backbone.pt goes to"
            " model.weights"
        )
    if not state.keys() >= KEYS:
        raise UserError(
            f"{path}: a checkpoint without {', '.join(sorted(KEYS - state.keys()))}; take another"
        )
    for key, kind in _TYPES.items():
        if state.get(key) is not None and not isinstance(state[key], kind):
            raise UserError(
                f"{path}: {key} is no {kind.__name__}: the checkpoint is damaged; take another"
            )
    return state


def configuration(state: dict[str, Any], source: str) -> config.Config:
    """Return the configuration that a checkpoint was trained with.

    Raises UserError where it is damaged.
    """
    try:
        return config.loads(state["config"], source=source)
    except UserError:
        raise
    except Exception as error:  # YAML's and OmegaConf's, of a text that is none of ours
        reason = (str(error).splitlines() or ["empty"])[0]
        raise UserError(
            f"{source}: the checkpoint's configuration is damaged ({reason}); take another"
        ) from None


def weights(state: dict[str, Any], *, average: bool) -> dict[str, Tensor]:
    """Return the model's last weights in a checkpoint, or the slower ones that eval.average
    measures.

    These are the running average of train.average, or DynACL's momentum encoder.

    Raises:
        UserError: there are none.
    """
    found: dict[str, Tensor] = state["average" if average and "average" in state else "model"]
    if not average or "average" in state:
        return found
    slow = "slow.model."
    kept = {key.removeprefix(slow): v for key, v in state["method"].items() if key.startswith(slow)}
    if not kept:
        raise UserError(
            "eval.average: the checkpoint was trained without train.average, and without a momentum"
            " encoder of DynACL; set eval.average=false"
        )
    return kept


def rng_state() -> dict[str, Any]:
    """torch's global generators, the CPU's and this rank's GPU's (dropout, the starts of attacks in
    training).

    They are alike on all ranks, which draw as much; everything else is drawn from (seed, epoch,
    index).
    """
    return {
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state(state["cuda"][0])


def load_state(module: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load all of `state` into all of `module`, or raise UserError naming what does not fit, by
    prefix.

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
            for label, keys in (
                ("missing", missing),
                ("unexpected", unexpected),
                ("other shape", shapes),
            )
            if keys
        ]
        raise UserError(
            f"{source} is of another architecture: {'; '.join(parts)}; check model.* and data.*"
        )
    module.load_state_dict(state)


def trunk_state(path: str, branch: str = "") -> dict[str, Tensor]:
    """Trunk weights from a backbone.pt, a training checkpoint of this package, or a plain state
    dict.

    Prefixes that other code puts before a trunk (`module.`, `encoder.`, `backbone.`, `trunk.`) are
    stripped, classifiers (`fc.`, `head.`) and selectors dropped. Of a training checkpoint it is
    `measured_trunk`; branch: of this norm branch, which only such a checkpoint knows.
    """
    state = read(path)
    if isinstance(state, dict) and state.keys() >= KEYS:
        trunk, whole = measured_trunk(state, branch), state["model"]
    elif branch:
        raise UserError(f"{path}: has no norm branches; give the folder of the run")
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
        log.info(
            f"{path}: {len(trunk)} tensors of the trunk taken, {len(whole) - len(trunk)} others"
            " left out"
        )
    return trunk


def measured_trunk(state: dict[str, Any], branch: str = "") -> dict[str, Tensor]:
    """The trunk of a training checkpoint as its own configuration measures it: the branch of
    eval.branch, or the clean one where that is a mixture, of the weights or of their average
    (eval.average). branch: another one.
    """
    cfg = configuration(state, "checkpoint")
    branch = branch or ("clean" if cfg.eval.branch in MIXTURES else cfg.eval.branch)
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
        digest.update(
            state[key].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()[:16]


def _by_prefix(keys: list[str]) -> str:
    """`backbone.trunk.layer4 (12), head (2)`: the first levels of the names, and how many tensors
    each has.
    """
    groups = Counter(
        ".".join(key.split(".")[:-1][: 4 if key.startswith("model.") else 3]) for key in keys
    )
    shown = [f"{prefix} ({count})" for prefix, count in sorted(groups.items())]
    return ", ".join(shown[:6]) + (f" and {len(shown) - 6} more groups" if len(shown) > 6 else "")
