"""A submitted training continues after preemptions, and ends as an undisturbed one does."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from tests import fake_slurm
from tests.helpers import REPO, tiny, tool
from tests.processes import ENV, Process
from tests.training.helpers import equal, two_ranks
from tests.utils.test_stopping import wait_until
from vidrobust import checkpoint
from vidrobust.cli.cluster_jobs import SubmittedCommand
from vidrobust.utils import child_commands
from vidrobust.utils.logging import read_metrics
from vidrobust.utils.stopping import EXIT_STOPPED


@pytest.fixture
def place(ucf, tmp_path):
    (tmp_path / "page.yaml").write_text(f"data: {{root: {ucf}}}")
    return tmp_path


def _words(*words, out="out"):
    return ["--cfg", "page.yaml", "--output-dir", out, *tiny("device=cpu", *words)]


def _rows(folder: Path):
    return [row for row in read_metrics(folder) if row["split"] == "train"]


# --- Refusals ---


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--time: give the time limit of a job in minutes"),
        (["--time", "0"], "--time 0: must be above 0"),
        (["--time", "nan"], "--time nan: must be above 0"),
        (["--time", "9.5"], "--time 9.5: Slurm takes whole minutes"),
        (["--time", "2"], "--grace 120: must be less than the 120 seconds of --time 2"),
        (["--time", "9", "--nodes", "0"], "--nodes 0: must be at least 1"),
        (["--time", "9", "--gpus", "2", "--ranks", "3"], "--ranks 3: --gpus 2 has one rank per"),
        (["--time", "9", "--nodes", "2", "--executor", "local"], "--nodes 2: --executor local has"),
        (
            ["--time", "9", "--cpus", "4", "--executor", "local"],
            "--cpus 4: --executor local does not",
        ),
        (
            ["--time", "9", "--qos", "x", "--executor", "local"],
            "--qos x: --executor local does not",
        ),
        (["--time", "9", "data.framse=2"], "unknown option 'data.framse'"),
        (["--time", "9", "protocol.name=finetune"], "begins with a trained model"),
        (["--time", "9", "--output-dir", "a%j"], "--output-dir a%j: has % or a control character"),
    ],
)
def test_what_cannot_run_is_refused_before_it_waits_in_a_queue(place, words, message):
    done = tool("submit", "--cfg", "page.yaml", *words, cwd=place)
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1
    assert message in done.stderr
    assert sorted(path.name for path in place.iterdir()) == ["page.yaml"]


def test_without_slurm_it_says_what_it_would_have_run(place, monkeypatch):
    monkeypatch.setenv("PATH", "")
    size = ["--nodes", "2", "--gpus", "4", "--time", "60", "--partition", "gpu", "--memory", "64"]
    size += ["--cpus", "3"]
    done = tool("submit", *_words(), *size, cwd=place)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert "this machine has no sbatch and srun" in line and "--executor local" in line
    for option in ("nodes=2", "ntasks-per-node=4", "gpus-per-node=4", "time=60", "mem=64GB"):
        assert f"#SBATCH --{option}\n" in done.stdout
    assert "#SBATCH --signal=USR2@120\n" in done.stdout
    # srun has other defaults than sbatch's options since Slurm 22.05
    (step,) = [line for line in done.stdout.splitlines() if line.startswith("srun ")]
    assert " --cpus-per-task=3 " in step
    command = done.stdout.splitlines()[-1]
    assert command.startswith("# vidrobust train --cfg page.yaml --output-dir out --resume")
    assert not (place / "out").exists()


def test_names_cannot_add_lines_to_the_script(place):
    done = tool("submit", *_words(out="a;b $(c)"), "--time", "60", "--dry-run", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --job-name=vidrobust_a_b_c_\n" in done.stdout
    script = [line for line in done.stdout.splitlines() if not line.startswith("#")]
    assert all(f"'{place.resolve()}/a;b $(c)/" in line for line in script if "a;b" in line)


def test_a_missing_package_is_named(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    done = tool("submit", *_words(), "--time", "60", "--executor", "local", cwd=place)
    assert done.returncode == 1 and "pip install 'vidrobust[cluster]'" in done.stderr


# --- The job ---


class _Environment:
    """submitit's, of one task."""

    USR_SIG = "USR2"
    num_tasks = 1
    global_rank = 0


@pytest.fixture
def job(monkeypatch):
    """Return a function: Python code in place of the command -> (exit status, requeues)."""
    import submitit

    def run(code, rank=0):
        requeues = []
        environment = _Environment()
        environment.global_rank = rank
        monkeypatch.setattr(submitit, "JobEnvironment", lambda: environment)
        monkeypatch.setattr(child_commands, "command", lambda words: [sys.executable, "-c", code])
        signal.signal(signal.SIGUSR2, lambda number, frame: requeues.append(number))
        try:
            SubmittedCommand(("train",))()
        except SystemExit as end:
            return end.code, len(requeues)
        return 0, len(requeues)

    before = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)}
    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


_STOPS = """
import os, signal, sys, time
signal.signal(signal.{name}, lambda number, frame: sys.exit(130))
os.kill(os.getppid(), signal.{name})
time.sleep(20)
"""


def test_a_preempted_job_is_requeued_by_its_first_rank_alone(job):
    assert job(_STOPS.format(name="SIGUSR2")) == (EXIT_STOPPED, 1)
    # srun with --kill-on-bad-exit would end rank 0 before it has requeued
    assert job(_STOPS.format(name="SIGUSR2"), rank=1) == (0, 0)


