"""Handle stop signals in tools, training steps and loader processes.

A scheduler, a terminal and torchrun send them to the whole process group. Only the process that
owns the work answers: it finishes the step, writes, and exits with EXIT_STOPPED. Its loader
processes ignore them and end with it.

This file imports the standard library alone: tools call it before they import torch.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

EXIT_STOPPED = (
    130  # exit status of a run that was asked to stop and has written its state: start it again
)
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
STOP_SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
# A second Ctrl-C counts from then on. A launcher that forwards signals repeats one at once.
_AGAIN_S = 1.0
_PR_SET_PDEATHSIG = 1
_POLL_S = 0.5


class StopAsked(KeyboardInterrupt):
    """A stop signal arrived where no training step has to be finished."""


class _Stops:
    """The first stop signal of this process: its number and when it came."""

    number = 0
    at_s = 0.0


_stops = _Stops()


def exit_on_stop_signals() -> None:
    """Let a stop signal end this process at once with EXIT_STOPPED: nothing has begun.

    For the seconds in which a tool imports packages, where an exception would come out of the
    middle of an import. The caller goes on to `cli.run`, where `raise_on_stop_signals` takes over
    before the work begins.
    """
    _install(_exit)


def raise_on_stop_signals() -> None:
    """Let the first stop signal raise StopAsked from now on, in the main thread.

    Later ones are ignored, because a process that is already ending would lose what it writes; a
    second Ctrl-C is not.
    """
    _stops.number = 0
    _install(_raise)


def restore_stop_signals() -> None:
    """Give stop signals their usual meaning again, after `raise_on_stop_signals`.

    A process that was asked to stop goes on ignoring the repetitions.
    """
    if _stops.number:
        ignore_stop_signals()
    else:
        for number in STOP_SIGNALS if _in_main_thread() else ():
            if signal.getsignal(number) is _raise:
                signal.signal(
                    number,
                    signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL,
                )


def ignore_stop_signals() -> None:
    """Ignore stop signals from now on: what is left to do takes seconds."""
    _install(lambda number, frame: None)


@contextmanager
def noted_stop_signals() -> Iterator[list[int]]:
    """Yield a list that fills when a stop signal arrives.

    A second Ctrl-C raises KeyboardInterrupt.
    """
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if _is_repeated(number):
            if number == signal.SIGINT and time.monotonic() - _stops.at_s > _AGAIN_S:
                raise KeyboardInterrupt
            return
        asked.append(number)

    _stops.number = 0
    before = _install(note)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def held_stop_signals() -> Iterator[None]:
    """Hold stop signals back while processes start, so that they begin with them blocked."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_stops_to_parent() -> None:
    """Ignore stop signals in this process, but for a SIGTERM that its parent sends."""
    others = [number for number in STOP_SIGNALS if number != signal.SIGTERM]
    for number in others:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        # torch's DataLoader terminates a worker that does not end. Only the siginfo says who has
        # sent the signal.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        signal.pthread_sigmask(signal.SIG_UNBLOCK, others)
        threading.Thread(target=_end_when_parent_says, args=(os.getppid(),), daemon=True).start()
    else:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def end_with_parent(number: int = signal.SIGKILL) -> None:
    """Send `number` to this process as soon as its parent has ended, however that ended."""
    parent = os.getppid()
    # The kernel's death signal follows the thread that forked, so a loader in a thread needs the
    # slower way.
    if sys.platform == "linux" and _forked_by_main_thread and _set_death_signal(number):
        if os.getppid() != parent:  # it ended before the request was in place
            os.kill(os.getpid(), number)
        return
    threading.Thread(target=_end_without_parent, args=(parent, number), daemon=True).start()


_forked_by_main_thread = True


def _note_forking_thread() -> None:
    global _forked_by_main_thread
    _forked_by_main_thread = _in_main_thread()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_note_forking_thread)


def _set_death_signal(number: int) -> bool:
    try:
        return ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0) == 0
    except (OSError, AttributeError):
        return False


def _end_without_parent(parent: int, number: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_S)
    os.kill(os.getpid(), number)


def _end_when_parent_says(parent: int) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)


def _exit(number: int, frame: FrameType | None) -> None:
    try:
        if os.environ.get("RANK", "0") == "0":  # of several ranks, one says so
            os.write(2, b"stopped: nothing has begun\n")
    finally:  # also where stderr is a terminal that is gone
        os._exit(EXIT_STOPPED)


def _raise(number: int, frame: FrameType | None) -> None:
    again = number == signal.SIGINT and time.monotonic() - _stops.at_s > _AGAIN_S
    if not _is_repeated(number) or again:
        raise StopAsked


def _is_repeated(number: int) -> bool:
    """Return whether a stop signal came before this one, which is noted if it is the first."""
    if _stops.number:
        return True
    _stops.number = number
    _stops.at_s = time.monotonic()
    return False


def _install(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Set the handler of all stop signals; return the earlier ones."""
    before: dict[int, Any] = {}
    for number in STOP_SIGNALS if _in_main_thread() else ():
        earlier = signal.getsignal(number)
        # nohup ignores SIGHUP for its program, which is to outlive the terminal
        if earlier is None or (
            earlier == signal.SIG_IGN and number == getattr(signal, "SIGHUP", 0)
        ):
            continue
        before[number] = earlier
        signal.signal(number, handler)
    return before


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
