"""Run a study.

    python tools/study.py --cfg configs/study_susceptibility.yaml --data cifar10=/path/to/cifar10

Trains and evaluates every arm on every data set with every seed, one after the other or --jobs at
the same time, here or as jobs of Slurm (--executor slurm). After each run it writes study.html,
study.md, study.json and figures from all finished runs of the config file; --csv and --latex add
study.csv and study.tex. Finished runs are not repeated, and a run that was killed is resumed.
--dry-run lists the runs; if there is only one, it also prints its configuration.
"""

import argparse
import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

from vidrobust.cli import cluster_jobs, common
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
from vidrobust.study.run import evaluations_of, is_finished, validated
from vidrobust.study.run_records import read_records, write_records
from vidrobust.study.side_by_side import run_side_by_side
from vidrobust.study.tuned_runs import Progress, progress, tuning_lines, write_tuning
from vidrobust.study.tuning import read_choices
from vidrobust.study.verdicts import verdict_lines, verdicts
from vidrobust.utils import distributed
from vidrobust.utils.atomic_files import replacing
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log, start_logging


def main() -> None:
    """Run a study, or list its runs."""
    args = arguments()
    if args.tune:
        _tune(args)
        return
    study, all_runs = _planned(args)
    if args.job:
        _run_as_job(args, all_runs)
        return
    part = chosen(study, args.datasets, args.arms, args.seeds)
    runs = [run for run in all_runs if _is_in(part, run)]
    if not runs:
        raise UserError(f"nothing to run: {args.cfg} skips these arms of these data sets")
    if args.verdicts:
        _print_only(args, study, runs, all_runs)
        return
    if not args.report_only:
        _require_teachers(runs)
    if args.dry_run:
        _print_only(args, study, runs, all_runs)
        return
    _require_choices(args, study, runs)
    start_logging(None, quiet=not common.is_main())
    report = _Report(study, all_runs, args)
    # runs that were finished before change no report
    unfinished = [run for run in runs if not is_finished(run)]
    if args.report_only:
        failed = []
    elif args.executor == cluster_jobs.SLURM:
        _submit(args, unfinished, all_runs)
        return
    elif args.jobs > 1:
        _write_plan(all_runs, args.output_dir)
        failed = run_side_by_side(
            unfinished,
            args.jobs,
            lambda run: _words_of(args, run),
            args.output_dir / cluster_jobs.JOBS,
            report.write,
        )
    else:
        failed = _run_in_turn(args, runs, all_runs, report)
    if not report.is_written:
        report.write()
    if failed:
        raise UserError(f"{len(failed)} of {len(runs)} runs failed; the first: {failed[0]}")
    report.require_written()


def _print_only(
    args: argparse.Namespace, study: Study, runs: Sequence[Arm], all_runs: Sequence[Arm]
) -> None:
    """Print the verdicts on the study's claims, or the list of its runs.

    Args:
        args: of the command line.
        study: the study.
        runs: the selected runs, which are listed.
        all_runs: all runs, of which those that are finished decide.

    Raises:
        UserError: for verdicts of a study without claims.
    """
    if args.verdicts:
        if not study.claims:
            raise UserError(f"--verdicts: {args.cfg} has no claims; add them under `claims`")
        print("\n".join(verdict_lines(verdicts(study, finished(all_runs)))))
        return
    for run in runs:
        state = ", finished" if is_finished(run) else ""
        print(f"# {run.dataset}, {run.name}, seed {run.seed}: {run.folder}{state}")
    if len(runs) == 1:
        common.print_config(args, runs[0].cfg)


def _planned(args: argparse.Namespace) -> tuple[Study, list[Arm]]:
    """Return a study and all its runs, also those of seeds that only --seeds names.

    Raises:
        UserError: for options that a run refuses, or that differ from those of an earlier run.
    """
    study = read_study(args.cfg)
    _read_records(args)
    part = chosen(study, args.datasets, args.arms, args.seeds)
    seeds = list(dict.fromkeys([*study.seeds, *part.seeds]))
    whole = dataclasses.replace(study, seeds=seeds)
    all_runs = plan(whole, args.output_dir, args.overrides, args.roots)
    for run in all_runs:
        for cfg in (run.cfg, *run.further):
            common.check_names(cfg)
            require_branch(cfg)
        require_same(run)
    return study, all_runs


