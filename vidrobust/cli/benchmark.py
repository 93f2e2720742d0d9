"""Measure speed.

    python tools/benchmark.py NAME [--cfg FILE] [key=value ...]

data         clips/s of the bare decoder, of our loader and of pytorchvideo's, on the training split
attacks      seconds of PGD, compared with a plain loop and with other libraries; seconds of APGD,
             FAB and Square, compared with the published code on single frames; passes and seconds
             of attack suites up to AutoAttack; on a checkpoint's model and test clips, or on random
             weights and clips
corruptions  frames/s on one core of each of eval.corruption.names (default: all), on a clip of
             data.frames; compared with the published formulas if scipy, scikit-image and OpenCV are
             installed
losses       seconds and memory of NT-Xent with two views, forward and backward, compared with
             lightly, pytorch-metric-learning and the formula in CLAE's code
adversarial  seconds of a training step of each method on random clips, compared with its lower
             bound (the same passes and no other work), and for CLAE and RoCL with their public code
negatives    seconds to make non-semantic negatives, compared with a step of SimCLR on the same
             clips; textures/s of 224 pixels from two patches of 96, on one core and on all
sources      seconds of a forward and backward pass of a model of torchvision, bare and wrapped, and
             of loading a file of weights
features     clips/s of extraction and of an evaluation without attacks, compared with the bare
             model and the bare loader, on the training split; peak memory of extracting many clips
memory       MiB and seconds of a training step on the CPU by batch, with whole batches and with
             micro-batches, on random clips
passes       seconds of a pass forward and backward in each order of memory and precision, to the
             weights and to the input, on random clips
profile      seconds of the phases of a training step, compared with the bare passes of the model in
             turn; on the training split
growth       seconds of a training step by clips, frames, resolution and steps of an attack,
             compared with the number of operations, on random clips
images       images per second of CPU time that one core trains by SimCLR, compared with a plain
             loop of torch in turn; on the training split
probes       seconds of fitting all settings of protocol.rates and protocol.decays at once, compared
             with torch's SGD, on 10,000 random features of 512 dimensions and 101 classes
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vidrobust import config
from vidrobust.benchmarks.attacks import AttackSizes, print_attacks
from vidrobust.benchmarks.corruptions import print_corruptions
from vidrobust.benchmarks.data import print_data
from vidrobust.benchmarks.extraction import print_features
from vidrobust.benchmarks.negative_views import print_negatives
from vidrobust.benchmarks.nt_xent import print_losses
from vidrobust.benchmarks.pass_precision import print_passes
from vidrobust.benchmarks.probe_sweep import print_probes
from vidrobust.benchmarks.small_images import print_small_images
from vidrobust.benchmarks.step_growth import print_growth
from vidrobust.benchmarks.step_memory import print_step_memory
from vidrobust.benchmarks.step_profile import print_profile
from vidrobust.benchmarks.steps import print_steps
from vidrobust.benchmarks.wrapped_models import print_sources
from vidrobust.cli import common
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import start_logging


def main() -> None:
    """Run one benchmark, and print its tables."""
    args = arguments()
    # the model: of a checkpoint, or of the options with random weights
    state: dict[str, Any] | None = None
    if args.checkpoint:
        cfg, state, _ = common.load_checkpoint(args)
    else:
        cfg = config.loads("", args.overrides, "command line", args.cfg)
    if common.print_config(args, cfg):
        return
    start_logging(None)
    if args.command == "attacks":
        sizes = AttackSizes(args.rounds, args.clips, args.images, args.steps, args.queries)
        print_attacks(cfg, state, sizes)
    else:
        _PRINTERS[args.command](cfg, args)


# benchmark -> function of configuration and arguments; `attacks` needs a checkpoint too
_PRINTERS: dict[str, Callable[[config.Config, argparse.Namespace], None]] = {
    "data": lambda cfg, args: print_data(
        cfg,
        videos=args.videos,
        rounds=args.rounds,
        prepared=args.prepared,
        archive=args.archive,
    ),
    "corruptions": lambda cfg, args: print_corruptions(
        cfg, rounds=args.rounds, sizes=args.sizes, video=args.video
    ),
    "losses": lambda cfg, args: print_losses(
        cfg, rounds=args.rounds, samples=args.samples, memory=args.memory, chunk=args.chunk
    ),
    "adversarial": lambda cfg, args: print_steps(
        cfg,
        methods=[name for name in args.methods.split(",") if name],
        batch=args.batch,
        rounds=args.rounds,
    ),
    "negatives": lambda cfg, args: print_negatives(
        cfg, batch=args.batch, rounds=args.rounds, textures=args.textures
    ),
    "sources": lambda cfg, args: print_sources(cfg, batch=args.batch, rounds=args.rounds),
    "features": lambda cfg, args: print_features(
        cfg, videos=args.videos, rounds=args.rounds, counts=args.counts
    ),
    "memory": lambda cfg, args: print_step_memory(
        cfg, batches=args.batches, micro_batch=args.micro_batch
    ),
    "passes": lambda cfg, args: print_passes(cfg, args.rounds),
    "growth": lambda cfg, args: print_growth(cfg, args.rounds),
    "profile": lambda cfg, args: print_profile(cfg, args.rounds),
    "images": lambda cfg, args: print_small_images(cfg, args.rounds),
    "probes": lambda cfg, args: print_probes(cfg, rounds=args.rounds),
}
_COMMANDS = ("attacks", *_PRINTERS)


def arguments() -> argparse.Namespace:
    """Parse the command line.

    Raises:
        UserError: for a number that is too small, or that is not one.
    """
    parser = common.parser(__doc__, _COMMANDS)
    parser.add_argument("--cfg", help="config file; default: the default options")
    _add_numbers(parser)
    parser.add_argument(
        "--prepared", default="", help="data: root of the same data set, re-encoded by prepare.py"
    )
    parser.add_argument(
        "--archive", default="", help="data: the same data set as data.archive reads it"
    )
    parser.add_argument(
        "--checkpoint", type=Path, help="attacks: a run's folder or a checkpoint file"
    )
    parser.add_argument(
        "--sizes",
        default="112,224",
        help="corruptions: shorter sides of the frames, pixels: SIZE,SIZE,...",
    )
    parser.add_argument(
        "--video", type=Path, help="corruptions: a video file; default: an artificial clip"
    )
    parser.add_argument(
        "--samples",
        default="512,1024",
        help="losses: embeddings per batch, two views of each image: N,N,...",
    )
    parser.add_argument(
        "--methods",
        default="",
        help="adversarial: simclr,clae,...; default: all that have a lower bound",
    )
    parser.add_argument(
        "--counts",
        default="10000,50000,100000",
        help="features: clips of the memory measurement, N,N,...; empty: none",
    )
    parser.add_argument(
        "--batches", default="64,128,256,512,1024", help="memory: videos per batch, N,N,..."
    )
    args = common.parsed_command(parser, _COMMANDS)
    # a text that is not a number becomes 0, which is refused below
    args.samples = [int(count) if count.isdigit() else 0 for count in args.samples.split(",")]
    args.batches = [int(size) if size.isdigit() else 0 for size in args.batches.split(",")]
    args.sizes = [int(size) if size.isdigit() else 0 for size in args.sizes.split(",")]
    counts = args.counts.split(",") if args.counts else []
    args.counts = [int(count) if count.isdigit() else 0 for count in counts]
    # every number is checked, whatever the benchmark
    names = tuple(name for name in _NUMBERS if name not in ("videos", "memory"))
    numbers = [*(getattr(args, name) for name in names), *args.sizes, *args.counts, *args.batches]
    if any(count < 4 or count % 2 for count in (*args.samples, args.memory)):
        raise UserError(
            "--samples and --memory: must be even numbers of at least 4, two views of each image"
        )
    if args.videos < 9 or min(numbers) < 1:
        raise UserError(
            "--videos: must be at least 9, more than the first batch; other numbers at least 1"
        )
    return args


# option -> default, help
_NUMBERS = {
    "rounds": (5, "rounds to measure; tables show medians"),
    "videos": (96, "data, features: videos per round"),
    "clips": (8, "attacks: clips per batch"),
    "images": (64, "attacks: single frames in the comparison with published code"),
    "steps": (20, "attacks: steps of PGD, APGD and FAB"),
    "queries": (200, "attacks: queries of Square"),
    "memory": (4096, "losses: embeddings per batch in the memory measurement"),
    "chunk": (256, "losses: anchors at a time in the chunked form"),
    "batch": (64, "adversarial, negatives, sources: videos per batch"),
    "textures": (16, "negatives: textures per round"),
    "micro_batch": (32, "memory: clips at a time"),
}


def _add_numbers(parser: argparse.ArgumentParser) -> None:
    """Add the options that take a whole number."""
    for name, (default, help) in _NUMBERS.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=int, default=default, help=f"{help} ({default})"
        )
