import errno
import faulthandler
import os
import signal
import sys
import threading
import time

import pytest

from tests.helpers import REPO
from tests.processes import DEVNULL, PIPE, Process
from vidrobust.data import isolation as child_module
from vidrobust.data.isolation import Child, ChildDied, SharedMemory, in_children
from vidrobust.utils.errors import UserError


def _behave(how, value=None):
    if how == "hang":
        while True:  # as native code that holds the lock: no signal handler of Python's ever runs
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            time.sleep(10)
    if how == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "abort":
        os.abort()
    if how == "exit":
        os._exit(3)
    if how == "raise":
        raise KeyError(value)
    return os.getpid(), value


def _behave_of(job):
    return _behave(*job)


def _pid(_):
    return os.getpid()


@pytest.fixture
def child():
    child = Child(_behave, timeout_s=0.3)
    yield child
    child.close()


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_calls_run_in_one_other_process_and_come_back(child):
    (first, a), (second, b) = child("work", {"a": [1]}), child("work", None)
    assert first == second != os.getpid() and (a, b) == ({"a": [1]}, None)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("hang", "no answer within 0.3 s"),
        ("crash", "the decoder crashed (SIGSEGV)"),
        ("exit", "it exited with 3"),
    ],
)
def test_a_death_is_reported_and_the_next_call_works(child, how, said):
    pid, _ = child("work")
    with pytest.raises(ChildDied) as death:
        child(how)
    assert str(death.value) == said and not _alive(pid)
    assert child("work", 5)[1] == 5 and child.pid != pid


@pytest.mark.parametrize("how", ["crash", "abort"])
def test_only_the_parent_reports_a_crash(child, tmp_path, how):
    with open(tmp_path / "stacks.txt", "w+") as stacks:
        faulthandler.enable(stacks)
        try:
            with pytest.raises(ChildDied):
                child(how)
        finally:
            faulthandler.enable(sys.__stderr__)
        assert stacks.seek(0) == 0 and stacks.read() == ""


def test_an_exception_of_the_function_is_raised_and_the_process_stays(child):
    pid, _ = child("work")
    with pytest.raises(KeyError, match="key"):
        child("raise", "key")
    assert child("work")[0] == pid


def test_a_child_that_is_killed_while_idle_is_replaced(child):
    pid, _ = child("work")
    os.kill(pid, signal.SIGKILL)
    assert child("work")[0] != pid


def test_time_between_calls_does_not_count(child):
    child("work")
    time.sleep(0.5)
    assert child("work", 1)[1] == 1


def test_close_leaves_no_process():
    child = Child(_behave, 1)
    pid, _ = child("work")
    child.close()
    child.close()
    assert not _alive(pid)


def test_only_the_process_that_started_a_child_ends_it():
    child = Child(_behave, 1)
    pid, _ = child("work")
    other = os.fork()
    if other == 0:
        del child
        os._exit(0)
    os.waitpid(other, 0)
    assert child("work")[0] == pid  # a copy of it that ends elsewhere harms nothing
    del child
    assert not _alive(pid)


def test_a_child_ends_with_its_parent():
    read_end, write_end = os.pipe()
    middle = os.fork()
    if middle == 0:
        os.write(write_end, str(Child(_behave, 1)("work")[0]).encode())
        os._exit(0)
    os.waitpid(middle, 0)
    pid = int(os.read(read_end, 20))
    for _ in range(100):
        if not _alive(pid) or open(f"/proc/{pid}/stat").read().split()[2] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError("the child lives on")


def test_jobs_run_in_parallel_and_a_bad_job_does_not_harm_others():
    jobs = [("work", n) for n in range(20)]
    jobs[3], jobs[7], jobs[11] = ("crash", 3), ("hang", 7), ("exit", 11)
    results = dict(in_children(_behave_of, jobs, workers=3, timeout_s=0.4))
    assert set(results) == set(jobs)
    assert [n for (how, n), result in results.items() if isinstance(result, ChildDied)] in (
        [3, 7, 11],
        [3, 11, 7],
        [11, 3, 7],
    )
    assert all(results[job][1] == job[1] for job in jobs if job[0] == "work")
    assert len({result[0] for result in results.values() if not isinstance(result, ChildDied)}) >= 3


def test_abandoned_jobs_leave_no_process():
    jobs = in_children(_pid, range(50), workers=2, timeout_s=5)
    pids = {next(jobs)[1] for _ in range(4)}
    jobs.close()
    assert not any(map(_alive, pids)) and threading.active_count() < 5
    assert list(in_children(_behave, [], workers=2, timeout_s=1)) == []


def _stop_itself(seconds):
    os.kill(os.getpid(), signal.SIGSTOP)
    return seconds