def test_a_cancelled_job_writes_its_state_and_is_not_requeued(job):
    assert job(_STOPS.format(name="SIGTERM")) == (EXIT_STOPPED, 0)


def test_a_signal_before_the_command_has_handlers_is_a_stop(job):
    code = "import os, signal, time; os.kill(os.getppid(), signal.SIGUSR2); time.sleep(20)"
    assert job(code) == (EXIT_STOPPED, 1)


def test_a_job_that_finished_or_failed_is_not_requeued(job):
    preempted = "import os, signal, sys, time; signal.signal(signal.SIGUSR2, signal.SIG_IGN);"
    preempted += " os.kill(os.getppid(), signal.SIGUSR2); time.sleep(0.5);"
    assert job(f"{preempted} sys.exit(0)") == (0, 0)
    assert job(f"{preempted} sys.exit(1)") == (1, 0)
    assert job("import os; os.kill(os.getpid(), 9)") == (137, 0)


# --- Whole runs ---


def _task_of(controller: int) -> int | None:
    """Return the process that the local controller has started, once there is one."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == controller and fields[0] != "Z":
            return int(stat.parent.name)
    return None


@pytest.mark.slow
def test_a_run_that_is_preempted_five_times_is_one_curve_and_bitwise_the_same(place):
    words = ("train.epochs=120", "train.checkpoint_every=9", "eval.enabled=false")
    whole = tool("train_net", *_words(*words, out="whole"), cwd=place)
    assert whole.returncode == 0, whole.stderr
    limits = ("--executor", "local", "--time", "60", "--grace", "5")
    process = Process([REPO / "tools/submit.py", *_words(*words), *limits], cwd=place)
    try:
        for count in range(5):
            _preempt(place, process, count)
        errors = process.communicate(timeout=120)[1]
    finally:
        process.terminate()
    assert process.returncode == 0, errors
    (log,) = place.glob("out/jobs/*_log.out")
    assert log.read_text().count("Requeued job") == 5
    assert [row["step"] for row in _rows(place / "out")] == list(range(240))
    losses = [[row["loss"] for row in _rows(place / name)] for name in ("out", "whole")]
    assert losses[0] == losses[1]
    states = [checkpoint.read_checkpoint(place / name) for name in ("out", "whole")]
    assert equal(states[0], states[1])
    backbones = [(place / name / "backbone.pt").read_bytes() for name in ("out", "whole")]
    assert backbones[0] == backbones[1]


def _preempt(place, process, count):
    """Send submitit's signal once the run has gone on after `count` preemptions."""
    logs = list(place.glob("out/jobs/*_log.err"))
    seen = len(_rows(place / "out"))

    def goes_on():
        nonlocal logs
        logs = list(place.glob("out/jobs/*_log.err"))
        begun = logs and logs[0].read_text().count("steps ") > count
        return begun and len(_rows(place / "out")) > seen

    wait_until(goes_on, process)
    controller = int(logs[0].name.split("_")[0])
    os.kill(_task_of(controller), signal.SIGUSR2)
    out = logs[0].with_name(logs[0].name.replace(".err", ".out"))
    wait_until(lambda: out.read_text().count("Requeued job") > count, process)


@pytest.mark.slow
def test_a_stopped_local_job_writes_its_state(place):
    words = _words("train.epochs=4000", "eval.enabled=false")
    limits = ("--executor", "local", "--time", "60", "--grace", "5")
    process = Process([REPO / "tools/submit.py", *words, *limits], cwd=place)
    wait_until(lambda: len(_rows(place / "out")) > 2, process)
    process.terminate()
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == EXIT_STOPPED, errors
    state = checkpoint.read_checkpoint(place / "out")
    assert state["step"] == len(_rows(place / "out"))


@pytest.mark.slow
def test_two_nodes_of_slurm_are_two_ranks_that_requeue_once(place):
    """The commands of Slurm are imitated, and start real processes with its variables."""
    words = ("train.epochs=30", "train.checkpoint_every=9")
    (place / "ranks").mkdir()
    (place / "ranks/page.yaml").write_text((place / "page.yaml").read_text())
    slurm = place / "slurm"
    environment = {**ENV, **fake_slurm.install(slurm)}
    command = [REPO / "tools/submit.py", *_words(*words, "eval.enabled=false")]
    command += ["--nodes", "2", "--time", "60"]
    process = Process(command, cwd=place, env=environment)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 0 and "submitted as job 1;" in errors, errors
    end = time.monotonic() + 90
    while len(_rows(place / "out")) < 3:
        assert time.monotonic() < end
        time.sleep(0.05)
    fake = {**environment, fake_slurm.FOLDER: str(slurm)}
    os.spawnve(os.P_WAIT, str(slurm / "scancel"), ["scancel", "1", "--signal", "USR2"], fake)
    fake_slurm.wait_for(slurm, "1")
    assert (slurm / "requeues").read_text() == "1\n", "once, not by each rank"
    assert [row["step"] for row in _rows(place / "out")] == list(range(60))
    data = (place / "page.yaml").read_text().split("root: ")[1].rstrip("}")
    torchrun = two_ranks(place / "ranks", *words, f"data.root={data}")
    assert equal(checkpoint.read_checkpoint(place / "out")["model"], torchrun["model"])
