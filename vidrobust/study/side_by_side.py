"""Run the runs of a study side by side on this machine, each in a process with its own cores."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

import torch

from vidrobust.study.plan import Arm
from vidrobust.study.run import is_finished
from vidrobust.utils import child_commands
from vidrobust.utils.logging import log
from vidrobust.utils.readable import duration
from vidrobust.utils.threads import available_cores

_POLL_S = 0.2


@dataclass(frozen=True)
class _Job:
    """A run in its process.

    Attributes:
        run: the run.
        process: the process.
        log: file of its output.
        started: time of its start on the monotonic clock, seconds.
    """

    run: Arm
    process: "Popen[bytes]"
    log: Path
    started: float


def run_side_by_side(
    runs: Sequence[Arm],
    jobs: int,
    words: Callable[[Arm], list[str]],
    logs: Path,
    after_each: Callable[[], None],
) -> list[str]:
    """Run all runs, at most `jobs` at once; return why some failed.

    A run that starts from another one waits for it. A run that fails does not stop the others, but
    those that need it. If this process is stopped, all runs write their state first.

    Args:
        runs: the runs, in the order of their start.
        jobs: number of runs at once, at least 1.
        words: run -> `vidrobust` command and arguments that do it.
        logs: folder of the output of each run.
        after_each: called after each run, while the next ones work.
    """
    pool = _Pool(jobs, words, logs)
    waiting = list(runs)
    problems: dict[Path, str] = {}
    done = 0
    try:
        while waiting or pool.running:
            waiting = _start_ready(waiting, pool, problems)
            ended = pool.ended()
            for job in ended:
                done += 1
                took = duration(time.monotonic() - job.started)
                if problem := _problem(job):
                    problems[job.run.folder] = problem
                    log.error(problem)
                else:
                    log.info(f"{job.run.label}: finished in {took}; {done} of {len(runs)} runs")
            if ended:
                waiting = _start_ready(waiting, pool, problems)
                after_each()
            elif pool.running:
                time.sleep(_POLL_S)
    except BaseException:
        pool.stop()
        raise
    return list(problems.values())


class _Pool:
    """Processes that work at the same time, each in a slot of cores and a GPU.

    Args:
        jobs: number of slots.
        words: see `run_side_by_side`.
        logs: see `run_side_by_side`.
    """

    def __init__(self, jobs: int, words: Callable[[Arm], list[str]], logs: Path) -> None:
        self.running: dict[int, _Job] = {}  # by slot
        self._jobs = jobs
        self._words = words
        self._logs = logs
        self._gpus = _gpus()

    @property
    def is_full(self) -> bool:
        """Return whether all slots are taken."""
        return len(self.running) == self._jobs

    def start(self, run: Arm) -> None:
        """Start a run in a free slot."""
        slot = next(number for number in range(self._jobs) if number not in self.running)
        environment = self._share(slot, run.cfg.data.workers)
        self._logs.mkdir(parents=True, exist_ok=True)
        path = self._logs / f"{run.dataset}-{run.name}-seed{run.seed}.log"
        with open(path, "ab") as output:
            process = child_commands.start(self._words(run), environment, output)
        self.running[slot] = _Job(run, process, path, time.monotonic())
        log.info(f"{run.label}: started in {run.folder}; its log: {path}")

    def _share(self, slot: int, workers: int) -> dict[str, str]:
        """Return the environment that gives a run its part of the machine.

        Args:
            slot: number of its slot.
            workers: its loading processes, each of which has a core.
        """
        environment = {}
        if "OMP_NUM_THREADS" not in os.environ:
            cores = available_cores() // self._jobs
            environment["OMP_NUM_THREADS"] = str(max(1, cores - workers))
        if self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self._gpus[slot % len(self._gpus)]
        return environment

    def ended(self) -> list[_Job]:
        """Return the runs whose process has ended, and free their slots."""
        slots = [slot for slot, job in self.running.items() if job.process.poll() is not None]
        return [self.running.pop(slot) for slot in slots]

    def stop(self) -> None:
        """Ask all processes to stop, and wait until they have written their state."""
        for job in self.running.values():
            job.process.terminate()
        for job in self.running.values():
            job.process.wait()


def _gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name.strip()]
    return [str(number) for number in range(torch.cuda.device_count())]


def _start_ready(waiting: Sequence[Arm], pool: _Pool, problems: dict[Path, str]) -> list[Arm]:
    """Start runs whose teachers are finished, as far as there are slots; return the others.

    Args:
        waiting: runs that have not started.
        pool: processes.
        problems: folder of a run -> why it failed; gets those whose teacher failed.
    """
    left: list[Arm] = []
    unfinished = {run.folder for run in waiting} | {job.run.folder for job in pool.running.values()}
    for run in waiting:
        # a teacher may be trained although an evaluation of it failed
        failed = [
            folder
            for folder in run.needs
            if folder in problems and not (folder / "backbone.pt").is_file()
        ]
        if failed:
            teacher = failed[0].parent.name
            problems[run.folder] = f"{run.label}: needs the run of {teacher}, which failed"
            log.error(problems[run.folder])
        elif pool.is_full or any(folder in unfinished for folder in run.needs):
            left.append(run)
        else:
            pool.start(run)
    if len(left) == len(waiting) and left and not pool.running:
        # nothing has started or failed, so that these runs need each other; the first reports it
        pool.start(left.pop(0))
    return left


def _problem(job: _Job) -> str:
    """Return why a run whose process has ended has failed, or ""."""
    status = job.process.returncode
    if status == 0 and is_finished(job.run):
        return ""
    reason = child_commands.last_line(job.log)
    if status < 0:
        reason = f"its process was killed by signal {-status}, by a person or for memory"
    return f"{job.run.label}: {reason}; its log: {job.log}"
