"""Measure a checkpoint: python tools/test_net.py --checkpoint outputs/demo [key=value ...]

The configuration is the checkpoint's own; --cfg PAGE lies over it (configs/eval_*.yaml), key=value over both.
"""

import sys
from pathlib import Path

# this clone's package, whatever is installed
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vidrobust.stopping import exit_on_stop_signals

if __name__ == "__main__":
    exit_on_stop_signals()  # what follows takes seconds to import

from vidrobust import cli
from vidrobust.engine.log import log, start_logging
from vidrobust.evaluation import evaluate, rewrite_report


def main() -> None:
    parser = cli.parser(__doc__)
    cli.add_checkpoint(parser)
    parser.add_argument("--output-dir", type=Path, help="default: eval/<eval.name> in the run's folder")
    parser.add_argument("--overwrite", action="store_true", help="replace another evaluation of that name")
    parser.add_argument(
        "--report-only", action="store_true", help="write the report of a finished evaluation again"
    )
    args = parser.parse_intermixed_args()
    start_logging(None, quiet=not cli.is_main())
    cfg, state, folder = cli.load_checkpoint(args)
    if cli.print_config(args, cfg):
        return
    out = args.output_dir or folder / "eval" / cfg.eval.name
    if args.report_only:
        rewrite_report(out)
        log.info(f"report: {out / 'report.md'}")
        return
    evaluate(cfg, state, out, overwrite=args.overwrite)
    log.info(f"report: {out / 'report.md'}")


if __name__ == "__main__":
    cli.run(main)
