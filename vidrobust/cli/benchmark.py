"""Measure speed.

    python tools/benchmark.py NAME [--cfg PAGE] [key=value ...]

data         clips/s of the bare decoder, of our loader and of pytorchvideo's, on the training split
attacks      seconds of PGD, compared with a plain loop and with other libraries, of APGD, FAB and
             Square, compared with the published code on single frames, and the passes of attacks
             up to AutoAttack, on a checkpoint's model and test clips, or on random ones
corruptions  frames/s on one core of each of eval.corruption.names (all), of a clip of data.frames,
             compared with the published formulas where scipy, scikit-image and OpenCV are installed
losses       seconds and memory of NT-Xent of two views, forward and backward, compared with
             lightly, pytorch-metric-learning and the formula of CLAE's code
adversarial  seconds of a training step of each method on random clips, compared with its floor (the
             same passes and nothing else), and for CLAE and RoCL with a step as in their code
negatives    seconds to make non-semantic negatives, compared with a step of SimCLR on the same
             clips, and to make a texture of 224 pixels from two patches of 96, on one core and on
             more
"""

import argparse
import os
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vidrobust import config
from vidrobust.benchmarks import attacks as speed
from vidrobust.benchmarks.corruptions import drawn_clip, measure_rates, published
from vidrobust.benchmarks.data import floor, measure_data, one_core, readable
from vidrobust.benchmarks.negative_views import measure_negatives, texture_seconds
from vidrobust.benchmarks.nt_xent import loss_rows, measure_losses, peak_memory
from vidrobust.benchmarks.steps import TIMED, cost_of, measure_steps
from vidrobust.cli import common
from vidrobust.data import read_frames
from vidrobust.data.isolation import in_children
from vidrobust.evaluation.natural.corruption import check_corruptions
from vidrobust.training.setup import arrange
from vidrobust.utils import distributed
from vidrobust.utils.amp import use_bf16
from vidrobust.utils.errors import UserError, lookup
from vidrobust.utils.logging import start_logging
from vidrobust.views import NEGATIVES, NegativeSpec
from vidrobust.views.negatives import SPATIAL


def main() -> None:
    parser = common.parser(
        __doc__, ("data", "attacks", "corruptions", "losses", "adversarial", "negatives")
    )
    parser.add_argument("--cfg", help="YAML page; default: the options' defaults")
    parser.add_argument("--rounds", type=int, default=5, help="rounds; medians are printed")
    parser.add_argument("--videos", type=int, default=96, help="data: videos a round and row")
    parser.add_argument(
        "--prepared", default="", help="data: root of the same data set, re-encoded by prepare.py"
    )
    parser.add_argument(
        "--checkpoint", type=Path, help="attacks: a run's folder or a checkpoint file"
    )
    parser.add_argument("--clips", type=int, default=8, help="attacks: clips of a batch")
    parser.add_argument(
        "--images", type=int, default=64, help="attacks: single frames beside the published code"
    )
    parser.add_argument("--steps", type=int, default=20, help="attacks: steps of PGD, APGD and FAB")
    parser.add_argument("--queries", type=int, default=200, help="attacks: queries of Square")
    parser.add_argument(
        "--sizes", default="112,224", help="corruptions: pixels of the shorter side, SIZE,SIZE,..."
    )
    parser.add_argument(
        "--video", type=Path, help="corruptions: a video file; default: a clip is drawn"
    )
    parser.add_argument(
        "--samples", default="512,1024", help="losses: embeddings of a batch, N,N,... (two views)"
    )
    parser.add_argument(
        "--memory",
        type=int,
        default=4096,
        help="losses: embeddings of the batch whose memory is told",
    )
    parser.add_argument(
        "--chunk", type=int, default=256, help="losses: anchors at a time of the chunked form"
    )
    parser.add_argument(
        "--methods", default="", help="adversarial: simclr,clae,...; default: all that have a floor"
    )
    parser.add_argument(
        "--batch", type=int, default=64, help="adversarial, negatives: videos of a batch"
    )
    parser.add_argument("--textures", type=int, default=16, help="negatives: textures a round")
    args = parser.parse_intermixed_args()
    args.samples = [int(count) if count.isdigit() else 0 for count in args.samples.split(",")]
    args.sizes = [int(size) if size.isdigit() else 0 for size in args.sizes.split(",")]
    counts = (
        args.rounds,
        args.clips,
        args.images,
        args.steps,
        args.queries,
        args.chunk,
        args.batch,
        args.textures,
        *args.sizes,
    )
    if any(count < 4 or count % 2 for count in (*args.samples, args.memory)):
        raise UserError(
            "--samples and --memory: even numbers of at least 4, two views of each image"
        )
    if args.videos < 9 or min(counts) < 1:
        raise UserError(
            "--videos is at least 9, more than the first batch; the other numbers at least 1"
        )
    if args.checkpoint:
        cfg, state, _ = common.load_checkpoint(args)
    else:
        cfg, state = config.loads("", args.overrides, "command line", args.cfg), None
    if common.print_config(args, cfg):
        return
    start_logging(None)
    if args.command == "data":
        print_data(args, cfg)
    elif args.command == "attacks":
        print_attacks(args, cfg, state)
    elif args.command == "corruptions":
        print_corruptions(args, cfg)
    elif args.command == "losses":
        print_losses(args, cfg)
    elif args.command == "adversarial":
        print_adversarial(args, cfg)
    else:
        print_negatives(args, cfg)


