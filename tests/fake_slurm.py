"""A Slurm of one machine: sbatch, srun, scontrol and scancel, as far as submitit uses them.

Tests put the folder of `install` first in PATH. Jobs start at once, as real processes with the
variables of Slurm: several nodes are several processes here.
"""

import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

NAMES = ("sbatch", "srun", "scontrol", "scancel")
FOLDER = "FAKE_SLURM"  # variable of the environment: folder of its files


def install(folder: Path) -> dict[str, str]:
    """Write the commands into a folder; return the environment that uses them."""
    folder.mkdir()
    for name in NAMES:
        file = folder / name
        file.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} "$@"\n')
        file.chmod(0o755)
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", FOLDER: str(folder)}


def wait_for(folder: Path, job: str, seconds: float = 120) -> None:
    """Wait until a job, or the whole array, has ended."""
    end = time.monotonic() + seconds
    while not (folder / f"{job}.done").exists():
        assert time.monotonic() < end, f"job {job} still runs"
        time.sleep(0.05)


def sbatch(folder: Path, script: str) -> None:
    """Start a job, and print its number."""
    job = str(1 + len(list(folder.glob("*.job"))))
    (folder / f"{job}.job").write_text(Path(script).read_text())
    with open(folder / f"{job}.log", "wb") as log:
        subprocess.Popen(
            [sys.executable, __file__, "run", job],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    print(f"Submitted batch job {job}")


def run(folder: Path, job: str) -> None:
    """Run a job or an array, after the jobs that it depends on."""
    text = (folder / f"{job}.job").read_text()
    options = dict(re.findall(r"(?m)^#SBATCH --([a-z-]+)=(.*)$", text))
    if dependency := options.get("dependency"):
        wait_for(folder, dependency.strip("'").removeprefix("afterany:"))
    if array := re.fullmatch(r"'?0-(\d+)%(\d+)'?", options.get("array", "")):
        with ThreadPoolExecutor(int(array[2])) as pool:
            list(pool.map(lambda task: _run(folder, job, options, task), range(int(array[1]) + 1)))
    else:
        _run(folder, job, options, None)
    (folder / f"{job}.done").touch()


def _run(folder: Path, job: str, options: dict[str, str], task: int | None) -> None:
    """Run one job, again and again as long as it is requeued."""
    name = job if task is None else f"{job}_{task}"
    nodes = int(options["nodes"])
    environment = {
        **os.environ,
        "SLURM_JOB_ID": job if task is None else f"{job}00{task}",
        "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_JOB_NODELIST": ",".join(["localhost"] * nodes),
        "SLURM_NTASKS": str(nodes * int(options["ntasks-per-node"])),
    }
    if task is not None:
        environment |= {"SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": str(task)}
    requeued = folder / f"{name}.requeued"
    while True:
        subprocess.run(["bash", str(folder / f"{job}.job")], env=environment, check=False)
        if not requeued.exists():
            break
        requeued.unlink()


def srun(folder: Path, *words: str) -> None:
    """Run a command once for each task, with its output in files."""
    command = list(words)
    options = {}
    while command[0].startswith("--"):
        option = command.pop(0)
        if option in ("--output", "--error"):
            options[option] = command.pop(0)
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    count = int(os.environ["SLURM_NTASKS"])
    per_node = count // int(os.environ["SLURM_JOB_NUM_NODES"])
    tasks = []
    for number in range(count):
        names = {"SLURM_PROCID": number, "SLURM_LOCALID": number % per_node}
        names["SLURM_NODEID"] = number // per_node
        files = []
        for option in ("--output", "--error"):
            path = options[option].replace("%A_%a", job).replace("%j", job)
            files.append(open(path.replace("%t", str(number)), "ab"))
        environment = {**os.environ, **{name: str(value) for name, value in names.items()}}
        tasks.append(subprocess.Popen(command, env=environment, stdout=files[0], stderr=files[1]))
    (folder / f"{job}.pids").write_text(" ".join(str(task.pid) for task in tasks))
    sys.exit(max(abs(task.wait()) for task in tasks))


def scontrol(folder: Path, action: str, job: str) -> None:
    """Note that a job is to run again."""
    assert action == "requeue"
    (folder / f"{job}.requeued").touch()
    with open(folder / "requeues", "a") as file:
        print(job, file=file)


def scancel(folder: Path, job: str, *words: str) -> None:
    """Send a signal to all tasks of a job."""
    assert words[0] == "--signal"
    for pid in (folder / f"{job}.pids").read_text().split():
        os.kill(int(pid), getattr(signal, f"SIG{words[1].removeprefix('SIG')}"))


if __name__ == "__main__":
    kinds = {"run": run, "sbatch": sbatch, "srun": srun, "scontrol": scontrol, "scancel": scancel}
    kinds[sys.argv[1]](Path(os.environ[FOLDER]), *sys.argv[2:])
