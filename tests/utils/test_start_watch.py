"""Ranks notice that another one of their machine ends before all have met."""

import os
import secrets
import signal
import sys
import time

import pytest

from vidrobust.utils import start_watch
from vidrobust.utils.start_watch import StartWatch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sockets of Linux")


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    monkeypatch.setattr(start_watch, "_GRACE_S", 0.1)


@pytest.fixture
def begin():
    """Start a rank in this process, or in another one that waits or stops by itself."""
    launch = secrets.token_hex(4)
    watches = []
    pids = []

    def here(rank, count=2):
        watch = StartWatch(rank, count, launch)
        watch.end_thread()  # it would end this process
        watches.append(watch)
        return watch

    def elsewhere(rank, count=2, act=lambda watch: None):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                watch = StartWatch(rank, count, launch)
                act(watch)
                os.write(writing, b".")
                time.sleep(60)
            finally:
                os._exit(0)
        os.close(writing)
        pids.append(pid)
        os.read(reading, 1)
        os.close(reading)
        return pid

    yield here, elsewhere
    for watch in watches:
        watch.close()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _wait(watch, seconds=5.0):
    end = time.monotonic() + seconds
    while not watch.ended_rank() and time.monotonic() < end:
        time.sleep(0.02)
    return watch.ended_rank()


@pytest.mark.parametrize("other", [0, 1])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_killed_rank_is_noticed_whichever_began_first(begin, other, is_first):
    here, elsewhere = begin
    watch = None if is_first else here(1 - other)
    pid = elsewhere(other)
    watch = watch or here(1 - other)
    time.sleep(0.2)
    assert watch.ended_rank() == ""
    os.kill(pid, signal.SIGKILL)
    assert _wait(watch) == f"rank {other} (process {pid})"
    assert watch.first_to_tell()


def test_a_rank_that_has_not_begun_is_waited_for(begin):
    here, _ = begin
    assert _wait(here(0), seconds=0.5) == ""


def test_a_rank_that_ends_while_another_imports_ends_it_too(begin):
    here, elsewhere = begin
    pid = elsewhere(1)
    watch = here(0)
    watch.close()  # as if killed
    assert os.waitstatus_to_exitcode(_status(pid)) == 1


def _status(pid, seconds=10.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        info = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if info is not None:
            return info.si_status << 8
        time.sleep(0.05)
    raise AssertionError("it lives")


def test_a_rank_that_reports_why_it_ends_silences_the_others(begin):
    here, elsewhere = begin
    watch = here(1)
    pid = elsewhere(0, act=lambda other: other.first_to_tell())
    os.kill(pid, signal.SIGKILL)
    assert _wait(watch) and not watch.first_to_tell()


def test_one_of_several_ranks_reports_the_end_of_rank_0(begin):
    here, elsewhere = begin
    pid = elsewhere(0, count=3)
    watches = [here(rank, count=3) for rank in (1, 2)]
    os.kill(pid, signal.SIGKILL)
    assert all(_wait(watch) for watch in watches)
    assert [watch.first_to_tell() for watch in watches] == [True, False]


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"RANK": "0", "WORLD_SIZE": "1"},
        {"RANK": "x", "WORLD_SIZE": "2"},
        {"RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "7"},
    ],
)
def test_a_single_process_and_torchruns_ranks_need_no_watch(env):
    start_watch.begin_start_watch(env)
    assert start_watch._Current.watch is None and start_watch.rank_ended_early() == ""
    assert start_watch.first_to_tell_early()
