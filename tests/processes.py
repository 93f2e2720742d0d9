"""Processes that begin in milliseconds, for tests that kill, stop or count them.

A tool in a new Python process imports packages for 4 seconds before it begins. A process of this
file is a fork of a server that has imported them, and nothing else: it has started no thread, read
no option and used no random number. From there on it is a process like any other, with its own
process id, session, signals, children and exit status, and it ends as a Python program does.

    test --(a socket: command, descriptors)--> server --fork--> waiter --fork--> the process
    test <--(a pipe: process id, exit status)------------------ waiter

Under torchrun the ranks are forks too. The launcher makes them before it starts threads, and they
wait until it starts them.

Three things differ from a new Python process: the hash seed of Python is that of the server,
variables of the environment that are read at import have no effect, and objects that are left at
the end are not deleted one by one. Tests of these use `subprocess`.
"""

import atexit
import contextlib
import ctypes
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

REPO = Path(__file__).parents[1]
ENV = {
    **os.environ,
    "PYTHONPATH": str(REPO),
    "OMP_NUM_THREADS": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # ranks set it before they import torch, as the server has
}
PIPE = subprocess.PIPE
DEVNULL = subprocess.DEVNULL
LAUNCHER = ("-m", "torch.distributed.run")
TORCHRUN = (*LAUNCHER, "--standalone")
TWO_RANKS = (*TORCHRUN, "--nproc_per_node=2")

_COMMANDS = (
    *(
        "train_net",
        "test_net",
        "extract_features",
        "study",
        "submit",
        "prepare",
        "visualize",
        "transfer",
    ),
)
# what the commands import while they run, and would import in each fork
_PACKAGES = (
    *(f"vidrobust.cli.{name}" for name in _COMMANDS),
    "vidrobust.cli.benchmark",
    "torch._dynamo",
    "torch.distributed.run",
    "torch.utils.tensorboard",
)
_NUMBER = struct.Struct("q")
_PR_SET_NAME = 15  # prctl's option, from <linux/prctl.h>


class Process:
    """A process with the interface of subprocess.Popen, as far as tests use it.

    Args:
        command: words after `python`: a script and its arguments, or LAUNCHER, options, a script.
        cwd: working directory.
        env: its environment.
        stdout: DEVNULL, PIPE, or an open file.
        stderr: as stdout.
        start_new_session: whether it leads a session, and so a process group.
        ignored: signals that it ignores from its start, as under nohup.
    """

    def __init__(
        self,
        command: Sequence[object],
        *,
        cwd: Path,
        env: dict[str, str] | None = None,
        stdout: int | IO[bytes] = DEVNULL,
        stderr: int | IO[bytes] = PIPE,
        start_new_session: bool = False,
        ignored: Sequence[int] = (),
    ) -> None:
        self.args = [str(word) for word in command]
        self.returncode: int | None = None
        request = {
            "command": self.args,
            "cwd": str(cwd),
            "env": ENV if env is None else env,
            "session": start_new_session,
            "ignored": [int(number) for number in ignored],
        }
        self.stdout, out = _output(stdout)
        self.stderr, err = _output(stderr)
        self._report, report = os.pipe()
        with tempfile.TemporaryFile() as file:
            file.write(json.dumps(request).encode())
            file.flush()
            socket.send_fds(_server(), [b"."], [file.fileno(), out, err, report])
        for number in (out, err, report):
            os.close(number)
        self.pid = self._read_number()

    def _read_number(self) -> int:
        content = os.read(self._report, _NUMBER.size)
        assert len(content) == _NUMBER.size, "the server of tests/processes.py has ended"
        return int(_NUMBER.unpack(content)[0])

    def poll(self) -> int | None:
        """Return the exit status, or None while the process runs."""
        if self.returncode is None and select.select([self._report], [], [], 0)[0]:
            self.returncode = os.waitstatus_to_exitcode(self._read_number())
            os.close(self._report)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status, once there is one."""
        if self.returncode is None and not select.select([self._report], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        status = self.poll()
        assert status is not None
        return status

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Return its whole output, and that of the processes it has started."""
        end = None if timeout is None else time.monotonic() + timeout
        texts = ["", ""]

        def read(place: int, file) -> None:
            texts[place] = file.read()
            file.close()

        for place, file in enumerate((self.stdout, self.stderr)):
            if file is not None and not file.closed:
                reader = threading.Thread(target=read, args=(place, file), daemon=True)
                reader.start()
                reader.join(None if end is None else max(0, end - time.monotonic()))
                if reader.is_alive():
                    raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.wait(None if end is None else max(0, end - time.monotonic()))
        return texts[0], texts[1]

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


def run(command: Sequence[object], *, cwd: Path, timeout: float = 300):
    """Run a process to its end; return its status and what it has written to stderr."""
    process = Process(command, cwd=cwd)
    try:
        out, err = process.communicate(timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.wait(), out, err)


def _output(kind: int | IO[bytes]):
    """Return (file that reads what a process writes or None, descriptor that it writes to)."""
    if kind == DEVNULL:
        return None, os.open(os.devnull, os.O_WRONLY)
    if kind != PIPE:
        return None, os.dup(kind.fileno())
    reading, writing = os.pipe()
    return open(reading, encoding="utf-8", errors="replace"), writing


