"""Run tools on data sets of links, measure them, and kill them: the parts of tools/soak.py."""

import hashlib
import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vidrobust.data.motionshapes import write_video
from vidrobust.utils.stopping import EXIT_STOPPED

REPO = Path(__file__).resolve().parents[2]
MIB = 2**20
_CLIPS = 12  # number of different files that all links point to
# name -> number of training videos, test videos and classes
SIZES = {"ucf101": (9537, 3783, 101), "kinetics": (220_000, 20_000, 400), "short": (160, 80, 8)}
# clips small enough to decode fast, and large enough to show in the memory if they are kept
_FRAMES = 4
_SIDE = 32
# options of the smallest model, and of such clips
SMALL = (
    f"data.frames={_FRAMES}",
    "data.stride=2",
    f"data.short_side={_SIDE}",
    f"data.size={_SIDE}",
    "data.workers=2",
    "model.backbone=r2plus1d_10",
    "model.width=4",
    "model.hidden=8",
    "model.dim=8",
    "train.batch_size=64",
    "train.epochs=1",
    "train.max_steps=500",  # an epoch of UCF101 has fewer; evaluations use all videos
    "train.log_every=50",
    "eval.clips=1",
    "eval.batch_size=64",
    "eval.steps=2",
    "eval.limit=128",
    "eval.pictures=1",
    "eval.checks=4",
)


@dataclass
class Peak:
    """Largest use of resources by a command.

    Attributes:
        name: name of the command.
        seconds: duration.
        memory: MiB of all its processes together, with shared pages counted once (PSS).
        files: open files of the process that has the most.
        shm: MiB in /dev/shm.
        status: exit status; -9 if it was killed.
        tail: end of its output.
    """

    name: str
    seconds: float = 0.0
    memory: float = 0.0
    files: int = 0
    shm: float = 0.0
    status: int = 0
    tail: str = field(default="", repr=False)

    def row(self) -> str:
        """Return a line of a table."""
        return (
            f"| {self.name:<34} | {self.seconds:.0f} | {self.memory:.0f} | {self.files} |"
            f" {self.shm:.0f} | {self.status} |"
        )


def make_links(root: Path, size: str, lists: Path | None) -> Path:
    """Create a data set in the layout of UCF101 whose videos are links to a few small clips.

    Args:
        root: folder to fill; a complete one is used as it is.
        size: a name in SIZES.
        lists: folder with the official lists of UCF101 (classInd.txt, trainlist01.txt, ...), to use
            their names; None: artificial names.

    Returns:
        The root.
    """
    done = root / "done"
    if done.is_file():
        return root
    # the clips: random blocks of 8 pixels that become brighter
    clips = root / "clips"
    clips.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(_CLIPS):
        blocks = rng.integers(0, 256, (1, 4, 4, 3), np.uint8).repeat(8, 1).repeat(8, 2)
        frames = blocks.astype(int) + 8 * np.arange(16)[:, None, None, None]
        write_video(clips / f"{number}.avi", frames.clip(0, 255).astype(np.uint8))
    # the lists
    folder = root / "ucfTrainTestlist"
    if lists is not None and size == "ucf101":
        shutil.copytree(lists, folder, dirs_exist_ok=True)
    else:
        _write_lists(folder, *SIZES[size])
    names: list[str] = []
    for split in ("train", "test"):
        lines = (folder / f"{split}list01.txt").read_text().splitlines()
        names += [line.split()[0] for line in lines if line.strip()]
    # the links
    for number, name in enumerate(names):
        link = root / "videos" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(clips / f"{number % _CLIPS}.avi")
    done.touch()
    return root


