"""Measure on a GPU what precision, memory order, compilation and other switches gain.

    python tools/gpu_check.py --output FILE.json

It writes one JSON file, after each measurement: training steps of four networks with each switch,
steps against an attack, transfer of clips, views on the device, PGD-20 beside a bare loop and other
libraries, as a CUDA graph, and of 500 clips. --small does the same with small networks, also on a
CPU, where compilation takes minutes.
"""

import argparse
from pathlib import Path

from vidrobust.benchmarks.gpu_switches import check_gpu
from vidrobust.utils import distributed
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import start_logging


def main() -> None:
    """Run all measurements."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, help="JSON file of the results")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (auto)")
    parser.add_argument(
        "--small", action="store_true", help="small networks and sizes, to rehearse on a CPU"
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each measurement (5)")
    parser.add_argument(
        "--limit", type=float, default=780, help="begin no measurement after so many seconds (780)"
    )
    args = parser.parse_args()
    if args.rounds < 1:
        raise UserError("--rounds: must be at least 1")
    start_logging(None)
    device = distributed.start(args.device)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    check_gpu(args.output, device, small=args.small, rounds=args.rounds, limit_s=args.limit)
    print(args.output)
