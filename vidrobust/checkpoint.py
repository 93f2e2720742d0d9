"""Write, read and verify checkpoints.

A checkpoint is a dictionary of tensors and plain values, with the entries {format, step, epoch,
model, method, optimizer, rng, config, manifest_sha}. Some have more: see `_TYPES`.
"""

import hashlib
import io
import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any, BinaryIO, cast

import torch
from torch import Tensor, nn

from vidrobust import config
from vidrobust.models.branch_norm import MIXTURES, branch_of, without_branch
from vidrobust.models.checkpoints import Contents, Recognised, read_weights, recognise_contents
from vidrobust.utils.atomic_files import replacing
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log

FORMAT = 1
# entries that every training checkpoint has
KEYS = {"step", "epoch", "model", "method", "optimizer", "rng", "config", "manifest_sha"}
# types of the entries, also of those that some checkpoints do not have
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
    "auto_rate": dict,
    "bad_videos": dict,
    "method_revision": int,
    "ranks": int,
}


class NonFinite(UserError):
    """The loss, its gradient or the weights have become NaN or infinite."""


class _ErrorRecorder(io.RawIOBase):
    """File that keeps the error of a write: torch.save hides it, for example a full disk."""

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
    """Save a state as torch.save does; a killed process leaves all of the file or nothing.

    Raises:
        OSError: with the path, for example on a full disk.
    """
    with replacing(path) as file:
        recorder = _ErrorRecorder(file)
        try:
            torch.save(state, cast(IO[bytes], recorder))
        except RuntimeError:
            if recorder.error is not None:
                raise recorder.error from None
            raise


def require_finite(state: dict[str, Any], step: int, folder: Path) -> None:
    """Raise NonFinite for a checkpoint with NaN or infinite weights or statistics.

    Args:
        state: checkpoint that would be written.
        step: number of finished steps.
        folder: folder of earlier checkpoints.

    Raises:
        NonFinite: with the first tensor that is not finite and the last good checkpoint.
    """
    key = next(iter(non_finite(state)), None)
    if key is not None:
        raise NonFinite(
            f"{key} is not finite after step {step}, which is not saved; last good checkpoint: "
            f"{newest_step(folder) or 'none yet'}; lower optim.lr or set optim.clip_norm"
        )


def non_finite(state: dict[str, Any]) -> list[str]:
    """Return the names of a checkpoint's tensors that hold NaN or infinite values."""
    names = []
    for part in ("model", "method", "average"):
        for key, value in (state.get(part) or {}).items():
            is_float = isinstance(value, Tensor) and value.is_floating_point()
            if is_float and not bool(value.isfinite().all()):
                names.append(f"{part}.{key}")
    return names


def step_files(folder: Path) -> list[Path]:
    """Return the checkpoints that a run has written into a folder, in order of their steps."""
    # not `step_*`: a user's own step_best.pt or step_00000002_mine.pt must not be deleted
    return sorted(folder.glob(f"step_{'[0-9]' * 8}.pt"))


def newest_step(folder: Path) -> Path | None:
    """Return the step_*.pt of the latest step in a folder; None if there is none."""
    return max(step_files(folder), default=None)


def save(folder: Path, state: dict[str, Any], keep: int) -> Path:
    """Write step_*.pt, make last.pt the same file, and delete older checkpoints.

    Args:
        folder: folder of the checkpoints.
        state: the checkpoint; its "step" gives the file name.
        keep: number of step_*.pt to keep, at least 1.

    Returns:
        Path of the step_*.pt.
    """
    path = folder / f"step_{state['step']:08d}.pt"
    write_atomic(path, state)
    link = folder / ".last.partial"
    link.unlink(missing_ok=True)
    try:
        # a hard link: no second copy on disk
        os.link(path, link)
        os.replace(link, folder / "last.pt")
    except OSError:  # a file system without hard links
        write_atomic(folder / "last.pt", state)
    for old in step_files(folder)[:-keep]:
        old.unlink()
    return path


def drop_after(folder: Path, step: int) -> None:
    """Delete the step_*.pt of later steps than `step`, before a run resumes from that step."""
    for path in step_files(folder):
        if int(path.stem.removeprefix("step_")) > step:
            path.unlink()


def drop_partial(folder: Path) -> None:
    """Delete partial files of checkpoints that a killed process was writing."""
    for path in folder.glob(".*.partial"):
        path.unlink()


