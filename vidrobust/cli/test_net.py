"""Evaluate a checkpoint, or a model of another package.

    python tools/test_net.py --checkpoint outputs/demo [key=value ...]
    python tools/test_net.py --model torchvision:r2plus1d_18 --weights my.pth [key=value ...]

The configuration is that of the checkpoint, or of the model's input card. Options of --cfg FILE
(configs/eval_*.yaml) override it, and key=value overrides both.
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

from vidrobust import config
from vidrobust.cli import common
from vidrobust.cli.subject import asked_splits, check_protocol_options, subject_of
from vidrobust.evaluation import require_baseline, rewrite_report
from vidrobust.evaluation.summary import Summary
from vidrobust.protocols import Subject, report_folder, run_protocol, run_splits
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log, start_logging


def main() -> None:
    """Evaluate a checkpoint, or write the report of an evaluation again."""
    parser = common.parser(__doc__)
    common.add_checkpoint(parser, model=True)
    parser.add_argument(
        "--output-dir", type=Path, help="default: eval/<eval.name> in the run's folder"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace another evaluation of the same name"
    )
    parser.add_argument(
        "--report-only",
        action="store_true",
        help="only write the report of a finished evaluation again",
    )
    parser.add_argument(
        "--baseline",
        type=Path,
        metavar="RUN",
        help="another evaluation of the same videos, shown in grey in report.html: its folder, or"
        " that of its run",
    )
    args = common.parsed(parser)
    start_logging(None, quiet=not common.is_main())
    splits = asked_splits(args)
    cfg, subject = subject_of(args, splits[0] if splits else None)
    if common.print_config(args, cfg):
        return
    check_protocol_options(args, cfg)
    out = args.output_dir
    if splits and args.report_only:
        raise UserError(
            "--report-only: writes one report; name it by eval.name and data.fold in place of"
            " protocol.splits"
        )
    if splits and args.baseline:
        raise UserError("--baseline: goes with one evaluation, not with protocol.splits")
    if splits:
        folder = out or _splits_folder(cfg, subject)
        run_splits(cfg, partial(_measure_split, args), folder)
        log.info(f"report: {folder / 'report.md'}")
        return
    if args.baseline:
        require_baseline(args.baseline, cfg.eval.name)
    # from the results in the folder, without attacks
    if args.report_only:
        folder = report_folder(cfg, subject, out)
    else:
        _, folder = run_protocol(cfg, subject, out, overwrite=args.overwrite)
    if (args.report_only or args.baseline) and common.is_main():
        rewrite_report(folder, args.baseline)
    log.info(f"report: {folder / 'report.md'}")


def _splits_folder(cfg: config.Config, subject: Subject) -> Path:
    """Return the default folder of the report of several splits."""
    return subject.folder / "eval" / f"{cfg.eval.name}_splits"


def _measure_split(args: argparse.Namespace, split: int) -> tuple[Summary, Path]:
    """Apply the protocol to one split, whose number ends the name of its folder.

    Args:
        args: of the command line.
        split: number of the split.
    """
    cfg, subject = subject_of(args, split)
    log.info(f"split {split} of {cfg.data.name}")
    cfg = replace(cfg, eval=replace(cfg.eval, name=f"{cfg.eval.name}_split{split}"))
    out = args.output_dir / f"split{split}" if args.output_dir else None
    return run_protocol(cfg, subject, out, overwrite=args.overwrite)
