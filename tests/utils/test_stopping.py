"""Stop signals to the whole process group, as schedulers send them.

The training step is finished, the state is written, and no process remains.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers import REPO, counting_video, tiny, tiny_ucf101
from tests.helpers import tool as in_process
from tests.processes import DEVNULL, ENV, PIPE, TWO_RANKS, Process, run
from vidrobust import checkpoint
from vidrobust.utils.stopping import (
    EXIT_STOPPED,
    STOP_SIGNALS,
    StopAsked,
    raise_on_stop_signals,
    restore_stop_signals,
)

pytestmark = pytest.mark.slow


_started = []


@pytest.fixture(autouse=True)
def _kill_remaining_processes():
    """Kill endless trainings that a failed test has left."""
    yield
    while _started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(_started.pop().pid, signal.SIGKILL)


def start(top, *words, launcher=(), tool="tools/train_net.py", ignored=()):
    """Start a tool in its own session, and so in its own process group."""
    command = [*launcher, REPO / tool, *words]
    process = Process(command, cwd=top, start_new_session=True, ignored=ignored)
    _started.append(process)
    return process


def start_anew(top, tool):
    """Start a tool in a new Python process, which imports everything."""
    process = subprocess.Popen(
        [sys.executable, str(REPO / tool)],
        cwd=top,
        env=ENV,
        stderr=subprocess.PIPE,
        stdout=DEVNULL,
        text=True,
        start_new_session=True,
        # tests under nohup ignore SIGHUP, and their child processes would too
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    _started.append(process)
    return process


def session(leader):
    """Return the processes of a session that are not zombies."""
    pids = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, number = stat.read_text().rpartition(")")[2].split()[:4]
            if int(number) == leader and state != "Z":
                pids.append(int(stat.parent.name))
    return pids


def wait_until(happened, process, seconds=120):
    end = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None and time.monotonic() < end, process.stderr.read()
        time.sleep(0.02)


def assert_ends(leader, seconds=15):
    end = time.monotonic() + seconds
    while session(leader):
        assert time.monotonic() < end, f"{session(leader)} still run"
        time.sleep(0.05)


@pytest.fixture
def place(ucf, tmp_path):
    (tmp_path / "page.yaml").write_text(f"data: {{root: {ucf}}}")
    return tmp_path


def train_words(*words):
    endless = tiny(
        "eval.enabled=false",
        "train.epochs=4000",
        "train.checkpoint_every=4",
        "data.workers=2",
        *words,
    )
    return ["--cfg", "page.yaml", "--output-dir", "out", "--resume", "device=cpu", *endless]


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_a_stop_signal_to_the_whole_group_writes_a_checkpoint_and_leaves_no_process(place, number):
    process = start(place, *train_words())
    wait_until((place / "out/checkpoints/last.pt").exists, process)
    assert len(session(process.pid)) >= 3, "the main process and two workers"
    os.killpg(process.pid, number)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == EXIT_STOPPED, errors
    assert "Traceback" not in errors and "died" not in errors
    message = errors.strip().splitlines()[-1]
    assert message.startswith("stopped: after step") and "--resume continues" in message
    step = int(message.split("after step ")[1].split()[0])
    assert checkpoint.read_checkpoint(place / "out")["step"] == step
    assert_ends(process.pid)


def test_a_repeated_signal_does_not_cut_the_step_short(place):
    """A launcher forwards a signal that its process group has already received."""
    process = start(place, *train_words())
    wait_until((place / "out/checkpoints/last.pt").exists, process)
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == EXIT_STOPPED and "stopped: after step" in errors, errors


def test_a_killed_parent_leaves_no_loader_process(place):
    process = start(place, *train_words())
    wait_until((place / "out/checkpoints/last.pt").exists, process)
    assert len(session(process.pid)) >= 3
    process.kill()
    process.wait()
    assert_ends(process.pid)
    process.stderr.close()


def test_a_hangup_signal_is_ignored_under_nohup(place):
    process = start(place, *train_words(), ignored=[signal.SIGHUP])
    wait_until((place / "out/checkpoints/last.pt").exists, process)
    os.killpg(process.pid, signal.SIGHUP)
    rows = (place / "out/metrics.jsonl").read_text().count("\n")
    wait_until(lambda: (place / "out/metrics.jsonl").read_text().count("\n") > rows + 4, process)
    os.killpg(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == EXIT_STOPPED


def test_torchrun_and_its_ranks_stop_at_the_same_step(place):
    process = start(place, *train_words(), launcher=TWO_RANKS)
    wait_until((place / "out/checkpoints/last.pt").exists, process)
    process.terminate()
    errors = process.communicate(timeout=90)[1]
    assert errors.count("stopped: after step") == 1, errors
    step = int(errors.split("stopped: after step ")[1].split()[0])
    assert checkpoint.read_checkpoint(place / "out")["step"] == step


def test_a_stopped_evaluation_keeps_its_rows_and_continues(tmp_path):
    root = tiny_ucf101(tmp_path / "data", train=2, test=6)
    (tmp_path / "page.yaml").write_text("data: {root: data}")
    words = tiny(f"data.root={root}", "eval.enabled=false", "train.max_steps=1", "device=cpu")
    trained = in_process(
        "train_net", "--cfg", "page.yaml", "--output-dir", "run", *words, cwd=tmp_path
    )
    assert trained.returncode == 0, trained.stderr
    slow = [
        "--checkpoint",
        "run",
        "eval.suite=apgd-ce",
        "eval.steps=15",
        "eval.batch_size=1",
        "data.workers=2",
    ]
    process = start(tmp_path, *slow, "--output-dir", "cut", tool="tools/test_net.py")
    rows = tmp_path / "cut/results.jsonl"
    wait_until(lambda: rows.is_file() and rows.read_text().count("\n") > 2, process)
    os.killpg(process.pid, signal.SIGUSR1)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == EXIT_STOPPED and "Traceback" not in errors, errors
    assert errors.strip().splitlines()[-1].startswith("stopped: ")
    kept = rows.read_text()
    for name in ("cut", "whole"):
        again = in_process("test_net", *slow, "--output-dir", name, cwd=tmp_path)
        assert again.returncode == 0, again.stderr
    assert rows.read_text().startswith(kept[: kept.rindex("\n") + 1])
    whole, cut = (
        json.loads((tmp_path / name / "summary.json").read_text()) for name in ("whole", "cut")
    )
    assert whole == cut


def test_a_stopped_scan_keeps_its_rows(tmp_path):
    script = """