def read(path: str | Path) -> Any:
    """Read a .pt file, or the newest undamaged checkpoint of a run's folder.

    Returns:
        The content of the file, with tensors on the CPU.

    Raises:
        UserError: for a missing file, and for one that is incomplete or fails its checksums.
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
        if isinstance(error, UnpicklingError):
            reason = "it holds more than tensors and plain values, or is not a torch file"
        else:
            reason = "torch cannot read it"
    if reason:
        raise _damaged(path, reason)
    return state


def _damaged(path: Path, reason: str) -> UserError:
    """Return the error of a file that is no checkpoint, or that is incomplete."""
    older = [p.name for p in step_files(path.parent) if p != path]
    remedy = f"; use {older[-1]} in the same folder" if older else ""
    return UserError(f"{path}: not a checkpoint, or incomplete ({reason}){remedy}")


def _damage(path: Path) -> str:
    """Return what is wrong with a .pt file by its checksums; "" if nothing is.

    torch.load does not verify them.
    """
    try:
        if not zipfile.is_zipfile(path):
            # torch's old format has no checksums; any other file fails in torch.load
            return ""
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
            entries = archive.infolist()
    # zipfile raises all of these for damaged files
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        zlib.error,
    ) as error:
        return f"wrong checksum: {error}"
    if bad is not None:
        return f"wrong checksum: {bad}"
    # Checksums cover the content of entries, not their headers. Torch reads an entry that is marked
    # as a folder, or as compressed, as zeros or as uninitialized memory. It writes all headers
    # alike, so a header that differs is damaged.
    headers = {
        (e.external_attr, e.internal_attr, e.compress_type, e.flag_bits, e.create_system, e.volume)
        for e in entries
    }
    intact = len({e.filename for e in entries}) == len(entries) and len(headers) <= 1
    return "" if intact else "its table of contents is damaged"


def newest_sound(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Find the newest undamaged checkpoint of a folder, and read it.

    last.pt is used if it is undamaged, otherwise the newest undamaged step_*.pt, with a warning.

    Returns:
        (path, checkpoint); None if there are no checkpoints.

    Raises:
        UserError: if there are checkpoints, but all of them are damaged.
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
            # without the remedy of `read`: the next file is tried anyway
            reasons.append(str(error).partition("; use ")[0])
            continue
        if reasons:
            log.warning(f"{reasons[0]}: using {path.name} of step {state['step']} instead")
        return path, state
    if reasons:
        raise UserError(
            f"{folder} holds no undamaged checkpoint: {reasons[0]}; --overwrite starts again"
        )
    return None


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a training checkpoint of this package; raise UserError for anything else."""
    state = read(path)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(
            f"{path}: not a training checkpoint of format {FORMAT}; a backbone.pt is for"
            " model.weights"
        )
    if not state.keys() >= KEYS:
        raise UserError(
            f"{path}: a checkpoint without {', '.join(sorted(KEYS - state.keys()))}; use another"
        )
    for key, kind in _TYPES.items():
        if state.get(key) is not None and not isinstance(state[key], kind):
            raise UserError(
                f"{path}: {key} is not of type {kind.__name__}: the checkpoint is damaged; use"
                " another"
            )
    return state


def configuration(state: dict[str, Any], source: str) -> config.Config:
    """Return the configuration that a checkpoint was trained with.

    Args:
        state: the checkpoint.
        source: its path, for messages.

    Raises:
        UserError: if the configuration is damaged.
    """
    try:
        return config.loads(state["config"], source=source)
    except UserError:
        raise
    except Exception as error:  # PyYAML and OmegaConf raise many types for damaged text
        reason = (str(error).splitlines() or ["empty"])[0]
        raise UserError(
            f"{source}: the checkpoint's configuration is damaged ({reason}); use another"
        ) from None


def weights(state: dict[str, Any], *, average: bool) -> dict[str, Tensor]:
    """Return the model weights of a checkpoint.

    Args:
        state: the checkpoint.
        average: return the averaged weights of eval.average instead of the last ones: the running
            average of train.average, or DynACL's momentum encoder.

    Raises:
        UserError: if `average` is set and the checkpoint has no averaged weights.
    """
    if not average:
        return cast(dict[str, Tensor], state["model"])
    if "average" in state:
        return cast(dict[str, Tensor], state["average"])
    prefix = "slow.model."  # of the momentum encoder in a method's state dict
    slow = {
        key.removeprefix(prefix): value
        for key, value in state["method"].items()
        if key.startswith(prefix)
    }
    if not slow:
        raise UserError(
            "eval.average: the checkpoint was trained without train.average, and without a momentum"
            " encoder of DynACL; set eval.average=false"
        )
    return slow