def _write_lists(folder: Path, train: int, test: int, classes: int) -> None:
    """Write the lists of an artificial data set.

    Args:
        folder: folder of the lists.
        train: number of training videos.
        test: number of test videos.
        classes: number of classes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "classInd.txt").write_text("".join(f"{c + 1} Class{c:03d}\n" for c in range(classes)))
    # one group per split, as in UCF101's official lists
    for split, count, group in (("train", train, "g08"), ("test", test, "g01")):
        lines = []
        for number in range(count):
            c = number % classes
            name = f"Class{c:03d}/v_Class{c:03d}_{group}{number:06d}_c01.avi"
            lines.append(f"{name} {c + 1}\n" if split == "train" else f"{name}\n")
        (folder / f"{split}list01.txt").write_text("".join(lines))


def measure(
    name: str,
    command: Sequence[str | Path],
    cwd: Path,
    *,
    files: int,
    memory_mib: int,
    shm_mib: int,
) -> Peak:
    """Run a command under limits, and measure the resources that its processes use.

    Args:
        name: name for the table.
        command: the tool and its arguments.
        cwd: working directory.
        files: number of files that a process may have open.
        memory_mib: memory of all processes, MiB, above which the command is killed.
        shm_mib: size of a /dev/shm of its own, MiB, if this process may mount one; 0: that of the
            machine.

    Returns:
        Its peaks.
    """
    words = [str(word) for word in command]
    if shm_mib and may_mount():
        mount = f'mount -t tmpfs -o size={shm_mib}m tmpfs /dev/shm && exec "$@"'
        # in a mount namespace of its own, so that the machine's /dev/shm stays as it is
        words = ["unshare", "--mount", "sh", "-c", mount, "sh", *words]
    peak = Peak(name)
    start = time.monotonic()
    with tempfile.TemporaryFile() as log:
        run = subprocess.Popen(
            words,
            cwd=cwd,
            stdout=log,
            stderr=log,
            start_new_session=True,  # so that all its processes can be found, and killed
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files)),
        )
        while run.poll() is None:
            _watch(run.pid, peak)
            if peak.memory > memory_mib:
                os.killpg(run.pid, signal.SIGKILL)
            # not more often: reading the memory of a process takes 10 ms of a core
            time.sleep(0.3)
        peak.seconds = time.monotonic() - start
        peak.status = run.returncode
        log.seek(0)
        peak.tail = log.read()[-3000:].decode(errors="replace")
    return peak


def may_mount() -> bool:
    """Return whether this process may give a command its own /dev/shm."""
    if not shutil.which("unshare"):
        return False
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _watch(session: int, peak: Peak) -> None:
    """Update the peaks by the current resources of a session's processes."""
    memory = 0.0
    shm = 0.0
    for pid in session_processes(session):
        try:
            memory += memory_mib(pid, "Pss:")
            peak.files = max(peak.files, len(os.listdir(f"/proc/{pid}/fd")))
            state = os.statvfs(f"/proc/{pid}/root/dev/shm")
            shm = max(shm, (state.f_blocks - state.f_bfree) * state.f_frsize / MIB)
        except (OSError, ValueError, IndexError):
            continue  # the process has ended in the meantime
    peak.memory = max(peak.memory, memory)
    peak.shm = max(peak.shm, shm)


def memory_mib(pid: int, *kinds: str) -> float:
    """Return the memory of a process in MiB; of pages that it shares, its part.

    Args:
        pid: process id.
        kinds: of memory, as in /proc/PID/smaps_rollup: "Pss:" for all.
    """
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(kinds)) / 1024


