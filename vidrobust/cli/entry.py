"""Start a command: signal handlers first, then the slow imports."""

import sys
from importlib import import_module

from vidrobust import __version__
from vidrobust.utils.stopping import exit_on_stop_signals

# command of `vidrobust COMMAND` -> file of this folder, and of tools/ in a clone
COMMANDS = {
    "train": "train_net",
    "evaluate": "test_net",
    "features": "extract_features",
    "study": "study",
    "prepare": "prepare",
    "benchmark": "benchmark",
    "visualize": "visualize",
}
_BY_HAND = ("soak", "mutate", "document")  # for developers of the package: without its options


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
    """Run a command's `main` with the process's arguments, and exit with its status.

    Args:
        name: its file in this folder.
    """
    if name in _BY_HAND:
        import_module(f"vidrobust.cli.{name}").main()
        return
    exit_on_stop_signals()
    tool = import_module(f"vidrobust.cli.{name}")
    import_module("vidrobust.cli.common").run(tool.main)
