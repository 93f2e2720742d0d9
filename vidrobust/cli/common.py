"""Arguments that commands share, and one-line errors."""

import argparse
import contextlib
import errno
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vidrobust.utils import versions

if _old := versions.too_old():  # before what follows fails in a way that explains nothing
    sys.exit(f"error: {'; '.join(_old)}")

import torch.distributed as dist

from vidrobust import checkpoint, config
from vidrobust.data import EVAL_SAMPLERS, FORMATS, TRAIN_SAMPLERS, DecodeError, find_format
from vidrobust.data.isolation import start_nursery
from vidrobust.evaluation import SUITES
from vidrobust.methods import METHODS, RULES, require_branch, require_options
from vidrobust.models import BACKBONES
from vidrobust.training.early_end import Stopped
from vidrobust.training.optim import OPTIMIZERS, SCHEDULES
from vidrobust.utils import distributed
from vidrobust.utils.errors import UserError, lookup
from vidrobust.utils.logging import log, logged_steps, stop_logging, to_console
from vidrobust.utils.stopping import (
    EXIT_STOPPED,
    ignore_stop_signals,
    raise_on_stop_signals,
    restore_stop_signals,
)
from vidrobust.utils.text import visible

# options whose values are names in a dictionary
FAMILIES: dict[str, Mapping[str, Any]] = {
    "data.sampling": TRAIN_SAMPLERS,
    "eval.sampling": EVAL_SAMPLERS,
    "model.backbone": BACKBONES,
    "method.name": METHODS,
    "method.false_negatives.rule": {"none": None, **RULES},
    "optim.name": OPTIMIZERS,
    "optim.schedule": SCHEDULES,
    "eval.suite": SUITES,
}


def _names() -> dict[str, str]:
    """Return option -> its names, for --help."""
    names = {key: ", ".join(family) for key, family in FAMILIES.items()}
    names["data.name"] = ", ".join([*FORMATS, "torchvision:NAME"])
    takes = [f"{name}: {', '.join(m.adversaries)}" for name, m in METHODS.items() if m.adversaries]
    names["method.adversary.name"] = f"none; {'; '.join(takes)}"
    return names


