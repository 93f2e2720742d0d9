"""What the tools share: arguments, and errors a user can cause told in one line."""

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vidrobust import config
from vidrobust.data import EVAL_SAMPLERS, TRAIN_SAMPLERS, DecodeError, find_format
from vidrobust.engine import checkpoint, distributed
from vidrobust.engine.log import log, stop_logging, to_console
from vidrobust.engine.loop import Stopped
from vidrobust.engine.optim import OPTIMIZERS, SCHEDULES
from vidrobust.errors import UserError, lookup
from vidrobust.evaluation import SUITES
from vidrobust.methods import METHODS, RULES, require_adversary, require_branch
from vidrobust.models import BACKBONES

# options whose values are names in a dictionary
FAMILIES: dict[str, Mapping[str, Any]] = {
    "data.sampling": TRAIN_SAMPLERS, "eval.sampling": EVAL_SAMPLERS,
    "model.backbone": BACKBONES, "method.name": METHODS, "method.false_negatives.rule": {"none": None, **RULES},
    "optim.name": OPTIMIZERS,
    "optim.schedule": SCHEDULES, "eval.suite": SUITES,
}  # fmt: skip


def parser(description: str, commands: tuple[str, ...] = ()) -> argparse.ArgumentParser:
    """A parser with the configuration's options in its help; its positional arguments are a command and overrides."""
    made = argparse.ArgumentParser(
        description=description, epilog=config.help_text(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if commands:
        made.add_argument("command", choices=commands)
    made.add_argument("overrides", nargs="*", metavar="key=value", help="options, also as KEY VALUE")
    made.add_argument("--dry-run", action="store_true", help="print the resolved configuration and stop")
    return made


def add_checkpoint(made: argparse.ArgumentParser) -> None:
    """The arguments of a tool that reads a checkpoint."""
    made.add_argument("--checkpoint", type=Path, required=True, help="a run's folder or a checkpoint file")
    made.add_argument("--cfg", help="YAML page that lies over the checkpoint's own configuration")


def load_checkpoint(args: argparse.Namespace) -> tuple[config.Config, dict[str, Any], Path]:
    """(configuration, checkpoint, the folder of the run) that the arguments name.

    Raises UserError for other options of the model and its method than it was trained with.
    """
    state = checkpoint.read_checkpoint(args.checkpoint)
    cfg = config.loads(state["config"], args.overrides, f"{args.checkpoint} and command line", args.cfg)
    own = config.loads(state["config"], source=str(args.checkpoint))
    changed = [line for line in config.differences(own, cfg) if line.startswith(("method.", "model."))]
    if changed:
        raise UserError(f"{changed[0]}: the checkpoint was trained with what is in brackets, and keeps it")
    folder = args.checkpoint if args.checkpoint.is_dir() else args.checkpoint.parent
    return cfg, state, folder.parent if folder.name == "checkpoints" else folder


def check_names(cfg: config.Config) -> None:
    """Raises UserError for a name that no family knows, and for an adversary that is not the method's."""
    find_format(cfg.data.name)
    for key, family in FAMILIES.items():
        lookup(family, config.get(cfg, key), key)
    require_adversary(cfg.method)
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

    asked: None without --resume; "" for a bare one: the newest checkpoint of `out`, or a fresh start when a run was
    killed before it wrote one.
    """
    if asked is None:
        return None, False
    if asked == "":
        path = out / "checkpoints" / "last.pt"
        if not path.is_file():
            print(f"--resume: no checkpoint in {out} yet, starting at step 0", file=sys.stderr)
            return None, True
        return path, True
    if not Path(asked).exists():
        raise UserError(f"--resume: no checkpoint {asked}")
    return Path(asked), out.resolve() in (Path(asked).resolve(), *Path(asked).resolve().parents)


def run(main: Callable[[], None]) -> None:
    """Call `main`; a user's mistake becomes one line on stderr and exit status 1, a stop 130."""
    status = 0
    try:
        main()
    except (UserError, DecodeError) as error:
        status = 1
        _tell(str(error))
    except OSError as error:  # no permission, no space, no such path
        status = 1
        _tell(f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error))
    except (Stopped, KeyboardInterrupt) as stop:
        status = 130
        kept = "what is written stays; the same command goes on, train_net with --resume"
        print(f"stopped: {str(stop) or kept}", file=sys.stderr)
    finally:
        stop_logging()
        distributed.stop()
    sys.exit(status)


def _tell(message: str) -> None:
    if to_console():
        log.error(message)
    else:
        print(f"error: {message}", file=sys.stderr)
