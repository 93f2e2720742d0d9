"""Results on disk: claim a folder, append rows, resume, merge ranks.

A folder belongs to one evaluation: of one checkpoint, with one set of options, on one list of
videos. A row is the result of a video (`index`) under one condition, such as a threat or a
corruption; `column` is the key of the condition. A group is the list of (index, condition) pairs
that are measured together. Every rank appends rows as they are computed, so that an evaluation
continues where it was killed. Existing rows are kept: a call with other videos or conditions adds
its own.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vidrobust import config
from vidrobust.data import Record, records_sha
from vidrobust.data.prepare.provenance import read_mark
from vidrobust.utils import distributed
from vidrobust.utils.atomic_files import held, read_json, read_rows, replacing, sign
from vidrobust.utils.environment import ENVIRONMENT_FILE, environment
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log
from vidrobust.utils.own_files import EVALUATION_FILES, delete_files, require_deletable

_SKIPPED = "checks left out clips"  # beginning of a line of checks.json that is no doubt
# options that may differ between two runs of the same evaluation
_FREE = (
    "data.workers",
    "data.timeout_s",
    "data.root",
    "data.archive",
    "data.in_memory",
    "data.twins",
    "data.manifest",
    "eval.name",
    "eval.enabled",
    "eval.embeddings",
    "eval.corruption.baseline",
    "eval.shift.root",
    "protocol.splits",
    "eval.open_set.root",
    # what no measurement depends on
    *(f"eval.card.{key}" for key in vars(config.CardConfig())),
)

IDENTITY = "identity.json"
_LOCK = ".lock"  # held by the process that evaluates


def identify(
    cfg: config.Config,
    name: str,
    train: list[Record],
    test: list[Record],
    others: list[Record],
    unknown: Sequence[Record] = (),
    transfer: str = "",
) -> dict[str, str]:
    """Return the entries that two runs must have in common to be the same evaluation.

    They are fields of `Summary`.

    Args:
        cfg: the configuration.
        name: of the weights, such as `checkpoint_name` returns.
        train: training videos.
        test: test videos.
        others: videos of eval.shift.
        unknown: videos of eval.open_set.
        transfer: hash of the clips of eval.transfer.
    """
    return {
        "checkpoint": name,
        "config_sha": config.config_sha(_evaluation_options(cfg), ignore=_FREE),
        "manifest_sha": records_sha(train + test),
        **({"shift_sha": records_sha(others)} if others else {}),
        **({"open_set_sha": records_sha(list(unknown))} if unknown else {}),
        **({"transfer_sha": transfer} if transfer else {}),
        **({"textures": _textures(cfg.data.twins)} if "texture" in cfg.eval.bias else {}),
    }


def _textures(folder: str) -> str:
    """Return how texture twins were made, as `datasets/prepare.py texture` recorded it."""
    return json.dumps(read_mark(folder) or {})


@contextmanager
def claim(
    out: Path,
    identity: dict[str, str],
    cfg: config.Config,
    *,
    overwrite: bool,
    classes: Sequence[str] = (),
    planned: Mapping[str, int] | None = None,
) -> Iterator[None]:
    """Make the folder, or continue in one that holds the same evaluation.

    Until the context ends, other processes are refused the folder.

    Args:
        out: the folder.
        identity: what `identify` returns for this evaluation.
        cfg: its configuration.
        overwrite: delete the files of another evaluation in the folder.
        classes: names of the classes, for a report that is written again without the data set.
        planned: stem of a file of rows -> the rows that it will have, so that `vidrobust status`
            shows how far the evaluation is.

    Raises:
        UserError: for a folder with another evaluation (with the options that differ) or with other
            files, and while another process evaluates in it.
    """
    path = out / IDENTITY
    options = _options_of(cfg)
    earlier_identity = (
        read_json(path, f"set eval.name=NAME, or delete {out}") if path.is_file() else {}
    )
    if (
        not earlier_identity
        and out.is_dir()
        and any(not _is_leftover(file) for file in out.iterdir())
    ):
        raise UserError(f"{out} holds other files and no evaluation; set eval.name or --output-dir")
    other = bool(earlier_identity) and any(
        earlier_identity.get(key) != value for key, value in identity.items()
    )
    if other and not overwrite:
        difference = _difference(earlier_identity, identity, options)
        raise UserError(
            f"{out} holds another evaluation, of other {difference}; "
            "set eval.name=NAME, or --overwrite (in Python another output, or overwrite=True)"
        )
    if other:
        require_deletable(out, config.paths_read(cfg), "eval.name or --output-dir")
    out.mkdir(parents=True, exist_ok=True)
    with held(
        out / _LOCK,
        "another process evaluates in {}; wait for it or stop it, or set eval.name=NAME",
    ) as lock:
        sign(lock)
        if other:
            replaced = earlier_identity.get("checkpoint")
            log.warning(f"replacing the evaluation in {out}, which was of {replaced}")
            delete_files(out, EVALUATION_FILES)
        with replacing(path) as file:
            others = {"options": options, "classes": list(classes), "planned": dict(planned or {})}
            file.write(json.dumps(identity | others).encode())
        # of the first call, which a repeated one continues
        if not (out / ENVIRONMENT_FILE).is_file():
            with replacing(out / ENVIRONMENT_FILE) as file:
                file.write((json.dumps(environment(), indent=2) + "\n").encode())
        yield


def options_that_differ(out: Path, cfg: config.Config) -> list[str]:
    """Return the names of the options in which the evaluation of a folder differs from another.

    Args:
        out: folder of an evaluation; without its identity.json nothing differs.
        cfg: configuration of the other evaluation.

    Raises:
        UserError: for a damaged file.
    """
    path = out / IDENTITY
    if not path.is_file():
        return []
    return differing(read_json(path, f"delete {out}"), _options_of(cfg))


def _options_of(cfg: config.Config) -> dict[str, str]:
    """Return option -> value of the options that an evaluation uses."""
    used: tuple[str, ...] = ("seed", "data.", "model.", "method.", "eval.", "protocol.")
    used += ("augment.",) if cfg.protocol.augmented else ()
    return {
        key: str(config.get(cfg, key))
        for key, _ in config.options()
        if key.startswith(used) and key not in _FREE
    }


def differing(earlier: dict[str, Any], options: dict[str, str]) -> list[str]:
    """Return the names of options whose values differ from those of an earlier evaluation.

    An option that the earlier one does not name, such as one that was added since, counts as equal.

    Args:
        earlier: content of the identity.json of the earlier evaluation.
        options: option -> value, of the other one.
    """
    before = earlier.get("options")
    before = before if isinstance(before, dict) else {}
    return [key for key, value in options.items() if before.get(key, value) != value]


def _is_leftover(file: Path) -> bool:
    """Return whether a file was left by a process that was killed at its start."""
    return file.name == _LOCK or file.name == ".identity.json.partial"


def classes_of(out: Path) -> list[str]:
    """Return the names of the classes of the evaluation in a folder.

    Raises:
        UserError: if the folder does not hold them.
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


