"""Handle stop signals in tools, training steps and data-loading processes.

A scheduler, a terminal and torchrun send stop signals to the whole process group. Only the main
process reacts: it finishes the training step, writes its state, and exits with EXIT_STOPPED. Its
data-loading processes ignore the signals and end with it.

This file, and what it imports, needs only the standard library: tools use it before torch.
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

from vidrobust.utils.start_watch import first_to_tell_early

# Exit status of a run that was asked to stop and has written its state. The same command resumes.
EXIT_STOPPED = 130
# Exit status of test_net for an accuracy below --fail-under. 1 is a mistake of the user, and 2 of
# the command line.
EXIT_BELOW = 3
# Exit status of `train_net --replay` for a step whose loss and gradient are finite in the replay.
EXIT_FINITE = 4
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
STOP_SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
# A second Ctrl-C counts only after this many seconds, because a launcher that forwards signals
# repeats the first one at once.
_REPEAT_S = 1.0
_PR_SET_PDEATHSIG = 1  # prctl's option, from <linux/prctl.h>
_POLL_S = 0.5
_AGAIN_S = 0.05


class StopAsked(KeyboardInterrupt):
    """Raised by a stop signal that arrives outside of training steps."""


class _FirstStop:
    """First stop signal of this process.

    Attributes:
        number: number of the signal; 0 before any has arrived.
        time_s: time of its arrival on the monotonic clock, seconds.
    """

    number = 0
    time_s = 0.0


_first_stop = _FirstStop()


def exit_on_stop_signals() -> None:
    """Let a stop signal end this process at once with EXIT_STOPPED.

    For the seconds in which a tool imports packages, before any work has started. An exception
    would break off an import in the middle. `cli.common.run` then calls `raise_on_stop_signals`
    before the work starts.
    """
    _install(_exit)


def raise_on_stop_signals() -> None:
    """Let the first stop signal raise StopAsked in the main thread from now on.

    Later signals are ignored, so that a process which is already ending can still write its files.
    A second Ctrl-C does interrupt it.
    """
    _first_stop.number = 0
    _install(_raise)


def restore_stop_signals() -> None:
    """Restore the default reaction to stop signals, at the end of a tool.

    A process that was asked to stop keeps ignoring repeated signals.
    """
    if _first_stop.number:
        ignore_stop_signals()
        return
    for number in STOP_SIGNALS if _in_main_thread() else ():
        if signal.getsignal(number) in (_raise, _ignore):
            is_interrupt = number == signal.SIGINT
            signal.signal(number, signal.default_int_handler if is_interrupt else signal.SIG_DFL)


def ignore_stop_signals() -> None:
    """Ignore stop signals from now on, for the last seconds of a process."""
    _install(_ignore)


@contextmanager
def noted_stop_signals() -> Iterator[list[int]]:
    """Collect stop signals instead of reacting to them.

    Yields:
        A list that receives the number of the first stop signal. A second Ctrl-C raises
        KeyboardInterrupt.
    """
    signals: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if _is_repeated(number):
            if _is_second_interrupt(number):
                raise KeyboardInterrupt
            return
        signals.append(number)

    _first_stop.number = 0
    before = _install(note)
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def held_stop_signals() -> Iterator[None]:
    """Block stop signals while child processes start, which inherit the blocked signals."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_stops_to_parent() -> None:
    """Ignore stop signals in this process, except a SIGTERM from its parent."""
    others = [number for number in STOP_SIGNALS if number != signal.SIGTERM]
    for number in others:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        # torch's DataLoader sends SIGTERM to a worker that does not end by itself. A handler cannot
        # see the sender of a signal, but sigwaitinfo can, in a thread that waits for it.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        signal.pthread_sigmask(signal.SIG_UNBLOCK, others)
        threading.Thread(target=_end_on_parents_term, args=(os.getppid(),), daemon=True).start()
    else:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def end_with_parent(number: int = signal.SIGKILL) -> None:
    """Send a signal to this process as soon as its parent has ended, even if it was killed.

    Args:
        number: the signal.
    """
    # A parent that ended right after the fork is not the parent any more.
    parent = _forked_from or os.getppid()
    # The kernel sends its death signal when the forking *thread* ends. A process forked by another
    # thread than the main one polls its parent instead.
    if sys.platform == "linux" and _forked_by_main_thread and _set_death_signal(number):
        if os.getppid() != parent:  # the parent ended before the request was in place
            os.kill(os.getpid(), number)
        return
    threading.Thread(target=_end_without_parent, args=(parent, number), daemon=True).start()


_forked_by_main_thread = True
_forking = 0  # process that forks, as its child finds it
_forked_from = 0  # process that has forked this one; 0 for a new program


def _before_fork() -> None:
    global _forked_by_main_thread, _forking
    _forked_by_main_thread = _in_main_thread()
    _forking = os.getpid()


def _after_fork() -> None:
    global _forked_from
    _forked_from = _forking


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)


def _set_death_signal(number: int) -> bool:
    """Ask Linux to send a signal when the parent ends; return whether it agreed."""
    try:
        return ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0) == 0
    except (OSError, AttributeError):
        return False


def _end_without_parent(parent: int, number: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_S)
    os.kill(os.getpid(), number)


def _end_on_parents_term(parent: int) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)


def _exit(number: int, frame: FrameType | None) -> None:
    try:
        if os.environ.get("RANK", "0") == "0":  # one message, not one per rank
            first_to_tell_early()  # so that the others end silently
            os.write(2, b"stopped: nothing has begun\n")
    finally:  # the write fails if the terminal of stderr is closed
        os._exit(EXIT_STOPPED)


def _raise(number: int, frame: FrameType | None) -> None:
    if _in_destructor(frame):
        # Python drops exceptions of destructors, and the stop would be lost
        threading.Timer(_AGAIN_S, os.kill, (os.getpid(), number)).start()
        return
    if not _is_repeated(number) or _is_second_interrupt(number):
        raise StopAsked


def _ignore(number: int, frame: FrameType | None) -> None:
    pass


def _in_destructor(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


def _is_second_interrupt(number: int) -> bool:
    """Return whether this is a Ctrl-C long enough after the first stop signal."""
    return number == signal.SIGINT and time.monotonic() - _first_stop.time_s > _REPEAT_S


def _is_repeated(number: int) -> bool:
    """Return whether an earlier stop signal was noted; note this one if not."""
    if _first_stop.number:
        return True
    _first_stop.number = number
    _first_stop.time_s = time.monotonic()
    return False


def _install(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Set the handler of all stop signals; return the earlier handlers by signal."""
    before: dict[int, Any] = {}
    for number in STOP_SIGNALS if _in_main_thread() else ():
        earlier = signal.getsignal(number)
        # nohup ignores SIGHUP so that its program outlives the terminal
        outlives_terminal = earlier == signal.SIG_IGN and number == getattr(signal, "SIGHUP", 0)
        if earlier is None or outlives_terminal:
            continue
        before[number] = earlier
        signal.signal(number, handler)
    return before


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
