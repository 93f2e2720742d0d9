"""Ranks notice that another one dies, hangs or leaves; a pause of the watcher does no harm."""

import contextlib
import ctypes
import json
import os
import signal
import socket
import time

import pytest

from vidrobust.utils import peer_watch
from vidrobust.utils.errors import UserError
from vidrobust.utils.peer_watch import DIED, FAILED, HUNG, LEFT, STOPPED, PeerWatch
from vidrobust.utils.stopping import EXIT_STOPPED

LIMIT_S = 1.0


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    monkeypatch.setattr(peer_watch, "BEAT_S", 0.1)
    monkeypatch.setattr(peer_watch, "_TICK_S", 0.05)
    monkeypatch.setattr(peer_watch, "_PAUSED_S", 0.5)
    monkeypatch.setattr(peer_watch, "_END_S", 60.0)  # of this process, which must not end
    monkeypatch.setattr(peer_watch, "_INTERRUPT_S", 60.0)
    monkeypatch.setattr(peer_watch, "_LEAVE_S", 0.5)


@pytest.fixture
def pair():
    """Two ranks, of which rank 1 is another process that obeys commands."""
    watch = PeerWatch(0, LIMIT_S, lambda: None)
    invitation = watch.listen()
    control, remote = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            other = PeerWatch(1, 60, lambda: None)
            assert other.connect(invitation, "127.0.0.1") == ""
            control.close()
            remote.send(b"ready")
            while command := remote.recv(100).decode():
                if command == "leave":  # and take long for it
                    other.say(FAILED, 7)
                elif command == "told":
                    other.tell()
                elif command in ("sleep", "compute"):
                    _hold_lock(3, computes=command == "compute")
                else:
                    other.say(command, 0)
                    other.close()
        finally:
            os._exit(0)
    remote.close()
    assert control.recv(100) == b"ready"
    _wait(lambda: any(peer.identity for peer in watch._peers.values()))
    yield watch, pid, control
    watch.close()
    control.close()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _hold_lock(seconds, *, computes=False):
    """Keep Python's lock in C code."""
    if computes:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pow(3, 2_000_000)  # some 0.1 s without giving up the lock
    else:
        ctypes.PyDLL(None).usleep(int(seconds * 1e6))


def _wait(happened, seconds=5.0):
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_rank_that_beats_is_not_lost(pair):
    watch, _, _ = pair
    time.sleep(2 * LIMIT_S)
    assert watch.lost == {}


def test_a_killed_rank_has_died(pair):
    watch, pid, _ = pair
    os.kill(pid, signal.SIGKILL)
    _wait(lambda: watch.lost)
    assert watch.lost == {1: DIED} and watch.identities[1].pid == pid and watch.status() == 1


def test_a_suspended_rank_hangs_and_is_killed(pair):
    watch, pid, _ = pair
    began = time.monotonic()
    os.kill(pid, signal.SIGSTOP)
    _wait(lambda: watch.lost)
    assert watch.lost == {1: HUNG} and time.monotonic() - began > LIMIT_S - 0.2
    _wait(lambda: peer_watch._stat(pid)[0] == "Z")


def test_a_rank_that_has_finished_watches_one_that_hangs_at_its_end(pair):
    watch, pid, _ = pair
    os.kill(pid, signal.SIGSTOP)
    watch.say(LEFT, 0)
    watch.wait_for_others()
    assert watch.lost == {1: HUNG}
    _wait(lambda: peer_watch._stat(pid)[0] == "Z")


def test_a_rank_that_has_finished_waits_for_the_others(pair):
    watch, _, control = pair
    watch.say(LEFT, 0)
    control.send(LEFT.encode())
    watch.wait_for_others()
    assert watch.lost == {}


def test_a_rank_that_takes_long_to_leave_is_ended_with_its_own_status(pair):
    _, pid, control = pair
    control.send(b"leave")
    _wait(lambda: peer_watch._stat(pid)[0] == "Z")
    assert os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT).si_status == 7


