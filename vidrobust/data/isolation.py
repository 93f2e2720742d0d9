"""Call a function in a child process that may crash or hang.

Native decoders do both, and one that hangs may hold Python's lock, so nothing inside its process
can stop it: the caller watches the time, and kills.

Children are not forked from the caller. FFmpeg starts threads in whoever uses it, and a child that
is forked from such a process may wait for ever for a thread that it does not have (PyAV 19 in
`reformat`). So one clean process, the nursery, uses nothing of the package and forks all children,
in milliseconds. It is a copy of the caller as long as that has started no thread, and otherwise a
Python of its own:

    caller --(a socket: file descriptors)--> nursery --fork--> child <--(a pipe: calls)--> caller
"""

import atexit
import contextlib
import faulthandler
import gc
import json
import mmap
import os
import pickle
import select
import signal
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import Pipe, connection
from typing import Any, NoReturn, TypeVar

import numpy as np

from vidrobust.utils.stopping import STOP_SIGNALS, end_with_parent, held_stop_signals

Job = TypeVar("Job")
NO_ANSWER = "no answer"
_LONGEST_S = 10**6
# A clock that ticks no more often than this lets a pause of all processes count as two ticks.
_TICK_S = 0.25
# PyAV leaks about 0.5 KB per file: a child is replaced before that is a megabyte.
_CALLS = 2000
# Seconds that the nursery has for its imports on a busy machine, and for its answers.
_START_S = 120.0
_CHECK_S = 2.0
_STATUS = struct.Struct("i")


class ChildDied(Exception):
    """The child ended in the middle of a call; the message says how.

    killed: whether by a SIGKILL of somebody else, as the kernel does when memory runs out.
    """

    killed = False


class Child:
    """Call a function in another process, one call at a time; after a death the next call starts
    anew.

    A child that somebody kills (SIGKILL) is not the fault of its call, which is made once more.

    Args:
        function: what is called; it and its arguments travel pickled.
        timeout_s: seconds that a call may take, pauses of the whole machine not counted.
        shared: bytes of memory that both sides hold, for large results; `memory` here, and the
            function's first argument there. 0: none.
    """

    def __init__(self, function: Callable[..., Any], timeout_s: float, shared: int = 0) -> None:
        if not 0 < timeout_s <= _LONGEST_S:
            raise ValueError(f"timeout_s={timeout_s}: greater than 0, at most {_LONGEST_S}")
        self.function = function
        self.timeout_s = timeout_s
        self.pid = 0
        self.owner = 0
        self.spent = 0.0
        self._shared = _shared_file(shared) if shared else None
        self.memory = None if self._shared is None else _mapped(self._shared, shared)

    def __call__(self, *arguments: Any) -> Any:
        """Return function(*arguments).

        Raises:
            ChildDied: the call took too long, or ended the process; and what the function raises.
        """
        try:
            return self._call(arguments)
        except ChildDied as death:
            if not death.killed:
                raise
        try:
            return self._call(arguments)
        except ChildDied as death:
            raise _twice(death) from None

    def _call(self, arguments: tuple[Any, ...]) -> Any:
        self.send(*arguments)
        while not _answered([self]):
            pass
        return self.receive()

    def send(self, *arguments: Any) -> None:
        """Begin a call; `receive` has its result."""
        if self.pid and (self.calls >= _CALLS or self.folder != _folder()):
            self.close()
        if not self.pid:
            self._start()
        self.calls += 1
        self.spent = 0.0
        with contextlib.suppress(OSError):  # it died while idle: `receive` notices
            self.pipe.send(arguments)

    def receive(self) -> Any:
        """Return the result of a call that has ended, or whose time is over."""
        if self.spent >= self.timeout_s and not self.pipe.poll():
            self._kill()
            self._reap()
            raise ChildDied(f"{NO_ANSWER} within {self.timeout_s:g} s")
        try:
            failed, result = self.pipe.recv()
        except (EOFError, OSError):
            raise self._death() from None
        if failed:
            raise result
        return result

    def close(self) -> None:
        """Kill the process, if there is one."""
        if self.pid:
            self._kill()
            self._reap()

    def _kill(self) -> None:
        if _readable(0, self.status):
            return  # it has ended, and its pid may be another process's by now
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def __del__(self) -> None:
        if self.owner == os.getpid():  # and not a copy of it in a process that was forked later
            self.close()
        shared = getattr(self, "_shared", None)  # missing where the arguments were refused
        if shared is not None:
            os.close(shared)  # every copy in a process that was forked has its own

    def _start(self) -> None:
        self.folder = _folder()
        size = 0 if self.memory is None else len(self.memory)
        try:
            order = pickle.dumps((self.folder, self.function, size))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise TypeError(
                "what a child calls must be defined in a module, not as a lambda or inside a"
                f" function ({error})"
            ) from None
        self.pipe, self.status, self.pid = _nursery.fork(self._shared)
        self.owner = os.getpid()
        self.calls = 0
        with contextlib.suppress(OSError):  # it died: its answer says so
            self.pipe.send_bytes(order)
        # its imports are not the time of a call
        if not self.pipe.poll(_START_S):
            self.close()
            raise ChildDied(f"{NO_ANSWER} within {_START_S:g} s of its start")
        try:
            self.pipe.recv()
        except (EOFError, OSError):
            raise self._death() from None

    def _death(self) -> ChildDied:
        status = self._reap()
        if status is None:  # the nursery was killed, and all of its children with it
            death = ChildDied("its process was lost, as for want of memory; lower data.workers")
            death.killed = True
            return death
        code = os.waitstatus_to_exitcode(status)
        if code >= 0:
            return ChildDied(f"it exited with {code}")
        death = ChildDied(f"the decoder crashed ({signal.Signals(-code).name})")
        death.killed = -code == signal.SIGKILL
        return death

    def _reap(self) -> int | None:
        """Wait for the end of the process; return its status, None where the nursery is gone
        too.
        """
        self.pipe.close()
        self.pid = 0
        found = os.read(self.status, _STATUS.size) if _readable(_START_S, self.status) else b""
        os.close(self.status)
        return _STATUS.unpack(found)[0] if len(found) == _STATUS.size else None