def _evaluation_options(cfg: config.Config) -> config.Config:
    """Return the configuration with only the options that an evaluation uses."""
    return config.Config(
        seed=cfg.seed,
        data=cfg.data,
        model=cfg.model,
        method=cfg.method,
        eval=cfg.eval,
        protocol=cfg.protocol,
        # what a probe that learns from augmented clips depends on
        augment=cfg.augment if cfg.protocol.augmented else config.AugmentConfig(),
    )


def _difference(earlier: dict[str, Any], identity: dict[str, str], options: dict[str, str]) -> str:
    """Return what differs from the evaluation in the folder, in words.

    Args:
        earlier: content of the identity.json in the folder.
        identity: what `identify` returns for this evaluation.
        options: option -> value, of this evaluation.
    """
    differ = ", ".join(differing(earlier, options))
    names = {
        "shift_sha": "videos of eval.shift",
        "open_set_sha": "videos of eval.open_set",
        "transfer_sha": "clips of eval.transfer",
        "textures": "textures",
        "checkpoint": "checkpoint",
        "config_sha": f"options ({differ})" if differ else "options",
        "manifest_sha": "lists of videos",
    }
    return " and ".join(
        name for key, name in names.items() if earlier.get(key) != identity.get(key)
    )


Row = dict[str, Any]
Key = tuple[int, str]
Group = Sequence[Key]
Combine = Callable[[Row, Row], Row]

# in the error of a row: the video decodes, but the model's outputs or gradient are NaN or infinite
MODEL_FAULT = "no finite numbers from the model"


def rank_files(out: Path, stem: str) -> list[Path]:
    """Return <stem>.jsonl and <stem>.rank<N>.jsonl, those that exist, in the order of ranks."""
    rank = re.compile(re.escape(stem) + r"(?:\.rank(\d+))?\.jsonl")
    numbered = []
    for path in out.glob("*.jsonl"):
        if name := rank.fullmatch(path.name):
            numbered.append((int(name[1] or 0), path))
    return [path for _, path in sorted(numbered)]


def earlier(old: Row, new: Row) -> Row:
    """Return the row that was written first, the usual `combine`."""
    return old


