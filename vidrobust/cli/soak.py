"""Run the tools at full size, and kill them.

    python tools/soak.py size|kills --output-dir FOLDER

size   data sets as long as UCF101's and Kinetics-400's lists, made of links to a few small clips,
       and every tool on them with 256 open files, 64 MB of /dev/shm and a memory limit. Peaks may
       grow with features and rows, never with pixels or files
kills  runs of tools/train_net.py, training and evaluation, each ended at random moments by SIGKILL
       or by signals to the whole process group, some after a pause, and begun again until done:
       what they leave must be bitwise what an undisturbed run leaves
"""

import argparse
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

REPO = Path(__file__).resolve().parents[2]

from vidrobust.data.motionshapes import write_video  # noqa: E402  (this clone's package)
from vidrobust.utils.stopping import EXIT_STOPPED  # noqa: E402

MIB = 2**20
_CLIPS = 12  # different files behind all links
# videos of the training and of the test list, and classes
SIZES = {"ucf101": (9537, 3783, 101), "kinetics": (220_000, 20_000, 400), "short": (480, 160, 8)}
_FRAMES, _SIDE = 4, 32  # so small that decoding takes no time, and large enough to be seen if kept
# options of the smallest model and of such clips
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
    "train.max_steps=500",  # an epoch of UCF101; evaluations take all videos
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
    """What a command took: seconds, and the largest memory, open files and shared memory seen.

    memory: MiB of all its processes together, shared pages counted once (PSS). files: of the
    process that had the most open. shm: MiB in /dev/shm.
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
    """Make a data set in UCF101's layout whose videos are links to a few small clips.

    Args:
        root: the folder to fill; a whole one is used as it is.
        size: a name of SIZES.
        lists: a folder with official lists of UCF101 (classInd.txt, trainlist01.txt, ...), whose
            names are then used; None: names are made.

    Returns:
        The root.
    """
    done = root / "done"
    if done.is_file():
        return root
    clips = root / "clips"
    clips.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(_CLIPS):
        low = rng.integers(0, 256, (1, 4, 4, 3), np.uint8).repeat(8, 1).repeat(8, 2)
        frames = (
            (low.astype(int) + 8 * np.arange(16)[:, None, None, None]).clip(0, 255).astype(np.uint8)
        )
        write_video(clips / f"{number}.avi", frames)
    folder = root / "ucfTrainTestlist"
    if lists is not None and size == "ucf101":
        shutil.copytree(lists, folder, dirs_exist_ok=True)
    else:
        _write_lists(folder, *SIZES[size])
    names = [
        line.split()[0]
        for split in ("train", "test")
        for line in (folder / f"{split}list01.txt").read_text().splitlines()
        if line.strip()
    ]
    for number, name in enumerate(names):
        link = root / "videos" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(clips / f"{number % _CLIPS}.avi")
    done.touch()
    return root


def _write_lists(folder: Path, train: int, test: int, classes: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "classInd.txt").write_text("".join(f"{c + 1} Class{c:03d}\n" for c in range(classes)))
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
    """Run a command under limits, and watch what all its processes take.

    Args:
        name: for the table.
        command: the tool and its words.
        cwd: where it runs.
        files: descriptors that a process may have open.
        memory_mib: memory above which it is killed.
        shm_mib: size of its own /dev/shm, where this process may mount one; 0: the machine's.

    Returns:
        Its peaks; status is that of the command, -9 where it was killed.
    """
    words = [str(word) for word in command]
    if shm_mib and _may_mount():
        mount = f'mount -t tmpfs -o size={shm_mib}m tmpfs /dev/shm && exec "$@"'
        words = ["unshare", "--mount", "sh", "-c", mount, "sh", *words]
    peak, began = Peak(name), time.monotonic()
    with tempfile.TemporaryFile() as log:
        run = subprocess.Popen(
            words,
            cwd=cwd,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files)),
        )
        while run.poll() is None:
            _watch(run.pid, peak)
            if peak.memory > memory_mib:
                os.killpg(run.pid, signal.SIGKILL)
            # a look at a process's memory takes 10 ms of a core
            time.sleep(0.3)
        peak.seconds = time.monotonic() - began
        peak.status = run.returncode
        log.seek(0)
        peak.tail = log.read()[-3000:].decode(errors="replace")
    return peak


def _may_mount() -> bool:
    """Return whether this process may give a command its own /dev/shm."""
    tried = (
        subprocess.run(
            ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"],
            capture_output=True,
            check=False,
        )
        if shutil.which("unshare")
        else None
    )
    return tried is not None and tried.returncode == 0


def _watch(session: int, peak: Peak) -> None:
    """Raise the peaks to what the processes of a session take now."""
    memory, shm = 0.0, 0.0
    for pid in _processes(session):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            memory += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
            peak.files = max(peak.files, len(os.listdir(f"/proc/{pid}/fd")))
            state = os.statvfs(f"/proc/{pid}/root/dev/shm")
            shm = max(shm, (state.f_blocks - state.f_bfree) * state.f_frsize / MIB)
        except (OSError, ValueError, IndexError):
            continue  # it has ended meanwhile
    peak.memory = max(peak.memory, memory)
    peak.shm = max(peak.shm, shm)


def _processes(session: int) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if os.getsid(int(entry.name)) == session:
                yield int(entry.name)
        except ProcessLookupError:
            continue


def size_commands(root: Path, other: Path, out: Path) -> list[tuple[str, list[str | Path]]]:
    """Return (name, command) of every tool on a data set in UCF101's layout, in the order they run.

    other: a data set of the same layout, and of other files, for the shift.
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
    manifest = out / "manifest.jsonl"
    shift = ["eval.shift.name=ucf101", f"eval.shift.root={other}"]
    return [
        ("scan", [python, REPO / "datasets/prepare.py", "scan", *data, "--output", manifest]),
        (
            "train, kNN, probe, geometry",
            [*train, "--output-dir", out / "run", f"data.manifest={manifest}", "eval.threats=[]"],
        ),
        (
            "attacks",
            [*test, "eval.name=attacks", "eval.limit=0", "eval.threats=[linf-2/255]"],
        ),
        (
            "corruptions",
            [
                *test,
                "eval.name=corrupt",
                "eval.threats=[]",
                "eval.limit=0",
                "eval.corruption.names=[contrast,jumble]",
                "eval.corruption.severities=[3]",
            ],
        ),
        (
            "bias, shift, sensitivity",
            [
                *test,
                "eval.name=bias",
                "eval.threats=[]",
                "eval.limit=0",
                "eval.bias=[shuffle]",
                "eval.sensitivity=64",
                *shift,
            ],
        ),
        (
            "features of the training list",
            [
                python,
                REPO / "tools/extract_features.py",
                "--checkpoint",
                out / "run",
                "--split",
                "train",
            ],
        ),
        (
            "study of one arm",
            [
                python,
                REPO / "tools/study.py",
                "--cfg",
                _study(out, data),
                "--output-dir",
                out / "study",
            ],
        ),
    ]


