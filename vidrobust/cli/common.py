"""Arguments that commands share, and one-line error messages."""

import argparse
import contextlib
import errno
import os
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vidrobust.utils import versions
from vidrobust.utils.atomic_files import NO_ROOM

# An old package would make one of the following imports fail with an error that does not name it.
if _old := versions.too_old():
    sys.exit(f"error: {'; '.join(_old)}")

import torch.distributed as dist
import yaml

from vidrobust import checkpoint, config
from vidrobust.data import EVAL_SAMPLERS, FORMATS, TRAIN_SAMPLERS, DecodeError, find_format
from vidrobust.data.isolation import start_nursery
from vidrobust.evaluation import SUITES
from vidrobust.evaluation.measured_model import OWN, card_options, own_options, stated_card
from vidrobust.evaluation.representation.protocols import PROTOCOLS
from vidrobust.methods import METHODS, RULES, require_branch, require_options
from vidrobust.models import BACKBONES
from vidrobust.models.build import card_adjustment
from vidrobust.models.sources import SOURCES, build_source, is_spec, require_spec
from vidrobust.training.early_end import Stopped
from vidrobust.training.optim import OPTIMIZERS, SCHEDULES
from vidrobust.training.run_folder import require_unused
from vidrobust.utils import distributed
from vidrobust.utils.errors import UserError, lookup
from vidrobust.utils.logging import (
    logged_steps,
    print_error_of_thread,
    report,
    stop_logging,
)
from vidrobust.utils.start_watch import end_watch_of_imports
from vidrobust.utils.stopping import (
    EXIT_STOPPED,
    ignore_stop_signals,
    raise_on_stop_signals,
    restore_stop_signals,
)
from vidrobust.utils.text import visible

# option -> dictionary of the names that it accepts
FAMILIES: dict[str, Mapping[str, Any]] = {
    "data.sampling": TRAIN_SAMPLERS,
    "eval.sampling": EVAL_SAMPLERS,
    "model.backbone": BACKBONES,
    "method.name": METHODS,
    "method.false_negatives.rule": {"none": None, **RULES},
    "optim.name": OPTIMIZERS,
    "optim.schedule": SCHEDULES,
    "eval.suite": SUITES,
    "protocol.name": PROTOCOLS,
}


def _names() -> dict[str, str]:
    """Return option -> names that it accepts, for --help."""
    names = {key: ", ".join(family) for key, family in FAMILIES.items()}
    by_method = [
        f"{name}: {', '.join(method.adversaries)}"
        for name, method in METHODS.items()
        if method.adversaries
    ]
    names["method.adversary.name"] = f"none; {'; '.join(by_method)}"
    names["model.backbone"] += "; " + ", ".join(f"{source}:NAME" for source in SOURCES)
    names["data.name"] = ", ".join([*FORMATS, "torchvision:NAME"])
    return names


