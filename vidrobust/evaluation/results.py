"""Results on disk: claim a folder, append rows, resume, merge ranks.

A folder belongs to one evaluation: of one checkpoint, with one set of options, on one list of
videos. A row is of a video (`index`) and of one thing that was done to it: `column` names the entry
that says which, a threat or a corruption. Work is in groups, the list of the (index, thing) pairs
that are measured together. Every rank writes rows as they are computed, so that an evaluation goes
on where it was killed. A row that exists stays: a call with other videos, threats or corruptions
adds its own.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vidrobust import checkpoint, config
from vidrobust.data import Record, records_sha
from vidrobust.data.prepare.provenance import read_mark
from vidrobust.utils import distributed
from vidrobust.utils.atomic_files import held, read_json, read_rows, replacing
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log
from vidrobust.utils.own_files import EVALUATION_FILES, delete_files, require_deletable

# what may differ between two runs of an evaluation
_FREE = (
    "data.workers",
    "data.timeout_s",
    "data.root",
    "data.twins",
    "data.manifest",
    "eval.name",
    "eval.enabled",
    "eval.corruption.baseline",
    "eval.shift.root",
)

_LOCK = ".lock"  # whose evaluation this is


def identify(
    cfg: config.Config,
    state: dict[str, Any],
    train: list[Record],
    test: list[Record],
    others: list[Record],
) -> dict[str, str]:
    """What two runs of an evaluation must share to be the same one. others: of another data set."""
    weights = checkpoint.state_sha(checkpoint.weights(state, average=cfg.eval.average))
    return {
        "checkpoint": (
            f"step {state['step']}, {'average' if cfg.eval.average else 'weights'} {weights}"
        ),
        "config_sha": config.config_sha(_asked(cfg), ignore=_FREE),
        "manifest_sha": records_sha(train + test),
        **({"shift_sha": records_sha(others)} if others else {}),
        **({"textures": _textures(cfg.data.twins)} if "texture" in cfg.eval.bias else {}),
    }


def _textures(folder: str) -> str:
    """What datasets/prepare.py texture noted of how they were made."""
    return json.dumps(read_mark(folder) or {})


@contextmanager
def claim(
    out: Path,
    identity: dict[str, str],
    cfg: config.Config,
    *,
    overwrite: bool,
    classes: Sequence[str] = (),
) -> Iterator[None]:
    """Make the folder, or go on in one that holds the same evaluation; until the context ends it is
    this process's.

    Args:
        out: the folder.
        identity: what `identify` says of this evaluation.
        cfg: its configuration.
        overwrite: the files of another evaluation in the folder are deleted.
        classes: names of the classes, for a report that is written again without the data set.

    Raises:
        UserError: where it holds another evaluation, with the options that differ, where it holds
            no evaluation, and where another process evaluates.
    """
    path = out / "identity.json"
    used = ("seed", "data.", "model.", "method.", "eval.")
    options = {
        key: str(config.get(cfg, key))
        for key, _ in config.options()
        if key.startswith(used) and key not in _FREE
    }
    there = read_json(path, f"set eval.name=NAME, or delete {out}") if path.is_file() else {}
    if not there and out.is_dir() and any(not _is_leftover(file) for file in out.iterdir()):
        raise UserError(f"{out} holds other files and no evaluation; set eval.name or --output-dir")
    other = bool(there) and any(there.get(key) != value for key, value in identity.items())
    if other and not overwrite:
        raise UserError(
            f"{out} holds another evaluation, of other {_difference(there, identity, options)}; "
            "set eval.name=NAME, or --overwrite"
        )
    if other:
        require_deletable(out, config.paths_read(cfg), "eval.name or --output-dir")
    out.mkdir(parents=True, exist_ok=True)
    with held(
        out / _LOCK,
        "another process evaluates in {}; wait for it or stop it, or set eval.name=NAME",
    ):
        if other:
            log.warning(
                f"replacing the evaluation in {out}, which was of {there.get('checkpoint')}"
            )
            delete_files(out, EVALUATION_FILES)
        with replacing(path) as file:
            file.write(
                json.dumps(identity | {"options": options, "classes": list(classes)}).encode()
            )
        yield


def _is_leftover(file: Path) -> bool:
    """Return whether a file is what a process that was killed at its start has left."""
    return file.name == _LOCK or file.name == ".identity.json.partial"


def classes_of(out: Path) -> list[str]:
    """Return the names of the classes of the evaluation in a folder.

    Raises UserError where they are not known.
    """
    remedy = "evaluate again, without --report-only"
    if not (out / "identity.json").is_file():
        raise UserError(f"{out} holds no evaluation; {remedy}")
    classes = read_json(out / "identity.json", remedy).get("classes")
    if (
        not isinstance(classes, list)
        or not classes
        or not all(isinstance(name, str) for name in classes)
    ):
        raise UserError(f"{out / 'identity.json'}: names no classes; {remedy}")
    return classes


def _asked(cfg: config.Config) -> config.Config:
    """The configuration without what only training needs."""
    return config.Config(
        seed=cfg.seed, data=cfg.data, model=cfg.model, method=cfg.method, eval=cfg.eval
    )


def _difference(held: dict[str, Any], identity: dict[str, str], options: dict[str, str]) -> str:
    before = held.get("options")
    before = before if isinstance(before, dict) else {}
    differ = ", ".join(key for key, value in options.items() if before.get(key, value) != value)
    names = {
        "shift_sha": "videos of eval.shift",
        "textures": "textures",
        "checkpoint": "checkpoint",
        "config_sha": f"options ({differ})" if differ else "options",
        "manifest_sha": "lists of videos",
    }
    return " and ".join(name for key, name in names.items() if held.get(key) != identity.get(key))


Row = dict[str, Any]
Key = tuple[int, str]
Group = Sequence[Key]
Combine = Callable[[Row, Row], Row]

# in the error of a row: the video decodes, and the model or its gradient is NaN or infinite there
MODEL_FAULT = "no finite numbers from the model"


def rank_files(out: Path, stem: str) -> list[Path]:
    """Return <stem>.jsonl and <stem>.rank<N>.jsonl, those that exist, in the order of ranks."""
    rank = re.compile(re.escape(stem) + r"(?:\.rank(\d+))?\.jsonl")
    found = [
        (int(name[1] or 0), path)
        for path in out.glob("*.jsonl")
        if (name := rank.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found)]


def earlier(old: Row, new: Row) -> Row:
    """Return the row that was there first."""
    return old


def unfinished(
    out: Path, stem: str, column: str, groups: Sequence[Group], *, combine: Combine = earlier
) -> tuple[list[int], dict[Key, Row]]:
    """Return (the numbers of the groups that have not all their rows, the rows that are there).

    Rows of all ranks are put into out/<stem>.jsonl; a line that a kill cut is left out.

    Args:
        out: the folder.
        stem: of the files.
        column: names the entry of a row that its key has beside the video's index.
        groups: what is asked for.
        combine: of two rows of one key.
    """
    rows = _read(out, stem, column, combine)
    distributed.patient_barrier()  # every rank has read what the first is about to rewrite
    _rewrite(out, stem, list(rows.values()))
    return [n for n, group in enumerate(groups) if any(key not in rows for key in group)], rows


@contextmanager
def appending(out: Path, stem: str) -> Iterator[Callable[[Sequence[Row]], None]]:
    """`append(rows)`, after which they are on the disk, in a file of this rank."""
    with open(out / f"{stem}{suffix()}.jsonl", "a") as file:

        def append(rows: Sequence[Row]) -> None:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
            file.flush()
            os.fsync(file.fileno())

        yield append


def merged(
    out: Path, stem: str, column: str, groups: Sequence[Group], *, combine: Combine = earlier
) -> list[Row]:
    """Return all ranks' rows of the groups, in order, and put all rows into one file.

    Args:
        out: the folder.
        stem: of the files.
        column: names the entry of a row that its key has beside the video's index.
        groups: what is asked for; rows of other calls come before theirs.
        combine: of two rows of one key.
    """
    distributed.patient_barrier()  # every rank has written
    found = _read(out, stem, column, combine)
    rows = [found[key] for group in groups for key in group]
    asked = {key for group in groups for key in group}
    distributed.patient_barrier()
    _rewrite(out, stem, [row for key, row in found.items() if key not in asked] + rows)
    return rows


def suffix() -> str:
    """Return what the files of a rank other than the first are called beyond their stem."""
    return f".rank{distributed.rank()}" if distributed.rank() else ""


def decoding_failures(rows: Sequence[Row]) -> list[str]:
    """Return why videos do not decode, a reason a video, though its texture may be lost as well."""
    reasons: dict[object, str] = {}
    for row in rows:
        if row.get("error") and MODEL_FAULT not in row["error"]:
            reasons.setdefault(row.get("index", row["uid"]), row["error"])
    return list(dict.fromkeys(reasons.values()))


def model_faults(rows: Sequence[Row]) -> list[str]:
    """Return a warning, or none, of videos on which the model gives no finite numbers."""
    lost = {
        row.get("index", row["uid"]): row["error"]
        for row in rows
        if MODEL_FAULT in (row.get("error") or "")
    }
    if not lost:
        return []
    n = len({row.get("index", row.get("uid")) for row in rows})
    return [
        f"{len(lost)} of {n} videos count as wrong, as the model gives NaN or infinity on them; "
        f"the first: {next(iter(lost.values()))}"
    ]


def fault(uid: str, reason: str) -> str:
    """Return the error of a row whose video decodes, and whose numbers are not finite."""
    return f"{uid}: {MODEL_FAULT}: {reason}"


def require_label(uid: str, label: int, classes: int) -> None:
    """Raise UserError for a label that the model has no logit for.

    Args:
        uid: of the video.
        label: its class.
        classes: how many logits there are.
    """
    if not 0 <= label < classes:
        raise UserError(
            f"label={label} of {uid}: the model has classes 0 to {classes - 1}; leave the video "
            "out, or take a model of these classes"
        )


def _read(out: Path, stem: str, column: str, combine: Combine) -> dict[Key, Row]:
    """Return the rows that any rank has written."""
    found: dict[Key, Row] = {}  # a kill between merging and clearing up leaves rows in two files
    for path in rank_files(out, stem):
        for row in read_rows(path):
            if "index" not in row or column not in row:
                continue
            key = (row["index"], row[column])
            found[key] = combine(found[key], row) if key in found else row
    return found


def _rewrite(out: Path, stem: str, rows: list[Row]) -> None:
    if distributed.rank() == 0:
        with replacing(out / f"{stem}.jsonl") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
        for other in rank_files(out, stem)[1:]:
            other.unlink()
    distributed.patient_barrier()