def print_data(args: argparse.Namespace, cfg: config.Config) -> None:
    chosen = readable(cfg, args.videos)
    rows = measure_data(cfg, chosen, rounds=args.rounds, prepared=args.prepared)
    print(
        f"{args.rounds} rounds of {args.videos} videos, {cfg.data.frames} frames at stride"
        f" {cfg.data.stride}, two views"
    )
    print(f"| {'loader':<28} | cores | clips/s | lowest to highest |\n|---|---|---|---|")
    for row in rows:
        if row.reason:
            print(f"| {row.name:<28} | {row.cores} | - | {row.reason} |")
        else:
            median, low, high = row.clips_s
            print(f"| {row.name:<28} | {row.cores} | {median:.1f} | {low:.1f} to {high:.1f} |")
    parts = floor(cfg, chosen, rounds=args.rounds)
    print(
        "ms a video, one core: " + ", ".join(f"{name} {value:.2f}" for name, value in parts.items())
    )


def print_attacks(
    args: argparse.Namespace, cfg: config.Config, state: dict[str, Any] | None
) -> None:
    device = distributed.start(cfg.device)
    torch.manual_seed(cfg.seed)
    model, x, y = speed.attacked(cfg, state, args.clips, device)
    half = eps = speed.half_broken(model, x, y)
    print(
        f"{cfg.model.backbone}, {len(x)} clips of {tuple(x.shape[1:])} on {device},"
        f" PGD-{args.steps}, eps {eps * 255:.2f}/255, {args.rounds} rounds"
    )
    rows = speed.measure_rows(speed.pgd_rows(model, x, y, eps, args.steps), model, y, args.rounds)
    print(
        f"| {'PGD':<40} | s, median (lowest to highest) | of the bare loop | accuracy"
        " |\n|---|---|---|---|"
    )
    for row in rows:
        print_row(row, rows[1].median)
    images, frames, labels = speed.attacked(cfg, state, args.images, device, images=True)
    eps = speed.half_broken(images, frames, labels)
    print(
        f"\n{len(frames)} images of {tuple(frames.shape[1:])}, eps {eps * 255:.2f}/255,"
        f" {args.steps} steps, 4 targets, {args.queries} queries"
    )
    print(
        f"| {'attack':<40} | s, median (lowest to highest) | of ours | accuracy"
        " |\n|---|---|---|---|"
    )
    rows = speed.measure_rows(
        speed.published_rows(images, frames, labels, eps, args.steps, args.queries),
        images,
        labels,
        args.rounds,
    )
    for row in rows:
        if row.name.endswith("vidrobust"):
            ours = row.median
        print_row(row, ours)
    print(
        f"\n| attack on {len(x)} clips, eps {half * 255:.2f}/255 | forward, a clip | backward | s a"
        " clip | accuracy |"
    )
    print("|---|---|---|---|---|")
    for name, forward, backward, seconds, accuracy in speed.costs(
        model, x, y, half, cfg.eval.effort
    ):
        print(f"| {name} | {forward:.0f} | {backward:.0f} | {seconds:.2f} | {accuracy:.3f} |")


