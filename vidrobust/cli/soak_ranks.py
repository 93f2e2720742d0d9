"""Disturb commands that run in several ranks, and resume them until they are done."""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vidrobust.cli.soak_runs import REPO, SMALL, digest, handles_sigterm, make_links
from vidrobust.utils.peer_watch import THREAD_NAME, silence_limit_s

_DISK_MIB = 48
_FULL_S = 5.0  # how long the disk stays full
_START_S = 120.0
_UNDISTURBED_S = 900.0
# from the loss of a rank to the end of all, beyond the limit for silent ranks
_END_S = 10.0
_WARNING_OF_TORCH = re.compile(r"\[[WEF]\d{4} .*\.cpp:\d+\]")
# last lines of the tracebacks that torchrun itself prints, of its own frames
_OF_TORCHRUN = "torch.distributed.elastic.multiprocessing."
_RANK_FAILED = f"{_OF_TORCHRUN}errors.ChildFailedError:"

KILL_ONE = "SIGKILL of one rank"
KILL_ALL = "SIGKILL of all"
KILL_LAUNCHER = "SIGKILL of the launcher"
TERM_ONE = "SIGTERM of one rank"
TERM_LAUNCHER = "SIGTERM of the launcher"
PAUSE = "pause of one rank, shorter than the limit"
HANG = "pause of one rank without end"
FULL_DISK = "full disk"
EVENTS = (KILL_ONE, KILL_ALL, KILL_LAUNCHER, TERM_ONE, TERM_LAUNCHER, PAUSE, HANG, FULL_DISK)
_NEED_LAUNCHER = (KILL_LAUNCHER, TERM_LAUNCHER)


@dataclass(frozen=True)
class Job:
    """A command that is disturbed.

    Attributes:
        name: of the kind of work.
        script: tool, relative to the repository.
        words: its arguments; the same command continues it.
    """

    name: str
    script: str
    words: Sequence[str]


@dataclass
class Tally:
    """Count events and faults.

    Attributes:
        events: (kind of event, kind of work) -> number of events.
        faults: (kind of event, kind of work) -> number of faults.
        longest_s: kind of event -> longest time until all processes had ended, seconds.
    """

    events: Counter[tuple[str, str]] = field(default_factory=Counter)
    faults: Counter[tuple[str, str]] = field(default_factory=Counter)
    longest_s: dict[str, float] = field(default_factory=dict)

    def table(self, jobs: Sequence[str]) -> str:
        """Return a table in Markdown: a row per kind of event, a column per kind of work."""
        lines = [
            f"| event | {' | '.join(jobs)} | all | faults | longest end, s |",
            "|---" * (len(jobs) + 4) + "|",
        ]
        for kind in [*EVENTS, "files of the results"]:
            counts = [self.events[kind, job] for job in jobs]
            faults = sum(self.faults[kind, job] for job in jobs)
            cells = " | ".join(map(str, counts))
            longest = f"{self.longest_s[kind]:.1f}" if kind in self.longest_s else ""
            lines.append(f"| {kind} | {cells} | {sum(counts)} | {faults} | {longest} |")
        return "\n".join(lines)


def jobs_of(folder: Path, root: Path, steps: int) -> list[Job]:
    """Return the commands that are disturbed, in the order in which they run.

    Args:
        folder: folder of the results.
        root: data set in the layout of UCF101.
        steps: number of training steps.
    """
    data = ["data.name=ucf101", f"data.root={root}"]
    train = {word.split("=")[0]: word for word in [*SMALL, *data]} | {
        "train.max_steps": f"train.max_steps={steps}",
        "train.epochs": "train.epochs=50",
        "train.batch_size": "train.batch_size=16",
        "train.checkpoint_every": "train.checkpoint_every=5",
        "train.log_every": "train.log_every=1",
        "data.workers": "data.workers=1",
        "device": "device=cpu",
        "eval.limit": "eval.limit=24",
        "eval.batch_size": "eval.batch_size=4",
        "eval.threats": "eval.threats=[linf-0,linf-2/255]",
        "eval.corruption.names": "eval.corruption.names=[contrast,jumble]",
        "eval.corruption.severities": "eval.corruption.severities=[1,3]",
    }
    common = [*train.values()]
    config_file = folder.parent / f"{folder.name}_study.yaml"
    config_file.write_text(
        "\n".join(
            [
                "arms:",
                "  simclr: []",
                "datasets:",
                f"  ucf101: {REPO / 'configs/ucf101_csl.yaml'}",
                "seeds: [0, 1]",
                "common:",
                *(f"  - {json.dumps(word)}" for word in common),
            ]
        )
    )
    cfg = str(REPO / "configs/ucf101_csl_adv.yaml")
    run = str(folder / "run")
    checkpoint = ["--checkpoint", run]
    to_run = ["--cfg", cfg, "--output-dir", run, "--resume", *common, "eval.enabled=false"]
    to_study = ["--cfg", str(config_file), "--output-dir", str(folder / "study")]
    return [
        Job("training", "tools/train_net.py", to_run),
        Job("evaluation", "tools/test_net.py", [*checkpoint, "eval.enabled=true"]),
        Job("extraction", "tools/extract_features.py", [*checkpoint, "--split", "train"]),
        Job("study", "tools/study.py", to_study),
    ]