def _study(out: Path, data: Sequence[str]) -> Path:
    """Write the config file of a study of one short run."""
    page = out / "study.yaml"
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
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(lines) + "\n")
    return page


def soak_size(
    out: Path, size: str, lists: Path | None, *, files: int, memory_mib: int, shm_mib: int
) -> list[Peak]:
    """Run every tool on a data set of a size; print a row each, and return their peaks."""
    root, other = (make_links(out / f"{what}_{size}", size, lists) for what in ("data", "other"))
    here = out / size
    shutil.rmtree(here, ignore_errors=True)
    here.mkdir(parents=True)
    limited = (
        f"/dev/shm of {shm_mib} MB"
        if _may_mount()
        else "/dev/shm as it is (this user may mount nothing)"
    )
    train, test, _ = SIZES[size]
    pixels = (train + test) * 3 * _FRAMES * _SIDE**2 / MIB
    print(
        f"{size}: {train:,} + {test:,} videos, whose clips have {pixels:,.0f} MiB of pixels; "
        f"{files} open files, {memory_mib} MiB, {limited}"
    )
    print(
        "| command | s | memory, MiB | open files | /dev/shm, MiB | status"
        " |\n|---|---|---|---|---|---|"
    )
    peaks = []
    for name, command in size_commands(root, other, here):
        peaks.append(
            measure(name, command, here, files=files, memory_mib=memory_mib, shm_mib=shm_mib)
        )
        print(peaks[-1].row(), flush=True)
        if peaks[-1].status:
            print(peaks[-1].tail, file=sys.stderr)
    return peaks