def print_corruptions(args: argparse.Namespace, cfg: config.Config) -> None:
    names = check_corruptions(cfg.eval.corruption.names or ["all"])
    _, missing = published()
    if missing:
        print(f"the published formulas are left out: {missing}")
    print(f"{args.rounds} rounds of {cfg.data.frames} frames at severities 1 to 5, one core")
    print(
        "| corruption | pixels | frames/s (lowest to highest) | published | times as fast"
        " |\n|---|---|---|---|---|"
    )
    for size in args.sizes:
        clip = (
            read_frames(
                args.video, np.arange(cfg.data.frames), short_side=size, backend=cfg.data.backend
            )
            if args.video
            else drawn_clip(cfg.data.frames, size, size * 4 // 3)
        )
        with one_core():
            for rate in measure_rates(clip, names, args.rounds):
                middle, low, high = statistics.median(rate.ours), min(rate.ours), max(rate.ours)
                other = (
                    f"{statistics.median(rate.published):.1f} | {rate.ratio:.2f}"
                    if rate.ratio
                    else "- | -"
                )
                print(
                    f"| {rate.name:<18} | {size} | {middle:.0f} ({low:.0f} to {high:.0f}) |"
                    f" {other} |",
                    flush=True,
                )


def print_losses(args: argparse.Namespace, cfg: config.Config) -> None:
    device, dim, temperature = distributed.start(cfg.device), cfg.model.dim, cfg.method.temperature
    _, missing = loss_rows(4, dim, temperature, args.chunk)
    if missing:
        print(f"left out: {', '.join(missing)}: pip install {' '.join(missing)}")
    print(f"NT-Xent, forward and backward, D = {dim}, on {device}, {args.rounds} rounds")
    print("| N | loss | ms (lowest to highest) | of ours | value |\n|---|---|---|---|---|")
    for samples in args.samples:
        rows, _ = loss_rows(samples, dim, temperature, args.chunk)
        timings = measure_losses(rows, samples, dim, args.rounds, device)
        for row in timings:
            low, high = 1e3 * min(row.seconds), 1e3 * max(row.seconds)
            spread = (
                "one call" if len(row.seconds) == 1 < args.rounds else f"{low:.1f} to {high:.1f}"
            )
            relative = row.median / timings[0].median
            print(
                f"| {samples} | {row.name:<24} | {1e3 * row.median:.1f} ({spread}) | {relative:.2f}"
                f" | {row.value:.4f} |",
                flush=True,
            )
    rows, _ = loss_rows(args.memory, dim, temperature, args.chunk)
    for name in (name for name in rows if name.startswith("vidrobust")):
        memory = peak_memory(rows[name], args.memory, dim, device)
        print(f"peak memory of {name}, N = {args.memory}: {memory:.2f} times the logits")


def print_adversarial(args: argparse.Namespace, cfg: config.Config) -> None:
    device = distributed.start(cfg.device)
    names = {
        name if adversary == "none" else adversary: (name, adversary) for name, adversary in TIMED
    }
    asked = [name for name in args.methods.split(",") if name] or list(names)
    for name in asked:
        lookup(names, name, "--methods")
    amp = use_bf16(cfg.train.amp, device)
    try:
        cost_of(cfg, *names[asked[0]])
    except ValueError as error:
        raise UserError(f"benchmark.py adversarial: {error}") from None
    print(
        f"{cfg.model.backbone}, {args.batch} videos of {cfg.data.frames} x {cfg.data.size} x"
        f" {cfg.data.size} on {device}, {'bf16' if amp else 'float32'}, {args.rounds} rounds"
    )
    print("| method | step | s, median (lowest to highest) | of the floor | of public code | GiB |")
    print("|---|---|---|---|---|---|")
    for name in asked:
        rows = {
            row.kind: row
            for row in measure_steps(
                cfg,
                [names[name]],
                args.batch,
                args.rounds,
                device,
                amp=amp,
                arrange=partial(arrange, cfg=cfg.train),
            )
        }
        for kind, row in rows.items():
            low, high = min(row.seconds), max(row.seconds)
            spread, floor = (
                f"{row.median:.3f} ({low:.3f} to {high:.3f})",
                row.median / rows["floor"].median,
            )
            public = (
                f"{row.median / rows['public code'].median:.2f}" if "public code" in rows else "-"
            )
            print(
                f"| {name} | {kind} | {spread} | {floor:.2f} | {public} | {row.memory_gb:.1f} |",
                flush=True,
            )


def print_negatives(args: argparse.Namespace, cfg: config.Config) -> None:
    device = distributed.start(cfg.device)
    x = torch.rand(args.batch, 3, cfg.data.frames, cfg.data.size, cfg.data.size, device=device)
    names = list(SPATIAL if cfg.data.frames == 1 else NEGATIVES)
    found = measure_negatives(x, [NegativeSpec((name,)) for name in names], args.rounds)
    amp = use_bf16(cfg.train.amp, device)
    step = measure_steps(
        cfg,
        [("simclr", "none")],
        args.batch,
        3,
        device,
        amp=amp,
        arrange=partial(arrange, cfg=cfg.train),
    )[0].median
    print(
        f"{args.batch} clips of {cfg.data.frames} x {cfg.data.size} x {cfg.data.size} on {device};"
        f" a step of SimCLR, {cfg.model.backbone}, {'bf16' if amp else 'float32'}: {step:.3f} s;"
        f" {args.rounds} rounds"
    )
    print("| negatives | ms, median (lowest to highest) | % of the step |\n|---|---|---|")
    for name, seconds in zip(names, found, strict=True):
        middle, low, high = (1e3 * f(seconds) for f in (statistics.median, min, max))
        print(f"| {name} | {middle:.1f} ({low:.1f} to {high:.1f}) | {middle / step / 10:.2f} |")
    print("\n| texture, 224 of two patches of 96 | textures/s (lowest to highest) |\n|---|---|")
    for workers in dict.fromkeys((1, os.cpu_count() or 1)):
        rates = []
        for number in range(args.rounds):
            jobs = [args.textures * number + n for n in range(args.textures)]
            start = time.perf_counter()
            seconds = [answer for _, answer in in_children(texture_seconds, jobs, workers, 60)]
            rates.append(len(seconds) / (time.perf_counter() - start))
        print(
            f"| {workers} at a time ({statistics.median(seconds):.2f} s each) |"
            f" {statistics.median(rates):.1f} ({min(rates):.1f} to {max(rates):.1f}) |",
            flush=True,
        )


def print_row(row: speed.Row, unit: float) -> None:
    low, high = min(row.seconds), max(row.seconds)
    spread = f"{row.median:.3f} ({low:.3f} to {high:.3f})"
    print(f"| {row.name:<40} | {spread} | {row.median / unit:.3f} | {row.accuracy:.3f} |")