def rng_state() -> dict[str, Any]:
    """Return the state of torch's global generators: the CPU's, and this rank's GPU's.

    Dropout, random budgets and the random starts of training attacks use them. They are the same on
    all ranks, which use equally many random numbers: each rank draws only a seed for the starts of
    its own clips. All other random numbers of a training run depend on (seed, epoch, index) only.
    """
    return {
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Set torch's global generators to a state of `rng_state`."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state(state["cuda"][0])


def load_state(module: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load a whole state dict into a whole module.

    A module with several batch-norm branches also accepts the state of one without.

    Args:
        module: the module.
        state: its state dict.
        source: where the state comes from, for messages.

    Raises:
        UserError: if keys or shapes differ; it names them by prefix.
    """
    target = module.state_dict()
    # the entry of a plain batch norm fills all branches, see branch_norm
    origin = {key: key if key in state else without_branch(key) for key in target}
    used = set(origin.values())
    problems = {
        "missing": [key for key in target if origin[key] not in state],
        "unexpected": [key for key in state if key not in used],
        "other shape": [
            key
            for key, value in target.items()
            if origin[key] in state and state[origin[key]].shape != value.shape
        ],
    }
    parts = [f"{label} {_by_prefix(keys)}" for label, keys in problems.items() if keys]
    if parts:
        raise UserError(
            f"{source} is of another architecture: {'; '.join(parts)}; check model.* and data.*"
        )
    module.load_state_dict(state)


def backbone_state(
    path: str,
    branch: str = "",
    branches: Sequence[str] = ("clean",),
    head_key: str = "",
    keys: Collection[str] = (),
) -> dict[str, Tensor]:
    """Load backbone weights from a file or a run's folder.

    The file may be a backbone.pt, a training checkpoint of this package, or a file of other code
    in a layout of `models.checkpoints.LAYOUTS`. A training checkpoint gives its
    `measured_backbone`. Classifiers and projectors are left out; the log says what was taken.

    Args:
        path: the file, or the folder of a run.
        branch: batch-norm branch to take, from a training checkpoint only; "": the branch that its
            configuration evaluates.
        branches: of the backbone that gets the weights. A file of other code with the same ones
            gives all; otherwise it gives one, which its layout names.
        head_key: of the backbone that gets the weights, see `Backbone.head_key`.
        keys: of its state dict, see `recognise_contents`.

    Raises:
        UserError: for a file that is none of these, and for a branch of a file without branches.
    """
    contents = read_foreign(path)
    state = contents.value
    if isinstance(state, dict) and state.keys() >= KEYS:
        backbone = measured_backbone(state, branch)
        if len(backbone) < len(state["model"]):
            log.info(
                f"{path}: loaded {len(backbone)} tensors of the backbone, left out"
                f" {len(state['model']) - len(backbone)} others"
            )
        return backbone
    if branch:
        raise UserError(f"{path}: has no batch-norm branches; give the folder of the run")
    found = recognise_contents(contents, path, head_key, keys)
    log.info(f"{path}: {found.text()}")
    return _for_branches(found, branches)


def read_foreign(path: str | Path) -> Contents:
    """Read a file of this package or of other code, or the newest checkpoint of a run's folder.

    Code that the file names is not run. Objects of foreign classes are left out with a warning.

    Raises:
        UserError: for a missing or damaged file.
    """
    path = Path(path)
    if path.is_dir():
        return Contents(read(path))
    if not path.is_file():
        raise UserError(f"no checkpoint {path}")
    if reason := _damage(path):
        raise _damaged(path, reason)
    contents = read_weights(path)
    if contents.foreign:
        log.warning(
            f"{path}: objects of {', '.join(contents.foreign[:5])} were not created, as only"
            " tensors and plain values are read"
        )
    return contents


def _for_branches(found: Recognised, branches: Sequence[str]) -> dict[str, Tensor]:
    """Return weights for a backbone with these norm branches: all branches, or one without name."""
    held = {name for key in found.backbone if (name := branch_of(key))}
    if held == set(branches) or not held:
        return found.backbone
    chosen = found.layout.branch
    if len(branches) > 1:
        log.warning(
            f"the weights have the norm branches {', '.join(sorted(held))}; {chosen} is taken for"
            " all branches"
        )
    return {
        without_branch(key): value
        for key, value in found.backbone.items()
        if branch_of(key) in (None, chosen)
    }


def measured_backbone(state: dict[str, Any], branch: str = "") -> dict[str, Tensor]:
    """Return the backbone weights that a training checkpoint's own configuration evaluates.

    These are the last weights or their average (eval.average), of the branch eval.branch. If
    eval.branch combines several branches, it is the clean one.

    Args:
        state: the checkpoint.
        branch: another batch-norm branch to take; "": as above.
    """
    cfg = configuration(state, "checkpoint")
    if not branch:
        branch = "clean" if cfg.eval.branch in MIXTURES else cfg.eval.branch
    return _backbone_part(weights(state, average=cfg.eval.average), branch)


def _backbone_part(state: dict[str, Tensor], branch: str) -> dict[str, Tensor]:
    """Return the backbone's weights in one branch, with keys relative to the backbone."""
    backbone = {}
    for key, value in state.items():
        if branch_of(key) not in (None, branch):
            continue
        # `network` holds a model of another package, see `Backbone.stored`
        name = re.sub(r"^backbone\.trunk\.(network\.)?", "", key)
        if name != key:
            backbone[without_branch(name)] = value
    return backbone


def state_sha(state: dict[str, Tensor]) -> str:
    """Return a hash of model weights, the first 16 hex digits of a SHA-256.

    It identifies the model that a result belongs to.
    """
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode())
        digest.update(
            state[key].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()[:16]


def _by_prefix(keys: list[str]) -> str:
    """Return the number of tensors per prefix, such as `backbone.trunk.layer4 (12), head (2)`."""
    groups = Counter(
        ".".join(key.split(".")[:-1][: 4 if key.startswith("model.") else 3]) for key in keys
    )
    counts = [f"{prefix} ({count})" for prefix, count in sorted(groups.items())]
    rest = f" and {len(counts) - 6} more groups" if len(counts) > 6 else ""
    return ", ".join(counts[:6]) + rest
