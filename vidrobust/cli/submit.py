"""Submit a training, with its evaluation, as a job of a cluster.

    python tools/submit.py --cfg configs/ucf101_csl_adv.yaml --gpus 4 --time 720 [key=value ...]
    python tools/submit.py --cfg configs/demo.yaml --executor local --time 60

Before its time limit and when Slurm preempts it, the run writes a checkpoint, and the job goes back
into the queue. It continues with --resume. --executor local runs the job here, and waits for it.
--dry-run prints the script for sbatch.
"""

import argparse
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vidrobust import config
from vidrobust.cli import cluster_jobs, common
from vidrobust.evaluation.representation.protocols import PROTOCOLS
from vidrobust.methods import require_branch
from vidrobust.utils.child_commands import last_line
from vidrobust.utils.errors import UserError
from vidrobust.utils.logging import log, start_logging

if TYPE_CHECKING:
    import submitit


def main() -> None:
    """Submit a job, or run it here; --dry-run prints its script."""
    parser = common.parser(__doc__)
    parser.add_argument("--cfg", required=True, help="config file, see configs/")
    parser.add_argument(
        "--output-dir", type=Path, help="default: outputs/<name of the config file>"
    )
    cluster_jobs.add_options(parser, default=cluster_jobs.SLURM)
    args = parser.parse_intermixed_args()
    cluster_jobs.check_options(args)
    _check_config(args)
    out = args.output_dir or Path("outputs") / Path(args.cfg).stem
    folder = cluster_jobs.job_folder(out)
    words = ["train", "--cfg", args.cfg, "--output-dir", str(out), "--resume", *args.overrides]
    name = f"vidrobust {out.name}"
    if args.dry_run or (args.executor == cluster_jobs.SLURM and not cluster_jobs.has_slurm()):
        print(cluster_jobs.script(args, name, folder, words), flush=True)
        if args.dry_run:
            return
    start_logging(None)
    executor = cluster_jobs.executor(args, name, folder)
    command = cluster_jobs.SubmittedCommand(tuple(words))
    if args.executor == cluster_jobs.LOCAL:
        _run_here(executor, command, out)
        return
    with cluster_jobs.refusals():
        job = executor.submit(command)
    log.info(
        f"submitted as job {job.job_id}; logs: {folder}/{job.job_id}_*; progress: vidrobust status"
        f" {out}; scancel {job.job_id} ends it"
    )


def _check_config(args: argparse.Namespace) -> None:
    """Refuse options that the training would refuse, before the job waits in a queue.

    Raises:
        UserError: for wrong options.
    """
    cfg = config.load(args.cfg, args.overrides)
    common.check_names(cfg)
    require_branch(cfg)
    if PROTOCOLS[cfg.protocol.name].trains:
        raise UserError(
            f"protocol.name={cfg.protocol.name}: begins with a trained model, and is not submitted;"
            " use tools/test_net.py --checkpoint RUN in a script of your own"
        )


def _run_here(
    executor: "submitit.Executor",
    command: cluster_jobs.SubmittedCommand,
    out: Path,
) -> None:
    """Run a job on this machine, and wait for its end.

    Args:
        executor: the local executor.
        command: the command of the job.
        out: folder of the run.

    Raises:
        UserError: if the command has not finished its work: it failed, or it was preempted more
            often than --restarts or submitit's local executor (five times) allows.
    """
    with _stopped_by_this_process():
        job = executor.submit(command)
    log.info(f"job {job.job_id}; log: {job.paths.stderr}")
    try:
        job.wait()
    except KeyboardInterrupt:
        # its controller passes SIGTERM on: the run writes its checkpoint
        os.kill(int(job.job_id), signal.SIGTERM)
        job.wait()
        raise
    if not all(job.task(rank).paths.result_pickle.is_file() for rank in range(job.num_tasks)):
        reason = last_line(job.task(0).paths.stderr, "submitit ")
        raise UserError(
            f"job {job.job_id} has not finished: {reason}; log: {job.paths.stderr}; the same"
            " command continues (on this machine, submitit starts a job at most six times)"
        )
    log.info(f"finished: {out}")


@contextmanager
def _stopped_by_this_process() -> Iterator[None]:
    """Let a job that starts inside of the block leave Ctrl-C to this process.

    The local controller of submitit kills its tasks at Ctrl-C, before they have written their
    state. It would also be ended by the signals that a scheduler sends to all processes.
    """
    numbers = (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
