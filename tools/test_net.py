"""Measure a checkpoint: python tools/test_net.py --checkpoint outputs/demo [key=value ...]

The configuration is the checkpoint's own; --cfg PAGE lies over it (configs/eval_*.yaml), key=value over both.
"""

from pathlib import Path

from vidrobust import cli
from vidrobust.engine.log import log, start_logging
from vidrobust.evaluation import evaluate


def main() -> None:
    parser = cli.parser(__doc__)
    cli.add_checkpoint(parser)
    parser.add_argument("--output-dir", type=Path, help="default: eval/<eval.name> in the run's folder")
    parser.add_argument("--overwrite", action="store_true", help="replace another evaluation of that name")
    args = parser.parse_intermixed_args()
    cfg, state, folder = cli.load_checkpoint(args)
    if cli.print_config(args, cfg):
        return
    start_logging(None, quiet=not cli.is_main())
    out = args.output_dir or folder / "eval" / cfg.eval.name
    evaluate(cfg, state, out, overwrite=args.overwrite)
    log.info(f"report: {out / 'report.md'}")


if __name__ == "__main__":
    cli.run(main)