def _killed_until(path, times):
    """Be killed from outside, as when memory runs out, the first `times` times."""
    with open(path, "a") as file:
        file.write("x")
    if os.path.getsize(path) <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def test_a_child_that_is_suspended_is_killed_at_its_time_limit():
    """It is like a process that waits for a file system: an alarm of its own would not ring."""
    child = Child(_stop_itself, 0.4)
    with pytest.raises(ChildDied, match=r"no answer within 0.4 s"):
        child(1)
    child.close()


def test_a_call_whose_child_is_killed_is_tried_again(tmp_path):
    child = Child(_killed_until, 20)
    assert child(tmp_path / "once", 1) == child.pid
    with pytest.raises(
        ChildDied, match=r"its process was killed twice \(SIGKILL\), perhaps because memory ran out"
    ):
        child(tmp_path / "always", 9)
    child.close()


def _killed_job(job):
    return _killed_until(*job)


def test_a_job_whose_child_is_killed_is_tried_once_more(tmp_path):
    jobs = [
        (str(tmp_path / "once"), 1),
        (str(tmp_path / "always"), 9),
        (str(tmp_path / "never"), 0),
    ]
    results = dict(in_children(_killed_job, jobs, workers=2, timeout_s=20))
    assert isinstance(results[jobs[0]], int) and isinstance(results[jobs[2]], int)
    assert "killed twice" in str(results[jobs[1]])


def test_a_pause_of_all_processes_does_not_count_as_time(tmp_path):
    """A laptop may sleep, and a scheduler may suspend a job.

    Good videos must not be bad afterwards.
    """
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from tests.data.test_isolation import Child, _sleep\n"
        "child = Child(_sleep, 1.5); child(0); print('ready', flush=True); print(child(1.0))"
    )
    (tmp_path / "calls.py").write_text(code)
    run = Process(
        ["calls.py", REPO], cwd=tmp_path, stdout=PIPE, stderr=DEVNULL, start_new_session=True
    )
    assert run.stdout.readline() == "ready\n"
    time.sleep(0.3)
    os.killpg(run.pid, signal.SIGSTOP)
    time.sleep(4)
    os.killpg(run.pid, signal.SIGCONT)
    assert run.communicate(timeout=60)[0] == "1.0\n"


def _sleep(seconds):
    time.sleep(seconds)
    return seconds


def test_a_child_is_replaced_before_its_leaks_matter(monkeypatch):
    monkeypatch.setattr(child_module, "_CALLS", 3)
    child = Child(_behave, 20)
    pids = [child("work", n)[0] for n in range(7)]
    assert len(set(pids)) == 3 and pids[0] == pids[2] != pids[3]
    child.close()


def test_relative_paths_are_relative_to_the_callers_folder(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    child = Child(_folder_of, 20)
    for name in ("a", "b"):
        monkeypatch.chdir(tmp_path / name)
        assert child(".") == str(tmp_path / name)
    child.close()


def _folder_of(path):
    return os.path.abspath(path)


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="needs Linux and two cores",
)
def test_a_child_runs_on_the_cores_of_its_caller():
    """The process that forks it may have started on other cores.

    A rank that is bound to its own cores must not leave them.
    """
    child_module.start_nursery()
    every = os.sched_getaffinity(0)
    child = Child(os.sched_getaffinity, timeout_s=5)
    try:
        os.sched_setaffinity(0, {max(every)})
        assert child(0) == {max(every)}
    finally:
        os.sched_setaffinity(0, every)
        child.close()


def test_large_results_are_returned_in_shared_memory():
    memory = SharedMemory(1000)
    child = Child(_fill, 20, memory)
    assert child(7) == "done" and (memory.bytes == 7).all()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        child.close()
        assert child(8) == "done" and (memory.bytes == 8).all()
    assert len(os.listdir("/proc/self/fd")) <= before
    child.close()


def _fill(memory, value):
    memory[:] = value
    return "done"


def test_a_nursery_that_is_killed_is_started_again():
    child = Child(_behave, 20)
    child("work")
    os.kill(child_module._nursery.pid, signal.SIGKILL)
    child.close()
    assert child("work", 4)[1] == 4
    child.close()


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EFBIG, "raise `ulimit -f`, or lower data.workers"),
        (errno.ENOMEM, "raise `ulimit -v`, or lower data.workers"),
        (errno.ENOSPC, "device): lower data.workers or the batch size"),
    ],
)
@pytest.mark.parametrize("step", ["os.ftruncate", "mmap.mmap"])
def test_memory_that_cannot_be_had_is_a_mistake_with_a_remedy(monkeypatch, step, number, remedy):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(step, refuse)
    with pytest.raises(UserError, match=r"no 3 MiB of memory for loading processes \(") as error:
        SharedMemory(3 << 20)
    assert remedy in str(error.value)