@functools.cache
def _server() -> socket.socket:
    """Start the server; it ends with this process."""
    control, remote = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server = subprocess.Popen(
        [sys.executable, "-c", f"from tests import processes; processes.serve({remote.fileno()})"],
        cwd=REPO,
        env=ENV,
        stdin=DEVNULL,
        pass_fds=[remote.fileno()],
        start_new_session=True,
        # tests under nohup ignore SIGHUP, and their processes would too
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    remote.close()

    def stop() -> None:
        control.close()
        server.wait()

    atexit.register(stop)
    return control


def serve(control: int) -> None:
    """Fork a process per request; each returns from here at its end, the server never does.

    Args:
        control: descriptor of the socket from which requests are read.
    """
    for name in _PACKAGES:
        importlib.import_module(name)
    assert len(os.listdir("/proc/self/task")) == 1, "a fork has only the thread that made it"
    # a garbage collection would visit, and so copy, every object that is shared with the server
    gc.collect()
    gc.freeze()
    command = _next_command(socket.socket(fileno=control))
    if tuple(command[: len(LAUNCHER)]) == LAUNCHER:
        command = _launch(command)
    if command:
        sys.argv = command
        sys.path[0] = str(Path(command[0]).parent)
        _end(_status_of(command[0]))


def _status_of(script: str) -> int:
    """Run a script; return its exit status. Unless it has one, Python itself ends the process."""
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        if end.code is not None and not isinstance(end.code, int):
            raise
        return end.code or 0
    return 0


def _end(status: int) -> None:
    """End as a Python program does, but without taking all packages to pieces.

    That takes half a second, as it copies the memory that is shared with the server.
    """
    threading._shutdown()  # waits for threads, as multiprocessing does at the end of a fork
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _next_command(requests: socket.socket) -> list[str]:
    """Return the command of this process, in each process that the server forks."""
    while True:
        message, passed, _, _ = socket.recv_fds(requests, 1, 4)
        if not message:  # the tests have ended
            _end_waiters()
            os._exit(0)
        if os.fork() == 0:
            break
        for number in passed:
            os.close(number)
        _end_waiters()
    # this is the waiter, until it has forked the process
    requests.close()
    request, out, err, report = passed
    told, tell = os.pipe()
    pid = os.fork()
    if pid:
        os.close(out)
        os.close(err)
        os.close(tell)
        os.read(told, 1)  # the process leads its session now
        os.write(report, _NUMBER.pack(pid))
        os.write(report, _NUMBER.pack(os.waitpid(pid, 0)[1]))
        os._exit(0)
    os.close(told)
    os.close(report)
    with open(request, "rb") as file:
        file.seek(0)
        asked = json.load(file)
    if asked["session"]:
        os.setsid()
    for number in asked["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    os.close(tell)
    _redirect(out, err)
    _enter(asked["cwd"], asked["env"])
    return asked["command"]


def _end_waiters() -> None:
    """Wait for the waiters whose process has ended, so that none stays a zombie."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _redirect(out: int, err: int) -> None:
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.close(out)
    os.close(err)


def _enter(cwd: str, env: dict[str, str]) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)


def _launch(command: list[str]) -> list[str]:
    """Be torchrun to the end, and return nothing; in the ranks, return the script and its words."""
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

    options = dict(word.split("=", 1) for word in command if word.startswith("--") and "=" in word)
    count = int(options["--nproc_per_node"])
    ranks = []
    for _ in range(count * (1 + int(options.get("--max-restarts", 0)))):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            for rank in ranks:
                os.close(rank.begin)
            os.close(writing)
            return _wait_as_rank(reading)
        os.close(reading)
        ranks.append(_Rank(pid, writing))
    waiting = list(ranks)

    def popen(self, args: tuple, env: dict[str, str]) -> "_Rank":
        return waiting.pop(0).start(args, env)

    SubprocessHandler._popen = popen
    sys.argv = command[1:]
    torchrun.main()
    return []


def _wait_as_rank(begin: int) -> list[str]:
    """Return the script and its words, when the launcher starts this rank."""
    with open(begin, "rb") as file:
        content = file.read()
    if not content:
        os._exit(0)  # the launcher has ended before
    asked = json.loads(content)
    os.setsid()
    name = f"rank{asked['env']['RANK']}".encode()
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name, 0, 0, 0)
    _enter(os.getcwd(), asked["env"])
    _, unbuffered, *command = asked["args"]
    assert unbuffered == "-u"
    sys.stdout.reconfigure(line_buffering=True)
    return command


class _Rank:
    """The launcher's side of a rank, with what torchrun uses of subprocess.Popen.

    Args:
        pid: process id.
        begin: descriptor that the command is written to.
    """

    def __init__(self, pid: int, begin: int) -> None:
        self.pid = pid
        self.begin = begin
        self.returncode: int | None = None

    def start(self, args: tuple, env: dict[str, str]) -> "_Rank":
        with open(self.begin, "wb") as file:
            file.write(json.dumps({"args": args, "env": env}).encode())
        return self

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        end = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            if end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            time.sleep(0.01)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
