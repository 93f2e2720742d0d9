"""Train, then evaluate.

    python tools/train_net.py --cfg configs/ucf101_csl_adv.yaml [key=value ...]
    python tools/train_net.py --replay outputs/demo [key=value ...]

The second command runs the step alone that ended a run because its loss or gradient was not finite.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from vidrobust import checkpoint, config
from vidrobust.cli import common
from vidrobust.evaluation import check_evaluation, evaluate
from vidrobust.evaluation.representation.protocols import PROTOCOLS
from vidrobust.methods import unmeasured, without_effect
from vidrobust.training import run_folder as run
from vidrobust.training.loop import train
from vidrobust.training.replay import replay
from vidrobust.utils import distributed
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log, start_logging
from vidrobust.utils.stopping import EXIT_FINITE


def main() -> None:
    """Train a model, and evaluate it if eval.enabled is set."""
    parser = common.parser(__doc__)
    parser.add_argument("--cfg", help="config file, see configs/; required except with --replay")
    parser.add_argument(
        "--output-dir", type=Path, help="default: outputs/<name of the config file>"
    )
    existing_run = parser.add_mutually_exclusive_group()
    existing_run.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="PATH",
        help=(
            "resume from PATH (a checkpoint or a run's folder), or from the last checkpoint of the"
            " output directory, if there is one"
        ),
    )
    existing_run.add_argument(
        "--overwrite", action="store_true", help="delete an earlier run in the output directory"
    )
    existing_run.add_argument(
        "--replay",
        type=Path,
        metavar="FILE",
        help=(
            "run the step alone that follows a checkpoint, or that ended the run of a folder, and"
            " name the first module whose output is not finite; write nothing; exit with status"
            f" {EXIT_FINITE} if the step is finite"
        ),
    )
    args = parser.parse_intermixed_args()
    # argparse reads the override in `--resume key=value` as PATH
    if args.resume and "=" in args.resume and not Path(args.resume).exists():
        args.overrides.append(args.resume)
        args.resume = ""
    if args.replay is not None:
        _replay(args)
        return
    if args.cfg is None:
        parser.error("the following arguments are required: --cfg")
    cfg = config.load(args.cfg, args.overrides)
    if common.print_config(args, cfg):
        return
    if PROTOCOLS[cfg.protocol.name].trains:
        raise UserError(
            f"protocol.name={cfg.protocol.name}: begins with a trained model; use"
            " tools/test_net.py --checkpoint RUN"
        )
    start_logging(None, quiet=not common.is_main())
    # Warn about options without effect, but only about those of the command line: config files
    # share options that some methods do not use.
    overridden = {word.split("=")[0] for word in args.overrides}
    unused = [key for key in without_effect(cfg) if key in overridden]
    if unused:
        log.warning(
            f"no effect with method.name={cfg.method.name} as it is configured: {', '.join(unused)}"
        )
    if warning := unmeasured(cfg):
        log.warning(warning)
    out = args.output_dir or Path("outputs") / Path(args.cfg).stem
    distributed.start(cfg.device)
    _continue_after_restart(args, out)
    with distributed.together():
        resume, in_own_folder = common.find_resume(args.resume, out)
    # together: if rank 0 refuses, the other ranks stop too instead of waiting for it
    with distributed.together():
        if common.is_main():
            run.check_output(out, resume=in_own_folder, overwrite=args.overwrite, cfg=cfg)
            if cfg.eval.enabled:
                check_evaluation(cfg)
    last = train(cfg, out, resume, overwrite=args.overwrite)
    if cfg.eval.enabled:
        state = checkpoint.read_checkpoint(last)
        # model.weights may have set options of the model
        cfg = replace(cfg, model=checkpoint.configuration(state, str(last)).model)
        evaluate(cfg, state, out / "eval" / cfg.eval.name, overwrite=True)
        log.info(f"report: {out / 'eval' / cfg.eval.name / 'report.md'}")


def _continue_after_restart(args: argparse.Namespace, out: Path) -> None:
    """Let a run resume if torchrun has restarted its ranks (--max-restarts).

    Args:
        args: of the command line, which are changed if an earlier try began the folder.
        out: output folder.
    """
    # rank 0 decides, which writes the folder
    states = {}
    if distributed.rank() == 0 and run.is_of_this_launch(out):
        states[0] = "saved" if checkpoint.newest_sound(out / "checkpoints") else "begun"
    state = distributed.merged(states).get(0)
    if state == "saved":
        args.resume = ""
        args.overwrite = False
    elif state == "begun" and args.resume != "":
        args.overwrite = True
    if state:
        what = "continues from its last" if state == "saved" else "begins again: it has no"
        log.warning(f"restarted by torchrun: {out} {what} checkpoint")


def _replay(args: argparse.Namespace) -> None:
    """Run the step that ended a run, print a report, and exit with EXIT_FINITE if it is finite.

    Args:
        args: of the command line; options of --cfg and overrides replace those of the run.

    Raises:
        UserError: for a file that is not a checkpoint, a folder without a run, and --output-dir.
    """
    if args.output_dir is not None:
        raise UserError(f"--output-dir {args.output_dir}: --replay writes nothing; leave it out")
    start_logging(None, quiet=not common.is_main())
    folder = common.run_folder(args.replay)
    path, text = _state_before(args.replay)
    cfg = config.loads(text, args.overrides, f"{path or folder} and command line", args.cfg)
    if common.print_config(args, cfg):
        return
    replayed = replay(cfg, folder, path)
    if common.is_main():
        print(replayed.report)
    if replayed.finite:
        sys.exit(EXIT_FINITE)


def _state_before(path: Path) -> tuple[Path | None, str]:
    """Return the checkpoint of a replay, and the configuration of its run as YAML.

    Args:
        path: a checkpoint, or a run's folder: its newest checkpoint. A run that ended in its first
            step has none, and its step begins with the initial weights.

    Raises:
        UserError: for anything else.
    """
    if path.is_dir():
        sound = checkpoint.newest_sound(path / "checkpoints")
        if sound is not None:
            return sound[0], sound[1]["config"]
        config_file = path / "config.yaml"
        if not config_file.is_file():
            raise UserError(f"--replay {path}: the folder holds no run; name a checkpoint")
        return None, config_file.read_text(encoding="utf-8", errors="surrogateescape")
    return path, checkpoint.read_checkpoint(path)["config"]
