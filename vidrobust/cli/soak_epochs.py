"""Show that neither the memory nor the open files of a training run grow with its epochs."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from vidrobust.cli.soak_runs import REPO, memory_mib, session_processes
from vidrobust.utils.atomic_files import replacing

# growth per epoch that is still flat: 10 MiB, and 2.5 files, in 50 epochs
MEMORY_LIMIT = 0.2
FILES_LIMIT = 0.05
_SETTLING = 0.1  # fraction of the epochs in which caches fill; not part of the slopes
_STEPS = 5  # first steps of an epoch, after each of which is measured
_POLL_S = 0.002  # short, so that steps are stopped soon after they have been logged
# glibc keeps freed blocks, by tens of MiB that vary. With these limits in bytes it returns them at
# once, so that the memory is that in use. Steps are slower
_RETURN_FREED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "131072"}


@dataclass(frozen=True)
class Sample:
    """Resources of all processes of a run in an epoch: medians after its first steps.

    A median ignores a child that is replaced, and the batches that happen to be under way.

    Attributes:
        epoch: number of the epoch.
        processes: the main process, loader workers, decoding children and their nursery.
        memory: MiB that are not backed by files on disk; pages that are shared count once. Code of
            libraries is left out, because its part depends on other programs that use it.
        files: open file descriptors.
    """

    epoch: int
    processes: float
    memory: float
    files: float


@dataclass(frozen=True)
class Slope:
    """Growth per epoch: least squares, and its 95 % interval.

    Attributes:
        value: growth per epoch.
        low: lower end of the interval.
        high: upper end of the interval.
    """

    value: float
    low: float
    high: float


def slope(epochs: Sequence[float], values: Sequence[float]) -> Slope:
    """Return the slope of a line through values.

    The interval is that of independent deviations from the line, by the normal approximation.

    Args:
        epochs: at least three different numbers.
        values: one value per epoch.
    """
    x = np.array(epochs, float) - np.mean(epochs)
    y = np.array(values, float) - np.mean(values)
    value = float(x @ y / (x @ x))
    variance = float(((y - value * x) ** 2).sum() / (len(x) - 2))
    half = 1.96 * math.sqrt(variance / float(x @ x))
    return Slope(value, value - half, value + half)


def epochs_command(out: Path, epochs: int, overrides: Sequence[str]) -> list[str | Path]:
    """Return the training command that is measured.

    Args:
        out: folder of the run.
        epochs: number of epochs.
        overrides: options of the run, after those of configs/demo.yaml.
    """
    words = [
        "data.workers=2",
        "train.checkpoint_every=20",
        "eval.enabled=false",
        *overrides,
        f"train.epochs={epochs}",
        "train.log_every=1",  # rows say when to measure
    ]
    script: list[str | Path] = [sys.executable, REPO / "tools/train_net.py"]
    config: list[str | Path] = ["--cfg", REPO / "configs/demo.yaml", "--output-dir", out]
    # an option may not be given twice: keep the last value of each
    return [*script, *config, *{word.split("=")[0]: word for word in words}.values()]


def soak_epochs(
    command: Sequence[str | Path],
    run: Path,
    memory_limit: float = MEMORY_LIMIT,
    files_limit: float = FILES_LIMIT,
) -> int:
    """Train, print memory and open files of the epochs and their slopes, and write epochs.jsonl.

    Args:
        command: a training command that logs every step.
        run: its output folder; what is there is deleted.
        memory_limit: highest growth that passes as flat, MiB per epoch.
        files_limit: highest growth that passes as flat, open descriptors per epoch.

    Returns:
        1 if the run failed, had too few epochs, or may have grown by more than the limits; else 0.
    """
    shutil.rmtree(run, ignore_errors=True)
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=run.parent,
            env=os.environ | _RETURN_FREED,
            stdout=log,
            stderr=log,
            start_new_session=True,  # so that all its processes can be found
        )
        try:
            rows = _samples(process, run / "metrics.jsonl")
            status = process.wait()
        finally:
            process.kill()  # if this process is interrupted
        if status:
            log.seek(0)
            print(log.read()[-3000:].decode(errors="replace"), file=sys.stderr)
            return 1
    with replacing(run.parent / "epochs.jsonl") as file:
        file.write("".join(f"{json.dumps(asdict(row))}\n" for row in rows).encode())
    return _judge(rows, memory_limit, files_limit)


def _judge(rows: Sequence[Sample], memory_limit: float, files_limit: float) -> int:
    """Print samples and slopes; return 1 if there are too few, or may grow by more than limits."""
    settled = rows[math.ceil(_SETTLING * len(rows)) :]
    if len(settled) < 3:
        print(f"{len(rows)} epochs are too few for a slope", file=sys.stderr)
        return 1
    _print_table(rows)
    grows = 0
    for name, unit, limit, values in (
        ("memory", " MiB", memory_limit, [row.memory for row in settled]),
        ("open files", "", files_limit, [row.files for row in settled]),
    ):
        line = slope([row.epoch for row in settled], values)
        flat = line.high <= limit
        grows |= not flat
        print(
            f"{name}, epochs {settled[0].epoch} to {settled[-1].epoch}: {line.value:+.3f}{unit} per"
            f" epoch (95 % interval {line.low:+.3f} to {line.high:+.3f}, limit {limit:g}):"
            f" {'flat' if flat else 'not flat'}"
        )
    return grows


def _samples(process: subprocess.Popen[bytes], metrics: Path) -> list[Sample]:
    """Measure a run until it ends.

    Args:
        process: its main process, which leads a session.
        metrics: the file to which it writes a row after each step.

    Returns:
        A sample per epoch.
    """
    resources: dict[int, list[tuple[int, float, int]]] = {}
    for epoch in _steps(process, metrics):
        if len(resources.get(epoch, [])) == _STEPS:
            continue
        measured = _stopped_resources(process.pid)
        if measured[0]:  # the run has not ended in the meantime
            resources.setdefault(epoch, []).append(measured)
    return [
        Sample(epoch, *np.median(measured, axis=0).tolist())
        for epoch, measured in resources.items()
    ]


def _steps(process: subprocess.Popen[bytes], metrics: Path) -> Iterator[int]:
    """Yield the epoch of each step that a process logs, until it ends."""
    while not metrics.exists():
        if process.poll() is not None:
            return
        time.sleep(_POLL_S)
    with open(metrics) as rows:
        while process.poll() is None:
            line = rows.readline()
            if line:
                yield json.loads(line)["epoch"]
            else:
                time.sleep(_POLL_S)


def _stopped_resources(session: int) -> tuple[int, float, int]:
    """Return the resources of a session, whose processes are suspended while they are measured."""
    with suppress(ProcessLookupError):
        os.killpg(session, signal.SIGSTOP)
    try:
        return _resources(session)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(session, signal.SIGCONT)


def _resources(session: int) -> tuple[int, float, int]:
    """Return number, memory in MiB and open files of a session's processes, as in `Sample`."""
    processes = 0
    memory = 0.0
    files = 0
    for pid in session_processes(session):
        try:
            memory += memory_mib(pid, "Pss_Anon:", "Pss_Shmem:")
            files += len(os.listdir(f"/proc/{pid}/fd"))
        except OSError:
            continue  # the process has ended in the meantime
        processes += 1
    return processes, memory, files


def _print_table(rows: Sequence[Sample]) -> None:
    """Print every tenth of the epochs, and the last one."""
    print("| epoch | processes | memory, MiB | open files |\n|---|---|---|---|")
    step = max(1, len(rows) // 10)
    for row in [*rows[:-1:step], rows[-1]]:
        print(f"| {row.epoch} | {row.processes:g} | {row.memory:.1f} | {row.files:g} |")
