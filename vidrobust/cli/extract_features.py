"""Extract features of clips, videos or stages, and tokens, under one or several models.

    python tools/extract_features.py --checkpoint outputs/demo --split test [key=value ...]
    python tools/extract_features.py --model torchvision:r3d_18 --weights my.pth [key=value ...]
    python tools/extract_features.py --checkpoint outputs/demo --videos "clips/*.mp4"
    python tools/extract_features.py --checkpoint outputs/demo --stages all --half
    python tools/extract_features.py --checkpoint outputs/demo --checkpoint outputs/other

The configuration is that of the checkpoint, or of the model's input card. Options of --cfg FILE
override it, and key=value overrides both. Several models share one decode of each clip.
"""

import argparse
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vidrobust import config
from vidrobust.cli import common
from vidrobust.evaluation import FeatureSettings, checkpoint_source, extract_files, model_source
from vidrobust.evaluation.representation.feature_files import FORMATS, LARGE_BYTES, stem_of
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log, start_logging


def main() -> None:
    """Extract the features of a split."""
    parser = common.parser(__doc__)
    common.add_models(parser)
    parser.add_argument("--split", choices=("train", "test"), default="test")
    common.add_videos(parser)
    _add_features(parser)
    args, models = common.parsed_models(parser)
    start_logging(None, quiet=not common.is_main())
    settings = FeatureSettings(
        videos=args.videos or "",
        per_video=args.per_video,
        stages=() if args.stages is None else tuple(args.stages.split(",")),
        tokens=args.tokens,
        half=args.half,
        format=_format(args),
        overwrite=args.overwrite,
    )
    loaded = [_load(each) for each in models]
    for each, (cfg, _, _) in zip(models, loaded, strict=True):
        if args.dry_run and len(models) > 1:
            print(f"# {_name(each)}")
        common.print_config(each, cfg)
    if args.dry_run:
        return
    split = "videos" if args.videos else args.split
    sources = []
    for label, each, (cfg, state, folder) in zip(_labels(models), models, loaded, strict=True):
        path = _path(args, folder, split, label)
        if state is None:
            sources.append(model_source(cfg, each.model, each.weights, path))
        else:
            sources.append(checkpoint_source(cfg, state, path, _name(each)))
    for written in extract_files(sources, split, settings):
        log.info(f"{' x '.join(map(str, written.shape))} features in {written.path}")


def _add_features(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say which features go into which files."""
    parser.add_argument(
        "--per-video", action="store_true", help="one row per video: the mean over its clips"
    )
    parser.add_argument(
        "--stages",
        metavar="NAME,NAME",
        help="average-pooled outputs of these stages in place of the features, a file each; all:"
        " every stage; any module with a feature map is a stage",
    )
    parser.add_argument(
        "--tokens",
        action="store_true",
        help="all tokens of a stage (--stages; default: the last one), in place of their mean",
    )
    parser.add_argument("--half", action="store_true", help="store float16 in place of float32")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="auto",
        help="npz: one file; npy: memory-mapped features, a table of their rows and a .json file;"
        f" auto: that of --output, or npy for over {LARGE_BYTES / 2**30:g} GiB of features (auto)",
    )
    parser.add_argument(
        "--output",
        help="default: features/<split>.npz in the run's folder. Names of stages, and of several"
        " models, are inserted before the suffix",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a file that holds other features"
    )


def _format(args: argparse.Namespace) -> str:
    """Return the format of the files.

    Raises:
        UserError: for an --output of the other format.
    """
    suffix = Path(args.output or "").suffix
    other = {"npz": ".npy", "npy": ".npz"}.get(args.format)
    if other and suffix == other:
        raise UserError(
            f"--format {args.format}: --output {args.output} ends with {other}; name a"
            f" .{args.format} file"
        )
    if args.output and args.format == "auto":
        return "npy" if suffix == ".npy" else "npz"
    return str(args.format)


def _load(args: argparse.Namespace) -> tuple[config.Config, dict[str, Any] | None, Path]:
    """Return (configuration, checkpoint or None, folder of results) of one model."""
    if args.model:
        cfg, folder = common.model_config(args)
        return cfg, None, folder
    return common.load_checkpoint(args)


def _name(args: argparse.Namespace) -> str:
    """Return the name of one model for messages."""
    return args.model or str(args.checkpoint)


def _labels(models: Sequence[argparse.Namespace]) -> list[str]:
    """Return what names of files say of each model: nothing of a single one.

    Models of the same name are numbered.
    """
    if len(models) == 1:
        return [""]
    names = []
    for each in models:
        words = (
            [each.model, Path(each.weights).stem] if each.model else [_run_name(each.checkpoint)]
        )
        names.append(re.sub(r"[^A-Za-z0-9._-]+", "_", "_".join(filter(None, words))).strip("_."))
    counts = Counter(names)
    return [
        f"{name}-{names[:place].count(name) + 1}" if counts[name] > 1 else name
        for place, name in enumerate(names)
    ]


def _run_name(path: Path) -> str:
    """Return the name of a run's folder, or of a checkpoint without its suffix."""
    return path.resolve().name if path.is_dir() else path.stem


def _path(args: argparse.Namespace, folder: Path, split: str, label: str) -> Path:
    """Return the file of one model's features.

    Args:
        args: of the command line.
        folder: of the model's results.
        split: name of the split.
        label: of the model among several.

    Raises:
        UserError: for a folder in place of a file.
    """
    path = Path(args.output or folder / "features" / f"{split}.npz")
    # a folder, or a name that ends as one, is not a file to write
    if path.is_dir() or (args.output or "").endswith(("/", os.sep)):
        raise UserError(
            f"--output {args.output or path}: is a folder; name a file in it, such as"
            f" {path / f'{split}.npz'}"
        )
    if args.output and label:
        suffix = path.suffix if path.suffix in (".npz", ".npy") else ""
        path = path.with_name(f"{stem_of(path)}.{label}{suffix}")
    return path
