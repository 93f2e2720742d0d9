"""Short stress tests: tools on many links within limits, and a run that is killed repeatedly."""

import functools

import numpy as np
import pytest

from tests import processes
from tests.helpers import tiny, tiny_ucf101
from vidrobust.cli import soak_epochs, soak_ranks
from vidrobust.cli import soak_runs as soak

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("soak")


def test_open_files_and_shared_memory_do_not_grow_with_the_number_of_videos(out, monkeypatch):
    """Feature extraction once kept two open files per video until the end."""
    limits = {"files": 64, "memory_mib": 4000, "shm_mib": 16}
    measured = ("train, kNN, probe, geometry", "features of the training list")
    others = ("scan", "bias, shift, sensitivity")
    all_commands = soak.size_commands
    monkeypatch.setattr(
        soak,
        "size_commands",
        lambda *a: [c for c in all_commands(*a) if c[0] in (*others, *measured)],
    )
    peaks = {peak.name: peak for peak in soak.soak_size(out, "short", None, **limits)}
    for peak in peaks.values():
        assert peak.status == 0, peak.tail
    assert all(peaks[name].files < 64 and peaks[name].shm <= 16 for name in measured)


class _FromWarmServer:
    """Offer what soak uses of subprocess, with processes that begin in milliseconds."""

    TimeoutExpired = processes.subprocess.TimeoutExpired

    @staticmethod
    def Popen(command, **options):  # noqa: N802
        return processes.Process(command[1:], **options)

    @staticmethod
    def run(command, *, check, capture_output, cwd):
        assert processes.run(command[1:], cwd=cwd).returncode == 0


def test_a_killed_and_resumed_run_has_the_files_of_an_undisturbed_one(out, capsys, monkeypatch):
    monkeypatch.setattr(soak, "subprocess", _FromWarmServer)
    # a pause, then SIGKILL to all
    differ = soak.soak_kills(out, kills=1, seed=3, longest_s=10, steps=12)
    printed = capsys.readouterr().out
    assert differ == 0, printed
    assert "1 kills; files that differ: none" in printed and "outlived" not in printed, printed


def test_two_ranks_that_are_disturbed_and_resumed_have_the_files_of_undisturbed_ones(
    out, capsys, monkeypatch
):
    monkeypatch.setattr(soak_ranks, "subprocess", _FromWarmServer)
    monkeypatch.setenv("VIDROBUST_SILENCE_S", "6")
    kinds = (soak_ranks.KILL_ONE, soak_ranks.KILL_LAUNCHER, soak_ranks.TERM_ONE)
    faults = soak_ranks.soak_ranks(
        out, 2, 2, seed=1, longest_s=4, steps=12, names=("training",), kinds=kinds
    )
    printed = capsys.readouterr().out
    assert faults == 0 and "files that differ: none of" in printed, printed
    assert "2 events" in printed


def test_what_is_wrong_with_an_output():
    """The soak would otherwise find no fault where there is one."""
    cause = "[12/02 04:06:07] E rank 1 (process 3) was killed"
    kill = [soak_ranks.KILL_ONE]
    faults = functools.partial(soak_ranks._output_faults, met=True, launcher=7)
    assert faults(kill, [-9, 1], [cause]) == []
    assert faults([], [0], []) == []
    assert faults(kill, [-9, 1], [cause, "error: rank 1 was killed"]) == ["2 causes"]
    assert faults(kill, [-9, 1], []) == ["no cause"]
    assert faults(kill, [-9, 0], []) == [], "it had finished"
    assert faults(kill, [-9, 1], [], met=False) == [], "they could not agree"
    assert faults([], [1], [cause]) == ["status 1 without an event"]
    assert faults([soak_ranks.PAUSE], [0, 1], [cause]) == ["status 1 after a pause"]
    frame = f'  File "{soak_ranks.REPO}/vidrobust/cli/common.py", line 3, in run'
    assert faults(kill, [1], [cause, frame]) == ["a traceback"]
    assert faults(kill, [1], [cause, "[rank0]:[W1202 05:26:02.13 TCPStore.cpp:106] [c10d]"]) == [
        "warnings of torch"
    ]
    two = [cause, "stopped: nothing has begun"]
    assert faults(kill, [-9, 1], two, met=False, launcher=0) == ["2 causes"]


