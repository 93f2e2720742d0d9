"""A folder of results belongs to one evaluation: of one checkpoint, with one set of options, on one list of videos."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vidrobust import config
from vidrobust.data import Record, records_sha
from vidrobust.data.mark import read_mark
from vidrobust.engine import checkpoint
from vidrobust.engine.log import log
from vidrobust.engine.run import EVALUATION_FILES, delete_files, require_deletable
from vidrobust.errors import UserError
from vidrobust.files import held, read_json, replacing

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
    cfg: config.Config, state: dict[str, Any], train: list[Record], test: list[Record], others: list[Record]
) -> dict[str, str]:
    """What two runs of an evaluation must share to be the same one. others: of another data set."""
    weights = checkpoint.state_sha(checkpoint.weights(state, average=cfg.eval.average))
    return {
        "checkpoint": f"step {state['step']}, {'average' if cfg.eval.average else 'weights'} {weights}",
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
    """Make the folder, or go on in one that holds the same evaluation; until the context ends it is this process's.

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
        key: str(config.get(cfg, key)) for key, _ in config.options() if key.startswith(used) and key not in _FREE
    }
    there = read_json(path, f"set eval.name=NAME, or delete {out}") if path.is_file() else {}
    if not there and out.is_dir() and any(not _is_leftover(file) for file in out.iterdir()):
        raise UserError(f"{out} holds other files and no evaluation; set eval.name or --output-dir")
    other = bool(there) and any(there.get(key) != value for key, value in identity.items())
    if other and not overwrite:
        raise UserError(f"{out} holds another evaluation, of other {_difference(there, identity, options)}; "
                        "set eval.name=NAME, or --overwrite")  # fmt: skip
    if other:
        require_deletable(out, cfg, "eval.name or --output-dir")
    out.mkdir(parents=True, exist_ok=True)
    with held(out / _LOCK, "another process evaluates in {}; wait for it or stop it, or set eval.name=NAME"):
        if other:
            log.warning(f"replacing the evaluation in {out}, which was of {there.get('checkpoint')}")
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
    return config.Config(seed=cfg.seed, data=cfg.data, model=cfg.model, method=cfg.method, eval=cfg.eval)


def _difference(held: dict[str, Any], identity: dict[str, str], options: dict[str, str]) -> str:
    before = held.get("options")
    before = before if isinstance(before, dict) else {}
    differ = ", ".join(key for key, value in options.items() if before.get(key, value) != value)
    names = {"shift_sha": "videos of eval.shift", "textures": "textures", "checkpoint": "checkpoint",
             "config_sha": f"options ({differ})" if differ else "options",
             "manifest_sha": "lists of videos"}  # fmt: skip
    return " and ".join(name for key, name in names.items() if held.get(key) != identity.get(key))
