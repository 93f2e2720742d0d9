"""Two ranks on gloo: if one rank refuses or ends, all end, and the cause is reported once."""

import contextlib
import inspect
import json
import os
import re
import signal
import socket
import time

import pytest
import torch
from torch.distributed.elastic.rendezvous import dynamic_rendezvous

from tests.helpers import REPO, tiny, tool
from tests.processes import ENV, TWO_RANKS, Process, run
from tests.utils.test_stopping import start, wait_until
from vidrobust import checkpoint

pytestmark = pytest.mark.slow

# torchrun itself takes 5 to 10 s on a busy machine; a rank that waits for another takes minutes
SECONDS = 60


# whether torchrun keeps a store for its ranks; that of torch 2.4 does not
_LAUNCHER_HAS_STORE = "SHARE_RDZV" in inspect.getsource(dynamic_rendezvous)


def _ranks(top, *words, name="train_net"):
    command = [*TWO_RANKS, REPO / f"tools/{name}.py", *words]
    began = time.monotonic()
    done = run(command, cwd=top, timeout=170)
    assert time.monotonic() - began < SECONDS, done.stderr
    return done


def _refused_once(done, message):
    assert done.returncode != 0 and done.stderr.count(message) == 1, done.stderr
    assert "vidrobust/" not in done.stderr.replace(str(REPO), ""), (
        "a traceback of our code; torchrun prints its own"
    )


@pytest.fixture
def place(ucf, tmp_path):
    (tmp_path / "page.yaml").write_text(f"data: {{root: {ucf}}}")
    return tmp_path


def _train_words(*words):
    return ["--cfg", "page.yaml", "--output-dir", "out", *tiny("device=cpu", *words)]


def test_a_folder_in_use_is_refused_on_all_ranks_and_reported_once(place):
    (place / "out").mkdir()
    (place / "out/mine.txt").write_text("")
    _refused_once(_ranks(place, *_train_words()), "output directory out holds other files")


def test_a_wrong_evaluation_is_refused_on_all_ranks(place):
    """Only rank 0 checks it before training."""
    _refused_once(_ranks(place, *_train_words("eval.shift.name=nothing")), "unknown name 'nothing'")


def test_a_mistake_in_the_options_is_reported_once(place):
    done = _ranks(place, *_train_words("data.framse=2"))
    if _LAUNCHER_HAS_STORE:
        _refused_once(done, "unknown option 'data.framse'")
    else:  # ranks that have not met cannot agree on who reports
        assert "Traceback" not in done.stderr.split("torch/distributed")[0]
        assert done.returncode and done.stderr.count("unknown option 'data.framse'") <= 2


def test_a_folder_where_another_process_trains_is_refused_on_all_ranks(place):
    endless = _train_words("eval.enabled=false", "train.epochs=4000")
    process = start(place, *endless)
    wait_until((place / "out/metrics.jsonl").exists, process)
    try:
        done = _ranks(place, *endless, "--resume")
    finally:
        process.kill()
        process.communicate()
    _refused_once(done, "another process trains in out")


def test_a_folder_of_another_evaluation_is_refused_on_all_ranks(place):
    assert tool("train_net", *_train_words("train.max_steps=1"), cwd=place).returncode == 0
    done = _ranks(place, "--checkpoint", "out", "eval.steps=3", name="test_net")
    _refused_once(done, "holds another evaluation, of other options (eval.steps)")


