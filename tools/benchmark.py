"""Measure speed: python tools/benchmark.py data data.root=/path/to/ucf101 [--prepared FOLDER] [key=value ...]

data: clips/s of the bare decoder, of our loader and of pytorchvideo's, on the training list, in one run.
"""

from vidrobust import cli, config
from vidrobust.data.speed import floor, measure_data, readable
from vidrobust.engine.log import start_logging
from vidrobust.errors import UserError


def main() -> None:
    parser = cli.parser(__doc__, ("data",))
    parser.add_argument("--cfg", help="YAML page; default: the options' defaults")
    parser.add_argument("--videos", type=int, default=96, help="videos a round and row")
    parser.add_argument("--rounds", type=int, default=5, help="rounds; medians are printed")
    parser.add_argument("--prepared", default="", help="root of the same data set, re-encoded by datasets/prepare.py")
    args = parser.parse_intermixed_args()
    if args.videos < 9 or args.rounds < 1:
        raise UserError("--videos is at least 9, more than the first batch; --rounds at least 1")
    cfg = config.load(args.cfg, args.overrides) if args.cfg else config.loads("", args.overrides, "command line")
    if cli.print_config(args, cfg):
        return
    start_logging(None)
    chosen = readable(cfg, args.videos)
    rows = measure_data(cfg, chosen, rounds=args.rounds, prepared=args.prepared)
    print(
        f"{args.rounds} rounds of {args.videos} videos, {cfg.data.frames} frames at stride {cfg.data.stride}, two views"
    )
    print(f"| {'loader':<28} | cores | clips/s | lowest to highest |\n|---|---|---|---|")
    for row in rows:
        if row.reason:
            print(f"| {row.name:<28} | {row.cores} | - | {row.reason} |")
        else:
            median, low, high = row.clips_s
            print(f"| {row.name:<28} | {row.cores} | {median:.1f} | {low:.1f} to {high:.1f} |")
    parts = floor(cfg, chosen, rounds=args.rounds)
    print("ms a video, one core: " + ", ".join(f"{name} {value:.2f}" for name, value in parts.items()))


if __name__ == "__main__":
    cli.run(main)
