"""Notice ranks that died or hang, in a thread of each rank.

Each rank has a connection to rank 0, apart from the process group and its store. Both sides send a
beat every BEAT_S seconds:

    rank 1 --beat--> rank 0 --"rank 2 is lost"--> rank 1
    rank 2 --beat--> rank 0
           <--beat--

- A connection that closes without a farewell belongs to a process that died.
- A rank whose beat stands still for `silence_limit_s()` hangs: it is suspended, swapped out, or its
  machine is gone. The thread beats as long as Python runs, whatever the main thread waits for: a
  deadlock in the main thread is ended by the time limit of collectives.
- One call of C code may hold Python's lock, and stop the beat. A silent process on this machine
  that uses a core is not counted as hanging. On another machine, the limit holds.
- A watcher that was suspended itself counts anew. So a pause of all ranks does no harm.

A process that hangs on this machine is killed, so that others which wait for it wake up. When a
rank is lost, the main thread gets some seconds to end, then the thread ends the process.
"""

import ctypes
import json
import math
import os
import platform
import secrets
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidrobust.utils.errors import UserError
from vidrobust.utils.stopping import EXIT_STOPPED

BEAT_S = 2.0
_TICK_S = 1.0
_WAIT_S = 0.02
_PAUSED_S = 3.0  # a tick that took longer: this process was suspended
# seconds from a loss until the main thread is interrupted, and until the process is ended
_INTERRUPT_S = 2.0
_END_S = 8.0
_SAVE_S = 20.0  # the same, if the main thread writes its state
_REPORT_S = 15.0  # for a report at most, which asks the store three times (4 s) for its answer
_LEAVE_S = 6.0  # from the farewell to the end of the process, unless it has finished its work
_CONNECT_S = 20.0
_LIMIT_VARIABLE = "VIDROBUST_SILENCE_S"
_LIMIT_S = 20.0
_LEAST_LIMIT_S = 3 * BEAT_S
THREAD_NAME = "peer watch"
_PR_SET_NAME = 15  # prctl's option, from <linux/prctl.h>
_LONGEST_MESSAGE = 1 << 16  # bytes

# Ways in which a rank is lost. "stopped" and "failed" are farewells.
HUNG = "hung"
DIED = "died"
STOPPED = "stopped"
FAILED = "failed"
LEFT = "left"  # a farewell without a loss: the rank has finished its work


def silence_limit_s() -> float:
    """Return after how many seconds without a beat a rank counts as hanging; 0: never.

    Raises:
        UserError: if VIDROBUST_SILENCE_S is set to anything else.
    """
    text = os.environ.get(_LIMIT_VARIABLE, str(_LIMIT_S))
    try:
        limit = float(text)
    except ValueError:
        limit = math.nan
    if limit == 0 or _LEAST_LIMIT_S <= limit < math.inf:
        return limit
    raise UserError(
        f"{_LIMIT_VARIABLE}={text}: must be at least {_LEAST_LIMIT_S:.0f} seconds, or 0 for"
        " no limit"
    )


@dataclass(frozen=True)
class Identity:
    """A process of a rank, such that no other process is mistaken for it.

    Attributes:
        rank: number of the rank.
        pid: process id.
        host: name of its machine.
        started: time of its start, in ticks after the machine's; "" if unknown.
        machine: the machine's boot and the namespace of process ids; "" if unknown.
    """

    rank: int
    pid: int
    host: str
    started: str
    machine: str

    def is_here(self) -> bool:
        """Return whether the process runs on this machine, and its id is known to be its own."""
        known = bool(self.machine) and self.machine == _machine()
        return known and bool(self.started) and _stat(self.pid)[_STARTED:][:1] == [self.started]


# fields of /proc/PID/stat after the name of the program, counted from the state
_USER_TIME, _SYSTEM_TIME, _STARTED = 11, 12, 19


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat that follow the name; [] if there are none."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return []


def _machine() -> str:
    """Return what a machine and a namespace of process ids have for themselves; "" if unknown."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()} {boot} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _name_thread(name: str) -> None:
    """Name this thread for tools such as top, as Python does from 3.14 on."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


def this_identity(rank: int) -> Identity:
    """Return the identity of this process.

    Args:
        rank: its number.
    """
    pid = os.getpid()
    started = "".join(_stat(pid)[_STARTED:][:1])
    return Identity(rank, pid, socket.gethostname(), started, _machine())


def _core_seconds(pid: int) -> float:
    """Return how long a process of this machine has used cores, in seconds."""
    fields = _stat(pid)
    if not fields:
        return 0.0
    return (int(fields[_USER_TIME]) + int(fields[_SYSTEM_TIME])) / os.sysconf("SC_CLK_TCK")


