"""Train, then measure.

python tools/train_net.py --cfg configs/ucf101_csl_adv.yaml [key=value ...]
"""

from pathlib import Path

from vidrobust import checkpoint, config
from vidrobust.cli import common
from vidrobust.evaluation import check_evaluation, evaluate
from vidrobust.methods import unmeasured, without_effect
from vidrobust.training import run_folder as run
from vidrobust.training.loop import train
from vidrobust.utils import distributed
from vidrobust.utils.logging import log, start_logging


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--cfg", required=True, help="YAML page, see configs/")
    parser.add_argument("--output-dir", type=Path, help="default: outputs/<name of the page>")
    again = parser.add_mutually_exclusive_group()
    again.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="PATH",
        help=(
            "go on from PATH (a checkpoint or a run's folder), or from the output directory's last"
            " checkpoint, if any"
        ),
    )
    again.add_argument(
        "--overwrite", action="store_true", help="delete what the output directory holds"
    )
    args = parser.parse_intermixed_args()
    if args.resume and "=" in args.resume and not Path(args.resume).exists():
        args.overrides.append(args.resume)  # `--resume key=value`: the word is an override
        args.resume = ""
    cfg = config.load(args.cfg, args.overrides)
    if common.print_config(args, cfg):
        return
    start_logging(None, quiet=not common.is_main())
    asked = {word.split("=")[0] for word in args.overrides}
    idle = [key for key in without_effect(cfg) if key in asked]  # what pages share is not told
    if idle:
        log.warning(
            f"no effect with method.name={cfg.method.name} as it is configured: {', '.join(idle)}"
        )
    if told := unmeasured(cfg):
        log.warning(told)
    out = args.output_dir or Path("outputs") / Path(args.cfg).stem
    distributed.start(cfg.device)
    with distributed.together():
        resume, inside = common.find_resume(args.resume, out)
    with distributed.together():  # the others meet what rank 0 refuses, instead of waiting for it
        if common.is_main():
            run.check_output(out, resume=inside, overwrite=args.overwrite, cfg=cfg)
            if cfg.eval.enabled:
                check_evaluation(cfg)
    last = train(cfg, out, resume, overwrite=args.overwrite)
    if cfg.eval.enabled:
        evaluate(
            cfg, checkpoint.read_checkpoint(last), out / "eval" / cfg.eval.name, overwrite=True
        )
        log.info(f"report: {out / 'eval' / cfg.eval.name / 'report.md'}")
