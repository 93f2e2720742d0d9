"""Run a study.

    python tools/study.py --cfg configs/study_susceptibility.yaml --data cifar10=/path/to/cifar10

Trains and measures every arm on every data set with every seed, one after the other, then writes
study.md, study.json and figures, of all runs of the page that are there. Runs that are finished are
not run again; one that was killed goes on. --dry-run lists the runs, and prints the configuration
where only one is chosen.
"""

import dataclasses
from pathlib import Path

from vidrobust.cli import common
from vidrobust.study import (
    finished,
    plan,
    read_study,
    report_name,
    require_same,
    run_arm,
    write_study,
)
from vidrobust.study.plan import chosen
from vidrobust.utils import distributed
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log, start_logging


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--cfg", required=True, help="the study's page, see configs/study_*.yaml")
    parser.add_argument("--output-dir", type=Path, help="default: outputs/<name of the page>")
    parser.add_argument(
        "--data", action="append", default=[], metavar="NAME=FOLDER", help="where a data set lies"
    )
    for name in ("datasets", "arms", "seeds"):
        parser.add_argument(
            f"--{name}",
            default="",
            metavar="A,B",
            help=f"only these {name}; default: all of the page's",
        )
    args = parser.parse_intermixed_args()
    if any("=" not in word for word in args.data):
        raise UserError(f"--data {' '.join(args.data)}: write NAME=FOLDER")
    whole = read_study(args.cfg)
    study = chosen(whole, args.datasets, args.arms, args.seeds)
    out = args.output_dir or Path("outputs") / Path(args.cfg).stem
    roots = dict(word.split("=", 1) for word in args.data)
    seeds = list(dict.fromkeys([*whole.seeds, *study.seeds]))
    of_page = plan(dataclasses.replace(whole, seeds=seeds), out, args.overrides, roots)
    runs = [
        run
        for run in of_page
        if run.dataset in study.datasets and run.name in study.arms and run.seed in study.seeds
    ]
    for run in of_page:
        common.check_names(run.cfg)
        require_same(
            run
        )  # before anything is trained with options that would not go with what is there
    if not runs:
        raise UserError(f"nothing to run: {args.cfg} skips these arms of these data sets")
    for run in runs:
        for folder in (
            () if (run.folder / "backbone.pt").is_file() else run.needs
        ):  # what is trained needs none
            if (
                folder not in {other.folder for other in runs}
                and not (folder / "checkpoints").is_dir()
            ):
                other = folder.parent.name
                raise UserError(
                    f"{run.name} learns from {other} of the same seed, which is not there: name"
                    f" both, --arms {other},{run.name}"
                )
    if args.dry_run:
        for run in runs:
            state = ", finished" if finished([run]) else ""
            print(f"# {run.dataset}, {run.name}, seed {run.seed}: {run.folder}{state}")
        if len(runs) == 1:
            common.print_config(args, runs[0].cfg)
        return
    start_logging(None, quiet=not common.is_main())
    distributed.start(runs[0].cfg.device)
    failed = []
    unwritten = ""
    for run in runs:
        try:
            run_arm(run)
        except UserError as error:  # an arm that fails does not take the others with it
            missing = run.dataset not in roots and run.cfg.data.root in str(error)
            where = f" (--data {run.dataset}=FOLDER says where it lies)" if missing else ""
            failed.append(f"{run.dataset}, {run.name}, seed {run.seed}: {error}{where}")
            log.error(failed[-1])
        try:
            with distributed.together():
                if common.is_main() and (done := finished(of_page)):
                    write_study(whole, done, out, len(of_page) - len(done), args.overrides)
        except (
            UserError,
            OSError,
        ) as error:  # the numbers are safe, and the next arm writes the report again
            unwritten = f"the report of {out} is not written: {error}"
            log.warning(unwritten)
        else:
            unwritten = ""
    if failed:
        raise UserError(f"{len(failed)} of {len(runs)} runs failed; the first: {failed[0]}")
    if unwritten:
        raise UserError(unwritten)
    log.info(f"report: {out / report_name(whole, args.overrides)}.md")
