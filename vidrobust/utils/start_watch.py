"""Notice ranks on rank 0's machine that end before all ranks have met, without torchrun.

A process imports packages for seconds before it meets the others. They would wait for it for
minutes if it died meanwhile. So each rank binds a socket before its imports, and connects to those
that have begun before it. The kernel closes the connections of a process that ends:

    rank 0 --socket-- rank 1
           --socket-- rank 2

A thread looks at them during the imports, and ends before the process forks. From then on, the main
thread looks at them while it waits for the others. A rank that has not begun is waited for. The
sockets are those of Linux that have a name but no file: a process that is killed leaves none.

This file imports only the standard library, because tools use it before they import torch.
"""

import os
import socket
import struct
import sys
import threading
import time
from collections.abc import MutableMapping
from contextlib import suppress

_POLL_S = 0.2
# from its end until a rank counts as lost: a signal to all ranks reaches them one after the other
_GRACE_S = 1.0
_CREDENTIALS = struct.Struct("3i")  # process id, user, group
_TOLD = b"told"
_LONGEST_MESSAGE = 16  # bytes
_UNKNOWN = -1


class StartWatch:
    """The connections of a rank before the ranks have met.

    Args:
        rank: its number.
        count: number of ranks.
        launch: what the ranks of a launch have in common, and no other launch on this machine.
    """

    def __init__(self, rank: int, count: int, launch: str) -> None:
        self._launch = launch
        self._ranks: dict[socket.socket, int] = {}  # _UNKNOWN before they have sent it
        self._told = False  # a rank has reported why all end
        self._ended_rank = _UNKNOWN
        self._ended_pid = 0
        self._ended_at = 0.0
        self._imported = threading.Event()
        self._thread = threading.Thread(target=self._watch_imports, daemon=True)
        self._listener = _socket()
        with suppress(OSError):  # a process of an earlier launch has the name
            self._listener.bind(_name(rank, launch))
            self._listener.listen(count)
        for other in range(1, count) if rank == 0 else [0]:
            connection = _socket()
            try:
                connection.connect(_name(other, launch))
                connection.send(str(rank).encode())
            except OSError:  # it has not begun: it will connect to this rank
                connection.close()
            else:
                self._ranks[connection] = other
        self._thread.start()

    def ended_rank(self) -> str:
        """Return which rank had begun and has ended since; "" if there is none."""
        self._receive()
        if self._ended_rank == _UNKNOWN or time.monotonic() < self._ended_at + _GRACE_S:
            return ""
        return f"rank {self._ended_rank} (process {self._ended_pid})"

    def first_to_tell(self) -> bool:
        """Return whether this rank should report why all end; if so, the others do not."""
        self._receive()
        is_first = not self._told
        if is_first and self._ended_rank == 0:
            # the others have no connection to each other: the first to take rank 0's name reports
            self._listener.close()
            self._listener = _socket()
            try:
                self._listener.bind(_name(0, self._launch))
            except OSError:
                is_first = False
        self._told = True
        for connection in self._ranks:
            with suppress(OSError):
                connection.send(_TOLD)
        return is_first

    def end_thread(self) -> None:
        """End the thread, as the imports are done."""
        self._imported.set()
        self._thread.join()

    def close(self) -> None:
        """Close the connections."""
        for connection in [self._listener, *self._ranks]:
            connection.close()

    def _watch_imports(self) -> None:
        while not self._imported.wait(_POLL_S):
            name = self.ended_rank()
            if name:
                if self.first_to_tell():
                    with suppress(OSError):  # the terminal may be closed
                        os.write(2, f"error: {reason_of_early_end(name)}\n".encode())
                    time.sleep(_GRACE_S)  # keep the name of rank 0
                os._exit(1)

    def _receive(self) -> None:
        """Accept connections, read their messages, and note which rank has ended first."""
        with suppress(OSError):  # nobody waits to be accepted
            while True:
                connection, _ = self._listener.accept()
                connection.setblocking(False)
                self._ranks[connection] = _UNKNOWN
        for connection in list(self._ranks):
            pid, user = _credentials(connection)
            # any user of the machine can connect; nothing of others is read
            is_of_this_user = user == os.getuid()
            if is_of_this_user and self._read(connection):
                continue
            rank = self._ranks.pop(connection)
            connection.close()
            if self._ended_rank == _UNKNOWN and is_of_this_user:
                self._ended_rank = rank
                self._ended_pid = pid
                self._ended_at = time.monotonic()

    def _read(self, connection: socket.socket) -> bool:
        """Read all messages of a connection; return whether it is open."""
        while True:
            try:
                content = connection.recv(_LONGEST_MESSAGE)
            except BlockingIOError:
                return True
            except ConnectionResetError:  # it has not read all messages; its own follow
                continue
            if content == _TOLD:
                self._told = True
            elif content.isdigit():
                self._ranks[connection] = int(content)
            else:
                return False


def _socket() -> socket.socket:
    # keeps the limits of messages; connects at once, or fails
    result = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    result.setblocking(False)
    return result


def _name(rank: int, launch: str) -> str:
    return f"\0vidrobust {os.getuid()} {launch} {rank}"


def _credentials(connection: socket.socket) -> tuple[int, int]:
    """Return the process id and the user of the other end."""
    content = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, user, _ = _CREDENTIALS.unpack(content)
    return pid, user


class _Current:
    """The watch of this process; None without one."""

    watch: StartWatch | None = None


def begin_start_watch(env: MutableMapping[str, str] = os.environ) -> None:
    """Let other ranks notice if this process ends before all have met, as its first act.

    Args:
        env: environment, with the number of this rank.
    """
    rank, count = env.get("RANK", ""), env.get("WORLD_SIZE", "")
    # torchrun ends all ranks if one has ended
    if sys.platform != "linux" or "TORCHELASTIC_RUN_ID" in env or not rank.isdecimal():
        return
    if count.isdecimal() and 1 < int(count) > int(rank):
        launch = f"{env.get('MASTER_ADDR')}:{env.get('MASTER_PORT')}"
        _Current.watch = StartWatch(int(rank), int(count), launch)


def end_watch_of_imports() -> None:
    """End the thread that watches during the imports."""
    if _Current.watch is not None:
        _Current.watch.end_thread()


def rank_ended_early() -> str:
    """Return which rank has ended before all have met; "" if none is known."""
    return _Current.watch.ended_rank() if _Current.watch is not None else ""


def reason_of_early_end(name: str) -> str:
    """Return the reason why other ranks end.

    Args:
        name: what `rank_ended_early` has returned.
    """
    return f"{name} has ended before all ranks had met: it was killed, stopped, or has failed"


def first_to_tell_early() -> bool:
    """Return whether this rank should report why all end, as far as the start watch knows."""
    return _Current.watch is None or _Current.watch.first_to_tell()


def end_start_watch() -> None:
    """Close the connections: all ranks have met, or this process is a child of the rank's."""
    if _Current.watch is not None:
        _Current.watch.close()
        _Current.watch = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=end_start_watch)
