"""Evaluate a checkpoint, or a model of another package.

    python tools/test_net.py --checkpoint outputs/demo [key=value ...]
    python tools/test_net.py --model torchvision:r2plus1d_18 --weights my.pth [key=value ...]

The configuration is that of the checkpoint, or of the model's input card. Options of --cfg FILE
(configs/eval_*.yaml) override it, and key=value overrides both.
"""

from pathlib import Path

from vidrobust.cli import common
from vidrobust.evaluation import evaluate, evaluate_source, rewrite_report
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
    args = common.parsed(parser)
    start_logging(None, quiet=not common.is_main())
    state = None
    if args.model:
        cfg, folder = common.model_config(args)
    else:
        cfg, state, folder = common.load_checkpoint(args)
    if common.print_config(args, cfg):
        return
    out = args.output_dir or folder / "eval" / cfg.eval.name
    # from the results in the folder, without attacks
    if args.report_only:
        rewrite_report(out)
        log.info(f"report: {out / 'report.md'}")
        return
    if state is None:
        evaluate_source(cfg, args.model, args.weights, out, overwrite=args.overwrite)
    else:
        evaluate(cfg, state, out, overwrite=args.overwrite)
    log.info(f"report: {out / 'report.md'}")
