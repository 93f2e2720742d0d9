"""Run commands as jobs of Slurm, or of the local executor of submitit.

Jobs import this file, so that it imports neither torch nor what needs it.
"""

import argparse
import os
import re
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidrobust.utils import child_commands
from vidrobust.utils.errors import UserError
from vidrobust.utils.slurm_ranks import port_of
from vidrobust.utils.stopping import EXIT_STOPPED

if TYPE_CHECKING:
    import subprocess

    import submitit

SLURM = "slurm"
LOCAL = "local"
# folder of scripts, pickled commands and logs of jobs, in the output folder
JOBS = "jobs"
_NUMBERS: tuple[tuple[str, str, int | None, str], ...] = (
    ("nodes", "N", 1, "machines of a job"),
    ("gpus", "G", 0, "GPUs of a job on each node, one rank per GPU; 0: CPU"),
    ("ranks", "R", None, "ranks on each node; default: one per GPU, one without GPUs"),
    ("cpus", "C", None, "cores of each rank; default: the partition's"),
    ("memory", "GB", None, "memory on each node"),
    ("grace", "SECONDS", 120, "time before the limit at which the run is asked to stop"),
    ("restarts", "N", 20, "how often a job that reached its time limit is queued again"),
)
_OF_SLURM = ("partition", "account", "qos", "constraint")
_POLL_S = 0.2
_LATE_SIGNAL_S = 2.0  # a scheduler signals the processes of a job one after the other
_NEEDS = "needs the package submitit; pip install 'vidrobust[cluster]'"


# --- Options ---


def add_options(parser: argparse.ArgumentParser, *, default: str) -> None:
    """Add the options of a command that submits jobs.

    Args:
        parser: gets the options.
        default: the executor without --executor.
    """
    group = parser.add_argument_group("jobs")
    group.add_argument(
        "--executor", choices=(SLURM, LOCAL), default=default, help=f"default: {default}"
    )
    for name, metavar, value, text in _NUMBERS:
        shown = f" ({value})" if value is not None else ""
        group.add_argument(f"--{name}", type=int, metavar=metavar, default=value, help=text + shown)
    group.add_argument(
        "--time", type=float, metavar="MINUTES", help="time limit of a job; whole for Slurm"
    )
    for name in _OF_SLURM:
        group.add_argument(f"--{name}", metavar="NAME", help="of Slurm")
    group.add_argument(
        "--setup",
        action="append",
        default=[],
        metavar="COMMAND",
        help="shell command that a job runs first, such as 'module load cuda'; may be repeated",
    )


def check_options(args: argparse.Namespace) -> None:
    """Refuse options of jobs that do not go together.

    Raises:
        UserError: with the option, its value and the remedy.
    """
    lowest = {"nodes": 1, "gpus": 0, "ranks": 1, "cpus": 1, "memory": 1, "grace": 1, "restarts": 0}
    for name, low in lowest.items():
        value = getattr(args, name)
        if value is not None and value < low:
            raise UserError(f"--{name} {value}: must be at least {low}")
    if args.time is None:
        raise UserError("--time: give the time limit of a job in minutes, such as --time 720")
    if not 0 < args.time <= 1e6:
        raise UserError(f"--time {args.time:g}: must be above 0 and at most 1000000 minutes")
    if args.grace >= args.time * 60:
        raise UserError(
            f"--grace {args.grace}: must be less than the {args.time * 60:g} seconds of --time"
            f" {args.time:g}"
        )
    if args.gpus and args.ranks not in (None, args.gpus):
        raise UserError(
            f"--ranks {args.ranks}: --gpus {args.gpus} has one rank per GPU; leave --ranks out"
        )
    if args.executor == SLURM and args.time != int(args.time):
        raise UserError(f"--time {args.time:g}: Slurm takes whole minutes")
    if args.executor == LOCAL:
        if args.nodes > 1:
            raise UserError(f"--nodes {args.nodes}: --executor local has one node, this machine")
        _refuse(args, ("cpus", "memory", *_OF_SLURM))


