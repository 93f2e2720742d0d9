"""Submit a training as a job of a cluster."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package of this clone
    from vidrobust.cli.entry import run_tool

    run_tool("submit")