def test_only_the_traceback_that_torchrun_prints_of_itself_is_not_a_fault():
    begin = "Traceback (most recent call last):"
    end = "torch.distributed.elastic.multiprocessing.api.SignalException: Process 7 got signal: 15"
    failed = "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: "
    is_ours = soak_ranks._is_traceback_ours
    term = [soak_ranks.TERM_LAUNCHER]
    assert not is_ours(term, [begin, end], 7)
    assert not is_ours([soak_ranks.KILL_ONE], [begin, failed], 7)
    assert is_ours(term, [begin, end], 8), "of another process"
    assert is_ours(term, [begin, begin, end], 7), "another one beside it"
    assert is_ours([soak_ranks.KILL_ONE], [begin, end], 7), "nobody stopped torchrun"
    assert is_ours(term, [begin, f"[rank1]: {end}"], 7), "of a rank"
    assert is_ours([soak_ranks.KILL_ONE], [begin, failed], 0), "there is no torchrun"


_LEAKY = """
import os, runpy, sys
from vidrobust.training.progress import Progress

kept = []
step_done = Progress.step_done

def leak(self, step, *numbers):
    if step % self.per_epoch == 0:
        kept.append((b"x" * (MIB << 20), [open(os.devnull) for _ in range(FILES)]))
    step_done(self, step, *numbers)

Progress.step_done = leak
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    ("leaked_mib", "leaked_files", "faults"),
    [(0, 0, []), (32, 0, ["memory"]), (0, 8, ["open files"])],
)
def test_what_grows_with_the_epochs_is_reported(
    tmp_path, capsys, monkeypatch, leaked_mib, leaked_files, faults
):
    monkeypatch.setattr(soak_epochs, "subprocess", _FromWarmServer)
    script = tmp_path / "leaky.py"
    script.write_text(_LEAKY.replace("MIB", str(leaked_mib)).replace("FILES", str(leaked_files)))
    data = f"data.root={tiny_ucf101(tmp_path / 'data')}"
    words = tiny(data, "data.workers=1", "train.batch_size=2")
    words = [word for word in words if not word.startswith("train.epochs")]
    python, *command = soak_epochs.epochs_command(tmp_path / "run", 8, words)
    grows = soak_epochs.soak_epochs(
        [python, script, *command], tmp_path / "run", memory_limit=10, files_limit=2
    )
    printed = capsys.readouterr().out
    lines = printed.splitlines()[-2:]
    assert [line.split(",")[0] for line in lines if "not flat" in line] == faults, printed
    assert grows == bool(faults)


def test_a_training_that_fails_does_not_pass_as_flat(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(soak_epochs, "subprocess", _FromWarmServer)
    words = ["data.name=ucf101", f"data.root={tmp_path / 'missing'}"]
    command = soak_epochs.epochs_command(tmp_path / "run", 4, words)
    assert soak_epochs.soak_epochs(command, tmp_path / "run") == 1
    assert "missing" in capsys.readouterr().err


def test_the_interval_of_a_slope_covers_it():
    """95 % of the intervals do, within what 1,000 random ones allow."""
    rng = np.random.default_rng(0)
    epochs = range(5, 50)
    lines = [
        soak_epochs.slope(epochs, [0.3 * epoch + rng.normal() for epoch in epochs])
        for _ in range(1000)
    ]
    assert 920 < sum(line.low <= 0.3 <= line.high for line in lines) < 970
    exact = soak_epochs.slope([1, 2, 4], [1, 3, 7])
    assert (exact.low, exact.value, exact.high) == pytest.approx((2, 2, 2))
