"""Evaluate a checkpoint, or a model of another package.

    python tools/test_net.py --checkpoint outputs/demo [key=value ...]
    python tools/test_net.py --model torchvision:r2plus1d_18 --weights my.pth [key=value ...]

The configuration is that of the checkpoint, or of the model's input card. Options of --cfg FILE
(configs/eval_*.yaml) override it, and key=value overrides both.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean

from vidrobust import config
from vidrobust.cli import common
from vidrobust.cli.subject import asked_splits, check_protocol_options, subject_of
from vidrobust.data import build_records
from vidrobust.evaluation import check_baseline, require_baseline, rewrite_report
from vidrobust.evaluation.accuracy_limits import (
    accuracies,
    below,
    expected_names,
    parse_percents,
    require_names,
)
from vidrobust.evaluation.adversarial.cost_estimate import OnlyEstimated
from vidrobust.evaluation.representation.multi_label import is_multi_label
from vidrobust.evaluation.retrieval_protocol import NAME as RETRIEVAL
from vidrobust.evaluation.summary import Summary, read_summary
from vidrobust.protocols import Subject, report_folder, run_protocol, run_splits
from vidrobust.utils import distributed
from vidrobust.utils.errors import UndecodedVideos, UserError
from vidrobust.utils.logging import log, start_logging
from vidrobust.utils.stopping import EXIT_BELOW

_FAIL_UNDER = "--fail-under"


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
        "--estimate",
        action="store_true",
        help="measure the representation, print what the attacks will cost, and stop; without"
        " --estimate the same command continues",
    )
    parser.add_argument(
        "--baseline",
        type=Path,
        metavar="RUN",
        help="another evaluation of the same videos, shown in grey in report.html: its folder, or"
        " that of its run",
    )
    parser.add_argument(
        _FAIL_UNDER,
        action="append",
        default=[],
        metavar="THREAT=PERCENT[,...]",
        help=f"exit with status {EXIT_BELOW} if an accuracy is below: of a threat of eval.threats,"
        " of clean, or of mpc, such as linf-1/255=45,clean=80; may be repeated",
    )
    args = common.parsed(parser)
    start_logging(None, quiet=not common.is_main())
    splits = asked_splits(args)
    limits = parse_percents(
        [item for words in args.fail_under for item in words.split(",")], _FAIL_UNDER
    )
    cfg, subject = subject_of(args, splits[0] if splits else None, only_estimate=args.estimate)
    if common.print_config(args, cfg):
        return
    check_protocol_options(args, cfg)
    _check_flags(args, subject, splits)
    if args.estimate:
        _require_estimable(cfg)
    if not args.report_only:
        _require_measured(limits, cfg)
    try:
        folder, values, failure = _measured(args, cfg, subject, splits)
    except OnlyEstimated as estimate:
        if common.is_main():
            print(estimate)
        return
    log.info(f"report: {folder / 'report.md'}")
    _exit_below(values, limits)
    if failure:
        raise failure


def _measured(
    args: argparse.Namespace, cfg: config.Config, subject: Subject, splits: Sequence[int]
) -> tuple[Path, dict[str, float], UndecodedVideos | None]:
    """Do what the command line asks for.

    Args:
        args: of the command line.
        cfg: the configuration.
        subject: the model.
        splits: official splits that are measured one after the other; none: data.fold alone.

    Returns:
        (folder of the report, name -> accuracy, the mean over splits, why a finished evaluation is
        a failure all the same).
    """
    out = args.output_dir
    if splits:
        folder = out or _splits_folder(cfg, subject)
        found: list[dict[str, float]] = []
        run_splits(cfg, partial(_measure_split, args, found), folder)
        return folder, {key: fmean(each[key] for each in found) for key in found[0]}, None
    if args.baseline and args.report_only:
        require_baseline(args.baseline, cfg.eval.name)
    elif args.baseline:
        check_baseline(args.baseline, cfg)
    failure = None
    # from the results in the folder, without attacks
    if args.report_only:
        folder = report_folder(cfg, subject, out)
    else:
        folder = report_folder(cfg, subject, out)
        try:
            run_protocol(cfg, subject, out, overwrite=args.overwrite)
        except UndecodedVideos as error:
            # the numbers are there, and so are the report and the limits that were asked for
            failure = error
    if (args.report_only or args.baseline) and common.is_main():
        rewrite_report(folder, args.baseline, cfg.eval.card)
    return folder, accuracies(read_summary(folder / "summary.json")), failure


def _exit_below(values: Mapping[str, float], limits: Mapping[str, float]) -> None:
    """End the process with EXIT_BELOW if an accuracy is below its limit.

    Args:
        values: name -> accuracy.
        limits: name -> smallest accuracy that passes.

    Raises:
        UserError: for a limit of an accuracy that was not measured.
    """
    require_names(limits, values, _FAIL_UNDER)
    lines = below(values, limits)
    for line in lines:
        log.error(f"{_FAIL_UNDER}: {line}")
    if lines:
        sys.exit(EXIT_BELOW)


def _check_flags(args: argparse.Namespace, subject: Subject, splits: Sequence[int]) -> None:
    """Refuse --report-only, --baseline and --estimate where they have no meaning.

    Args:
        args: of the command line.
        subject: the model.
        splits: of protocol.splits.

    Raises:
        UserError: with the remedy.
    """
    if splits and args.report_only:
        raise UserError(
            "--report-only: writes one report; name it by eval.name and data.fold in place of"
            " protocol.splits"
        )
    if splits and args.baseline:
        raise UserError("--baseline: goes with one evaluation, not with protocol.splits")
    if args.estimate and (splits or args.report_only):
        raise UserError("--estimate: give it without --report-only and protocol.splits")
    if args.estimate and subject.finetuned:
        raise UserError("--estimate: this protocol trains first; estimate with the trained run")


def _require_estimable(cfg: config.Config) -> None:
    """Raise UserError where --estimate has no classifier whose attacks it can estimate."""
    if cfg.protocol.name == RETRIEVAL:
        raise UserError(
            "--estimate: protocol.name=retrieval attacks features, whose cost is not estimated;"
            " leave --estimate out"
        )
    if _has_several_labels(cfg):
        raise UserError(
            f"--estimate: data.name={cfg.data.name} has several labels per video, which are not"
            " attacked; leave --estimate out"
        )


def _require_measured(limits: Mapping[str, float], cfg: config.Config) -> None:
    """Raise UserError for limits of accuracies that the evaluation will not have."""
    require_names(limits, expected_names(cfg), _FAIL_UNDER)
    if limits and _has_several_labels(cfg):
        raise UserError(
            f"{_FAIL_UNDER} {', '.join(limits)}: data.name={cfg.data.name} has several labels per"
            " video, so that there is no accuracy; leave it out"
        )


def _has_several_labels(cfg: config.Config) -> bool:
    """Return whether the test videos have several labels each. Every rank calls it."""
    distributed.start(cfg.device)
    with distributed.main_first():
        test, _ = build_records(cfg.data, "test")
    return is_multi_label(test)


def _splits_folder(cfg: config.Config, subject: Subject) -> Path:
    """Return the default folder of the report of several splits."""
    return subject.folder / "eval" / f"{cfg.eval.name}_splits"


def _measure_split(
    args: argparse.Namespace, found: list[dict[str, float]], split: int
) -> tuple[Summary, Path]:
    """Apply the protocol to one split, whose number ends the name of its folder.

    Args:
        args: of the command line.
        found: gets the accuracies.
        split: number of the split.
    """
    cfg, subject = subject_of(args, split)
    log.info(f"split {split} of {cfg.data.name}")
    cfg = replace(cfg, eval=replace(cfg.eval, name=f"{cfg.eval.name}_split{split}"))
    out = args.output_dir / f"split{split}" if args.output_dir else None
    summary, folder = run_protocol(cfg, subject, out, overwrite=args.overwrite)
    found.append(accuracies(summary))
    return summary, folder