class Group:
    """The processes of one command in several ranks.

    Args:
        job: the command.
        ranks: number of ranks.
        launched: by torchrun; otherwise by plain variables.
        work: folder in which they run, and by which all their processes are found.
    """

    def __init__(self, job: Job, ranks: int, work: Path, *, launched: bool) -> None:
        self.launched = launched
        self.had_met = False  # when the last event came
        self._work = work
        self._ranks = ranks
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (closed in `output`)
        command = [str(REPO / job.script), *job.words]
        env = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
        if launched:
            torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
            self._started = [self._start([*torchrun, *command], env)]
            return
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
        self._started = [
            self._start(command, {**env, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(ranks)
        ]

    def _start(self, words: Sequence[str], env: dict[str, str]) -> Any:
        return subprocess.Popen(
            [sys.executable, *words],
            cwd=self._work,
            env=env,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )

    @property
    def launcher(self) -> int:
        """Process id of torchrun."""
        return int(self._started[0].pid)

    def rank_pids(self) -> list[int]:
        """Return the process ids of the ranks that live."""
        if not self.launched:
            return [process.pid for process in self._started if process.poll() is None]
        return sorted(pid for pid, parent in self._alive() if parent == self.launcher)

    def is_ready(self) -> bool:
        """Return whether all ranks have installed their signal handlers."""
        pids = self.rank_pids()
        with suppress(OSError):
            return len(pids) == self._ranks and all(handles_sigterm(pid) for pid in pids)
        return False

    def has_met(self) -> bool:
        """Return whether the ranks watch each other."""
        with suppress(OSError):
            return all(
                any(f"{THREAD_NAME}\n" == comm.read_text() for comm in _names(pid))
                for pid in self.rank_pids()
            )
        return False

    def _alive(self) -> Iterator[tuple[int, int]]:
        """Yield (process id, that of the parent) of all processes."""
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with suppress(OSError):
                if os.readlink(entry / "cwd") == str(self._work):
                    state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                    if state not in "ZX":
                        yield int(entry.name), int(parent)

    def wait(self, seconds: float) -> bool:
        """Wait until no process is left, and return whether that came in time."""
        deadline = time.monotonic() + seconds
        while any(True for _ in self._alive()):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def kill(self) -> int:
        """Kill what is left, and return how many processes that were."""
        left = [pid for pid, _ in self._alive()]
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(left)

    def output(self) -> tuple[list[int], list[str]]:
        """Return the exit statuses, and the lines of output."""
        statuses = [process.wait(30) for process in self._started]
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        self._log.close()
        return statuses, lines


def _names(pid: int) -> Iterator[Path]:
    """Yield the files that hold the names of a process's threads."""
    return Path(f"/proc/{pid}/task").glob("*/comm")


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mount a small file system on a folder, if this user may; yield whether it is mounted."""
    if folder.is_mount():  # a soak was killed
        subprocess.run(["umount", str(folder)], check=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_MIB}m", "tmpfs", str(folder)]
    mounted = bool(shutil.which("mount"))
    mounted = mounted and subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], capture_output=True, check=False)


def _fill(folder: Path) -> Path:
    """Fill the file system of a folder, and return the file that does."""
    ballast = folder / "ballast"
    with suppress(OSError), open(ballast, "wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))
    return ballast


def disturb(group: Group, kind: str, disk: Path, rng: random.Random) -> bool:
    """Cause an event; return whether it must end the command.

    Args:
        group: processes of the command.
        kind: of EVENTS.
        disk: file system that FULL_DISK fills.
        rng: chooses the rank.
    """
    pids = group.rank_pids()
    if not pids:
        return False
    pid = rng.choice(pids)
    with suppress(ProcessLookupError):
        if kind in (KILL_LAUNCHER, TERM_LAUNCHER):
            os.kill(group.launcher, signal.SIGKILL if kind == KILL_LAUNCHER else signal.SIGTERM)
        elif kind == KILL_ALL:
            group.kill()
        elif kind == FULL_DISK:
            ballast = _fill(disk)
            group.wait(_FULL_S)
            ballast.unlink()
            return False
        elif kind == PAUSE:
            os.kill(pid, signal.SIGSTOP)
            time.sleep(rng.uniform(0.5, 0.7 * silence_limit_s()))
            os.kill(pid, signal.SIGCONT)
            return False
        else:
            signals = {KILL_ONE: signal.SIGKILL, TERM_ONE: signal.SIGTERM, HANG: signal.SIGSTOP}
            os.kill(pid, signals[kind])
    return True


def _live(
    group: Group, kinds: Sequence[str], longest_s: float, disk: Path, rng: random.Random
) -> tuple[list[str], float, list[str]]:
    """Disturb a command until it ends.

    Args:
        group: its processes.
        kinds: events that are possible; () for none.
        longest_s: latest time of the first event, seconds.
        disk: as in `disturb`.
        rng: random generator of all choices.

    Returns:
        (events, seconds from the last one to the end or 0, faults).
    """
    started = time.monotonic()
    while not group.is_ready() and not group.wait(0):
        if time.monotonic() - started > _START_S:
            return [], 0.0, [f"not started, {group.kill()} processes killed"]
    events: list[str] = []
    while kinds and not group.wait(rng.uniform(0, longest_s)):
        kind = rng.choice(kinds)
        if kind == HANG and not group.has_met():
            continue  # noticed by VIDROBUST_MEETING_S only
        group.had_met = group.has_met()
        began = time.monotonic()
        must_end = disturb(group, kind, disk, rng)
        events.append(kind)
        if must_end:
            limit = silence_limit_s() + _END_S
            is_late = not group.wait(limit)
            seconds = time.monotonic() - began
            faults = [f"{group.kill()} processes left after {limit:.0f} s"] if is_late else []
            return events, seconds, faults
    if not group.wait(_UNDISTURBED_S):
        return events, 0.0, [f"not done, {group.kill()} processes killed"]
    return events, 0.0, []


def _is_traceback_ours(events: Sequence[str], lines: Sequence[str], launcher: int) -> bool:
    """Return whether there is a traceback that torchrun has not printed of itself.

    torchrun prints one if it is stopped by SIGTERM, and one if a rank has failed. Its ranks cannot
    prevent that.

    Args:
        events: that disturbed the command.
        lines: of its output, in which those of several processes may be mixed.
        launcher: process id of torchrun; 0 without it.
    """
    of_launcher = []
    if launcher:
        of_launcher.append(_RANK_FAILED)
    if launcher and TERM_LAUNCHER in events:
        of_launcher.append(f"{_OF_TORCHRUN}api.SignalException: Process {launcher} got signal: 15")
    tracebacks = sum("Traceback (most recent call last)" in line for line in lines)
    frames = any('File "' in line and "vidrobust/" in line.replace(str(REPO), "") for line in lines)
    return frames or tracebacks > sum(line.rstrip() in of_launcher for line in lines)


def _output_faults(
    events: Sequence[str],
    statuses: Sequence[int],
    lines: Sequence[str],
    *,
    met: bool,
    launcher: int,
) -> list[str]:
    """Return what is wrong with the output of a command.

    Args:
        events: that disturbed it.
        statuses: exit statuses.
        lines: of its output.
        met: the ranks had met.
        launcher: process id of torchrun; 0 without it.
    """
    faults = []
    if _is_traceback_ours(events, lines, launcher):
        faults.append("a traceback")
    if any(_WARNING_OF_TORCH.search(line) for line in lines):
        faults.append("warnings of torch")
    causes = [
        line for line in lines if line.startswith(("error: ", "stopped: ")) or "] E " in line[:20]
    ]
    # under torchrun, ranks that have not met cannot agree on who reports if it is killed
    agree = met or not launcher
    if len(causes) > 1 and agree:
        faults.append(f"{len(causes)} causes")
    if any(statuses) and not events:
        faults.append(f"status {max(statuses)} without an event")
    if any(statuses) and set(events) == {PAUSE}:
        faults.append(f"status {max(statuses)} after a pause")
    silent = not {KILL_ALL, KILL_LAUNCHER, TERM_LAUNCHER} & set(events)
    # a rank that a signal ended after its work needs no cause
    if max(statuses) > 0 and not causes and silent and agree:
        faults.append("no cause")
    return faults


class _Soak:
    """A soak in several ranks.

    Args:
        out: folder of data and results.
        disk: folder of the results, a small file system where possible.
        ranks: number of ranks.
        rng: random generator of all choices.
        longest_s: latest time of an event, seconds.
        kinds: events.
    """

    def __init__(
        self,
        out: Path,
        disk: Path,
        ranks: int,
        rng: random.Random,
        longest_s: float,
        kinds: Sequence[str],
    ) -> None:
        self.tally = Tally()
        self.done = 0
        self._work = out / "work"
        self._work.mkdir(exist_ok=True)
        self._disk = disk
        self._ranks = ranks
        self._rng = rng
        self._longest_s = longest_s
        self._kinds = kinds

    def run(self, job: Job, events: int) -> float:
        """Run a command until it is done; return the seconds of its last try.

        Args:
            job: the command.
            events: number of events after which it is left alone.
        """
        before = self.done
        for tries in range(1, 1000):
            launched = self._rng.random() < 0.6
            kinds = [k for k in self._kinds if launched or k not in _NEED_LAUNCHER]
            began = time.monotonic()
            group = Group(job, self._ranks, self._work, launched=launched)
            some = kinds if self.done - before < events else ()
            try:
                happened, seconds, faults = _live(
                    group, some, self._longest_s, self._disk, self._rng
                )
                statuses, lines = group.output()
            finally:
                group.kill()
            faults += _output_faults(
                happened,
                statuses,
                lines,
                met=group.had_met,
                launcher=group.launcher if launched else 0,
            )
            self._note(job, happened, seconds, faults)
            how = "torchrun" if launched else "plain"
            last = lines[-1][-90:] if lines else ""
            print(
                f"{self.done:3d} {job.name:<10} {how:<8} {', '.join(happened) or 'no event'}:"
                f" {statuses}, {seconds:.1f} s, {'; '.join(faults) or 'no faults'}: {last}",
                flush=True,
            )
            if faults:
                print("\n".join(f"    {line[:300]}" for line in lines[-80:]), flush=True)
            if not any(statuses):
                return time.monotonic() - began
            if not happened and tries > 3:
                break
        raise RuntimeError(f"{job.name} does not end")

    def _note(self, job: Job, events: list[str], seconds: float, faults: list[str]) -> None:
        for kind in events:
            self.tally.events[kind, job.name] += 1
        self.done += len(events)
        last = events[-1] if events else ""
        if seconds:
            self.tally.longest_s[last] = max(seconds, self.tally.longest_s.get(last, 0))
        if faults:
            self.tally.faults[last or "files of the results", job.name] += len(faults)


def soak_ranks(
    out: Path,
    ranks: int,
    events: int,
    seed: int,
    longest_s: float,
    steps: int = 60,
    names: Sequence[str] = ("training", "evaluation", "extraction", "study"),
    kinds: Sequence[str] = EVENTS,
) -> int:
    """Disturb commands in several ranks, and compare their files with those of undisturbed ones.

    Args:
        out: folder for data and results.
        ranks: number of ranks.
        events: number of events.
        seed: random seed of their times, kinds and ranks.
        longest_s: an event comes after at most this many seconds.
        steps: training steps of a run.
        names: kinds of work.
        kinds: of EVENTS.

    Returns:
        Number of faults and of files that differ.
    """
    root = make_links(out / "data_short", "short", None)
    rng = random.Random(seed)
    disk = out / "disk"
    disk.mkdir(exist_ok=True)
    with small_disk(disk) if FULL_DISK in kinds else nullcontext(False) as mounted:
        if not mounted and FULL_DISK in kinds:
            print(f"skipped: {FULL_DISK}; this user may not mount a file system")
            kinds = [kind for kind in kinds if kind != FULL_DISK]
        for old in disk.glob("*"):
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        soak = _Soak(out, disk, ranks, rng, longest_s, kinds)
        expected = _round(soak, disk / "whole", root, steps, names, events=0)
        for number in range(events + 1):
            if soak.done >= events:
                break
            left = events - soak.done
            folder = disk / f"round{number}"
            actual = _round(soak, folder, root, steps, names, events=left)
            differ = sorted(
                name for name in {*expected, *actual} if expected.get(name) != actual.get(name)
            )
            print(
                f"{soak.done} events; files that differ: {', '.join(differ) or 'none'} of"
                f" {len(expected)}",
                flush=True,
            )
            soak.tally.faults["files of the results", names[0]] += len(differ)
            if not differ:
                shutil.rmtree(folder)
            print(soak.tally.table(names), flush=True)
    return sum(soak.tally.faults.values())


def _round(
    soak: _Soak, folder: Path, root: Path, steps: int, names: Sequence[str], *, events: int
) -> dict[str, str]:
    """Run all commands, and return the hashes of their files.

    Args:
        soak: runs them.
        folder: folder of the results.
        root: data set in the layout of UCF101.
        steps: training steps of a run.
        names: kinds of work.
        events: number of events at most, which the commands share.
    """
    folder.mkdir()
    jobs = [job for job in jobs_of(folder, root, steps) if job.name in names]
    for place, job in enumerate(jobs):
        # a third of the events that are left, so that later commands get some too
        share = -(-events // (len(jobs) - place))
        before = soak.done
        soak.run(job, min(share, 4))
        events = max(0, events - (soak.done - before))
    # the report names its config file and the folders of its runs
    study = {
        f"study/{name}": content
        for name, content in digest(folder / "study").items()
        if name not in ("study.html", "study.md")
    }
    return digest(folder / "run") | study
