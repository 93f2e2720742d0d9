"""Stress-test the tools: on data sets of full size, and with processes that are killed.

    python tools/soak.py size|kills --output-dir FOLDER
    python tools/soak.py kills --ranks 2 --kills 100 --output-dir FOLDER
    python tools/soak.py epochs --output-dir FOLDER [key=value ...]

size   runs every tool on data sets with as many videos as UCF101 and Kinetics-400, which are links
       to a few small clips. Limits are 256 open files, 64 MB of /dev/shm and a size of memory. The
       peaks may increase with features and rows, but not with pixels or files
kills  runs tools/train_net.py, training and evaluation. Each run is ended at random times by
       SIGKILL or by signals to the whole process group, some after a pause, and resumed until it is
       done. Its files must be bitwise identical to those of an undisturbed run
       With --ranks, training, evaluation, feature extraction and a study run in several ranks,
       under torchrun or by plain variables. Events are kills of one rank, of all and of the
       launcher, short and endless pauses of a rank, and a full disk. All ranks must end within
       10 s of the time limit for silent ranks, and report one cause, without a traceback (other
       than torchrun's own) or warnings of torch
epochs trains configs/demo.yaml with overrides. After the first five steps of each epoch it adds up
       memory and open files of all processes of the run. The growth of their medians per epoch,
       without the first tenth of the epochs, must be within limits
"""

import argparse
import signal
import sys
from pathlib import Path

from vidrobust.cli.soak_epochs import epochs_command, soak_epochs
from vidrobust.cli.soak_ranks import soak_ranks
from vidrobust.cli.soak_runs import SIZES, soak_kills, soak_size


def main() -> None:
    """Run one of the stress tests; the exit status is 1 if it fails."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=("size", "kills", "epochs"))
    parser.add_argument("overrides", nargs="*", help="epochs: options as key=value")
    parser.add_argument(
        "--output-dir", type=Path, required=True, help="folder for data, runs and results"
    )
    parser.add_argument(
        "--size", choices=tuple(SIZES), default="ucf101", help="size: number of videos"
    )
    parser.add_argument("--lists", type=Path, help="size: folder with the official UCF101 lists")
    parser.add_argument(
        "--files", type=int, default=256, help="size: limit of open files per process"
    )
    parser.add_argument(
        "--memory", type=int, default=6000, help="size: limit of a command's memory, MiB"
    )
    parser.add_argument("--shm", type=int, default=64, help="size: limit of /dev/shm, MB")
    parser.add_argument("--ranks", type=int, default=1, help="kills: processes per command")
    parser.add_argument("--kills", type=int, default=30, help="kills: number of kills, or events")
    parser.add_argument(
        "--seed", type=int, default=0, help="kills: random seed of their times and signals"
    )
    parser.add_argument(
        "--life", type=float, default=20, help="kills: longest time before a kill, seconds"
    )
    parser.add_argument("--epochs", type=int, default=50, help="epochs: number of them")
    args = parser.parse_intermixed_args()
    if args.overrides and args.command != "epochs":
        parser.error(f"{args.command} has no options {' '.join(args.overrides)}")
    out = args.output_dir.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if args.command == "size":
        limits = {"files": args.files, "memory_mib": args.memory, "shm_mib": args.shm}
        peaks = soak_size(out, args.size, args.lists, **limits)
        sys.exit(any(peak.status for peak in peaks))
    if args.command == "epochs":
        run = out / "run"
        sys.exit(soak_epochs(epochs_command(run, args.epochs, args.overrides), run))
    if args.ranks > 1:
        # so that processes end and the small disk is unmounted
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        sys.exit(bool(soak_ranks(out, args.ranks, args.kills, args.seed, args.life)))
    sys.exit(bool(soak_kills(out, args.kills, args.seed, args.life)))
