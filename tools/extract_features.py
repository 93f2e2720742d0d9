"""Clip features as .npz: python tools/extract_features.py --checkpoint outputs/demo --split test [key=value ...]

The configuration is the checkpoint's own; --cfg PAGE lies over it, key=value over both.
"""

import os
import sys
from pathlib import Path

# this clone's package, whatever is installed
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vidrobust.stopping import exit_on_stop_signals

if __name__ == "__main__":
    exit_on_stop_signals()  # what follows takes seconds to import

from vidrobust import cli
from vidrobust.engine.log import log, start_logging
from vidrobust.errors import UserError
from vidrobust.evaluation import write_features


def main() -> None:
    parser = cli.parser(__doc__)
    cli.add_checkpoint(parser)
    parser.add_argument("--split", choices=("train", "test"), default="test")
    parser.add_argument("--per-video", action="store_true", help="one row a video: the mean over its clips")
    parser.add_argument("--output", help="default: features/<split>.npz in the run's folder")
    parser.add_argument("--overwrite", action="store_true", help="replace a file of other features")
    args = parser.parse_intermixed_args()
    start_logging(None, quiet=not cli.is_main())
    cfg, state, folder = cli.load_checkpoint(args)
    if cli.print_config(args, cfg):
        return
    path = Path(args.output or folder / "features" / f"{args.split}.npz")
    if path.is_dir() or (args.output or "").endswith(("/", os.sep)):
        raise UserError(
            f"--output {args.output or path}: is a folder; name a file in it, as {path / f'{args.split}.npz'}"
        )
    rows, dim = write_features(cfg, state, path, args.split, per_video=args.per_video, overwrite=args.overwrite)
    log.info(f"{rows} x {dim} features in {path}")


if __name__ == "__main__":
    cli.run(main)