def session_processes(session: int) -> Iterator[int]:
    """Yield the process ids of a session."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if os.getsid(int(entry.name)) == session:
                yield int(entry.name)
        except ProcessLookupError:
            continue


def size_commands(root: Path, other: Path, out: Path) -> list[tuple[str, list[str | Path]]]:
    """Return (name, command) of every tool, in the order in which they run.

    Args:
        root: data set in the layout of UCF101.
        other: another data set in the same layout, for eval.shift.
        out: folder of the results.
    """
    python: str | Path = sys.executable
    data = ["data.name=ucf101", f"data.root={root}"]
    train: list[str | Path] = [
        python,
        REPO / "tools/train_net.py",
        "--cfg",
        REPO / "configs/ucf101_csl_adv.yaml",
        *SMALL,
        *data,
    ]
    test: list[str | Path] = [python, REPO / "tools/test_net.py", "--checkpoint", out / "run"]
    features = REPO / "tools/extract_features.py"
    study = [python, REPO / "tools/study.py", "--cfg", write_study_file(out, data)]
    manifest = out / "manifest.jsonl"
    # eval.limit=0 attacks all test videos
    evaluations = {
        "attacks": ["eval.name=attacks", "eval.limit=0", "eval.threats=[linf-2/255]"],
        "corruptions": [
            "eval.name=corrupt",
            "eval.threats=[]",
            "eval.limit=0",
            "eval.corruption.names=[contrast,jumble]",
            "eval.corruption.severities=[3]",
        ],
        "bias, shift, sensitivity": [
            "eval.name=bias",
            "eval.threats=[]",
            "eval.limit=0",
            "eval.bias=[shuffle]",
            "eval.sensitivity=64",
            "eval.shift.name=ucf101",
            f"eval.shift.root={other}",
        ],
    }
    return [
        ("scan", [python, REPO / "datasets/prepare.py", "scan", *data, "--output", manifest]),
        (
            "train, kNN, probe, geometry",
            [*train, "--output-dir", out / "run", f"data.manifest={manifest}", "eval.threats=[]"],
        ),
        *((name, [*test, *options]) for name, options in evaluations.items()),
        (
            "features of the training list",
            [python, features, "--checkpoint", out / "run", "--split", "train"],
        ),
        ("study of one arm", [*study, "--output-dir", out / "study"]),
    ]


def write_study_file(out: Path, data: Sequence[str]) -> Path:
    """Write the config file of a study with one short run."""
    config_file = out / "study.yaml"
    common = [*SMALL, *data, "train.max_steps=4", "eval.threats=[linf-0]"]
    lines = [
        "arms:",
        "  simclr: []",
        "datasets:",
        f"  ucf101: {REPO / 'configs/ucf101_csl.yaml'}",
        "seeds: [0]",
        "common:",
        *(f"  - {json.dumps(word)}" for word in common),
    ]
    config_file.parent.mkdir(parents=True, exist_ok=True)
    config_file.write_text("\n".join(lines) + "\n")
    return config_file


def soak_size(
    out: Path, size: str, lists: Path | None, *, files: int, memory_mib: int, shm_mib: int
) -> list[Peak]:
    """Run every tool on a data set, and print a table of the resources that they use.

    Args:
        out: folder for data and results.
        size: a name in SIZES.
        lists: as in `make_links`.
        files: as in `measure`.
        memory_mib: as in `measure`.
        shm_mib: as in `measure`.

    Returns:
        Peaks of the tools.
    """
    root = make_links(out / f"data_{size}", size, lists)
    other = make_links(out / f"other_{size}", size, lists)
    folder = out / size
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shm = "the machine's /dev/shm (this user may not mount another)"
    if may_mount():
        shm = f"/dev/shm of {shm_mib} MB"
    train, test, _ = SIZES[size]
    pixels = (train + test) * 3 * _FRAMES * _SIDE**2 / MIB
    print(
        f"{size}: {train:,} + {test:,} videos, whose clips have {pixels:,.0f} MiB of pixels; "
        f"{files} open files, {memory_mib} MiB, {shm}"
    )
    print(
        "| command | s | memory, MiB | open files | /dev/shm, MiB | status"
        " |\n|---|---|---|---|---|---|"
    )
    peaks = []
    for name, command in size_commands(root, other, folder):
        peak = measure(name, command, folder, files=files, memory_mib=memory_mib, shm_mib=shm_mib)
        peaks.append(peak)
        print(peak.row(), flush=True)
        if peak.status:
            print(peak.tail, file=sys.stderr)
    return peaks


def digest(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of the files of a run and its evaluations.

    Files that hold times or logs are left out, because they differ between runs.
    """
    varying = (
        "log.txt",
        "env.json",
        "timing",
        "metrics.jsonl",
        "config.yaml",
        ".lock",
        "events.",
        "report.",
        "environment.json",
        "card.json",
    )
    hashes = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.suffix not in (".png", ".pt")
        and not path.name.startswith(varying)
    }
    return hashes | {path.name: _weights_hash(path) for path in folder.glob("backbone.pt")}


def _weights_hash(path: Path) -> str:
    """Return the SHA-256 of a state dict's tensors, because the file also holds its own name."""
    import torch  # slow to import

    state = torch.load(path, weights_only=True)
    content = b"".join(key.encode() + state[key].numpy().tobytes() for key in sorted(state))
    return hashlib.sha256(content).hexdigest()


# ways to end a run: name -> function of the process id of its main process
ENDS: dict[str, Callable[[int], None]] = {
    "SIGKILL": lambda pid: os.kill(pid, signal.SIGKILL),
    "SIGKILL to all": lambda pid: os.killpg(pid, signal.SIGKILL),
    "SIGTERM to all": lambda pid: os.killpg(pid, signal.SIGTERM),
    "SIGINT to all": lambda pid: os.killpg(pid, signal.SIGINT),
    "SIGHUP to all": lambda pid: os.killpg(pid, signal.SIGHUP),
    "SIGUSR1 to all": lambda pid: os.killpg(pid, signal.SIGUSR1),
    "SIGUSR2": lambda pid: os.kill(pid, signal.SIGUSR2),
}


