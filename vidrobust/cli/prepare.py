"""Prepare a data set.

    python datasets/prepare.py scan data.name=ucf101 data.root=/path/to/ucf101
    python datasets/prepare.py resize data.name=ucf101 data.root=/path/to/ucf101 \\
        --output /path/to/ucf101_128
    python datasets/prepare.py corrupt data.name=ucf101 data.root=/path/to/ucf101 \\
        --output /path/to/ucf101_c \\
        eval.corruption.names=[fog,h264_crf] eval.corruption.severities=[3,5]
    python datasets/prepare.py texture data.name=ucf101 data.root=/path/to/ucf101 \\
        --output /path/to/ucf101_texture

scan     probes files once, and writes <data.root>/manifest.jsonl, for data.manifest=FILE, and
         manifest.jsonl.bad.txt, files and reasons
resize   re-encodes files, so that clips load faster
corrupt  writes a data set per corruption and severity, <output>/fog/3; evaluations need none, they
         corrupt on the fly
texture  writes for each file a texture, synthesised from two of its patches, the central one and a
         random one, for data.twins
"""

import argparse
import dataclasses
import os
from pathlib import Path

from vidrobust import config
from vidrobust.cli import common
from vidrobust.data import Encoding, Record, all_records, find_format, is_image, reencode, scan
from vidrobust.data.prepare.reencode import CODECS
from vidrobust.data.prepare.texture_twins import KINDS
from vidrobust.data.scan import notes
from vidrobust.evaluation.natural.corruption import check_corruptions, without_effect
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log, start_logging

# of corrupted copies: what their encoder adds should be little
_FINE = Encoding(short_side=256, codec="libx264", quality=10)
_TEXTURE = Encoding(short_side=224, codec="libx264", quality=16, texture="moving")


def arguments() -> argparse.Namespace:
    parser = common.parser(__doc__, ("scan", "resize", "corrupt", "texture"))
    parser.add_argument(
        "--cfg", help="YAML page that names the data set, instead of data.name and data.root"
    )
    parser.add_argument(
        "--output", type=Path, help="scan: the manifest; otherwise the folder of the copies"
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="files at a time (all cores)"
    )
    parser.add_argument(
        "--timeout", type=float, default=None, help="seconds a file may take (scan 60; copies 600)"
    )
    for name, help in (
        ("short_side", "pixels of the short side, never enlarged; of a texture's sides"),
        ("gop", "frames from one key frame to the next"),
        ("quality", "quantiser, 1 (best) to 31; CRF of libx264, 0 to 51"),
    ):
        usual, fine, texture = (
            getattr(encoding, name) for encoding in (Encoding(), _FINE, _TEXTURE)
        )
        said = (
            f"{usual}"
            if usual == fine == texture
            else f"{usual}; corrupt {fine}; texture {texture}"
        )
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=f"{help} ({said})")
    parser.add_argument(
        "--codec", choices=CODECS, help=f"resize {Encoding.codec}; otherwise {_FINE.codec}"
    )
    parser.add_argument(
        "--kind",
        choices=KINDS,
        default=_TEXTURE.texture,
        help="texture: of a video's middle frame, or of all frames, which moves (moving)",
    )
    parser.add_argument(
        "--patch",
        type=int,
        default=_TEXTURE.patch_px,
        help="texture: side of a patch, pixels; less of sources below 224 (96)",
    )
    return parser.parse_intermixed_args()


def main() -> None:
    args = arguments()
    cfg = (
        config.load(args.cfg, args.overrides)
        if args.cfg
        else config.loads("", args.overrides, "command line")
    )
    if common.print_config(args, cfg):
        return
    for name in ("workers", "timeout"):
        if (value := getattr(args, name)) is not None and not 0 < value <= 10**6:
            raise UserError(f"--{name} {value:g}: must be greater than 0, and at most 1e6")
    if args.command != "scan" and args.output is None:
        raise UserError(f"{args.command} needs --output FOLDER; the source is never changed")
    start_logging(None)
    root = Path(cfg.data.root).expanduser()
    records = all_records(cfg.data)
    if cfg.data.backend not in ("auto", "pyav") and args.command != "scan":
        log.warning(
            f"PyAV reads the files here; data.backend={cfg.data.backend}, for runs, may refuse some"
            " of them"
        )
    if args.command == "scan":
        manifest = args.output or root / "manifest.jsonl"
        rows = scan(
            [r.path for r in records],
            root,
            manifest,
            workers=args.workers,
            timeout_s=args.timeout or 60,
            backend=cfg.data.backend,
            series=cfg.data.series,
            counts={r.path: r.frames for r in records if r.frames},
        )
        wrong = [row for row in rows if row["reason"]]
        for row in wrong[:20]:
            log.warning(f"{row['path']}: {row['reason']}")
        bad = sum(not row["frames"] for row in rows)
        for line in notes(rows, cfg.data.backend):
            log.info(line)
        log.info(
            f"{len(rows)} files, {bad} bad, {len(wrong) - bad} damaged but used: {manifest}"
            f" ({manifest}.bad.txt)"
        )
        return
    options = {name: getattr(args, name) for name in ("short_side", "gop", "codec", "quality")}
    given = {name: value for name, value in options.items() if value is not None}
    if args.command == "resize":
        copy(cfg, records, args, args.output, dataclasses.replace(Encoding(), **given))
        return
    if args.command == "texture":
        texture = dataclasses.replace(
            _TEXTURE, **given, texture=args.kind, patch_px=args.patch, seed=cfg.seed
        )
        copy(cfg, records, args, args.output, texture)
        return
    names = check_corruptions(cfg.eval.corruption.names)
    for line in (
        without_effect(names, 1, images=True)
        if all(is_image(record.path) for record in records)
        else ()
    ):
        log.warning(line)
    if not names:
        raise UserError(
            "corrupt needs eval.corruption.names=[NAME,...], names or sets of docs/corruptions.md"
        )
    failed: list[str] = []
    for name in names:
        for severity in cfg.eval.corruption.severities:
            fine = dataclasses.replace(
                _FINE, **given, corruption=name, severity=severity, seed=cfg.seed
            )
            try:
                copy(cfg, records, args, args.output / name / str(severity), fine)
            except (
                UserError
            ) as error:  # a bad file is bad in each copy: the others are made all the same
                failed.append(str(error))
    if failed:
        raise UserError(f"{len(failed)} copies are not whole; the first: {failed[0]}")


def copy(
    cfg: config.Config,
    records: list[Record],
    args: argparse.Namespace,
    output: Path,
    encoding: Encoding,
) -> None:
    """Write the data set anew under `output`. Raises UserError, when all else is written, for files
    that failed.
    """
    root = Path(cfg.data.root).expanduser()
    failed = reencode(
        records, root, output, encoding, workers=args.workers, timeout_s=args.timeout or 600
    )
    for path, reason in failed[:20]:
        log.warning(f"{path}: {reason}")
    # copies of a built-in data set are files in the layout of another format
    reads = find_format(cfg.data.name).copies_as or cfg.data.name
    small = dataclasses.replace(cfg.data, root=str(output), name=reads)
    if {record.uid for record in all_records(small)} != {record.uid for record in records}:
        raise UserError(f"the lists in {output} do not name what those in {root} do; compare them")
    if failed:
        raise UserError(
            f"{len(failed)} of {len(records)} files could not be written, first {failed[0][0]};"
            f" they are empty in {output}, and bad there, too; the others were verified when they"
            " were made"
        )
    log.info(f"data.name={reads} data.root={output} has every file, verified when it was made")