def digest(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file that a run or an evaluation leaves, but for times and
    logs.
    """
    passing = (
        "log.txt",
        "env.json",
        "timing",
        "metrics.jsonl",
        "config.yaml",
        ".lock",
        "events.",
        "report.md",
    )
    found = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.suffix not in (".png", ".pt")
        and not path.name.startswith(passing)
    }
    return found | {path.name: _weights(path) for path in folder.glob("backbone.pt")}


def _weights(path: Path) -> str:
    """Return the SHA-256 of a state dict's tensors: the file itself holds its own name."""
    import torch

    state = torch.load(path, weights_only=True)
    content = b"".join(key.encode() + state[key].numpy().tobytes() for key in sorted(state))
    return hashlib.sha256(content).hexdigest()


# what ends a run: a name, and what is done to the session of a pid
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
    """Stop all processes of a session for a while."""
    os.killpg(pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.killpg(pid, signal.SIGCONT)


def soak_kills(out: Path, kills: int, seed: int, longest_s: float, steps: int = 120) -> int:
    """Kill runs until there were `kills`, and compare what each leaves with an undisturbed one's.

    Args:
        out: a folder for data and runs.
        kills: how many.
        seed: of when and how.
        longest_s: seconds of the longest life.
        steps: of training in a run.

    Returns:
        How many files differ; 1 where a run failed by itself.
    """
    rng = random.Random(seed)
    command = _killed_command(make_links(out / "data_short", "short", None), steps)
    for old in out.glob("killed*"):
        shutil.rmtree(old)
    shutil.rmtree(out / "whole", ignore_errors=True)
    began = time.monotonic()
    subprocess.run(
        [*command, "--output-dir", out / "whole"], check=True, capture_output=True, cwd=out
    )
    longest_s = min(longest_s, time.monotonic() - began)
    print(f"each life lasts up to {longest_s:.0f} s")
    done, differ = 0, 0
    for number in itertools.count():
        folder = out / f"killed{number}"
        status = None
        while status != 0:
            status, killed, printed = _life(command, folder, rng, longest_s if done < kills else 0)
            done += killed
            print(f"{done:3d} {printed[0]}", flush=True)
            if not killed and status:
                print("\n".join(printed[1:]))
                return 1
        whole, left = digest(out / "whole"), digest(folder)
        other = sorted(name for name in {**whole, **left} if whole.get(name) != left.get(name))
        print(f"{done} kills; files that differ: {', '.join(other) or 'none'} of {len(whole)}")
        differ += len(other)
        if done >= kills:
            return differ
    raise AssertionError


def _killed_command(root: Path, steps: int) -> list[str | Path]:
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
        *{word.split("=")[0]: word for word in words}.values(),  # the last of each option
    ]


def _life(
    command: Sequence[str | Path], folder: Path, rng: random.Random, longest_s: float
) -> tuple[int, bool, list[str]]:
    """Run a command, or go on where it was, and end it at a random moment.

    Args:
        command: without its output folder.
        folder: where it writes.
        rng: decides when and how it ends.
        longest_s: seconds until then, at most; 0 leaves it alone.

    Returns:
        (exit status, whether it was killed, a line about it and what it printed). A traceback, or
        processes that outlive it, are a failure of its own.
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
        if how and Path("/proc/self/status").exists():
            while run.poll() is None and not _takes_stops(run.pid):  # Python itself starts
                time.sleep(0.01)
        try:
            if how and rng.random() < 0.2:
                time.sleep(rng.uniform(0, 3))
                pause(run.pid, 2)
            run.wait(life_s if how else None)
        except (subprocess.TimeoutExpired, ProcessLookupError):
            if run.poll() is None:
                ENDS[how](run.pid)
                killed = True
        status = run.wait(120)
        outlived = _outlived(run.pid)
        log.seek(0)
        printed = log.read().decode(errors="replace").strip().splitlines()
    faults = [f"{outlived} processes outlived it"] if outlived else []
    faults += ["a traceback"] if any("Traceback" in line for line in printed) else []
    if killed and "KILL" not in how and status not in (0, EXIT_STOPPED):
        faults.append(f"not {EXIT_STOPPED}, as a stop")
    line = (
        f"{how or 'left alone':<16} {life_s:5.1f} s: status {status},"
        f" {'; '.join(faults) or 'sound'}"
    )
    last = printed[-1][-100:] if printed else ""
    return (1 if faults else status), killed and not faults, [f"{line}: {last}", *printed[-30:]]


def _takes_stops(pid: int) -> bool:
    """Return whether a process has a handler for SIGTERM, by what Linux shows of it."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:"))
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def _outlived(session: int) -> int:
    """Return how many processes of a session are left five seconds after its first one ended."""
    deadline = time.monotonic() + 5
    while left := list(_processes(session)):
        if time.monotonic() > deadline:
            return len(left)
        time.sleep(0.05)
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("size", "kills"))
    parser.add_argument(
        "--output-dir", type=Path, required=True, help="a folder for data, runs and results"
    )
    parser.add_argument(
        "--size", choices=tuple(SIZES), default="ucf101", help="size: how many videos"
    )
    parser.add_argument("--lists", type=Path, help="size: a folder with UCF101's official lists")
    parser.add_argument("--files", type=int, default=256, help="size: open files of a process")
    parser.add_argument(
        "--memory", type=int, default=6000, help="size: MiB of all processes of a command"
    )
    parser.add_argument("--shm", type=int, default=64, help="size: MB of /dev/shm")
    parser.add_argument("--kills", type=int, default=30, help="kills: how often")
    parser.add_argument("--seed", type=int, default=0, help="kills: of when and how")
    parser.add_argument("--life", type=float, default=20, help="kills: seconds of the longest life")
    args = parser.parse_args()
    out = args.output_dir.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if args.command == "size":
        limits = {"files": args.files, "memory_mib": args.memory, "shm_mib": args.shm}
        peaks = soak_size(out, args.size, args.lists, **limits)
        sys.exit(any(peak.status for peak in peaks))
    sys.exit(bool(soak_kills(out, args.kills, args.seed, args.life)))
