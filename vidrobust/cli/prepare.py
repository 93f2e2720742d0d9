"""Prepare a data set.

    python datasets/prepare.py scan data.name=ucf101 data.root=/path/to/ucf101
    python datasets/prepare.py resize data.name=ucf101 data.root=/path/to/ucf101 \\
        --output /path/to/ucf101_128
    python datasets/prepare.py corrupt data.name=ucf101 data.root=/path/to/ucf101 \\
        --output /path/to/ucf101_c \\
        eval.corruption.names=[fog,h264_crf] eval.corruption.severities=[3,5]
    python datasets/prepare.py texture data.name=ucf101 data.root=/path/to/ucf101 \\
        --output /path/to/ucf101_texture
    python datasets/prepare.py split data.name=class_folder data.root=/path/to/videos \\
        --fractions 0.7,0.1,0.2
    python datasets/prepare.py pack data.root=/path/to/ucf101 --output /path/to/ucf101.tar

scan     decodes every file once, and writes <data.root>/manifest.jsonl, for data.manifest=FILE, and
         manifest.jsonl.bad.txt, which lists bad files with reasons; of an archive without a folder
         data.root, FILE.tar.manifest.jsonl beside it
resize   re-encodes files, so that clips load faster
corrupt  writes a data set per corruption and severity, such as <output>/fog/3; evaluations do not
         need them, because they corrupt on the fly
texture  writes a texture for each file, synthesized from two of its patches, the central one and a
         random one, for data.twins
split    writes train.txt, val.txt and test.txt for a folder of classes, for data.name=list; every
         class has the same fractions, and the files are not read
pack     writes the files below data.root, but for hidden ones and archives, into one tar archive
         for data.archive; the same files
         always give the same bytes
"""

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Any

from vidrobust import config
from vidrobust.cli import common
from vidrobust.data import Encoding, Record, all_records, find_format, is_image, reencode, scan
from vidrobust.data.prepare.pack import pack
from vidrobust.data.prepare.reencode import CODECS
from vidrobust.data.prepare.split import LISTS, Split, parse_fractions, split_records, write_split
from vidrobust.data.prepare.texture_twins import KINDS
from vidrobust.data.records import require_root
from vidrobust.data.scan import notes
from vidrobust.data.tar_index import require_index
from vidrobust.data.tar_tree import find_archives
from vidrobust.evaluation.natural.corruption import check_corruptions, without_effect
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log, start_logging

# Encoding of corrupted copies: high quality, so that the encoder itself changes little.
_CORRUPTED = Encoding(short_side=256, codec="libx264", quality=10)
_COPIES = "resize, corrupt, texture"  # commands that encode
_COMMANDS = ("scan", "resize", "corrupt", "texture", "split", "pack")
_TEXTURE = Encoding(short_side=224, codec="libx264", quality=16, texture="moving")


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = common.parser(__doc__, _COMMANDS)
    parser.add_argument(
        "--cfg", help="config file that names the data set, instead of data.name and data.root"
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="the manifest that scan writes, the folder of the lists of split (data.root), the"
        " archive of pack, or the folder of the copies",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count(),
        help=f"scan, {_COPIES}: files processed at the same time (number of cores)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=None,
        help=f"scan, {_COPIES}: seconds per file (60; of copies 600)",
    )
    # settings of the encoding, with defaults that depend on the command
    for name, help in (
        ("short_side", "shorter side in pixels, never enlarged; texture: both sides"),
        ("gop", "frames from one key frame to the next"),
        ("quality", "quantizer, 1 (best) to 31; CRF of libx264, 0 to 51"),
    ):
        usual, corrupted, texture = (
            getattr(encoding, name) for encoding in (Encoding(), _CORRUPTED, _TEXTURE)
        )
        defaults = f"{usual}"
        if not usual == corrupted == texture:
            defaults += f"; corrupt {corrupted}; texture {texture}"
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=int, help=f"{_COPIES}: {help} ({defaults})"
        )
    parser.add_argument(
        "--codec",
        choices=CODECS,
        help=f"{_COPIES}: {Encoding.codec} with resize, or {_CORRUPTED.codec}",
    )
    parser.add_argument(
        "--kind",
        choices=KINDS,
        default=_TEXTURE.texture,
        help="texture: still texture of a video's middle frame, or moving texture of all frames"
        " (moving)",
    )
    parser.add_argument(
        "--patch",
        type=int,
        default=_TEXTURE.patch_px,
        help="texture: side of a patch, pixels; smaller for sources below 224 pixels (96)",
    )
    parser.add_argument(
        "--fractions",
        default="0.8,0.1,0.1",
        help="split: fractions of train, validation and test; 0: no such list (0.8,0.1,0.1)",
    )
    parser.add_argument(
        "--group",
        default="",
        metavar="REGEX",
        help="split: files with the same text in the group of this regular expression, searched in"
        " their path below data.root, stay in one list; such as _(g[0-9]+)_",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="split, pack: replace lists, or the archive, that are there",
    )
    return common.parsed_command(parser, _COMMANDS)