def in_children(
    function: Callable[[Job], Any], jobs: Sequence[Job], workers: int, timeout_s: float
) -> Iterator[tuple[Job, Any]]:
    """Call function(job) for each job, `workers` at a time, and yield them as they end.

    A job whose child somebody kills is done once more. What a function raises is raised.

    Args:
        function: called in children, with a time limit each.
        jobs: its arguments; they and the function travel pickled.
        workers: children.
        timeout_s: seconds a call may take.

    Returns:
        An iterator of (job, result), or (job, ChildDied) of a call that ended its child.
    """
    left = list(reversed(list(enumerate(jobs))))
    again: set[int] = set()
    children = [Child(function, timeout_s) for _ in range(min(workers, len(jobs)))]
    idle = list(children)
    busy: dict[Child, tuple[int, Job]] = {}
    try:
        while left or busy:
            ended: list[tuple[Child, int, Job, Any]] = []
            while left and idle:
                child = idle.pop()
                number, job = left.pop()
                try:
                    child.send(job)
                    busy[child] = number, job
                except ChildDied as death:  # at its start
                    ended.append((child, number, job, death))
            for child in _answered(list(busy)) if busy else ():
                number, job = busy.pop(child)
                try:
                    ended.append((child, number, job, child.receive()))
                except ChildDied as death:
                    ended.append((child, number, job, death))
            for child, number, job, result in ended:
                idle.append(child)
                killed = isinstance(result, ChildDied) and result.killed
                if killed and number not in again:
                    again.add(number)
                    left.append((number, job))
                else:
                    yield job, _twice(result) if killed else result
    finally:
        for child in children:
            child.close()


def _answered(children: Sequence[Child]) -> list[Child]:
    """Wait a tick at most; return the children that have answered, died, or used up their time."""
    tick = min(_TICK_S, *(child.timeout_s / 4 for child in children))
    began = time.monotonic()
    ready = connection.wait([child.pipe for child in children], tick)
    # after a pause of all processes the clock has gone on, and the children have not
    elapsed = min(time.monotonic() - began, 2 * tick)
    for child in children:
        child.spent += elapsed
    return [child for child in children if child.pipe in ready or child.spent >= child.timeout_s]