def refuse_options(args: argparse.Namespace) -> None:
    """Refuse the options of jobs, for a command that starts none.

    Raises:
        UserError: with the first option that is set.
    """
    _refuse(args, (*(name for name, *_ in _NUMBERS), "time", *_OF_SLURM, "setup"))


def _refuse(args: argparse.Namespace, names: Sequence[str]) -> None:
    """Raise UserError for an option of jobs that is set, and that --executor local ignores."""
    defaults: dict[str, Any] = {name: value for name, _, value, _ in _NUMBERS}
    defaults["setup"] = []
    for name in names:
        value = getattr(args, name)
        if value != defaults.get(name):
            shown = " ".join(value) if name == "setup" else f"{value}"
            raise UserError(
                f"--{name} {shown}: --executor local does not use it; leave it out, or set"
                " --executor slurm"
            )


def _parameters(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """Return the parameters of submitit's executor.

    Args:
        args: with the options of `add_options`.
        name: of the job.
    """
    ranks = args.ranks or max(1, args.gpus)
    if args.executor == LOCAL:
        return {
            "timeout_min": args.time,
            "tasks_per_node": ranks,
            "gpus_per_node": args.gpus,
            "signal_delay_s": args.grace,
            "setup": args.setup,
        }
    return {
        "job_name": re.sub(r"[^A-Za-z0-9._-]+", "_", name),
        "time": int(args.time),
        "nodes": args.nodes,
        "ntasks_per_node": ranks,
        "gpus_per_node": args.gpus or None,
        "cpus_per_task": args.cpus,
        "mem": f"{args.memory}GB" if args.memory else None,
        "partition": args.partition,
        "account": args.account,
        "qos": args.qos,
        "constraint": args.constraint,
        "signal_delay_s": args.grace,
        "setup": args.setup or None,
        # Ranks that wait for one that could not start end with it. From Slurm 22.05 on, srun does
        # not take the cores of a task from the job.
        "srun_args": [
            "--kill-on-bad-exit=1",
            *([f"--cpus-per-task={args.cpus}"] if args.cpus else []),
        ],
    }


# --- Submission ---


def job_folder(out: Path) -> Path:
    """Return the folder of the scripts and logs of jobs, in an output folder.

    Raises:
        UserError: for a path that Slurm would read as something else.
    """
    folder = out.resolve() / JOBS
    if not str(folder).isprintable() or "%" in str(folder):
        raise UserError(
            f"--output-dir {out}: has % or a control character, which Slurm does not take as a part"
            " of a path; set another"
        )
    return folder


def has_slurm() -> bool:
    """Return whether jobs can be submitted to Slurm from this machine."""
    return shutil.which("sbatch") is not None and shutil.which("srun") is not None


def script(args: argparse.Namespace, name: str, folder: Path, *commands: Sequence[str]) -> str:
    """Return the script that Slurm would get, if it is asked for, and the commands of the ranks.

    Args:
        args: with the options of `add_options`.
        name: of the job.
        folder: of scripts and logs.
        commands: `vidrobust` commands with their arguments; several are an array of jobs.
    """
    title = "commands of the array" if len(commands) > 1 else "command of each rank"
    lines = [f"# {title}, repeated after a preemption:", *(f"# {_line(each)}" for each in commands)]
    if args.executor == LOCAL:
        return "\n".join(lines)
    with _submitit():
        from submitit.slurm.slurm import _make_sbatch_string
    run = [sys.executable, "-u", "-m", "submitit.core._submit", str(folder)]
    text = _make_sbatch_string(shlex.join(run), folder, **_parameters(args, name))
    return "\n".join([text, *lines])


def executor(args: argparse.Namespace, name: str, folder: Path, **more: Any) -> "submitit.Executor":
    """Return the executor of submitit that the options ask for.

    Args:
        args: with the options of `add_options`.
        name: of its jobs.
        folder: of scripts and logs.
        more: parameters of Slurm in place of those of the options.

    Raises:
        UserError: without submitit, and for --executor slurm on a machine without Slurm.
    """
    with _submitit():
        import submitit
    require_slurm(args)
    # jobs inherit the environment
    os.environ.update(child_commands.import_path())
    kinds = {SLURM: submitit.SlurmExecutor, LOCAL: submitit.LocalExecutor}
    result = kinds[args.executor](folder, max_num_timeout=args.restarts)
    given = {key: value for key, value in _parameters(args, name).items() if value is not None}
    result.update_parameters(**{**given, **more})
    return result


def require_slurm(args: argparse.Namespace) -> None:
    """Raise UserError for --executor slurm on a machine without Slurm."""
    if args.executor == SLURM and not has_slurm():
        raise UserError(
            "--executor slurm: this machine has no sbatch and srun, so that nothing was submitted;"
            " run the command on a login node of the cluster, or use --executor local"
        )


@contextmanager
def refusals() -> Iterator[None]:
    """Turn a refusal of Slurm to take a job into a UserError."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        yield
    except (FailedJobError, FailedSubmissionError) as error:
        raise UserError(f"sbatch refused the job: {error}") from None


@contextmanager
def _submitit() -> Iterator[None]:
    """Turn a missing submitit into a UserError."""
    try:
        yield
    except ImportError:
        raise UserError(f"--executor: {_NEEDS}") from None


def _line(words: Sequence[str]) -> str:
    """Return a command as a line for a shell."""
    return shlex.join(["vidrobust", *words])


# --- Inside of a job ---


@dataclass(frozen=True)
class SubmittedCommand:
    """A vidrobust command as a job, which goes back into the queue when it is preempted.

    The command is a child process. Its signal handlers finish the training step and write a
    checkpoint, and its exit status shows whether it has. The job only passes signals on.

    Attributes:
        words: `vidrobust` command and its arguments; the same command must continue its work.
    """

    words: tuple[str, ...]

    def __call__(self) -> None:
        """Run the command; exit with its status, unless it is 0."""
        from submitit import JobEnvironment
        from submitit.core.utils import UncompletedJobError
        from submitit.helpers import TorchDistributedEnvironment

        environment = JobEnvironment()
        if environment.num_tasks > 1:
            os.environ.setdefault("MASTER_PORT", str(port_of(environment.job_id)))
            # all ranks see all GPUs of their node, and take that of LOCAL_RANK
            TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        preemption = getattr(signal, f"SIG{environment.USR_SIG}")
        # submitit's: it writes what `checkpoint` returns, and requeues the job
        requeue = signal.getsignal(preemption)
        signals: list[int] = []
        for number in (preemption, signal.SIGTERM):
            signal.signal(number, lambda number, frame: signals.append(number))
        print(f"command: {_line(self.words)}", flush=True)
        status = _wait(child_commands.start(self.words), signals)
        if status == 0:
            return
        has_stopped = status == EXIT_STOPPED or -status in signals
        if has_stopped and preemption in signals and callable(requeue):
            if environment.global_rank:
                # rank 0 requeues; a status of failure would let srun end it before that
                sys.exit(0)
            with suppress(UncompletedJobError):  # no more restarts, as submitit has logged
                requeue(preemption, None)
        print(f"the command ended with status {status}", file=sys.stderr, flush=True)
        sys.exit(EXIT_STOPPED if has_stopped else status if status > 0 else 128 - status)

    def checkpoint(self) -> Any:
        """Return the submission that continues this one: the same command."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _wait(process: "subprocess.Popen[bytes]", signals: Sequence[int]) -> int:
    """Pass signals on to a process until it has ended; return its status, negative for a signal.

    Args:
        process: the process.
        signals: signals that this process receives, appended by their handler.
    """
    passed_on = 0
    while process.poll() is None:
        for number in signals[passed_on:]:
            process.send_signal(number)
            passed_on += 1
        time.sleep(_POLL_S)
    status = process.wait()
    # if Slurm signals the child first, this process learns of it a moment later
    end = time.monotonic() + _LATE_SIGNAL_S
    while status == EXIT_STOPPED and not signals and time.monotonic() < end:
        time.sleep(_POLL_S)
    return status