def parser(description: str, commands: tuple[str, ...] = ()) -> argparse.ArgumentParser:
    """A parser with the configuration's options in its help; its positional arguments are a command
    and overrides.
    """
    made = argparse.ArgumentParser(
        description=description,
        epilog=config.help_text(_names()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if commands:
        made.add_argument("command", choices=commands)
    made.add_argument(
        "overrides", nargs="*", metavar="key=value", help="options, also as KEY VALUE"
    )
    made.add_argument(
        "--dry-run", action="store_true", help="print the resolved configuration and stop"
    )
    return made


def add_checkpoint(made: argparse.ArgumentParser) -> None:
    """The arguments of a tool that reads a checkpoint."""
    made.add_argument(
        "--checkpoint", type=Path, required=True, help="a run's folder or a checkpoint file"
    )
    made.add_argument("--cfg", help="YAML page that lies over the checkpoint's own configuration")


def load_checkpoint(args: argparse.Namespace) -> tuple[config.Config, dict[str, Any], Path]:
    """(configuration, checkpoint, the folder of the run) that the arguments name.

    Raises UserError for other options of the model and its method than it was trained with.
    """
    state = checkpoint.read_checkpoint(args.checkpoint)
    own = checkpoint.configuration(state, str(args.checkpoint))
    cfg = config.loads(
        state["config"], args.overrides, f"{args.checkpoint} and command line", args.cfg
    )
    changed = [
        line for line in config.differences(own, cfg) if line.startswith(("method.", "model."))
    ]
    if changed:
        raise UserError(
            f"{changed[0]}: the checkpoint was trained with what is in brackets, and keeps it"
        )
    folder = args.checkpoint if args.checkpoint.is_dir() else args.checkpoint.parent
    return cfg, state, folder.parent if folder.name == "checkpoints" else folder


def check_names(cfg: config.Config) -> None:
    """Raises UserError for a name that no family knows, and for an adversary that is not the
    method's.
    """
    find_format(cfg.data.name)
    for key, family in FAMILIES.items():
        lookup(family, config.get(cfg, key), key)
    require_options(cfg)
    require_branch(cfg)


def print_config(args: argparse.Namespace, cfg: config.Config) -> bool:
    """Whether --dry-run asked for the resolved configuration, which is then printed.

    Raises UserError as `check_names` does.
    """
    check_names(cfg)
    if args.dry_run:
        print(config.to_yaml(cfg), end="")
    return bool(args.dry_run)


def is_main() -> bool:
    """Whether this process is the only one, or rank 0 of torchrun's."""
    return os.environ.get("RANK", "0") == "0"


def find_resume(asked: str | None, out: Path) -> tuple[Path | None, bool]:
    """(the checkpoint that --resume names, whether the run goes on in its own folder).

    asked: None without --resume; "" for a bare one: the newest sound checkpoint of `out`, or a
    fresh start when a run was killed before it wrote one. Raises UserError where checkpoints were
    written and none of them is left.
    """
    if asked is None:
        return None, False
    if asked == "":
        sound = checkpoint.newest_sound(out / "checkpoints")
        if sound is None:
            _require_unstarted(out)
            if is_main():
                print(
                    f"--resume: no checkpoint in {visible(out)} yet, starting at step 0",
                    file=sys.stderr,
                )
            return None, True
        return sound[0], True
    if not Path(asked).exists():
        raise UserError(f"--resume: no checkpoint {asked}")
    return Path(asked), out.resolve() in (Path(asked).resolve(), *Path(asked).resolve().parents)


def _require_unstarted(out: Path) -> None:
    """Refuse a fresh start where a run has written checkpoints, which are gone."""
    every = 1
    page = out / "config.yaml"
    if page.is_file():
        with contextlib.suppress(UserError):  # of another version: one row is enough
            every = config.load(page).train.checkpoint_every
    steps = logged_steps(out)
    if steps >= every or (out / "backbone.pt").is_file():
        raise UserError(
            f"--resume: {out} has no checkpoint, though {steps} steps are logged in it; bring its "
            "checkpoints back, or start anew with --overwrite"
        )


def run(main: Callable[[], None]) -> None:
    """Call `main`: a user's mistake is one line on stderr and status 1, a stop EXIT_STOPPED.

    Of several ranks, one reports why the run ends.
    """
    status = 0
    raise_on_stop_signals()
    try:
        if hasattr(os, "fork"):
            start_nursery()  # while this process is clean, so that nothing is imported twice
        main()
    except (UserError, DecodeError) as error:
        status = 1
        _tell(str(error))
    except OSError as error:  # no permission, no space, no such path
        status = 1
        _tell(_os_reason(error))
    except (Stopped, KeyboardInterrupt) as stop:
        if distributed.killed_ranks():
            status = 1  # the launcher stops the others
            _tell_lost()
        else:
            status = EXIT_STOPPED
            kept = "what is written stays; the same command goes on, train_net with --resume"
            if distributed.first_to_tell("stopped"):
                _print(f"stopped: {visible(stop) or kept}")
    except RuntimeError as error:
        if distributed.world() == 1 or not _is_lost_connection(error):
            distributed.first_to_tell(repr(error))
            raise
        status = 1
        _tell_lost()
    finally:
        stop_logging()
        distributed.stop()
        restore_stop_signals()
    sys.exit(status)


def _tell_lost() -> None:
    """Report which rank was lost, unless another has."""
    ignore_stop_signals()  # of a launcher that has seen the same
    reason = distributed.lost_rank()
    if reason:
        _tell(f"{reason}; what is written stays; the same command goes on, train_net with --resume")


def _is_lost_connection(error: RuntimeError) -> bool:
    """Return whether a collective failed because another rank has ended."""
    signs = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "store")
    return isinstance(error, dist.DistError) or any(sign in str(error).lower() for sign in signs)


def _os_reason(error: OSError) -> str:
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason += "; free some, then the same command goes on, train_net with --resume"
    return f"{error.filename}: {reason}" if error.filename else reason


def _tell(message: str) -> None:
    """Report why the process ends, unless another rank has."""
    if not distributed.first_to_tell(message):
        return
    if to_console():
        log.error(message)
    else:
        _print(f"error: {visible(message)}")


def _print(line: str) -> None:
    with contextlib.suppress(OSError):  # a terminal that is gone
        print(line, file=sys.stderr)
