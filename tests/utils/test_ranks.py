"""Two ranks on gloo: if one rank refuses or ends, all end, and the cause is reported once."""

import inspect
import json
import os
import re
import signal
import time

import pytest
from torch.distributed.elastic.rendezvous import dynamic_rendezvous

from tests.helpers import REPO, tiny, tool
from tests.processes import ENV, TWO_RANKS, run
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
    _refused_once(_ranks(place, *_train_words()), "output directory out is in use")


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


def test_a_killed_launcher_leaves_no_rank(place):
    process = start(
        place, *_train_words("eval.enabled=false", "train.epochs=4000"), launcher=TWO_RANKS
    )
    rows = place / "out/metrics.jsonl"
    wait_until(lambda: rows.exists() and rows.read_text().count("\n") > 3, process)
    pids = _pids_by_rank(process.pid)
    process.kill()
    process.wait()
    process.stderr.close()
    end = time.monotonic() + 30
    while any(os.path.exists(f"/proc/{pid}") for pid in pids.values()):
        assert time.monotonic() < end
        time.sleep(0.1)
    assert checkpoint.read_checkpoint(place / "out")["step"] > 3
