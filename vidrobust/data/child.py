"""A function in a process of its own, which may crash or hang without harm to the caller.

Native decoders do both, and one that hangs may hold Python's lock, so nothing inside its process can stop it. The
child therefore sets the kernel's alarm clock before each call and, when it rings, dies.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import Pipe, connection
from typing import Any, TypeVar

import torch

Job = TypeVar("Job")
NO_ANSWER = "no answer"
_LONGEST_S = 10**6  # longer ones overflow the kernel's clock
# Of these no handler, the parent's or faulthandler's, runs in the child, but death: the parent tells.
_DEADLY = (signal.SIGALRM, signal.SIGTERM, signal.SIGCHLD, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL,
           signal.SIGABRT)  # fmt: skip


class ChildDied(Exception):
    """The child ended in the middle of a call. The message says how: a time limit, or the name of a signal."""


class Child:
    """Calls of `function`, one at a time, in a forked process; after a death the next call forks anew.

    The process is forked at the first call, and sees everything as it was then. timeout_s: seconds a call may take.
    Arguments and results travel pickled; large arrays go through memory that was shared before the fork.
    """

    def __init__(self, function: Callable[..., Any], timeout_s: float) -> None:
        if not 0 < timeout_s <= _LONGEST_S:
            raise ValueError(f"timeout_s={timeout_s}: greater than 0, at most {_LONGEST_S}")
        self.function, self.timeout_s = function, timeout_s
        self.pid = self.owner = 0

    def __call__(self, *arguments: Any) -> Any:
        """function(*arguments). Raises ChildDied, and what the function raises."""
        self.send(*arguments)
        return self.receive()

    def send(self, *arguments: Any) -> None:
        """Begin a call; `receive` waits for its end."""
        if not self.pid:
            self._fork()
        with contextlib.suppress(OSError):  # it died while idle: `receive` says so
            self.pipe.send(arguments)

    def receive(self) -> Any:
        try:
            failed, result = self.pipe.recv()
        except (EOFError, OSError):
            raise ChildDied(self._reap()) from None
        if failed:
            raise result
        return result

    def close(self) -> None:
        """Kill the process, if there is one."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            self._reap()

    def __del__(self) -> None:
        if self.owner == os.getpid():  # and not a copy of it in a process that was forked later
            self.close()

    def _fork(self) -> None:
        self.owner = os.getpid()
        here, there = Pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                here.close()
                self._serve(there)
            finally:
                os._exit(0)  # nothing of the parent's is cleaned up twice
        there.close()
        self.pipe = here

    def _serve(self, pipe: Any) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
        for number in _DEADLY:
            signal.signal(number, signal.SIG_DFL)
        torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
        while True:
            try:
                arguments = pipe.recv()
            except (EOFError, OSError):  # the parent is gone
                return
            signal.setitimer(signal.ITIMER_REAL, self.timeout_s)
            try:
                answer = (False, self.function(*arguments))
            except Exception as error:
                answer = (True, error)
            signal.setitimer(signal.ITIMER_REAL, 0)
            pipe.send(answer)

    def _reap(self) -> str:
        self.pipe.close()
        pid, self.pid = self.pid, 0
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status == -signal.SIGALRM:
            return f"{NO_ANSWER} within {self.timeout_s:g} s"
        return f"the decoder crashed ({signal.Signals(-status).name})" if status < 0 else f"it exited with {status}"


def in_children(
    function: Callable[[Job], Any], jobs: Sequence[Job], workers: int, timeout_s: float
) -> Iterator[tuple[Job, Any]]:
    """function(job) of each job, `workers` at a time, as they end: (job, result), or (job, ChildDied) of a death.

    What a function raises is raised.
    """
    left = list(reversed(jobs))
    children = [Child(function, timeout_s) for _ in range(min(workers, len(jobs)))]
    busy: dict[Any, tuple[Child, Job]] = {}

    def begin(child: Child) -> None:
        if left:
            job = left.pop()
            child.send(job)
            busy[child.pipe] = child, job

    try:
        for child in children:
            begin(child)
        while busy:
            for pipe in connection.wait(list(busy)):
                child, job = busy.pop(pipe)
                try:
                    result: Any = child.receive()
                except ChildDied as death:
                    result = death
                begin(child)
                yield job, result
    finally:
        for child in children:
            child.close()