def main() -> None:
    """Run one of the commands on all files of a data set."""
    args = arguments()
    if args.cfg:
        cfg = config.load(args.cfg, args.overrides)
    else:
        cfg = config.loads("", args.overrides, "command line")
    if common.print_config(args, cfg):
        return
    for name in ("workers", "timeout"):
        value = getattr(args, name)
        if value is not None and not 0 < value <= 10**6:
            raise UserError(f"--{name} {value:g}: must be greater than 0, and at most 1e6")
    if args.command not in ("scan", "split") and args.output is None:
        kind = "FILE.tar" if args.command == "pack" else "FOLDER"
        raise UserError(f"{args.command} needs --output {kind}; the source is never changed")
    start_logging(None)
    if args.command == "pack":  # it packs a folder, whatever its format
        pack_files(args, cfg)
        return
    if cfg.data.archive and args.command != "scan":
        raise UserError(
            f"data.archive={cfg.data.archive}: {args.command} reads loose files; unpack the archive"
            " (tar -xf) and set data.root to its folder"
        )
    if args.command == "split":  # it reads one list, without a test list
        split_files(args, cfg)
        return
    # both splits, and all folds
    records = all_records(cfg.data)
    if cfg.data.backend not in ("auto", "pyav") and args.command != "scan":
        log.warning(
            f"PyAV reads the files here; data.backend={cfg.data.backend}, for runs, may refuse some"
            " of them"
        )
    commands = {
        "scan": scan_files,
        "resize": resize_files,
        "corrupt": corrupt_files,
        "texture": texture_files,
    }
    commands[args.command](args, cfg, records)


def scan_files(args: argparse.Namespace, cfg: config.Config, records: list[Record]) -> None:
    """Decode every file, write the manifest, and log bad and damaged files.

    Args:
        args: command line.
        cfg: data set and decoder.
        records: all files of the data set.
    """
    root = Path(cfg.data.root).expanduser()
    manifest = args.output or _manifest_of(cfg, root)
    rows = scan(
        [record.path for record in records],
        root,
        manifest,
        workers=args.workers,
        timeout_s=args.timeout or 60,
        backend=cfg.data.backend,
        series=cfg.data.series,
        counts={record.path: record.frames for record in records if record.frames},
    )
    # faulty files: bad ones, without a frame that decodes, and damaged ones
    faulty = [row for row in rows if row["reason"]]
    for row in faulty[:20]:
        log.warning(f"{row['path']}: {row['reason']}")
    bad = sum(not row["frames"] for row in rows)
    for line in notes(rows, cfg.data.backend):
        log.info(line)
    log.info(
        f"{len(rows)} files, {bad} bad, {len(faulty) - bad} damaged but used: {manifest}"
        f" ({manifest}.bad.txt)"
    )


def _manifest_of(cfg: config.Config, root: Path) -> Path:
    """Return the default name of a manifest.

    Args:
        cfg: names the data set, and its archive if it has one.
        root: data.root, which an archive does not need.

    Raises:
        UserError: for several archives without data.root.
    """
    if not cfg.data.archive or root.is_dir():
        return root / "manifest.jsonl"
    archives = find_archives(cfg.data.archive)
    if len(archives) > 1:
        raise UserError(
            f"data.archive={cfg.data.archive}: {len(archives)} archives, and no folder"
            f" data.root={root} for a manifest; set --output"
        )
    return archives[0].with_name(f"{archives[0].name}.manifest.jsonl")


def pack_files(args: argparse.Namespace, cfg: config.Config) -> None:
    """Pack the files below data.root into one archive, and index it.

    Args:
        args: command line.
        cfg: folder of the data set.
    """
    root = require_root(Path(cfg.data.root).expanduser(), cfg.data.name)
    count, left_out = pack(root, args.output, overwrite=args.overwrite)
    names = len(require_index(args.output))
    log.info(
        f"{count} files of {root} ({left_out} hidden ones or archives left out), {names} names with"
        f" the folders, in {args.output}: data.archive={args.output} reads them"
    )


