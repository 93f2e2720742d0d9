"""Call a function in a child process that may crash or hang.

Native decoders do both. A decoder that hangs may hold Python's lock, so nothing inside its process
can stop it. The caller therefore watches the time from outside, and kills the process.

Children are not forked from the caller. FFmpeg starts threads in the process that uses it. A child
forked from such a process has copies of its locks but not its threads, and may wait for one of them
for ever (PyAV 19 does in `reformat`). So one clean process, the nursery, never decodes anything and
forks all children, in milliseconds each. It is a fork of the caller if that has started no thread
yet, and otherwise a new Python process:

    caller --(a socket: file descriptors)--> nursery --fork--> child <--(a pipe: calls)--> caller
"""

import atexit
import contextlib
import errno
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

from vidrobust.utils.errors import UserError
from vidrobust.utils.stopping import STOP_SIGNALS, end_with_parent, held_stop_signals

Job = TypeVar("Job")
NO_ANSWER = "no answer"  # manifests hold messages that begin so; a later scan tries again
_LONGEST_S = 10**6  # largest time limit
# Callers wait in ticks of at most this many seconds, so that a pause of the whole machine counts as
# two ticks against the time limit.
_TICK_S = 0.25
# A child is replaced after this many calls: PyAV leaks about 0.5 KB per file, so 1 MB by then.
_CALLS = 2000
# Seconds that the nursery has for its imports on a busy machine, and for its answers.
_START_S = 120.0
# Seconds between two checks of the nursery for children whose caller has ended.
_CHECK_S = 2.0
_STATUS = struct.Struct("i")


class ChildDied(Exception):
    """Report that a child ended in the middle of a call; the message says how.

    Args:
        message: how it ended.
        killed: whether another process killed it by SIGKILL, as the kernel does when memory runs
            out.
    """

    def __init__(self, message: str, *, killed: bool = False) -> None:
        super().__init__(message)
        self.killed = killed


class SharedMemory:
    """Memory that processes share: forks have it too, and others get its descriptor.

    Args:
        size: bytes.

    Attributes:
        file: the descriptor.
        bytes: (size,) uint8, the memory.
    """

    def __init__(self, size: int) -> None:
        self.file = _shared_file(size)
        self.bytes = _mapped(self.file, size)

    def __del__(self) -> None:
        # The attribute is missing if the file could not be made.
        if (file := getattr(self, "file", -1)) >= 0:
            os.close(file)  # each forked copy has a descriptor of its own


