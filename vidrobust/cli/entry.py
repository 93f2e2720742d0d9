"""Start a command: install signal handlers, then import what it needs, which is slow."""

import os
import signal
import sys
from collections.abc import Callable
from importlib import import_module

from vidrobust import __version__
from vidrobust.utils.errors import UserError
from vidrobust.utils.slurm_ranks import adopt_slurm_ranks
from vidrobust.utils.start_watch import begin_start_watch
from vidrobust.utils.stopping import end_with_parent, exit_on_stop_signals
from vidrobust.utils.text import visible

# command of `vidrobust COMMAND` -> its module in this folder, and its file in tools/
COMMANDS = {
    "train": "train_net",
    "evaluate": "test_net",
    "features": "extract_features",
    "predict": "predict",
    "study": "study",
    "submit": "submit",
    "compare": "compare",
    "leaderboard": "leaderboard",
    "status": "status",
    "transfer": "transfer",
    "prepare": "prepare",
    "benchmark": "benchmark",
    "visualize": "visualize",
}
# tools for developers of the package, which do not use its options
_DEVELOPER_TOOLS = ("soak", "mutate", "document")
# commands that start at once, as they need neither torch nor the data-loading processes
_WITHOUT_TORCH = ("status",)


def main() -> None:
    """Run `vidrobust COMMAND [ARGUMENTS]`, the console script."""
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in ("-h", "--help"):
        print("usage: vidrobust COMMAND [--help] ...\n\ncommands: " + ", ".join(COMMANDS))
    elif command == "--version":
        print(f"vidrobust {__version__}")
    elif command in COMMANDS:
        sys.argv = [f"vidrobust {command}", *sys.argv[2:]]
        run_tool(COMMANDS[command])
    else:
        sys.exit(f"error: vidrobust {command}: choose {', '.join(COMMANDS)}")


def run_tool(name: str) -> None:
    """Run a command's `main` with the arguments of the process, and exit with its status.

    Args:
        name: name of its module in this folder.
    """
    if name in _DEVELOPER_TOOLS:
        import_module(f"vidrobust.cli.{name}").main()
        return
    # Torch then takes large tensors from memory in pages of 2 MiB. The system clears and maps the
    # memory of a pass anew each time, which takes much longer in pages of 4 KiB.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    adopt_slurm_ranks()
    begin_start_watch()
    if "RANK" in os.environ:
        # or else torch warns, with a stack, of connections to ranks that have ended
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    exit_on_stop_signals()  # before the imports below, which take seconds
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent(signal.SIGTERM)  # no rank outlives a launcher that was killed
    tool = import_module(f"vidrobust.cli.{name}")
    if name in _WITHOUT_TORCH:
        _run_without_torch(tool.main)
        return
    import_module("vidrobust.cli.common").run(tool.main)


def _run_without_torch(main: Callable[[], None]) -> None:
    """Run a tool's `main`; a mistake of the user is one line on stderr and status 1."""
    try:
        main()
    except UserError as error:
        print(f"error: {visible(error)}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