def _readable(seconds: float | None, *files: int) -> list[int]:
    """Wait until one of some descriptors can be read; return those that can. None: no limit."""
    poll = select.poll()  # select takes no descriptor above 1023
    for file in files:
        poll.register(file, select.POLLIN)
    return [file for file, _ in poll.poll(None if seconds is None else 1000 * seconds)]


def _folder() -> str:
    """Return the working directory, "" where it was deleted."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


def _twice(death: ChildDied) -> ChildDied:
    return ChildDied(
        "its process was killed twice (SIGKILL), as for want of memory; lower data.workers"
        f" ({death})"
    )


def _shared_file(size: int) -> int:
    """Return the descriptor of a file of `size` bytes that has no name and lies in memory.

    Not in /dev/shm, of which containers have 64 MB.
    """
    if hasattr(os, "memfd_create"):
        made = os.memfd_create("vidrobust")
    else:
        with tempfile.TemporaryFile() as file:
            made = os.dup(file.fileno())
    os.ftruncate(made, size)
    return made


def _mapped(file: int, size: int) -> np.ndarray:
    return np.frombuffer(mmap.mmap(file, size), np.uint8)


class _Nursery:
    """The caller's side of the process that forks children; started once, and shared with forks."""

    def __init__(self) -> None:
        self.control: socket.socket | None = None
        self.pid = 0
        self.owner = 0

    def start(self) -> None:
        """Start the process, unless it is there; its imports take seconds and go on meanwhile."""
        if self.control is not None:
            return
        kind = getattr(socket, "SOCK_SEQPACKET", socket.SOCK_STREAM)
        self.control, there = socket.socketpair(socket.AF_UNIX, kind)
        self.adopt(_forked(there, self.control) if _is_clean() else _spawned(there), self.control)
        there.close()

    def adopt(self, pid: int, control: socket.socket) -> None:
        """Use a process that serves at the other end of a socket, until this process ends."""
        self.pid = pid
        self.owner = os.getpid()
        self.control = control
        atexit.register(self.stop)

    def stop(self) -> None:
        """End the process, which its owner waits for, so that a command leaves none behind."""
        atexit.unregister(self.stop)
        if self.control is None or self.owner != os.getpid():
            return
        self.control.close()
        self.control = None
        deadline = time.monotonic() + 1
        with contextlib.suppress(ChildProcessError):
            while not os.waitpid(self.pid, os.WNOHANG)[0]:
                if time.monotonic() > deadline:  # a process that was forked here holds the socket
                    os.kill(self.pid, signal.SIGKILL)
                time.sleep(0.005)

    def fork(self, shared: int | None) -> tuple[connection.Connection, int, int]:
        """Return (pipe, status, pid) of a new child; status: a descriptor that its end is written
        to.
        """
        for last in (False, True):
            self.start()
            here, there = Pipe()
            status, report = os.pipe()
            passed = [there.fileno(), report, *([] if shared is None else [shared])]
            try:
                assert self.control is not None
                socket.send_fds(self.control, [_STATUS.pack(os.getpid())], passed)
                there.close()
                os.close(report)
                report = -1
                if not here.poll(_START_S):
                    raise ConnectionError(f"no answer within {_START_S:g} s")
                return here, status, int(here.recv())
            except (OSError, EOFError) as error:
                here.close()
                os.close(status)
                if report >= 0:
                    there.close()
                    os.close(report)
                self.control = None  # it is gone: another one, once
                if last:
                    raise RuntimeError(
                        f"the process that starts readers is not there ({error!r})"
                    ) from error
        raise AssertionError


def _is_clean() -> bool:
    """Return whether this process has no more threads than when it imported this module."""
    return 0 < _threads() <= _THREADS_AT_IMPORT