@pytest.mark.parametrize(("rank", "shared"), [(0, True), (1, True), (0, False)])
def test_a_killed_rank_is_reported_as_the_cause_and_the_other_ends(
    place, rank, shared, monkeypatch
):
    """This also holds if the shared store is rank 0's, as under Slurm and torch 2.4."""
    monkeypatch.setitem(ENV, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE", str(int(not shared)))
    process = start(
        place, *_train_words("eval.enabled=false", "train.epochs=4000"), launcher=TWO_RANKS
    )
    wait_until((place / "out/metrics.jsonl").exists, process)
    time.sleep(1)
    pids = _pids_by_rank(process.pid)
    began = time.monotonic()
    os.kill(pids[rank], signal.SIGKILL)
    errors = process.communicate(timeout=120)[1]
    assert time.monotonic() - began < SECONDS
    cause = f"rank {rank} (process {pids[rank]}) was killed, by a person, a scheduler or for memory"
    assert process.returncode != 0 and errors.count(cause) == 1, errors
    ours = errors.split("torch/distributed")[0]  # torchrun prints its own traceback
    assert not any(word in ours for word in ("memory short", "gloo", "Traceback")), errors
    assert not os.path.exists(f"/proc/{pids[1 - rank]}")
    if rank == 1:  # rank 0 has written the state after the last whole step
        step = checkpoint.read_checkpoint(place / "out")["step"]
        assert re.search(rf"step_{step:08d}.pt holds the state after step {step}", errors), errors
        rows = [json.loads(line)["step"] for line in open(place / "out/metrics.jsonl")]
        assert abs(step - rows[-1]) <= 2


def _pids_by_rank(launcher):
    pids = {}
    for folder in os.listdir("/proc"):
        if folder.isdigit():
            try:
                with open(f"/proc/{folder}/stat") as file:
                    stat = file.read()
            except OSError:
                continue
            name, _, rest = stat.partition("(")[2].rpartition(")")
            if int(rest.split()[1]) == launcher and name.startswith("rank"):
                pids[int(name.removeprefix("rank"))] = int(folder)
    assert sorted(pids) == [0, 1]
    return pids


_TRAIN = REPO / "tools/train_net.py"


@pytest.fixture
def start_two(place):
    """Start two ranks without torchrun: by plain variables, or by those of srun."""
    started = []

    def begin(*words, script=_TRAIN, names=("RANK", "WORLD_SIZE"), count=2, different=None, **env):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = str(server.getsockname()[1])
        for rank in range(2):
            variables = {
                **ENV,
                **env,
                names[0]: str(rank),
                names[1]: str(count),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            command = [script, *words, *(different or {}).get(rank, [])]
            started.append(Process(command, cwd=place, env=variables, start_new_session=True))
        return started

    yield begin
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


_DIES_AT_MEETING = """
import os, signal, torch.distributed
from vidrobust.cli.entry import run_tool

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

if os.environ["RANK"] == "{lost}":
    torch.distributed.init_process_group = die
run_tool("train_net")
"""


@pytest.mark.parametrize(("lost", "launcher"), [(0, True), (1, True), (1, False)])
def test_a_rank_killed_while_the_group_is_made_is_reported_once(place, start_two, lost, launcher):
    """The other waits for it in a call of torch, which holds its connection to the store."""
    script = place / "dies.py"
    script.write_text(_DIES_AT_MEETING.format(lost=lost))
    if launcher:
        done = run([*TWO_RANKS, script, *_train_words()], cwd=place, timeout=30)
        status, errors = done.returncode, done.stderr
    else:
        statuses, errors = _ends(start_two(*_train_words(), script=script))
        status = statuses[1 - lost]
    reports = re.findall(rf"rank {lost} \(process.* was killed", errors)
    assert status == 1 and len(reports) == 1, errors


_ENDLESS = ("eval.enabled=false", "train.epochs=4000")


def _wait_for_steps(place, process):
    rows = place / "out/metrics.jsonl"
    wait_until(lambda: rows.exists() and rows.read_text().count("\n") > 3, process)


def _ends(started):
    """Return the statuses and the errors of all ranks, which have 30 s to end."""
    errors = [process.communicate(timeout=30)[1] for process in started]
    return [process.returncode for process in started], "".join(errors)


_SRUN = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NUM_NODES": "1",
    "SLURM_STEP_NODELIST": "localhost",
}
_OF_SRUN = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")


@pytest.mark.parametrize("lost", [0, 1])
def test_without_a_launcher_a_killed_rank_is_reported_once_and_the_other_ends(
    place, start_two, lost
):
    started = start_two(*_train_words(*_ENDLESS))
    _wait_for_steps(place, started[0])
    started[lost].kill()
    statuses, errors = _ends(started)
    assert statuses[lost] == -signal.SIGKILL and statuses[1 - lost] == 1
    assert errors.count(f"rank {lost} (process {started[lost].pid}) was killed") == 1, errors
    assert "Traceback" not in errors and "c10d" not in errors, errors


@pytest.mark.parametrize("lost", [0, 1])
def test_a_rank_killed_while_the_others_wait_for_more_is_reported_at_once(start_two, lost):
    started = start_two(*_train_words(*_ENDLESS), count=3)  # the third one does not come
    # they look for each other, or in their imports
    wait_until(lambda: all(_has_start_watch(process.pid) for process in started), started[0])
    time.sleep(1)
    started[lost].kill()
    statuses, errors = _ends(started)
    assert statuses[lost] == -signal.SIGKILL and statuses[1 - lost] == 1
    assert errors.count(f"rank {lost} (process {started[lost].pid}) has ended before") == 1, errors
    assert errors.count("process") == 1 and "Traceback" not in errors, errors


def _has_start_watch(pid):
    """Return whether the process holds a socket without a file, which others connect to."""
    inodes = set()
    for link in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            inodes.add(os.readlink(f"/proc/{pid}/fd/{link}"))
    with open("/proc/net/unix") as file:
        rows = [line.split() for line in file if "@vidrobust " in line]
    return any(f"socket:[{row[6]}]" in inodes for row in rows)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_suspended_rank_is_reported_once_and_all_end(place, start_two, lost):
    started = start_two(*_train_words(*_ENDLESS), VIDROBUST_SILENCE_S="6")
    _wait_for_steps(place, started[0])
    started[lost].send_signal(signal.SIGSTOP)
    statuses, errors = _ends(started)
    assert statuses[lost] == -signal.SIGKILL and statuses[1 - lost] == 1
    cause = f"rank {lost} (process {started[lost].pid} on {socket.gethostname()}) has not answered"
    assert errors.count(cause) == 1 and "for 6 s" in errors, errors
    assert "Traceback" not in errors and "was killed" not in errors, errors


def test_ranks_of_srun_train_together_and_a_refusal_is_reported_once(place, start_two):
    words = _train_words("train.max_steps=1", "eval.enabled=false")
    started = start_two(*words, names=_OF_SRUN, **_SRUN)
    statuses, errors = _ends(started)
    assert statuses == [0, 0], errors
    assert checkpoint.read_checkpoint(place / "out")["ranks"] == 2
    started.clear()
    statuses, errors = _ends(start_two(*words, names=_OF_SRUN, **_SRUN))
    assert statuses == [1, 1] and errors.count("holds a finished run") == 1, errors


def test_tasks_of_srun_with_different_arguments_are_refused(start_two):
    different = {0: ["--output-dir", "a"], 1: ["--output-dir", "b"]}
    words = ["--cfg", "page.yaml", *tiny("device=cpu")]
    statuses, errors = _ends(start_two(*words, names=_OF_SRUN, different=different, **_SRUN))
    assert statuses == [1, 1] and errors.count("set WORLD_SIZE=1 to run them indep") == 1, errors


@pytest.mark.parametrize("wrong", [[0, 1], [0], [1]])
def test_a_mistake_in_the_options_of_some_ranks_ends_all(start_two, wrong):
    """Before they have met, and without a launcher that ends the others."""
    different = {rank: ["data.framse=2"] for rank in wrong}
    statuses, errors = _ends(start_two(*_train_words(*_ENDLESS), different=different))
    assert statuses == [1, 1] and errors.count("unknown option 'data.framse'") == 1, errors
    assert errors.count("error: ") == 1 and "Traceback" not in errors, errors


def test_incomplete_variables_are_refused(place):
    variables = {**ENV, "RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "5"}
    command = [REPO / "tools/train_net.py", *_train_words()]
    process = Process(command, cwd=place, env=variables)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and "MASTER_ADDR not set" in errors, errors


@pytest.mark.skipif(not _LAUNCHER_HAS_STORE, reason="torchrun keeps no store for its ranks")
def test_torchruns_restart_resumes_without_a_hand(place):
    words = _train_words("eval.enabled=false", "train.epochs=20", "train.checkpoint_every=4")
    whole = _ranks(place, *words, "--output-dir", "whole")
    assert whole.returncode == 0, whole.stderr
    process = start(place, *words, launcher=(*TWO_RANKS, "--max-restarts=2"))
    wait_until((place / "out/checkpoints/last.pt").exists, process)
    os.kill(_pids_by_rank(process.pid)[1], signal.SIGKILL)
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 0, errors
    assert errors.count("restarted by torchrun: out continues from its last checkpoint") == 1
    states = [torch.load(place / name / "backbone.pt") for name in ("whole", "out")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("first", [1, 2])
def test_a_resume_with_another_number_of_ranks_says_what_changes(place, first):
    words = _train_words("eval.enabled=false")
    for ranks, steps in ((first, 2), (3 - first, 4)):
        more = ["--resume", f"train.max_steps={steps}"]
        done = (
            _ranks(place, *words, *more)
            if ranks == 2
            else run([REPO / "tools/train_net.py", *words, *more], cwd=place)
        )
        assert done.returncode == 0, done.stderr
    assert f"resuming with {3 - first} ranks, the checkpoint is of {first}" in done.stderr
    assert checkpoint.read_checkpoint(place / "out")["step"] == 4


def test_a_killed_launcher_leaves_no_rank(place):
    process = start(
        place, *_train_words("eval.enabled=false", "train.epochs=4000"), launcher=TWO_RANKS
    )
    rows = place / "out/metrics.jsonl"
    wait_until(lambda: rows.exists() and rows.read_text().count("\n") > 3, process)
    pids = _pids_by_rank(process.pid)
    process.kill()
    errors = process.communicate(timeout=60)[1]
    assert errors.count("stopped: ") == 1 and "error: " not in errors, errors
    end = time.monotonic() + 30
    while any(os.path.exists(f"/proc/{pid}") for pid in pids.values()):
        assert time.monotonic() < end
        time.sleep(0.1)
    assert checkpoint.read_checkpoint(place / "out")["step"] > 3
