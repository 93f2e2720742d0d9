"""Run a study.

    python tools/study.py --cfg configs/study_susceptibility.yaml --data cifar10=/path/to/cifar10

Trains and evaluates every arm on every data set with every seed, one after the other. After each
run it writes study.html, study.md, study.json and figures from all finished runs of the config
file; --csv and --latex add study.csv and study.tex. Finished runs are not repeated, and a run that
was killed is resumed. --dry-run lists the runs; if there is only one, it also prints its
configuration.
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from vidrobust.cli import common
from vidrobust.methods import require_branch
from vidrobust.study import (
    Arm,
    Study,
    finished,
    plan,
    read_study,
    report_name,
    require_same,
    run_arm,
    write_study,
)
from vidrobust.study.plan import chosen
from vidrobust.study.run import is_finished
from vidrobust.utils import distributed
from vidrobust.utils.atomic_files import replacing
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log, start_logging


def main() -> None:
    """Run a study, or list its runs."""
    args = arguments()
    whole = read_study(args.cfg)
    part = chosen(whole, args.datasets, args.arms, args.seeds)
    out = args.output_dir or Path("outputs") / Path(args.cfg).stem
    roots = dict(word.split("=", 1) for word in args.data)
    # --seeds may name seeds that the config file does not
    seeds = list(dict.fromkeys([*whole.seeds, *part.seeds]))
    all_runs = plan(dataclasses.replace(whole, seeds=seeds), out, args.overrides, roots)
    runs = [run for run in all_runs if _is_in(part, run)]
    # Before anything is trained: options must be valid, and the same as those of earlier runs.
    for run in all_runs:
        common.check_names(run.cfg)
        require_branch(run.cfg)
        require_same(run)
    if not runs:
        raise UserError(f"nothing to run: {args.cfg} skips these arms of these data sets")
    _require_teachers(runs)
    if args.dry_run:
        for run in runs:
            state = ", finished" if finished([run]) else ""
            print(f"# {run.dataset}, {run.name}, seed {run.seed}: {run.folder}{state}")
        if len(runs) == 1:
            common.print_config(args, runs[0].cfg)
        return
    start_logging(None, quiet=not common.is_main())
    distributed.start(runs[0].cfg.device)
    _write_plan(all_runs, out)
    failed = []
    unwritten = ""
    extra = [ending for ending, is_wanted in (("csv", args.csv), ("tex", args.latex)) if is_wanted]
    # runs that were finished before change no report
    unfinished = [run for run in runs if not is_finished(run)]
    for run in runs:
        # an arm that fails does not stop the others
        if problem := _run_one(run, roots):
            failed.append(problem)
            log.error(problem)
        if run in unfinished or run is runs[-1]:
            unwritten = _write_report(whole, all_runs, out, args.overrides, extra)
            if unwritten:
                log.warning(unwritten)
    if failed:
        raise UserError(f"{len(failed)} of {len(runs)} runs failed; the first: {failed[0]}")
    if unwritten:
        raise UserError(unwritten)
    name = report_name(whole, args.overrides)
    log.info(f"report: {out / name}.html and {name}.md")


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = common.parser(__doc__)
    parser.add_argument(
        "--cfg", required=True, help="config file of the study, see configs/study_*.yaml"
    )
    parser.add_argument(
        "--output-dir", type=Path, help="default: outputs/<name of the config file>"
    )
    parser.add_argument(
        "--data", action="append", default=[], metavar="NAME=FOLDER", help="folder of a data set"
    )
    for name in ("datasets", "arms", "seeds"):
        parser.add_argument(
            f"--{name}",
            default="",
            metavar="A,B",
            help=f"run only these {name}; default: all in the config file",
        )
    parser.add_argument(
        "--csv", action="store_true", help="also write study.csv, a row per arm and measure"
    )
    parser.add_argument(
        "--latex",
        action="store_true",
        help="also write study.tex, tables for booktabs and graphicx",
    )
    args = parser.parse_intermixed_args()
    if any("=" not in word for word in args.data):
        raise UserError(f"--data {' '.join(args.data)}: write NAME=FOLDER")
    return args


def _write_plan(runs: Sequence[Arm], out: Path) -> None:
    """Write which runs the study has, so that `vidrobust status` shows how far it is.

    Args:
        runs: all runs of the study.
        out: folder of the study.
    """
    with distributed.together():
        if common.is_main():
            folders = [str(run.folder.relative_to(out)) for run in runs]
            with replacing(out / "plan.json") as file:
                file.write((json.dumps({"runs": folders}, indent=2) + "\n").encode())


def _is_in(part: Study, run: Arm) -> bool:
    """Return whether a run belongs to the selected part of a study."""
    return run.dataset in part.datasets and run.name in part.arms and run.seed in part.seeds


def _require_teachers(runs: Sequence[Arm]) -> None:
    """Raise UserError for a run whose teacher is neither selected nor trained."""
    selected = {run.folder for run in runs}
    for run in runs:
        if (run.folder / "backbone.pt").is_file():
            continue  # already trained, so it needs no teacher
        for folder in run.needs:
            if folder not in selected and not (folder / "checkpoints").is_dir():
                teacher = folder.parent.name
                raise UserError(
                    f"{run.name} needs the run of {teacher} with the same seed, which does not"
                    f" exist: select both, --arms {teacher},{run.name}"
                )


def _run_one(run: Arm, roots: dict[str, str]) -> str:
    """Train and evaluate one run; return why it failed, or "".

    Args:
        run: the run.
        roots: data set -> folder that --data gives.
    """
    try:
        run_arm(run)
    except UserError as error:
        is_missing = run.dataset not in roots and run.cfg.data.root in str(error)
        hint = f" (set its folder with --data {run.dataset}=FOLDER)" if is_missing else ""
        return f"{run.dataset}, {run.name}, seed {run.seed}: {error}{hint}"
    return ""


def _write_report(
    study: Study, runs: list[Arm], out: Path, overrides: Sequence[str], extra: Sequence[str]
) -> str:
    """Write the report of all finished runs; return why it could not be written, or "".

    Args:
        study: the whole study.
        runs: all its runs.
        out: folder of the study.
        overrides: options of the command line.
        extra: endings of the files that are written too.
    """
    try:
        with distributed.together():
            if common.is_main() and (done := finished(runs)):
                write_study(study, done, out, len(runs) - len(done), overrides, extra)
    except (UserError, OSError) as error:
        # the results are safe in the runs' folders, and the next run writes the report again
        return f"the report of {out} could not be written: {error}"
    return ""