def _threads() -> int:
    """Return how many threads this process has, 0 where the system does not say."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return 0


_THREADS_AT_IMPORT = _threads()  # those of numpy's BLAS survive a fork, as it sees to that


def _forked(there: socket.socket, here: socket.socket) -> int:
    """Return the pid of a nursery that is a copy of this process: nothing is imported again."""
    with held_stop_signals():
        pid = os.fork()
        if pid:
            return pid
        try:
            here.close()
            serve_nursery(there.detach())
        finally:
            os._exit(1)


def _spawned(there: socket.socket) -> int:
    """Return the pid of a nursery that begins anew; its imports take seconds."""
    there.set_inheritable(True)
    begin = (
        f"import sys; sys.path[:] = {json.dumps(sys.path)}; "
        f"from vidrobust.data import isolation; isolation.serve_nursery({there.fileno()})"
    )
    # each child runs in one thread: the loader's workers are the parallelism
    single = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-c", begin]
    return os.posix_spawn(sys.executable, command, os.environ | single, setsigmask=STOP_SIGNALS)


_nursery = _Nursery()


def start_nursery() -> None:
    """Start the process that forks children, before workers that will share it are forked."""
    _nursery.start()


def serve_nursery(control: int) -> NoReturn:
    """Fork a child per request until all callers are gone; the main function of the nursery."""
    for ignored in STOP_SIGNALS:  # sent to the whole group, and meant for the caller
        signal.signal(ignored, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    import vidrobust.data  # noqa: F401  (what children need, imported once)

    gc.collect()
    gc.freeze()  # a collection would write to, and so copy, what children share
    wake, waking = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(waking, False)
    signal.set_wakeup_fd(waking)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    requests = socket.socket(fileno=control)
    children: dict[int, tuple[int, int]] = {}  # pid -> (where its status goes, its caller)
    while True:
        ready = _readable(_CHECK_S if children else None, requests.fileno(), wake)
        if wake in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(wake, 4096)
        _report_deaths(children)
        if not ready:
            _kill_orphans(children)
        if requests.fileno() not in ready:
            continue
        try:
            asked, passed, _, _ = socket.recv_fds(requests, _STATUS.size, 3)
        except OSError:
            asked, passed = b"", []
        if not asked:
            os._exit(0)  # nobody is left; children die with this process
        caller = _STATUS.unpack(asked)[0]
        try:
            pid = os.fork()
        except OSError:  # no memory, or too many processes: the caller sees the pipe close
            for number in passed:
                os.close(number)
            continue
        if pid == 0:
            requests.close()
            for report, _ in children.values():
                os.close(report)
            _serve(passed, caller)
        children[pid] = passed[1], caller
        for number in (passed[0], *passed[2:]):
            os.close(number)


def _report_deaths(children: dict[int, tuple[int, int]]) -> None:
    """Write the status of each child that has ended to its caller."""
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        report, _ = children.pop(pid)
        with contextlib.suppress(OSError):  # its caller is gone
            os.write(report, _STATUS.pack(status))
        os.close(report)


def _kill_orphans(children: dict[int, tuple[int, int]]) -> None:
    """End children that hang while their caller has ended; idle ones end by themselves."""
    for pid, (_, caller) in children.items():
        try:
            os.kill(caller, 0)
        except ProcessLookupError:
            os.kill(pid, signal.SIGKILL)
        except PermissionError:
            pass


def _serve(passed: list[int], caller: int) -> NoReturn:
    """Answer calls until the caller is gone; the main function of a child."""
    try:
        end_with_parent()
        if hasattr(os, "sched_setaffinity"):  # the nursery may have begun on other cores
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, os.sched_getaffinity(caller))
        faulthandler.disable()  # the caller reports a crash, in one line
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(passed[1])
        import torch

        torch.set_num_threads(1)
        pipe = connection.Connection(passed[0])
        pipe.send(os.getpid())
        folder, function, size = pickle.loads(pipe.recv_bytes())
        if folder:
            os.chdir(folder)  # relative paths are the caller's
        pipe.send(None)
        first = [_mapped(passed[2], size)] if size else []
        while True:
            arguments = pipe.recv()
            try:
                answer = (False, function(*first, *arguments))
            except Exception as error:
                answer = (True, error)
            pipe.send(answer)
    except (EOFError, ConnectionError):  # the caller is gone
        os._exit(0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