def parser(description: str, commands: tuple[str, ...] = ()) -> argparse.ArgumentParser:
    """Return a parser whose help lists all options of the configuration.

    Its positional arguments are a command, if there are any, and overrides.

    Args:
        description: first part of the help.
        commands: names of the tool's commands; () for a tool without.
    """
    result = argparse.ArgumentParser(
        allow_abbrev=False,
        description=description,
        epilog=config.help_text(_names()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if commands:
        result.add_argument("command", choices=commands)
    result.add_argument(
        "overrides", nargs="*", metavar="key=value", help="options, also as KEY VALUE"
    )
    result.add_argument(
        "--dry-run", action="store_true", help="print the resolved configuration and stop"
    )
    return result


def parsed_command(
    tool_parser: argparse.ArgumentParser, commands: Sequence[str]
) -> argparse.Namespace:
    """Parse the arguments of a tool with commands.

    The help of an option that only some commands read begins with their names: "scan, pack: ...".

    Args:
        tool_parser: what `parser` returns, with the tool's options.
        commands: the commands.

    Raises:
        UserError: for an option that the command does not read.
    """
    args = tool_parser.parse_intermixed_args()
    given = {word.partition("=")[0] for word in sys.argv[1:]}
    for action in tool_parser._actions:
        readers = (action.help or "").partition(": ")[0].split(", ")
        if not set(readers) <= set(commands) or args.command in readers:
            continue
        for name in given.intersection(action.option_strings):
            others = ", ".join(readers)
            raise UserError(f"{args.command} does not read {name}, which is for {others}")
    return args


_CHECKPOINT_HELP = "a run's folder or a checkpoint file"
_WEIGHTS_HELP = "weights of --model, in any known layout"


def _model_help() -> str:
    """Return the help of --model."""
    sources = "; ".join(f"{name}: {source.help}" for name, source in SOURCES.items())
    return (
        "in place of --checkpoint, a run's folder or a model as SOURCE:NAME: vidrobust: a backbone"
        f" of this package, for a file of other code; {sources}"
    )


def add_checkpoint(tool_parser: argparse.ArgumentParser, *, model: bool = False) -> None:
    """Add the arguments of a tool that reads a checkpoint.

    Args:
        tool_parser: gets the arguments.
        model: the tool also takes a model of another package.
    """
    which = tool_parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--checkpoint", type=Path, help=_CHECKPOINT_HELP)
    if model:
        which.add_argument("--model", metavar="SPEC", help=_model_help())
        tool_parser.add_argument("--weights", default="", metavar="FILE", help=_WEIGHTS_HELP)
    _add_cfg(tool_parser)


def _add_cfg(tool_parser: argparse.ArgumentParser) -> None:
    """Add the argument of a config file over that of a checkpoint or an input card."""
    tool_parser.add_argument(
        "--cfg",
        help="config file whose options override those of the checkpoint's configuration, or of the"
        " model's input card",
    )


class _Collect(argparse.Action):
    """Append (option, value) to `models`, so that the order of several options is kept."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        collected = getattr(namespace, "models", None) or []
        namespace.models = [*collected, (self.dest, values)]


def add_models(tool_parser: argparse.ArgumentParser) -> None:
    """Add the arguments of a tool that reads one or several models; see `parsed_models`.

    Args:
        tool_parser: gets the arguments.
    """
    several = "; may be repeated"
    options = (
        ("--checkpoint", "PATH", _CHECKPOINT_HELP + several),
        ("--model", "SPEC", _model_help() + several),
        ("--weights", "FILE", f"{_WEIGHTS_HELP}; of several models, of the --model before it"),
    )
    for name, metavar, text in options:
        # no default: `models` alone says what was given
        tool_parser.add_argument(
            name, action=_Collect, metavar=metavar, help=text, default=argparse.SUPPRESS
        )
    _add_cfg(tool_parser)


def parsed_models(
    tool_parser: argparse.ArgumentParser,
) -> tuple[argparse.Namespace, list[argparse.Namespace]]:
    """Parse the arguments of a tool with `add_models`.

    Returns:
        (all arguments, for each model the arguments that `parsed` would give for it alone).

    Raises:
        UserError: for weights without a model, and for those of a run, which has its own.
    """
    args = tool_parser.parse_intermixed_args()
    collected = getattr(args, "models", None) or []
    models: list[argparse.Namespace] = []
    weights: list[tuple[int, str]] = []  # number of models before it, file
    for option, value in collected:
        if option == "weights":
            weights.append((len(models), value))
            continue
        each = argparse.Namespace(**vars(args))
        each.checkpoint = Path(value) if option == "checkpoint" else None
        each.model = value if option == "model" else None
        each.weights = ""
        models.append(each)
    if not models:
        tool_parser.error("one of the arguments --checkpoint --model is required")
    for place, value in weights:
        # of a single model they may come first
        number = 0 if len(models) == 1 else place - 1
        if number < 0 or models[number].weights:
            raise UserError(f"--weights {value}: give it after its --model")
        models[number].weights = value
    for each in models:
        if each.checkpoint and each.weights:
            raise UserError(
                f"--weights {each.weights}: the run {each.checkpoint} has its own weights"
            )
        _recognise_run(each)
    return args, models


def parsed(tool_parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the arguments of a tool with `add_checkpoint`; --model RUN is --checkpoint RUN.

    Raises:
        UserError: for --weights with a run, which has its own.
    """
    args = tool_parser.parse_intermixed_args()
    _recognise_run(args)
    return args


def _recognise_run(args: argparse.Namespace) -> None:
    """Take --model RUN as --checkpoint RUN, in place.

    Raises:
        UserError: for --weights with a run, which has its own.
    """
    if args.model and ":" not in args.model and Path(args.model).exists():
        if args.weights:
            raise UserError(f"--weights {args.weights}: the run {args.model} has its own weights")
        args.checkpoint = Path(args.model)
        args.model = None


def add_videos(tool_parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    """Add the argument of a tool that reads loose videos."""
    tool_parser.add_argument(
        "--videos",
        required=required,
        metavar="FOLDER_OR_GLOB",
        help="loose videos without lists or labels: a file, a folder (at any depth) or a pattern;"
        " folders of images are videos, or images clips of data.frames=1",
    )


def model_config(args: argparse.Namespace) -> tuple[config.Config, Path]:
    """Return the configuration for a model of another package, and the folder of its results.

    Options that neither --cfg nor the command line gives follow the model's input card, and what
    the file of weights says about it: number of frames, stride and size.

    Args:
        args: of `add_checkpoint`, with `model`.

    Raises:
        UserError: for an unknown model and for wrong options.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", f"{args.model}_{Path(args.weights).stem}").strip("_")
    out = Path("outputs") / name
    source = f"--model {args.model} and command line"
    keys = config.keys_given(args.overrides, args.cfg)
    if args.model.startswith(OWN):
        own = own_options(args.model, args.weights, keys)
        return config.loads(own, args.overrides, source, args.cfg), out
    # first the options alone, as some of them change the card, from which others follow
    given = config.loads("", args.overrides, source, args.cfg).model
    adjust = card_adjustment(given) or (lambda card: card)
    change = stated_card(args.weights)
    source_card = build_source(args.model, lambda card: adjust(change(card))).input
    card = card_options(source_card, keys, args.model)
    return config.loads(card, args.overrides, source, args.cfg), out


def load_checkpoint(args: argparse.Namespace) -> tuple[config.Config, dict[str, Any], Path]:
    """Read the checkpoint that the arguments of `add_checkpoint` name.

    Returns:
        (configuration with overrides, checkpoint, folder of the run).

    Raises:
        UserError: for an option of the model or its method that differs from training.
    """
    state = checkpoint.read_checkpoint(args.checkpoint)
    trained = checkpoint.configuration(state, str(args.checkpoint))
    text = state["config"]
    if other_data(args, trained):
        whole = yaml.safe_load(text)
        text = yaml.safe_dump(whole | {"data": without_lists(whole.get("data") or {})})
    cfg = config.loads(text, args.overrides, f"{args.checkpoint} and command line", args.cfg)
    # options of evaluation may differ, those of the model and its method may not
    changed = [
        line for line in config.differences(trained, cfg) if line.startswith(("method.", "model."))
    ]
    if changed:
        raise UserError(
            f"{changed[0]}: the checkpoint was trained with the value in parentheses; remove this"
            " option"
        )
    return cfg, state, run_folder(args.checkpoint)


# options of `data.*` that belong to the files and lists of one data set
_OF_DATA = ("manifest", "twins", "series", "fold", "validation", "labels", "labels_seed")


def other_data(args: argparse.Namespace, trained: config.Config) -> bool:
    """Return whether a command line names another data set than a run was trained on."""
    name = config.value_given("data.name", args.overrides, args.cfg)
    return name not in (None, trained.data.name)


def without_lists(data: dict[str, Any]) -> dict[str, Any]:
    """Return options of `data.*` without those that belong to one data set."""
    return {key: value for key, value in data.items() if key not in _OF_DATA}


def run_folder(path: Path) -> Path:
    """Return the folder of a run, from the path of the folder or of a checkpoint in it."""
    folder = path if path.is_dir() else path.parent
    return folder.parent if folder.name == "checkpoints" else folder


def check_names(cfg: config.Config) -> None:
    """Raise UserError for an unknown name in an option.

    Names that do not go together are refused too, such as an adversary of another method.
    """
    find_format(cfg.data.name)
    for key, family in FAMILIES.items():
        name = config.get(cfg, key)
        if key == "model.backbone" and is_spec(name):
            require_spec(name)
        else:
            lookup(family, name, key)
    require_options(cfg)


def print_config(args: argparse.Namespace, cfg: config.Config) -> bool:
    """Check all names, and print the resolved configuration if --dry-run asks for it.

    Returns:
        Whether --dry-run was given, so that the tool should stop.

    Raises:
        UserError: as `check_names` does.
    """
    check_names(cfg)
    # a model of other code may have norm branches that no option names; its file decides
    if not getattr(args, "model", None):
        require_branch(cfg)
    if args.dry_run:
        print(config.to_yaml(cfg), end="")
    return bool(args.dry_run)


def is_main() -> bool:
    """Return whether this process is the only one, or rank 0 of torchrun."""
    return os.environ.get("RANK", "0") == "0"


def find_resume(asked: str | None, out: Path) -> tuple[Path | None, bool]:
    """Find the checkpoint to resume from.

    Args:
        asked: value of --resume: a checkpoint or a run's folder; "" for --resume without a value,
            which means the newest undamaged checkpoint in `out`, or step 0 if the run was killed
            before it wrote one; None without --resume.
        out: output folder of the run.

    Returns:
        (checkpoint or None, whether the run continues in its own folder).

    Raises:
        UserError: if the checkpoint does not exist, or the run's checkpoints were deleted.
    """
    if asked is None:
        return None, False
    if asked == "":
        sound = checkpoint.newest_sound(out / "checkpoints")
        if sound is None:
            _require_unstarted(out)
            if is_main():
                print(
                    f"warning: --resume: no checkpoint in {visible(out)} yet, starting at step 0",
                    file=sys.stderr,
                )
            return None, True
        return sound[0], True
    if not Path(asked).exists():
        raise UserError(f"--resume: no checkpoint {asked}")
    return Path(asked), out.resolve() in (Path(asked).resolve(), *Path(asked).resolve().parents)


def _require_unstarted(out: Path) -> None:
    """Refuse to start at step 0 if the run has written checkpoints, which are missing now."""
    every = 1
    config_file = out / "config.yaml"
    if config_file.is_file():
        # a file of another version may not load: then one logged step is enough to refuse
        with contextlib.suppress(UserError):
            every = config.load(config_file).train.checkpoint_every
    steps = logged_steps(out)
    # at `every` steps the run was killed before the first checkpoint, or the disk was full
    if steps > every or (out / "backbone.pt").is_file():
        # a process that trains there logs its steps before it writes the first checkpoint
        if (out / "env.json").is_file():
            require_unused(out)
        raise UserError(
            f"--resume: {out} has no checkpoint, but a log of {steps} steps; restore its"
            " checkpoints, or start again with --overwrite"
        )


def run(main: Callable[[], None]) -> None:
    """Run a tool, and exit with its status.

    A mistake of the user is one line on stderr and status 1. A stop signal gives status
    EXIT_STOPPED. With several ranks, only one of them reports why the run ends.

    Args:
        main: the tool's main function.
    """
    status = 1
    try:
        try:
            raise_on_stop_signals()
            threading.excepthook = print_error_of_thread
            end_watch_of_imports()  # its thread, before this process forks
            status = _status_of(main)
        finally:
            ignore_stop_signals()  # the work has ended
    except SystemExit:  # the tool's own status, such as that of --fail-under
        status = 0
        raise
    except KeyboardInterrupt as stop:
        # a stop signal came while an error was handled, or just after the work
        status = _end_stopped(visible(stop))
    except Exception:
        if not distributed.is_one_of_several():
            raise
        sys.excepthook(*sys.exc_info())  # leaving the group may take all the time that is left
    finally:
        stop_logging()
        distributed.stop(status)
        restore_stop_signals()
    sys.exit(status)


def _status_of(main: Callable[[], None]) -> int:
    """Run a tool, report why it ends, and return the exit status.

    Args:
        main: the tool's main function.

    Raises:
        SystemExit: the tool's own.
        RuntimeError: if this is an error of the program.
    """
    try:
        if hasattr(os, "fork"):
            # early, while this process has no threads; it imports packages once for all children
            start_nursery()
        main()
        return 0
    except (UserError, DecodeError) as error:
        _report(str(error))
    except OSError as error:  # no permission, no space, no such path
        _report(_os_reason(error))
    except (Stopped, KeyboardInterrupt) as stop:
        return _end_stopped(visible(stop))
    except RuntimeError as error:
        is_lost = distributed.is_one_of_several() and _is_lost_connection(error)
        if not is_lost and not distributed.is_rank_lost():
            distributed.first_to_tell(repr(error))
            raise
        _end_after_loss()
    return 1


def _end_stopped(message: str) -> int:
    """Report that the run was stopped, and return the exit status.

    Args:
        message: what was written, or "".
    """
    # the launcher stops all ranks when one of them was killed
    if distributed.is_rank_lost():
        _end_after_loss()
        return 1
    distributed.main_ends()
    if distributed.first_to_tell("stopped"):
        _print(f"stopped: {message or distributed.HOW_TO_CONTINUE}")
    return EXIT_STOPPED


def _end_after_loss() -> None:
    """Report which rank was lost, unless another rank has."""
    distributed.main_ends()
    ignore_stop_signals()  # the launcher sends them too when a rank is lost
    distributed.report_lost_rank()


def _is_lost_connection(error: RuntimeError) -> bool:
    """Return whether a collective failed because another rank has ended."""
    signs = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "store")
    return isinstance(error, dist.DistError) or any(sign in str(error).lower() for sign in signs)


def _os_reason(error: OSError) -> str:
    """Return an operating-system error as one line with the file's name."""
    reason = error.strerror or str(error)
    if error.errno == errno.EFBIG:
        reason += "; raise `ulimit -f`, then run the same command again, train_net with --resume"
    elif error.errno in NO_ROOM:
        reason += "; make room, then run the same command again, train_net with --resume"
    return f"{error.filename}: {reason}" if error.filename else reason


def _report(message: str) -> None:
    """Report why the process ends, unless another rank has."""
    distributed.main_ends()
    if distributed.first_to_tell(message):
        report(message)


def _print(line: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be closed
        print(line, file=sys.stderr)