class Child:
    """Call a function in another process, one call at a time.

    After a death the next call starts a new process. If another process killed the child (SIGKILL),
    that is not the fault of the call, which is tried once more.

    Args:
        function: the function to call; it and its arguments are pickled.
        timeout_s: seconds that a call may take; pauses of the whole machine do not count.
        shared: memory for large results; the function gets its bytes as its first argument. None:
            none.
    """

    def __init__(
        self, function: Callable[..., Any], timeout_s: float, shared: SharedMemory | None = None
    ) -> None:
        self.pid = 0
        self.owner = 0
        if not 0 < timeout_s <= _LONGEST_S:
            raise ValueError(f"timeout_s={timeout_s}: greater than 0, at most {_LONGEST_S}")
        self.function = function
        self.timeout_s = timeout_s
        self.spent = 0.0
        self._shared = shared

    def __call__(self, *arguments: Any) -> Any:
        """Return function(*arguments).

        Raises:
            ChildDied: the call took too long, or ended the process.
            Exception: whatever the function raises.
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
        """Return function(*arguments); raise ChildDied if the call ends the process."""
        self.send(*arguments)
        while not _answered([self]):
            pass
        return self.receive()

    def send(self, *arguments: Any) -> None:
        """Begin a call; `receive` returns its result."""
        # Replace a child that has leaked memory, or whose relative paths mean other files.
        if self.pid and (self.calls >= _CALLS or self.folder != _folder()):
            self.close()
        if not self.pid:
            self._start()
        self.calls += 1
        self.spent = 0.0
        with contextlib.suppress(OSError):  # if it died while idle, `receive` notices
            self.pipe.send(arguments)

    def receive(self) -> Any:
        """Return the result of a call that has ended, or has used up its time."""
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
        """Send SIGKILL to the process, unless it has ended."""
        if _readable(0, self.status):
            return  # it has ended, and its pid may belong to another process by now
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def __del__(self) -> None:
        # A copy in a process that was forked later must not end the child of the owner.
        if self.owner == os.getpid():
            self.close()

    def _start(self) -> None:
        """Have the nursery fork a child, and send it the function."""
        self.folder = _folder()
        size = 0 if self._shared is None else len(self._shared.bytes)
        try:
            setup = pickle.dumps((self.folder, self.function, size))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise TypeError(
                "the function of a child must be defined at the top level of a module, not as a"
                f" lambda or inside a function ({error})"
            ) from None
        shared = None if self._shared is None else self._shared.file
        pipe, status, pid = _nursery.fork(shared)
        self.pipe = pipe
        self.status = status
        self.pid = pid
        self.owner = os.getpid()
        self.calls = 0
        with contextlib.suppress(OSError):  # if it died, the missing answer shows that below
            self.pipe.send_bytes(setup)
        # Wait until it is ready, so that its imports do not count as time of the first call.
        if not self.pipe.poll(_START_S):
            self.close()
            raise ChildDied(f"{NO_ANSWER} within {_START_S:g} s of its start")
        try:
            self.pipe.recv()
        except (EOFError, OSError):
            raise self._death() from None

    def _death(self) -> ChildDied:
        """Return how the process ended, as an error to raise."""
        status = self._reap()
        if status is None:  # the nursery was killed, and all of its children with it
            message = "its process was lost, perhaps because memory ran out; lower data.workers"
            return ChildDied(message, killed=True)
        code = os.waitstatus_to_exitcode(status)
        if code >= 0:
            return ChildDied(f"it exited with {code}")
        message = f"the decoder crashed ({signal.Signals(-code).name})"
        return ChildDied(message, killed=-code == signal.SIGKILL)

    def _reap(self) -> int | None:
        """Wait for the end of the process; return its status, or None if the nursery ended too."""
        self.pipe.close()
        self.pid = 0
        report = os.read(self.status, _STATUS.size) if _readable(_START_S, self.status) else b""
        os.close(self.status)
        return _STATUS.unpack(report)[0] if len(report) == _STATUS.size else None


def in_children(
    function: Callable[[Job], Any], jobs: Sequence[Job], workers: int, timeout_s: float
) -> Iterator[tuple[Job, Any]]:
    """Call function(job) for each job, `workers` at a time, and yield the results as they arrive.

    A job whose child another process killed is tried once more. Exceptions of the function are
    raised.

    Args:
        function: the function to call in child processes.
        jobs: its arguments; they and the function are pickled.
        workers: number of child processes.
        timeout_s: seconds that a call may take.

    Yields:
        (job, result), or (job, ChildDied) for a call that ended its child.
    """
    remaining = list(reversed(list(enumerate(jobs))))
    tried_again: set[int] = set()
    children = [Child(function, timeout_s) for _ in range(min(workers, len(jobs)))]
    idle = list(children)
    busy: dict[Child, tuple[int, Job]] = {}
    try:
        while remaining or busy:
            ended: list[tuple[Child, int, Job, Any]] = []
            # Give a job to each idle child.
            while remaining and idle:
                child = idle.pop()
                number, job = remaining.pop()
                try:
                    child.send(job)
                    busy[child] = number, job
                except ChildDied as death:  # at its start
                    ended.append((child, number, job, death))
            # Collect the calls that have ended within the next tick.
            for child in _answered(list(busy)) if busy else ():
                number, job = busy.pop(child)
                try:
                    ended.append((child, number, job, child.receive()))
                except ChildDied as death:
                    ended.append((child, number, job, death))
            # Yield their results, but try a job again once if its child was killed.
            for child, number, job, result in ended:
                idle.append(child)
                killed = isinstance(result, ChildDied) and result.killed
                if killed and number not in tried_again:
                    tried_again.add(number)
                    remaining.append((number, job))
                else:
                    yield job, _twice(result) if killed else result
    finally:
        for child in children:
            child.close()


def _answered(children: Sequence[Child]) -> list[Child]:
    """Wait one tick at most; return the children that have answered, died, or run out of time."""
    tick = min(_TICK_S, *(child.timeout_s / 4 for child in children))
    began = time.monotonic()
    ready = connection.wait([child.pipe for child in children], tick)
    # After a pause of the whole machine the clock is ahead of the work: count two ticks at most.
    elapsed = min(time.monotonic() - began, 2 * tick)
    for child in children:
        child.spent += elapsed
    return [child for child in children if child.pipe in ready or child.spent >= child.timeout_s]


def _readable(seconds: float | None, *files: int) -> list[int]:
    """Wait until one of several descriptors can be read; return those that can.

    Args:
        seconds: time limit; None: no limit.
        files: file descriptors.
    """
    poll = select.poll()  # select.select accepts no descriptor above 1023
    for file in files:
        poll.register(file, select.POLLIN)
    return [file for file, _ in poll.poll(None if seconds is None else 1000 * seconds)]


def _folder() -> str:
    """Return the working directory; "" if it was deleted."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


def _twice(death: ChildDied) -> ChildDied:
    """Return the error for a call whose child was killed twice."""
    return ChildDied(
        "its process was killed twice (SIGKILL), perhaps because memory ran out; lower data.workers"
        f" ({death})"
    )