def pause(pid: int, seconds: float) -> None:
    """Suspend all processes of a session for some seconds."""
    os.killpg(pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.killpg(pid, signal.SIGCONT)


def soak_kills(out: Path, kills: int, seed: int, longest_s: float, steps: int = 120) -> int:
    """Kill runs, and compare the files of each with those of an undisturbed run.

    Args:
        out: folder for data and runs.
        kills: number of kills.
        seed: random seed of their times and signals.
        longest_s: a process is killed after at most this many seconds.
        steps: training steps of a run.

    Returns:
        Number of files that differ; 1 if a run failed without being killed.
    """
    rng = random.Random(seed)
    command = killed_command(make_links(out / "data_short", "short", None), steps)
    for old in out.glob("killed*"):
        shutil.rmtree(old)
    shutil.rmtree(out / "whole", ignore_errors=True)
    # the undisturbed run
    start = time.monotonic()
    subprocess.run(
        [*command, "--output-dir", out / "whole"], check=True, capture_output=True, cwd=out
    )
    longest_s = min(longest_s, time.monotonic() - start)
    print(f"each process runs for up to {longest_s:.0f} s")
    done = 0
    differ = 0
    for number in itertools.count():
        folder = out / f"killed{number}"
        status = None
        while status != 0:
            life = _run_once(command, folder, rng, longest_s if done < kills else 0)
            status = life.status
            done += life.killed
            print(f"{done:3d} {life.summary}", flush=True)
            if not life.killed and status:
                print("\n".join(life.output))
                return 1
        expected = digest(out / "whole")
        actual = digest(folder)
        names = sorted({*expected, *actual})
        other = [name for name in names if expected.get(name) != actual.get(name)]
        print(f"{done} kills; files that differ: {', '.join(other) or 'none'} of {len(expected)}")
        differ += len(other)
        if done >= kills:
            return differ
    raise AssertionError


def killed_command(root: Path, steps: int) -> list[str | Path]:
    """Return the training command of `soak_kills`, without its output folder."""
    words = [
        *SMALL,
        f"data.root={root}",
        "data.name=ucf101",
        "train.epochs=8",
        f"train.max_steps={steps}",
        "train.batch_size=32",
        "train.checkpoint_every=5",
        "eval.limit=24",
        "eval.threats=[linf-0,linf-2/255]",
        "eval.corruption.names=[contrast,jumble]",
        "eval.corruption.severities=[1,3]",
    ]
    return [
        sys.executable,
        REPO / "tools/train_net.py",
        "--cfg",
        REPO / "configs/ucf101_csl_adv.yaml",
        # an option may not be given twice: keep the last value of each
        *{word.split("=")[0]: word for word in words}.values(),
    ]


@dataclass(frozen=True)
class _Life:
    """Outcome of one process.

    Attributes:
        status: exit status; 1 for a fault, such as a traceback or processes that outlive it.
        killed: whether it was killed, without a fault.
        summary: a line about it.
        output: last lines of its output.
    """

    status: int
    killed: bool
    summary: str
    output: list[str]


def _run_once(
    command: Sequence[str | Path], folder: Path, rng: random.Random, longest_s: float
) -> _Life:
    """Start or resume a run, and end it at a random time.

    Args:
        command: training command, without its output folder.
        folder: output folder.
        rng: random generator of the time and the signal.
        longest_s: latest time of the kill, seconds; 0: no kill.
    """
    resume = ["--resume"] if folder.exists() else []
    how = rng.choice(list(ENDS)) if longest_s else ""
    life_s = rng.uniform(0, longest_s)
    with tempfile.TemporaryFile() as log:
        run = subprocess.Popen(
            [str(word) for word in (*command, "--output-dir", folder, *resume)],
            cwd=folder.parent,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        killed = False
        # wait until the tool has installed its signal handlers: before, Python itself starts
        if how and Path("/proc/self/status").exists():
            while run.poll() is None and not handles_sigterm(run.pid):
                time.sleep(0.01)
        try:
            # some runs are suspended for a while first
            if how and rng.random() < 0.2:
                time.sleep(rng.uniform(0, 3))
                pause(run.pid, 2)
            run.wait(life_s if how else None)
        except (subprocess.TimeoutExpired, ProcessLookupError):
            if run.poll() is None:
                ENDS[how](run.pid)
                killed = True
        status = run.wait(120)
        outlived = _count_outlived(run.pid)
        log.seek(0)
        printed = log.read().decode(errors="replace").strip().splitlines()
    faults = []
    if outlived:
        faults.append(f"{outlived} processes outlived it")
    if any("Traceback" in line for line in printed):
        faults.append("a traceback")
    if killed and "KILL" not in how and status not in (0, EXIT_STOPPED):
        faults.append(f"not {EXIT_STOPPED}, the status of a stop")
    last = printed[-1][-100:] if printed else ""
    summary = (
        f"{how or 'not killed':<16} {life_s:5.1f} s: status {status},"
        f" {'; '.join(faults) or 'no faults'}: {last}"
    )
    return _Life(1 if faults else status, killed and not faults, summary, printed[-30:])


def handles_sigterm(pid: int) -> bool:
    """Return whether a process has a handler for SIGTERM, from its entry in /proc."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:"))
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def _count_outlived(session: int) -> int:
    """Return how many processes of a session remain, five seconds after the main process ended."""
    deadline = time.monotonic() + 5
    while left := list(session_processes(session)):
        if time.monotonic() > deadline:
            return len(left)
        time.sleep(0.05)
    return 0
