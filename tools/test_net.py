"""Measure a checkpoint: python tools/test_net.py --checkpoint outputs/demo [key=value ...]"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone's package

if __name__ == "__main__":
    from vidrobust.cli.entry import run_tool

    run_tool("test_net")