def _run_in_turn(
    args: argparse.Namespace, runs: Sequence[Arm], all_runs: Sequence[Arm], report: "_Report"
) -> list[str]:
    """Do runs one after the other in this process; return why some failed.

    Args:
        args: of the command line.
        runs: the runs.
        all_runs: all runs of the study.
        report: written after each run.
    """
    distributed.start(runs[0].cfg.device)
    _write_plan(all_runs, args.output_dir)
    failed = []
    for run in runs:
        was_finished = is_finished(run)
        # an arm that fails does not stop the others
        if problem := _run_one(run, args.roots):
            failed.append(problem)
            log.error(problem)
        if not was_finished:
            report.write()
    return failed


# --- Tuning ---


def _tune(args: argparse.Namespace) -> None:
    """Choose the options under `tune` of a study, and write tuning.json.

    Raises:
        UserError: for a study without `tune`, and where runs fail.
    """
    study = read_study(args.cfg)
    if study.tune is None:
        raise UserError(f"--tune: {args.cfg} has nothing to choose; say what under `tune`")
    _read_records(args)
    part = chosen(study, args.datasets, args.arms, args.seeds)
    study = dataclasses.replace(study, datasets=part.datasets)
    start_logging(None, quiet=not common.is_main())
    failed: dict[Path, str] = {}

    def state() -> Progress:
        out = args.output_dir
        return progress(study, out, args.overrides, args.roots, validated, failed, part.arms)

    now = state()
    if args.job:
        # runs that failed for the command that started this one look unfinished here
        while args.job not in [_place(args, run) for run in now.waiting] and now.waiting:
            failed |= {run.folder: "" for run in now.waiting}
            now = state()
        _do_job(args, [run for run in now.waiting if _place(args, run) == args.job])
        return
    if args.dry_run:
        for run in now.waiting:
            print(f"# {run.label}: {run.folder}")
        return
    while now.waiting:
        for run in now.waiting:
            common.check_names(run.cfg)
            require_same(run)
        logs = args.output_dir / cluster_jobs.JOBS
        words = lambda run: [*_words(args), "--tune", "--job", _place(args, run)]  # noqa: E731
        problems = run_side_by_side(now.waiting, args.jobs, words, logs, lambda: _record(args))
        # those that did not finish have failed; another try is another command
        failed |= {run.folder: "" for run in now.waiting if not is_finished(run)}
        if problems:
            log.warning(f"{len(problems)} runs failed, and their values are not chosen")
        now = state()
    write_tuning(args.output_dir, now)
    _record(args)
    for dataset, arms in now.ends.items():
        for arm, options in arms.items():
            log.warning(
                f"{dataset}, {arm}: {', '.join(options)}: the best value is the smallest or the"
                " largest; a better one may lie beyond, add values"
            )
    print("\n".join(tuning_lines(args.output_dir)))


def _read_records(args: argparse.Namespace) -> None:
    """Put what the file of --records holds into the study's folder.

    Under torchrun each rank does so, as none may plan before: they write the same.
    """
    if args.records is not None and args.records.is_file() and not args.dry_run:
        read_records(args.records, args.output_dir)


def _record(args: argparse.Namespace) -> None:
    """Write what is measured to the file of --records; if that fails, log why."""
    if args.records is None:
        return
    try:
        write_records(args.records, args.output_dir)
    except (UserError, OSError) as error:
        # the results are safe in the runs' folders, and the next run writes the file again
        log.warning(f"{args.records} could not be written: {error}")


def _require_choices(args: argparse.Namespace, study: Study, runs: Sequence[Arm]) -> None:
    """Raise UserError for runs whose options are still to be chosen.

    Args:
        args: of the command line.
        study: the study.
        runs: the selected runs.
    """
    if study.tune is None or args.report_only:
        return
    choices = read_choices(args.output_dir) or {}
    arms = dict.fromkeys(
        run.name
        for run in runs
        if run.name in study.tune.grid and run.name not in choices.get(run.dataset, {})
    )
    if arms:
        raise UserError(
            f"{args.cfg}: options of {', '.join(arms)} are chosen on held-out videos first; run the"
            " same command with --tune"
        )


def _place(args: argparse.Namespace, run: Arm) -> str:
    """Return the folder of a run in that of its study."""
    return str(run.folder.relative_to(args.output_dir))


# --- Jobs ---


def _words_of(args: argparse.Namespace, run: Arm) -> list[str]:
    """Return the `vidrobust` command and arguments that do one run of the study."""
    return [*_words(args), "--job", _place(args, run)]


def _words(args: argparse.Namespace) -> list[str]:
    """Return the `vidrobust` command and arguments that read the same study."""
    words = ["study", "--cfg", args.cfg, "--output-dir", str(args.output_dir)]
    words += [f"--data={word}" for word in args.data]
    words += [f"--seeds={args.seeds}"] if args.seeds else []
    return [*words, *args.overrides]


