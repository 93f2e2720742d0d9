"""The folder of a run: checks, config.yaml, env.json, --overwrite."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vidrobust import config
from vidrobust.config.yaml_text import read_page
from vidrobust.utils import distributed
from vidrobust.utils.atomic_files import held, is_held, replacing, this_process
from vidrobust.utils.environment import environment
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log
from vidrobust.utils.own_files import EVALUATION_FILES, delete_files, require_deletable

_TRAINS = "another process trains in {}; wait for it or stop it, or set --output-dir"
_SECTIONS = {"data", "augment", "model", "method", "optim", "train", "eval"}

# files of a run, relative to its folder; evaluations add theirs (own_files.py)
_FILES = (
    "config.yaml",
    "log.txt",
    "metrics.jsonl",
    "backbone.pt",
    "tensorboard/events.out.tfevents.*",
    f"checkpoints/step_{'[0-9]' * 8}.pt",
    "checkpoints/last.pt",
    "features/train.npz",
    "features/test.npz",
    ".*.partial",
    "checkpoints/.*.partial",
    "features/.*.partial",
    "features/t*.npz.partial/t*.rows.jsonl",
    "features/t*.npz.partial/t*.f32",
    "features/t*.npz.partial/.lock",
    # of jobs that have trained it
    "jobs/*_log.out",
    "jobs/*_log.err",
    "jobs/*_submission.sh",
    "jobs/*_submitted.pkl",
    "jobs/*_result.pkl",
)


def check_output(
    out: Path, *, resume: bool, overwrite: bool, cfg: config.Config | None = None
) -> None:
    """Refuse, before any work is done, an output folder that holds something. Changes nothing.

    Args:
        out: the folder.
        resume: the run continues in its own folder.
        overwrite: the files of the earlier run will be deleted.
        cfg: the configuration of the run that is to be written there, which may read files of the
            folder.

    Raises:
        UserError: for a file, a folder in use, and what `overwrite` must not delete.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"output directory {out} is a file; set --output-dir")
    if any("\ud800" <= character <= "\udfff" for character in str(out)):
        raise UserError(
            f"output directory {out} is not text in UTF-8, which TensorBoard needs; set "
            "--output-dir"
        )
    if resume or not out.is_dir() or not any(out.iterdir()):
        return
    if not overwrite:
        if not any((out / name).exists() for name in ("env.json", "checkpoints", "jobs")):
            raise UserError(f"output directory {out} holds other files; set --output-dir")
        holds = "is in use"
        remedy = "--resume continues it"
        if _is_finished(out):
            holds = "holds a finished run"
            remedy = "tools/test_net.py measures it, --resume with a larger train.epochs continues"
        raise UserError(
            f"output directory {out} {holds}; {remedy}, --overwrite deletes it, --output-dir DIR "
            "writes elsewhere"
        )
    require_own(out, cfg or config.Config())


def require_unused(out: Path) -> None:
    """Raise UserError for a folder where another process trains."""
    if is_held(out / "env.json"):
        raise UserError(_TRAINS.format(out))


def is_of_this_launch(out: Path) -> bool:
    """Return whether an earlier try of this launch, which torchrun restarted, began a folder.

    Args:
        out: the folder.
    """
    launch = distributed.launch()
    if not launch:
        return False
    with suppress(OSError, ValueError, RecursionError, AttributeError):
        return bool(json.loads((out / "env.json").read_text()).get("launch") == launch)
    return False


def _is_finished(out: Path) -> bool:
    """Return whether a run has reached its last step: it then leaves its backbone."""
    return (out / "backbone.pt").is_file() and (out / "config.yaml").is_file()


def require_own(out: Path, cfg: config.Config) -> None:
    """Raise UserError for a folder without a run, or with files that must not be deleted."""
    described = out / "env.json"
    if not described.is_file() or not _describes_a_run(described):
        raise UserError(f"{out} is not the folder of a run (no env.json of one in it): not deleted")
    if (out / "config.yaml").exists() and not _keys(out / "config.yaml") >= _SECTIONS:
        raise UserError(f"{out} is not the folder of a run (config.yaml is not one's): not deleted")
    require_deletable(out, config.paths_read(cfg), "--output-dir")
    for lock in [*out.glob("eval/*/.lock"), *out.glob("features/*.partial/.lock")]:
        if not lock.is_symlink() and is_held(lock):
            raise UserError(
                f"another process writes into {lock.parent}; wait for it or stop it, or set "
                "--output-dir"
            )
    for name in ("config.yaml", "checkpoints", "tensorboard", "eval", "features"):
        if (out / name).is_symlink():
            raise UserError(
                f"{out / name} is a link, whose target --overwrite does not delete; remove it "
                "yourself"
            )


def _describes_a_run(path: Path) -> bool:
    """Return whether an env.json is one of ours; one that a kill has cut short is empty."""
    try:
        text = path.read_text()
        return not text or "vidrobust" in json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return False


def _keys(path: Path) -> set[str]:
    """Return the first level of a YAML file, nothing for any other."""
    try:
        return set(read_page(path, str(path)))
    except UserError:
        return set()


def _delete_run(out: Path) -> None:
    """Delete what a run and its evaluations have written, except env.json; warn of the rest."""
    delete_files(out, _FILES)
    for folder in out.glob("eval/*"):
        claimed = (folder / "identity.json").is_file() or (folder / ".lock").is_file()
        if claimed and not folder.is_symlink():
            own = ("identity.json", ".lock")
            delete_files(folder, [name for name in EVALUATION_FILES if name not in own])
            # Next to files of somebody else, these two stay: without them the next evaluation would
            # refuse the folder.
            if {path.name for path in folder.iterdir()} <= set(own):
                delete_files(folder, own)
            with suppress(OSError):
                folder.rmdir()
    with suppress(OSError):
        (out / "eval").rmdir()
    left = sorted(
        path.relative_to(out)
        for path in out.rglob("*")
        if not path.is_dir() and path.name not in ("env.json", "identity.json", ".lock")
    )
    if left:
        log.warning(
            f"--overwrite: {len(left)} files in {out} are not those of a run and stay, first "
            f"{left[0]}"
        )


@contextmanager
def open_output(out: Path, cfg: config.Config, *, overwrite: bool) -> Iterator[None]:
    """Make the folder of a run that is about to start, with its config.yaml and env.json.

    Until the context ends, other processes are refused the folder.

    Args:
        out: the folder.
        cfg: the configuration.
        overwrite: delete the files of an earlier run, and nothing else.

    Raises:
        UserError: for a folder where another process trains or evaluates, and as `require_own`.
    """
    described = out / "env.json"
    replaces = overwrite and out.is_dir() and any(out.iterdir())
    if replaces:
        require_own(out, cfg)
    out.mkdir(parents=True, exist_ok=True)
    with held(described, _TRAINS) as file:
        if replaces:
            _delete_run(out)
        # env.json is also the lock of the folder, so that it is emptied and not replaced
        file.truncate(0)
        entries = environment() | this_process() | {"launch": distributed.launch()}
        print(json.dumps(entries, indent=2), file=file, flush=True)
        with replacing(out / "config.yaml") as config_file:
            config_file.write(config.to_yaml(cfg).encode("utf-8", "surrogateescape"))
        yield
