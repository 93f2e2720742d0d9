"""A folder of results belongs to one evaluation: of one checkpoint, with one set of options, on one list of videos."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vidrobust import config
from vidrobust.data import Record, records_sha
from vidrobust.data.mark import read_mark
from vidrobust.engine import checkpoint
from vidrobust.engine.log import log
from vidrobust.errors import UserError
from vidrobust.evaluation.rows import rank_files
from vidrobust.files import held, replacing

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

# what an evaluation leaves in its folder
_STREAMS = (
    "results",
    "timing",
    "corruptions",
    "bias",
    "shift",
)  # one file per rank, and what they are of
_FILES = ("identity.json", "features.pt", "features/*", "predictions.jsonl", "checks.json",
          *(f"{stem}.identity.json" for stem in _STREAMS), "summary.json", "report.md", "curve.png",
          "corruptions.png", "corruption_curves.png", "clips/*.npz", "clips/*.png")  # fmt: skip

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
def claim(out: Path, identity: dict[str, str], cfg: config.Config, *, overwrite: bool) -> Iterator[None]:
    """Make the folder, or go on in one that holds the same evaluation; until the context ends it is this process's.

    Raises UserError where it holds another, with the options that differ (overwrite: that one's files are deleted),
    where it holds no evaluation, and where another process evaluates.
    """
    path = out / "identity.json"
    used = ("seed", "data.", "model.", "method.", "eval.")
    options = {
        key: str(config.get(cfg, key)) for key, _ in config.options() if key.startswith(used) and key not in _FREE
    }
    there = json.loads(path.read_text()) if path.is_file() else {}
    if not there and out.is_dir() and any(file.name != _LOCK for file in out.iterdir()):
        raise UserError(f"{out} holds other files and no evaluation; set eval.name or --output-dir")
    other = bool(there) and any(there.get(key) != value for key, value in identity.items())
    if other and not overwrite:
        raise UserError(f"{out} holds another evaluation, of other {_difference(there, identity, options)}; "
                        "set eval.name=NAME, or --overwrite")  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    with held(out / _LOCK, "another process evaluates in {}; wait for it or stop it, or set eval.name=NAME"):
        if other:
            log.warning(f"replacing the evaluation in {out}, which was of {there.get('checkpoint')}")
            streams = [path for stem in _STREAMS for path in rank_files(out, stem)]
            for old in [*streams, *(path for pattern in _FILES for path in out.glob(pattern))]:
                old.unlink()
        with replacing(path) as file:
            file.write(json.dumps(identity | {"options": options}).encode())
        yield


def _asked(cfg: config.Config) -> config.Config:
    """The configuration without what only training needs."""
    return config.Config(seed=cfg.seed, data=cfg.data, model=cfg.model, method=cfg.method, eval=cfg.eval)


def _difference(held: dict[str, Any], identity: dict[str, str], options: dict[str, str]) -> str:
    before = held.get("options", {})
    differ = ", ".join(key for key, value in options.items() if before.get(key, value) != value)
    names = {"shift_sha": "videos of eval.shift", "textures": "textures", "checkpoint": "checkpoint",
             "config_sha": f"options ({differ})" if differ else "options",
             "manifest_sha": "lists of videos"}  # fmt: skip
    return " and ".join(name for key, name in names.items() if held.get(key) != identity.get(key))