def _shared_file(size: int) -> int:
    """Return the descriptor of a nameless file of `size` bytes in memory.

    It is not in /dev/shm, which has only 64 MB in containers.
    """
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("vidrobust")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        os.ftruncate(descriptor, size)
    except OSError as error:
        os.close(descriptor)
        raise _no_memory(size, error) from None
    return descriptor


def _no_memory(size: int, error: OSError) -> UserError:
    remedies = {errno.EFBIG: "raise `ulimit -f`, or ", errno.ENOMEM: "raise `ulimit -v`, or "}
    return UserError(
        f"no {size / 2**20:.0f} MiB of memory for loading processes ({error.strerror}):"
        f" {remedies.get(error.errno or 0, '')}lower data.workers or the batch size"
    )


def _mapped(file: int, size: int) -> np.ndarray:
    """Return the memory of a shared file as an array (size,) uint8."""
    try:
        return np.frombuffer(mmap.mmap(file, size), np.uint8)
    except OSError as error:
        raise _no_memory(size, error) from None


class _Nursery:
    """The caller's side of the process that forks children; started once, shared with forks."""

    def __init__(self) -> None:
        self.control: socket.socket | None = None
        self.pid = 0
        self.owner = 0

    def start(self) -> None:
        """Start the process if it is not running.

        Its imports take seconds; they go on in the background.
        """
        if self.control is not None:
            return
        kind = getattr(socket, "SOCK_SEQPACKET", socket.SOCK_STREAM)
        self.control, remote = socket.socketpair(socket.AF_UNIX, kind)
        # A fork starts faster, but is safe only while this process has no threads of its own.
        pid = _forked(remote, self.control) if _is_clean() else _spawned(remote)
        self.adopt(pid, self.control)
        remote.close()

    def adopt(self, pid: int, control: socket.socket) -> None:
        """Use a process that serves at the other end of a socket, until this process ends.

        Args:
            pid: its process id.
            control: this process's end of the socket.
        """
        self.pid = pid
        self.owner = os.getpid()
        self.control = control
        atexit.register(self.stop)

    def stop(self) -> None:
        """End the process, and wait for it.

        Only the process that started it does so, so that a command leaves no process behind.
        """
        # Closing the socket ends it; a fork of this process may keep the socket open.
        atexit.unregister(self.stop)
        if self.control is None or self.owner != os.getpid():
            return
        self.control.close()
        self.control = None
        deadline = time.monotonic() + 1
        with contextlib.suppress(ChildProcessError):
            while not os.waitpid(self.pid, os.WNOHANG)[0]:
                if time.monotonic() > deadline:
                    os.kill(self.pid, signal.SIGKILL)
                time.sleep(0.005)

    def fork(self, shared: int | None) -> tuple[connection.Connection, int, int]:
        """Return (pipe, status, pid) of a new child.

        Its exit status is written to the descriptor `status` when it ends.

        Args:
            shared: descriptor of the memory shared with the child, or None.
        """
        # If the nursery is gone, the first try fails, and the second one starts a new nursery.
        for is_last_try in (False, True):
            self.start()
            local, remote = Pipe()
            status, report = os.pipe()
            passed = [remote.fileno(), report]
            if shared is not None:
                passed.append(shared)
            try:
                assert self.control is not None
                socket.send_fds(self.control, [_STATUS.pack(os.getpid())], passed)
                remote.close()
                os.close(report)
                report = -1
                if not local.poll(_START_S):
                    raise ConnectionError(f"no answer within {_START_S:g} s")
                return local, status, int(local.recv())
            except (OSError, EOFError) as error:
                local.close()
                os.close(status)
                if report >= 0:
                    remote.close()
                    os.close(report)
                self.control = None  # the next `start` then starts a new nursery
                if is_last_try:
                    raise RuntimeError(
                        f"the process that starts readers does not answer ({error!r})"
                    ) from error
        raise AssertionError


def _is_clean() -> bool:
    """Return whether this process has no more threads than when it imported this module."""
    return 0 < _threads() <= _THREADS_AT_IMPORT