def _report_words(args: argparse.Namespace) -> list[str]:
    """Return the `vidrobust` command and arguments that write the report of the study."""
    extra = [f"--{name}" for name in ("csv", "latex") if getattr(args, name)]
    extra += [f"--records={args.records}"] if args.records else []
    return [*_words(args), "--report-only", *extra]


def _run_as_job(args: argparse.Namespace, all_runs: Sequence[Arm]) -> None:
    """Do one run for a study that runs several side by side.

    Args:
        args: of the command line; `job` is the folder of the run in that of the study.
        all_runs: all runs of the study.

    Raises:
        UserError: if the run fails, and for a folder of no run.
    """
    _do_job(args, [run for run in all_runs if _place(args, run) == args.job])


def _do_job(args: argparse.Namespace, runs: Sequence[Arm]) -> None:
    """Do the run of `--job`.

    Args:
        args: of the command line.
        runs: the run.

    Raises:
        UserError: if the run fails, and without a run.
    """
    if not runs:
        raise UserError(f"--job {args.job}: no run of {args.cfg}")
    start_logging(None, quiet=not common.is_main())
    _require_teachers(runs)
    distributed.start(runs[0].cfg.device)
    try:
        run_arm(runs[0])
    except UserError as error:
        raise UserError(f"{error}{_data_hint(runs[0], args.roots, error)}") from None


def _submit(args: argparse.Namespace, runs: Sequence[Arm], all_runs: Sequence[Arm]) -> None:
    """Submit runs to Slurm as arrays of jobs, and a job that writes the report after them.

    Runs that start from others are in a later array, which waits for the earlier one.

    Args:
        args: of the command line.
        runs: the runs that are not finished.
        all_runs: all runs of the study.

    Raises:
        UserError: without Slurm, after printing the script and the commands.
    """
    folder = cluster_jobs.job_folder(args.output_dir)
    name = f"vidrobust {args.output_dir.name}"
    if not cluster_jobs.has_slurm():
        commands = [_words_of(args, run) for run in runs] or [_report_words(args)]
        print(cluster_jobs.script(args, name, folder, *commands), flush=True)
    cluster_jobs.require_slurm(args)
    _write_plan(all_runs, args.output_dir)
    after: dict[str, str] = {}
    for wave in _waves(runs):
        executor = cluster_jobs.executor(args, name, folder, array_parallelism=args.jobs, **after)
        arms = [cluster_jobs.SubmittedCommand(tuple(_words_of(args, run))) for run in wave]
        with cluster_jobs.refusals():
            jobs = executor.submit_array(arms)
        for run, job in zip(wave, jobs, strict=True):
            log.info(f"{run.label}: job {job.job_id}; logs: {folder}/{job.job_id}_*")
        # also after failures: the report has what there is
        after = {"dependency": f"afterany:{jobs[0].job_id.split('_')[0]}"}
    one_core = {"nodes": 1, "ntasks_per_node": 1, "gpus_per_node": None, **after}
    executor = cluster_jobs.executor(args, f"{name} report", folder, **one_core)
    command = cluster_jobs.SubmittedCommand(tuple(_report_words(args)))
    with cluster_jobs.refusals():
        job = executor.submit(command)
    log.info(f"report: job {job.job_id}, after all runs; the same command submits what is missing")


def _waves(runs: Sequence[Arm]) -> list[list[Arm]]:
    """Return runs in groups, each of which needs earlier groups only."""
    waves: list[list[Arm]] = []
    left = list(runs)
    while left:
        folders = {run.folder for run in left}
        ready = [run for run in left if not folders & set(run.needs)]
        # runs that need each other report it themselves
        waves.append(ready or left)
        left = [run for run in left if run not in waves[-1]]
    return waves