@dataclass
class _Peer:
    """The other end of a connection.

    Attributes:
        connection: socket.
        identity: of the rank; None before its first message.
        heard: time of its last message.
        core_s: seconds of cores that it had used when it began to be silent; -1: it is not silent.
        unread: begin of a message.
    """

    connection: socket.socket
    identity: Identity | None
    heard: float
    core_s: float = -1.0
    unread: bytes = b""


class PeerWatch:
    """The thread of a rank that beats, and watches the beats of others.

    Args:
        rank: number of this rank.
        limit_s: a rank hangs after this many seconds of silence; 0: never.
        report: reports the loss, before the thread ends the process.

    Attributes:
        lost: the ranks that were lost first, and how.
        identities: of the ranks that were lost.
        left: the ranks that have finished their work, among those that this rank watches.
        told: whether a rank has reported why all end.
    """

    def __init__(self, rank: int, limit_s: float, report: Callable[[], None]) -> None:
        self.rank = rank
        self.lost: dict[int, str] = {}
        self.identities: dict[int, Identity] = {}
        self.left: set[int] = set()
        self.told = False
        self._limit_s = limit_s
        self._report = report
        self._identity = this_identity(rank)
        self._peers: dict[socket.socket, _Peer] = {}
        self._selector = selectors.DefaultSelector()
        self._listener: socket.socket | None = None
        self._token = ""
        self._lock = threading.Lock()  # of sending, which both threads do
        self._lost_at = 0.0
        self._interrupted = False
        self._main_ended_at = -math.inf
        self._closing = False
        self._farewell = ""
        self._farewell_at = math.inf
        self._status = 0
        self._thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)

    def listen(self) -> str:
        """Open a port for the other ranks, on rank 0; return what they need to connect."""
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        self._listener = socket.create_server(("", 0), family=family, dualstack_ipv6=dual)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._token = secrets.token_hex(16)
        self._thread.start()
        port = self._listener.getsockname()[1]
        return json.dumps({"port": port, "token": self._token, **vars(self._identity)})

    def connect(self, invitation: str, master: str) -> str:
        """Connect to rank 0; return why that failed, or "".

        Args:
            invitation: what `listen` has returned on rank 0.
            master: another address of rank 0's machine, in case its name is not known here.
        """
        entries = json.loads(invitation)
        port = entries.pop("port")
        token = entries.pop("token")
        identity = Identity(**entries)
        addresses = [identity.host, master]
        if identity.host == self._identity.host:
            addresses.insert(0, "127.0.0.1")
        reasons = []
        for address in addresses:
            try:
                connection = socket.create_connection((address, port), timeout=_CONNECT_S)
            except OSError as error:
                reasons.append(f"{address}:{port}: {error.strerror or error}")
                continue
            self._add(connection, identity)
            self._send(connection, {"kind": "hello", "token": token, **vars(self._identity)})
            self._thread.start()
            return ""
        return "; ".join(reasons)

    def main_ends(self) -> None:
        """Record that the main thread is ending the process by itself, and may write its state."""
        self._main_ended_at = time.monotonic()

    def say(self, farewell: str, status: int) -> None:
        """Send the others the reason why this rank leaves, which then has some seconds for it.

        Args:
            farewell: LEFT, STOPPED or FAILED.
            status: exit status of this process.
        """
        self._farewell = farewell
        self._status = status
        self._farewell_at = time.monotonic()
        self._send_all({"kind": farewell, "rank": self.rank})

    def tell(self) -> None:
        """Let the others know that this rank reports why all end, so that they do not."""
        self.told = True
        self._send_all({"kind": "told"})

    def wait_for_others(self) -> None:
        """Wait until the others have left or are lost, for a rank that has finished its work.

        Nobody else would notice that the last one hangs: a launcher waits for it forever.
        """
        while True:
            with self._lock:
                if all(peer.identity is None for peer in self._peers.values()):
                    return
            time.sleep(_WAIT_S)

    def close(self) -> None:
        """End the thread and the connections."""
        self._closing = True
        if self._thread.is_alive():
            self._thread.join(5 * _TICK_S)
        for connection in [*self._peers, *([self._listener] if self._listener else [])]:
            connection.close()
        self._selector.close()

    def _run(self) -> None:
        _name_thread(THREAD_NAME)
        ticked = time.monotonic()
        beaten = 0.0
        while not self._closing:
            events = self._selector.select(_TICK_S)
            now = time.monotonic()
            was_paused = now - ticked > _PAUSED_S
            ticked = now
            for key, _ in events:
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._read(self._peers[key.fileobj])  # type: ignore[index]
            if was_paused:
                for peer in self._peers.values():
                    peer.heard = now
            if now - beaten > BEAT_S:
                beaten = now
                self._send_all({"kind": "beat"})
            self._find_silent(now)
            if self.lost:
                self._end_after_loss(now)
            if self._status and now > self._farewell_at + _LEAVE_S:
                # two ranks that were stopped within a collective wait for each other: its group
                # is destroyed only after the collective
                os._exit(self._status)

    def _accept(self) -> None:
        assert self._listener is not None
        with suppress(OSError):
            connection, _ = self._listener.accept()
            self._add(connection, None)

    def _add(self, connection: socket.socket, identity: Identity | None) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._peers[connection] = _Peer(connection, identity, time.monotonic())
        self._selector.register(connection, selectors.EVENT_READ)

    def _drop(self, peer: _Peer) -> None:
        self._selector.unregister(peer.connection)
        with self._lock:
            del self._peers[peer.connection]
        peer.connection.close()

    def _read(self, peer: _Peer) -> None:
        try:
            content = peer.connection.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            content = b""
        if not content:
            self._drop(peer)
            if peer.identity is not None:
                self._lose(peer.identity, DIED)
            return
        peer.heard = time.monotonic()
        peer.core_s = -1.0
        *lines, peer.unread = (peer.unread + content).split(b"\n")
        try:
            for line in lines:
                self._obey(peer, json.loads(line))
            if len(peer.unread) > _LONGEST_MESSAGE:
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError):  # not one of our ranks
            self._drop(peer)

    def _obey(self, peer: _Peer, message: dict[str, Any]) -> None:
        """Do what a message of a peer asks for.

        Raises:
            ValueError: for a message of a stranger.
        """
        kind = message.pop("kind")
        if peer.identity is None:
            if kind != "hello" or not secrets.compare_digest(message.pop("token"), self._token):
                raise ValueError
            peer.identity = Identity(**message)
        elif kind == LEFT:
            self.left.add(peer.identity.rank)
            peer.identity = None  # its connection may close now
        elif kind in (STOPPED, FAILED):
            self._lose(peer.identity, kind)
        elif kind == "lost":
            how = message.pop("how")
            self._lose(Identity(**message), how)
        elif kind == "told" and not self.told:
            self.tell()

    def _find_silent(self, now: float) -> None:
        for peer in list(self._peers.values()):
            silent_s = now - peer.heard
            if not self._limit_s or peer.identity is None or silent_s < self._limit_s / 2:
                continue
            used_s = _core_seconds(peer.identity.pid) if peer.identity.is_here() else 0.0
            if peer.core_s < 0:
                peer.core_s = used_s
            if silent_s > self._limit_s:
                if used_s > peer.core_s + self._limit_s / 20:
                    peer.heard = now  # it computes, and holds Python's lock
                    peer.core_s = -1.0
                else:
                    self._lose(peer.identity, HUNG)
                    self._drop(peer)

    def _lose(self, identity: Identity, how: str) -> None:
        """Record that a rank is lost, and send that to the others."""
        # a rank that has finished its work still watches those that have not
        if identity.rank in self.lost or (self._farewell and (self._farewell, how) != (LEFT, HUNG)):
            return
        if self.lost and how != HUNG:
            return  # it ended because of the first loss
        self.identities[identity.rank] = identity
        self._lost_at = self._lost_at or time.monotonic()
        self.lost[identity.rank] = how
        self._send_all({"kind": "lost", "how": how, **vars(identity)})
        if how == HUNG and identity.is_here():
            # others which wait for it wake up as its connections close
            with suppress(OSError):
                os.kill(identity.pid, signal.SIGKILL)

    def _end_after_loss(self, now: float) -> None:
        """Interrupt the main thread, or end the process."""
        lost_s = now - self._lost_at
        # a failure long before is one that the main thread has survived
        main_ends = self._main_ended_at > self._lost_at - _END_S
        if lost_s > _INTERRUPT_S and not main_ends and not self._interrupted:
            self._interrupted = True
            if callable(signal.getsignal(signal.SIGTERM)):
                thread = threading.main_thread().ident
                assert thread is not None
                signal.pthread_kill(thread, signal.SIGTERM)
        if lost_s > (_SAVE_S if main_ends else _END_S):
            # the main thread waits for a rank that will not answer
            reporter = threading.Thread(target=self._report, daemon=True)
            reporter.start()
            reporter.join(_REPORT_S)  # it may wait for a terminal, or a lock of the main thread
            os._exit(self.status())

    def status(self) -> int:
        """Return the exit status of a process that ends because of the loss."""
        return EXIT_STOPPED if set(self.lost.values()) == {STOPPED} else 1

    def _send_all(self, message: dict[str, Any]) -> None:
        with self._lock:
            connections = [p.connection for p in self._peers.values() if p.identity is not None]
        for connection in connections:
            self._send(connection, message)

    def _send(self, connection: socket.socket, message: dict[str, Any]) -> None:
        # a peer that reads nothing for long has a full buffer; one that died is seen by reading
        with suppress(OSError), self._lock:
            connection.sendall(json.dumps(message).encode() + b"\n")
