"""Extract clip features of a checkpoint, or of a model of another package, into a .npz file.

    python tools/extract_features.py --checkpoint outputs/demo --split test [key=value ...]
    python tools/extract_features.py --model torchvision:r3d_18 --weights my.pth [key=value ...]
    python tools/extract_features.py --checkpoint outputs/demo --videos "clips/*.mp4"

The configuration is that of the checkpoint, or of the model's input card. Options of --cfg FILE
override it, and key=value overrides both.
"""

import os
from pathlib import Path

from vidrobust.cli import common
from vidrobust.evaluation import write_features, write_source_features
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log, start_logging


def main() -> None:
    """Extract the features of a split."""
    parser = common.parser(__doc__)
    common.add_checkpoint(parser, model=True)
    parser.add_argument("--split", choices=("train", "test"), default="test")
    common.add_videos(parser)
    parser.add_argument(
        "--per-video", action="store_true", help="one row per video: the mean over its clips"
    )
    parser.add_argument("--output", help="default: features/<split>.npz in the run's folder")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a file that holds other features"
    )
    args = common.parsed(parser)
    start_logging(None, quiet=not common.is_main())
    state = None
    if args.model:
        cfg, folder = common.model_config(args)
    else:
        cfg, state, folder = common.load_checkpoint(args)
    if common.print_config(args, cfg):
        return
    # a folder, or a name that ends as one, is not a file to write
    split = "videos" if args.videos else args.split
    path = Path(args.output or folder / "features" / f"{split}.npz")
    if path.is_dir() or (args.output or "").endswith(("/", os.sep)):
        raise UserError(
            f"--output {args.output or path}: is a folder; name a file in it, such as"
            f" {path / f'{split}.npz'}"
        )
    options = {
        "videos": args.videos or "",
        "per_video": args.per_video,
        "overwrite": args.overwrite,
    }
    if state is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        rows, dim = write_source_features(cfg, args.model, args.weights, path, split, **options)
    else:
        rows, dim = write_features(cfg, state, path, split, **options)
    log.info(f"{rows} x {dim} features in {path}")