def _threads() -> int:
    """Return the number of threads of this process; 0 where the system does not say."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return 0


# numpy's BLAS may have threads already; it makes sure itself that a fork is safe.
_THREADS_AT_IMPORT = _threads()


def _forked(remote: socket.socket, local: socket.socket) -> int:
    """Return the pid of a nursery forked from this process: nothing has to be imported again.

    Args:
        remote: the nursery's end of the control socket.
        local: this process's end, which the nursery closes.
    """
    with held_stop_signals():
        pid = os.fork()
        if pid:
            return pid
        try:
            local.close()
            serve_nursery(remote.detach())
        finally:
            os._exit(1)


def _spawned(remote: socket.socket) -> int:
    """Return the pid of a nursery in a new Python process; its imports take seconds."""
    remote.set_inheritable(True)
    code = (
        f"import sys; sys.path[:] = {json.dumps(sys.path)}; "
        f"from vidrobust.data import isolation; isolation.serve_nursery({remote.fileno()})"
    )
    # Each child runs in one thread: the loader's worker processes provide the parallelism.
    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    return os.posix_spawn(sys.executable, command, os.environ | one_thread, setsigmask=STOP_SIGNALS)


_nursery = _Nursery()


def start_nursery() -> None:
    """Start the process that forks children.

    Call it before forking workers, which then share the process.
    """
    _nursery.start()


def serve_nursery(control: int) -> NoReturn:
    """Fork a child per request until all callers are gone; the main function of the nursery.

    Args:
        control: descriptor of the socket from which requests are read.
    """
    wake = _prepare_nursery()
    requests = socket.socket(fileno=control)
    children: dict[int, tuple[int, int]] = {}  # pid -> (descriptor for its status, its caller)
    while True:
        # Wait for a request, or for the end of a child (SIGCHLD writes to the pipe `wake`).
        ready = _readable(_CHECK_S if children else None, requests.fileno(), wake)
        if wake in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(wake, 4096)
        _report_deaths(children)
        if not ready:
            _kill_orphans(children)
        if requests.fileno() in ready:
            _answer_request(requests, children)


def _prepare_nursery() -> int:
    """Import what children need and set up signals; return a descriptor that SIGCHLD writes to."""
    # Stop signals are sent to the whole process group, but are meant for the caller.
    for ignored in STOP_SIGNALS:
        signal.signal(ignored, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    import vidrobust.data  # noqa: F401  (what children need, imported once)

    # A garbage collection would write to, and so copy, memory that children share.
    gc.collect()
    gc.freeze()
    wake, waking = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(waking, False)
    signal.set_wakeup_fd(waking)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return wake


def _answer_request(requests: socket.socket, children: dict[int, tuple[int, int]]) -> None:
    """Fork a child for the next request; end the nursery if no caller is left.

    Args:
        requests: the socket from which requests are read.
        children: pid -> (descriptor for its status, its caller), to which the child is added.
    """
    try:
        request, passed, _, _ = socket.recv_fds(requests, _STATUS.size, 3)
    except OSError:
        request = b""
        passed = []
    if not request:
        os._exit(0)  # no caller is left; children end with this process
    caller = _STATUS.unpack(request)[0]
    try:
        pid = os.fork()
    except OSError:  # no memory, or too many processes: the caller sees the pipe close
        for number in passed:
            os.close(number)
        return
    if pid == 0:
        requests.close()
        for report, _ in children.values():
            os.close(report)
        _serve(passed, caller)
    children[pid] = passed[1], caller
    for number in (passed[0], *passed[2:]):
        os.close(number)


def _report_deaths(children: dict[int, tuple[int, int]]) -> None:
    """Write the exit status of each child that has ended to its caller."""
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        report, _ = children.pop(pid)
        with contextlib.suppress(OSError):  # its caller may be gone
            os.write(report, _STATUS.pack(status))
        os.close(report)


def _kill_orphans(children: dict[int, tuple[int, int]]) -> None:
    """Kill children that hang although their caller has ended; idle ones end by themselves."""
    for pid, (_, caller) in children.items():
        try:
            os.kill(caller, 0)
        except ProcessLookupError:
            os.kill(pid, signal.SIGKILL)
        except PermissionError:
            pass


def _serve(passed: list[int], caller: int) -> NoReturn:
    """Answer calls until the caller is gone; the main function of a child.

    Args:
        passed: descriptors of the pipe, of the exit status, and of shared memory if there is any.
        caller: process id of the caller.
    """
    try:
        end_with_parent()
        # Run on the caller's cores; the nursery may have started on others.
        if hasattr(os, "sched_setaffinity"):
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, os.sched_getaffinity(caller))
        faulthandler.disable()  # the caller reports a crash, in one line
        # Undo the signal handling of the nursery.
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(passed[1])
        import torch

        torch.set_num_threads(1)
        # Report the pid, receive the function, and report that everything is ready.
        pipe = connection.Connection(passed[0])
        pipe.send(os.getpid())
        folder, function, size = pickle.loads(pipe.recv_bytes())
        if folder:
            os.chdir(folder)  # relative paths then mean the caller's files
        pipe.send(None)
        shared = [_mapped(passed[2], size)] if size else []
        while True:
            arguments = pipe.recv()
            try:
                answer = (False, function(*shared, *arguments))
            except Exception as error:
                answer = (True, error)
            pipe.send(answer)
    except (EOFError, ConnectionError):  # the caller is gone
        os._exit(0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