def unfinished(
    out: Path, stem: str, column: str, groups: Sequence[Group], *, combine: Combine = earlier
) -> tuple[list[int], dict[Key, Row]]:
    """Return (numbers of the groups with missing rows, existing rows by key).

    Rows of all ranks are moved into out/<stem>.jsonl; a line that was cut by a kill is dropped.

    Args:
        out: the folder.
        stem: stem of the names of files.
        column: key of the condition in a row.
        groups: (index, condition) pairs of the call.
        combine: makes one row of two with the same key.
    """
    rows = _read(out, stem, column, combine)
    distributed.patient_barrier()  # rank 0 rewrites only what every rank has read
    _rewrite(out, stem, list(rows.values()))
    return [n for n, group in enumerate(groups) if any(key not in rows for key in group)], rows


@contextmanager
def appending(out: Path, stem: str) -> Iterator[Callable[[Sequence[Row]], None]]:
    """Open the file of this rank, and give a function that appends rows and syncs the disk."""
    with open(out / f"{stem}{suffix()}.jsonl", "a") as file:

        def append(rows: Sequence[Row]) -> None:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
            file.flush()
            os.fsync(file.fileno())

        yield append


def merged(
    out: Path, stem: str, column: str, groups: Sequence[Group], *, combine: Combine = earlier
) -> list[Row]:
    """Return the rows of the groups, in order, and move the rows of all ranks into one file.

    Args:
        out: the folder.
        stem: stem of the names of files.
        column: key of the condition in a row.
        groups: (index, condition) pairs of the call; in the file, rows of other calls come first.
        combine: makes one row of two with the same key.
    """
    distributed.patient_barrier()  # every rank has written
    by_key = _read(out, stem, column, combine)
    keys = [key for group in groups for key in group]
    rows = [by_key[key] for key in keys]
    of_this_call = set(keys)
    distributed.patient_barrier()  # every rank has read
    _rewrite(out, stem, [row for key, row in by_key.items() if key not in of_this_call] + rows)
    return rows


def suffix() -> str:
    """Return the suffix of this rank's files: "" on rank 0, .rank1 on rank 1."""
    return f".rank{distributed.rank()}" if distributed.rank() else ""


def read_checks(out: Path) -> list[str] | None:
    """Return the lines of checks.json of a folder, or None where it is missing or damaged."""
    try:
        lines = json.loads((out / "checks.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if isinstance(lines, list) and all(isinstance(line, str) for line in lines):
        return lines
    return None


def read_doubts(out: Path) -> list[str] | None:
    """Return the lines of `read_checks` that are reasons to doubt a model or an attack, or None."""
    lines = read_checks(out)
    return None if lines is None else [line for line in lines if not line.startswith(_SKIPPED)]


def decoding_failures(rows: Sequence[Row]) -> list[str]:
    """Return why videos do not decode, one reason per video."""
    reasons: dict[object, str] = {}
    for row in rows:
        if row.get("error") and MODEL_FAULT not in row["error"]:
            reasons.setdefault(row.get("index", row["uid"]), row["error"])
    return list(dict.fromkeys(reasons.values()))


def model_faults(rows: Sequence[Row]) -> list[str]:
    """Return a warning, or none, about videos on which the model gives NaN or infinity."""
    lost = {
        row.get("index", row["uid"]): row["error"]
        for row in rows
        if MODEL_FAULT in (row.get("error") or "")
    }
    if not lost:
        return []
    n = len({row.get("index", row.get("uid")) for row in rows})
    return [
        f"{len(lost)} of {n} videos count as wrong, because the model gives NaN or infinity; "
        f"the first: {next(iter(lost.values()))}"
    ]


def fault(uid: str, reason: str) -> str:
    """Return the error of a row whose video decodes but whose outputs are not finite."""
    return f"{uid}: {MODEL_FAULT}: {reason}"


def require_label(uid: str, label: int, classes: int) -> None:
    """Raise UserError for a label that the model has no logit for.

    Args:
        uid: name of the video.
        label: its class.
        classes: number of logits.
    """
    if not 0 <= label < classes:
        raise UserError(
            f"label={label} of {uid}: the model has classes 0 to {classes - 1}; leave the video "
            "out, or use a model with these classes"
        )


def _read(out: Path, stem: str, column: str, combine: Combine) -> dict[Key, Row]:
    """Return the rows that any rank has written, by key; arguments as in `merged`."""
    rows: dict[Key, Row] = {}  # a kill between merging and clearing up leaves rows in two files
    for path in rank_files(out, stem):
        for row in read_rows(path):
            if "index" not in row or column not in row:
                continue
            key = (row["index"], row[column])
            rows[key] = combine(rows[key], row) if key in rows else row
    return rows


def _rewrite(out: Path, stem: str, rows: list[Row]) -> None:
    """Write all rows into one file, and delete the files of other ranks."""
    if distributed.rank() == 0:
        with replacing(out / f"{stem}.jsonl") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
        for other in rank_files(out, stem)[1:]:
            other.unlink()
    distributed.patient_barrier()
