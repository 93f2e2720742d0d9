"""Prepare a data set: probe its files once, or re-encode them for training.

    python datasets/prepare.py scan data.name=ucf101 data.root=/path/to/ucf101
    python datasets/prepare.py resize data.name=ucf101 data.root=/path/to/ucf101 --output /path/to/ucf101_128

scan writes <data.root>/manifest.jsonl, for data.manifest=FILE, and manifest.jsonl.bad.txt, files and reasons.
"""

import dataclasses
import os
from pathlib import Path

from vidrobust import cli, config
from vidrobust.data import Encoding, all_records, reencode, scan
from vidrobust.data.reencode import CODECS
from vidrobust.engine.log import log, start_logging
from vidrobust.errors import UserError


def main() -> None:
    parser = cli.parser(__doc__, ("scan", "resize"))
    parser.add_argument("--cfg", help="YAML page that names the data set, instead of data.name and data.root")
    parser.add_argument("--output", type=Path, help="scan: the manifest; resize: the folder of the small data set")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="files at a time (all cores)")
    parser.add_argument("--timeout", type=float, default=None, help="seconds a file may take (60; resize 600)")
    usual = Encoding()
    for name, help in (
        ("short_side", "pixels of the short side, never enlarged"),
        ("gop", "frames from one key frame to the next"),
        ("quality", "quantiser, 1 (best) to 31; CRF of libx264, 0 to 51"),
    ):
        default = getattr(usual, name)
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=int, default=default, help=f"resize: {help} ({default})"
        )
    parser.add_argument("--codec", choices=CODECS, default=usual.codec, help=f"resize ({usual.codec})")
    args = parser.parse_intermixed_args()
    cfg = config.load(args.cfg, args.overrides) if args.cfg else config.loads("", args.overrides, "command line")
    if cli.print_config(args, cfg):
        return
    for name in ("workers", "timeout"):
        if (value := getattr(args, name)) is not None and not 0 < value <= 10**6:
            raise UserError(f"--{name} {value:g}: must be greater than 0, and at most 1e6")
    start_logging(None)
    root = Path(cfg.data.root).expanduser()
    records = all_records(cfg.data)
    if cfg.data.backend != "auto":
        log.warning(f"PyAV reads the files here; data.backend={cfg.data.backend}, for runs, may refuse some of them")
    if args.command == "scan":
        manifest = args.output or root / "manifest.jsonl"
        rows = scan([r.path for r in records], root, manifest, workers=args.workers, timeout_s=args.timeout or 60)
        wrong = [row for row in rows if row["reason"]]
        for row in wrong[:20]:
            log.warning(f"{row['path']}: {row['reason']}")
        bad = sum(not row["frames"] for row in rows)
        log.info(f"{len(rows)} files, {bad} bad, {len(wrong) - bad} damaged but used: {manifest} ({manifest}.bad.txt)")
        return
    if args.output is None:
        raise UserError("resize needs --output FOLDER; the source is never changed")
    encoding = Encoding(args.short_side, args.gop, args.codec, args.quality)
    failed = reencode(records, root, args.output, encoding, workers=args.workers, timeout_s=args.timeout or 600)
    for path, reason in failed[:20]:
        log.warning(f"{path}: {reason}")
    small = dataclasses.replace(cfg.data, root=str(args.output))
    if {record.uid for record in all_records(small)} != {record.uid for record in records}:
        raise UserError(f"the lists in {args.output} do not name what those in {root} do; compare them")
    if failed:
        raise UserError(
            f"{len(failed)} of {len(records)} files could not be re-encoded, first {failed[0][0]}; they are empty in "
            f"{args.output}, and bad there, too; the others are verified"
        )
    log.info(f"data.root={args.output} has every file, verified")


if __name__ == "__main__":
    cli.run(main)