# --- Arguments ---


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
        "--jobs", type=int, default=1, metavar="N", help="runs at the same time (1)"
    )
    cluster_jobs.add_options(parser, default=cluster_jobs.LOCAL)
    # one run, by its folder in that of the study: what --jobs and --executor slurm start
    parser.add_argument("--job", default="", help=argparse.SUPPRESS)
    parser.add_argument(
        "--report-only", action="store_true", help="only write the report of finished runs"
    )
    parser.add_argument(
        "--tune",
        action="store_true",
        help="choose the options that the config file lists under `tune`, before all other runs",
    )
    parser.add_argument(
        "--verdicts",
        action="store_true",
        help="only print whether the finished runs bear out the study's claims",
    )
    parser.add_argument(
        "--records",
        type=Path,
        metavar="FILE",
        help="file of what finished runs have measured, without weights: those it has are not"
        " repeated, and new ones are added to it",
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
    args.roots = dict(word.split("=", 1) for word in args.data)
    args.output_dir = args.output_dir or Path("outputs") / Path(args.cfg).stem
    if args.jobs < 1:
        raise UserError(f"--jobs {args.jobs}: must be at least 1")
    if args.executor == cluster_jobs.LOCAL:
        cluster_jobs.refuse_options(args)
    elif not args.job:
        cluster_jobs.check_options(args)
    if "RANK" in os.environ and (args.jobs > 1 or args.executor == cluster_jobs.SLURM):
        raise UserError(
            "--jobs and --executor: start this command without torchrun; --ranks and --gpus give"
            " each job several ranks on Slurm"
        )
    return args


def _write_plan(runs: Sequence[Arm], out: Path) -> None:
    """Write which runs the study has, so that `vidrobust status` shows how far it is.

    Args:
        runs: all runs of the study.
        out: folder of the study.
    """
    with distributed.together():
        if common.is_main():
            evaluations = {
                str(run.folder.relative_to(out)): [cfg.eval.name for cfg in evaluations_of(run)]
                for run in runs
            }
            content = {"runs": list(evaluations), "evaluations": evaluations}
            with replacing(out / "plan.json") as file:
                file.write((json.dumps(content, indent=2) + "\n").encode())


def _is_in(part: Study, run: Arm) -> bool:
    """Return whether a run belongs to the selected part of a study."""
    return run.dataset in part.datasets and run.name in part.arms and run.seed in part.seeds


def _require_teachers(runs: Sequence[Arm]) -> None:
    """Raise UserError for a run whose teacher is neither selected nor trained."""
    selected = {run.folder for run in runs}
    for run in runs:
        if (run.folder / "backbone.pt").is_file() or is_finished(run):
            continue  # already trained, so it needs no teacher
        for folder in run.needs:
            # one that came from records has no weights, which fails its students alone
            is_there = (folder / "checkpoints").is_dir() or _is_measured(folder)
            if folder not in selected and not is_there:
                teacher = folder.parent.name
                raise UserError(
                    f"{run.name} needs the run of {teacher} with the same seed, which does not"
                    f" exist: select both, --arms {teacher},{run.name}"
                )


def _is_measured(folder: Path) -> bool:
    """Return whether the folder of a run holds an evaluation."""
    return any(folder.glob("eval/*/summary.json"))


def _run_one(run: Arm, roots: dict[str, str]) -> str:
    """Train and evaluate one run; return why it failed, or "".

    Args:
        run: the run.
        roots: data set -> folder that --data gives.
    """
    try:
        run_arm(run)
    except UserError as error:
        return f"{run.label}: {error}{_data_hint(run, roots, error)}"
    return ""


def _data_hint(run: Arm, roots: dict[str, str], error: UserError) -> str:
    """Return how to set the folder of a data set, if it is what an error is about; else ""."""
    is_missing = run.dataset not in roots and run.cfg.data.root in str(error)
    return f" (set its folder with --data {run.dataset}=FOLDER)" if is_missing else ""


class _Report:
    """The report of all finished runs of a study.

    Args:
        study: the study of the config file.
        runs: all its runs.
        args: of the command line.
    """

    def __init__(self, study: Study, runs: list[Arm], args: argparse.Namespace) -> None:
        self.is_written = False
        self._study = study
        self._runs = runs
        self._args = args
        self._problem = ""
        endings = (("csv", args.csv), ("tex", args.latex))
        self._extra = [ending for ending, is_wanted in endings if is_wanted]

    def write(self) -> None:
        """Write it; if that fails, log why."""
        out = self._args.output_dir
        self._problem = ""
        self.is_written = True
        try:
            with distributed.together():
                if common.is_main() and (done := finished(self._runs)):
                    _record(self._args)
                    missing = len(self._runs) - len(done)
                    write_study(self._study, done, out, missing, self._args.overrides, self._extra)
        except (UserError, OSError) as error:
            # the results are safe in the runs' folders, and the next run writes the report again
            self._problem = f"the report of {out} could not be written: {error}"
            log.warning(self._problem)

    def require_written(self) -> None:
        """Log where it is.

        Raises:
            UserError: if it could not be written.
        """
        if self._problem:
            raise UserError(self._problem)
        name = report_name(self._study, self._args.overrides)
        log.info(f"report: {self._args.output_dir / name}.html and {name}.md")