import runpy, sys
from vidrobust.data import scan
in_children = scan.__globals__["in_children"]
def told(*arguments):
    for row in in_children(*arguments):
        yield row
        print("a row", flush=True)
scan.__globals__["in_children"] = told
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    (tmp_path / "telling.py").write_text(script)
    (tmp_path / "many/class").mkdir(parents=True)
    long = counting_video(tmp_path / "long.avi", 1000)
    for number in range(300):
        os.link(long, tmp_path / f"many/class/{number}.avi")
    words = [
        "scan",
        "data.name=class_folder",
        "data.root=many",
        "--workers",
        "1",
        "--output",
        "m.jsonl",
    ]
    command = ["telling.py", REPO / "datasets/prepare.py", *words]
    process = Process(command, cwd=tmp_path, stdout=PIPE, start_new_session=True)
    _started.append(process)
    for _ in range(2):
        assert process.stdout.readline() == "a row\n"
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == EXIT_STOPPED and "Traceback" not in errors, errors
    rows = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()[1:]]
    assert 2 <= len(rows) < 300
    assert {row["frames"] for row in rows} == {1000}


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_stop_signal_before_the_work_starts_gives_the_exit_status_of_a_stop(tmp_path, number):
    """While the process that forks children is started; earlier versions gave status -15."""
    code = (
        "import os, signal; from vidrobust.cli import common; "
        f"common.start_nursery = lambda: os.kill(os.getpid(), signal.{number}); "
        "common.run(lambda: print('reached'))"
    )
    (tmp_path / "tool.py").write_text(code)
    done = run(["tool.py"], cwd=tmp_path)
    assert done.returncode == EXIT_STOPPED and done.stderr.startswith("stopped: "), done.stderr
    assert "Traceback" not in done.stderr and not done.stdout