def test_a_rank_that_reports_the_cause_lets_the_others_know(pair):
    watch, _, control = pair
    assert not watch.told
    control.send(b"told")
    _wait(lambda: watch.told)
    assert watch.lost == {}, "it has not left yet"


def test_a_short_pause_does_no_harm(pair):
    watch, pid, _ = pair
    os.kill(pid, signal.SIGSTOP)
    time.sleep(LIMIT_S / 2)
    os.kill(pid, signal.SIGCONT)
    time.sleep(2 * LIMIT_S)
    assert watch.lost == {}


def test_a_watcher_that_was_suspended_counts_anew(pair, monkeypatch):
    """Both seem suspended for an hour, and the other wakes up a little later."""
    watch, pid, _ = pair
    os.kill(pid, signal.SIGSTOP)
    time.sleep(LIMIT_S / 2)
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + 3600)
    time.sleep(LIMIT_S / 2)
    os.kill(pid, signal.SIGCONT)
    time.sleep(LIMIT_S)
    assert watch.lost == {}


def test_a_rank_that_computes_without_giving_up_pythons_lock_does_not_hang(pair):
    watch, _, control = pair
    control.send(b"compute")
    time.sleep(2.5)
    assert watch.lost == {}


def test_a_rank_that_sleeps_with_pythons_lock_hangs(pair):
    watch, _, control = pair
    control.send(b"sleep")
    _wait(lambda: watch.lost)
    assert watch.lost == {1: HUNG}


@pytest.mark.parametrize(
    ("farewell", "lost", "status"),
    [(LEFT, {}, 1), (FAILED, {1: FAILED}, 1), (STOPPED, {1: STOPPED}, EXIT_STOPPED)],
)
def test_a_farewell_says_whether_the_others_must_end(pair, farewell, lost, status):
    watch, _, control = pair
    control.send(farewell.encode())
    _wait(lambda: watch.left or watch.lost)
    time.sleep(0.3)  # until the connection has closed
    assert watch.lost == lost and (not lost or watch.status() == status)


@pytest.mark.parametrize(
    "content",
    [
        b"GET / HTTP/1.0\r\n\r\n",
        b"[]\n",
        b'"hello"\n',
        b'{"kind": "lost", "rank": 0}\n',
        b'{"kind": "hello", "token": "0", "rank": 1}\n',
        b'{"kind": "hello"}\n',
        b"\xff" * 100_000,
    ],
)
def test_a_stranger_is_sent_away(content):
    watch = PeerWatch(0, LIMIT_S, lambda: None)
    port = json.loads(watch.listen())["port"]
    try:
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(content)
            stranger.settimeout(5)
            with contextlib.suppress(ConnectionResetError):
                assert stranger.recv(100) == b""
        _wait(lambda: not watch._peers)
        assert watch.lost == {} and watch._thread.is_alive()
    finally:
        watch.close()


def test_a_rank_that_cannot_connect_says_where(monkeypatch):
    watch = PeerWatch(0, LIMIT_S, lambda: None)
    invitation = json.loads(watch.listen())
    watch.close()
    other = PeerWatch(1, LIMIT_S, lambda: None)
    reason = other.connect(json.dumps(invitation), "127.0.0.1")
    assert f"127.0.0.1:{invitation['port']}: Connection refused" in reason


@pytest.mark.parametrize("text", ["-1", "2", "nan", "inf", "soon", ""])
def test_a_wrong_limit_is_refused(monkeypatch, text):
    monkeypatch.setenv("VIDROBUST_SILENCE_S", text)
    with pytest.raises(UserError, match="VIDROBUST_SILENCE_S=.*: must be at least 6 seconds, or 0"):
        peer_watch.silence_limit_s()


def test_a_process_id_of_another_process_is_not_here():
    mine = peer_watch.this_identity(0)
    assert mine.is_here()
    assert not peer_watch.Identity(0, os.getpid(), mine.host, "1", mine.machine).is_here()
    assert not peer_watch.Identity(0, os.getpid(), mine.host, mine.started, "other").is_here()