def split_files(args: argparse.Namespace, cfg: config.Config) -> None:
    """Write lists of a folder of classes, and log how many videos each has.

    Args:
        args: command line.
        cfg: data set and seed.

    Raises:
        UserError: for a data set that has lists of its own, and as `split_records` and
            `write_split` do.
    """
    settings = Split(parse_fractions(args.fractions), cfg.seed, args.group)
    spec = find_format(cfg.data.name)
    if spec.other_split != "train":
        raise UserError(
            f"data.name={cfg.data.name}: has lists of its own; split reads a folder of classes, set"
            " data.name=class_folder"
        )
    root = Path(cfg.data.root).expanduser()
    records, classes = spec(require_root(root, cfg.data.name), "train", cfg.data.fold)
    if {name.lower() for name in classes} <= {*LISTS, "validation", "valid"}:
        raise UserError(
            f"{root}: its folders are lists, not classes ({', '.join(classes)}); read it with"
            " data.name=folder, or image_folder"
        )
    output = args.output or root
    parts = split_records(records, classes, settings)
    write_split(parts, classes, output, overwrite=args.overwrite)
    counts = ", ".join(f"{name} {len(part)}" for name, part in zip(LISTS, parts, strict=True))
    log.info(f"{len(classes)} classes, {len(records)} files: {counts}")
    log.info(f"data.name=list data.root={output} reads them")


def resize_files(args: argparse.Namespace, cfg: config.Config, records: list[Record]) -> None:
    """Re-encode every file.

    Args:
        args: command line.
        cfg: data set.
        records: all files of the data set.
    """
    encoding = dataclasses.replace(Encoding(), **_given_encoding(args))
    copy(cfg, records, args, args.output, encoding)


def texture_files(args: argparse.Namespace, cfg: config.Config, records: list[Record]) -> None:
    """Write a texture for every file.

    Args:
        args: command line.
        cfg: data set and seed.
        records: all files of the data set.
    """
    encoding = dataclasses.replace(
        _TEXTURE,
        **_given_encoding(args),
        texture=args.kind,
        patch_px=args.patch,
        seed=cfg.seed,
    )
    copy(cfg, records, args, args.output, encoding)


def corrupt_files(args: argparse.Namespace, cfg: config.Config, records: list[Record]) -> None:
    """Write a corrupted copy of the data set per corruption and severity.

    Args:
        args: command line.
        cfg: data set, corruptions, severities and seed.
        records: all files of the data set.

    Raises:
        UserError: if no corruption is given; after all copies, if one of them is incomplete.
    """
    names = check_corruptions(cfg.eval.corruption.names)
    # a corruption over time changes nothing in an image
    if all(is_image(record.path) for record in records):
        for line in without_effect(names, 1, images=True):
            log.warning(line)
    if not names:
        raise UserError(
            "corrupt needs eval.corruption.names=[NAME,...], names or sets of docs/corruptions.md"
        )
    failed: list[str] = []
    for name in names:
        for severity in cfg.eval.corruption.severities:
            encoding = dataclasses.replace(
                _CORRUPTED,
                **_given_encoding(args),
                corruption=name,
                severity=severity,
                seed=cfg.seed,
            )
            # a file that cannot be read fails in every copy: the other files are still written
            try:
                copy(cfg, records, args, args.output / name / str(severity), encoding)
            except UserError as error:
                failed.append(str(error))
    if failed:
        raise UserError(f"{len(failed)} copies are incomplete; the first: {failed[0]}")


def _given_encoding(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of the encoding that the command line gives."""
    settings = {name: getattr(args, name) for name in ("short_side", "gop", "codec", "quality")}
    return {name: value for name, value in settings.items() if value is not None}


def copy(
    cfg: config.Config,
    records: list[Record],
    args: argparse.Namespace,
    output: Path,
    encoding: Encoding,
) -> None:
    """Write the data set again in a folder, and check that its lists name the same files.

    Args:
        cfg: data set.
        records: all files of the data set.
        args: command line; --workers and --timeout are used.
        output: folder of the copy.
        encoding: how files are written.

    Raises:
        UserError: for files that failed, after all other files are written.
    """
    root = Path(cfg.data.root).expanduser()
    failed = reencode(
        records, root, output, encoding, workers=args.workers, timeout_s=args.timeout or 600
    )
    for path, reason in failed[:20]:
        log.warning(f"{path}: {reason}")
    # copies of a built-in data set are files in the layout of another format
    format_name = find_format(cfg.data.name).copies_as or cfg.data.name
    # parse the copy's own lists
    copied = dataclasses.replace(cfg.data, root=str(output), name=format_name)
    if {record.uid for record in all_records(copied)} != {record.uid for record in records}:
        raise UserError(
            f"the lists in {output} name other files than those in {root}; compare them"
        )
    if failed:
        raise UserError(
            f"{len(failed)} of {len(records)} files could not be written, first {failed[0][0]};"
            f" they are empty in {output}, and count as bad there; all others were verified"
        )
    log.info(f"data.name={format_name} data.root={output} has every file, verified")