_RAISE = "raise RuntimeError('[gloo] Connection closed by peer')"


@pytest.mark.parametrize(
    ("work", "where", "status"),
    [
        (_RAISE, "distributed.is_one_of_several", EXIT_STOPPED),
        ("raise common.UserError('no')", "distributed.main_ends", EXIT_STOPPED),
        ("pass", "distributed.stop", 0),
    ],
)
def test_a_stop_signal_while_a_tool_ends_gives_no_traceback(tmp_path, work, where, status):
    """A launcher that is stopped stops its ranks one after the other."""
    code = f"""
import signal
from vidrobust.cli import common
from vidrobust.utils import distributed
before = {where}
def stopped(*args):
    {where} = before
    signal.raise_signal(signal.SIGTERM)
    return before(*args)
{where} = stopped
def main():
    {work}
common.run(main)
"""
    (tmp_path / "tool.py").write_text(code)
    done = run(["tool.py"], cwd=tmp_path)
    assert done.returncode == status and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.count("stopped: ") == bool(status), done.stderr


TOOLS = [
    *(f"tools/{name}.py" for name in ("train_net", "test_net", "extract_features", "visualize")),
    *("tools/study.py", "tools/benchmark.py", "datasets/prepare.py"),
]


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="needs Linux's /proc"
)


@needs_proc
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("tool", TOOLS)
def test_a_stop_signal_during_imports_gives_the_exit_status_of_a_stop(tmp_path, tool, number):
    """Earlier versions gave a traceback or status -15, which batch scripts do not requeue."""
    process = start_anew(tmp_path, tool)  # without arguments it would later end with status 2
    wait_until(lambda: _has_handler(process, signal.SIGTERM), process)
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (EXIT_STOPPED, "stopped: nothing has begun\n")


@needs_proc
def test_a_stop_signal_gives_its_exit_status_even_if_stderr_is_closed(tmp_path):
    """After a hangup the terminal is closed, and a write to it fails."""
    process = start_anew(tmp_path, "tools/train_net.py")
    process.stderr.close()
    wait_until(lambda: _has_handler(process, signal.SIGTERM), process)
    os.kill(process.pid, signal.SIGHUP)
    assert process.wait(60) == EXIT_STOPPED


def _has_handler(process, number):
    """Return whether a process has a handler for a signal, from its entry in /proc."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    caught = next(line.split()[1] for line in lines if line.startswith("SigCgt:"))
    return int(caught, 16) >> (number - 1) & 1


class _Slow:
    """Its destructor waits, as that of a data loader does."""

    def __del__(self):
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0.2)


def test_a_stop_signal_in_a_destructor_is_not_lost():
    raise_on_stop_signals()
    try:
        with pytest.raises(StopAsked):
            _Slow()  # deleted at once
            time.sleep(5)
    finally:
        restore_stop_signals()
        for number in STOP_SIGNALS:
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, default)


# a process whose parent was killed before it asked to end with it
_LATE_CHILD = """
import os, signal, threading, time
from vidrobust.utils.stopping import end_with_parent

def fork():
    parent = os.getpid()
    if os.fork():
        os.kill(parent, signal.SIGKILL)
    while os.getppid() == parent:
        time.sleep(0.01)
    end_with_parent()
    time.sleep(60)

if not os.fork():
    {call}
time.sleep(1)
"""


@pytest.mark.parametrize(
    "call", ["fork()", "thread = threading.Thread(target=fork); thread.start(); thread.join()"]
)
def test_a_process_whose_parent_ended_right_after_the_fork_ends(call):
    began = time.monotonic()
    # it holds the pipe as long as it lives
    done = subprocess.run(
        [sys.executable, "-c", _LATE_CHILD.format(call=call)], cwd=REPO, stdout=PIPE, timeout=30
    )
    assert done.returncode == 0 and time.monotonic() - began < 15
