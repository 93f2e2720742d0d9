"""Prepare a data set."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone's package
    from vidrobust.cli.entry import run_tool

    run_tool("prepare")
