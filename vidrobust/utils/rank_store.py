"""The key-value store that all ranks share: meet there, and agree on which of them reports."""

import os
import secrets
import shlex
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from vidrobust.utils.errors import UserError
from vidrobust.utils.slurm_ranks import started_by_srun
from vidrobust.utils.start_watch import rank_ended_early, reason_of_early_end

_MEETING_VARIABLE = "VIDROBUST_MEETING_S"
_MEETING_S = 300.0  # from the first rank's start to the last one's
_REFUSAL_S = 8.0  # how long ranks that end before they have met wait for each other
_CONNECT_S = 30.0  # for the connection of reports, to a store that has just answered
_LAUNCHER_ENDS_S = 0.3  # how long a launcher that was killed may still answer
ANSWER_S = 4.0
_POLL_S = 0.1


def launcher_holds_store() -> bool:
    """Return whether the store is torchrun's; otherwise it is rank 0's, and ends with it."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _meeting() -> timedelta:
    """Return how long a rank waits for the others at its start.

    Raises:
        UserError: if VIDROBUST_MEETING_S is not a number above 0.
    """
    text = os.environ.get(_MEETING_VARIABLE, str(_MEETING_S))
    with suppress(ValueError, OverflowError):
        if float(text) > 0:
            return timedelta(seconds=float(text))
    raise UserError(f"{_MEETING_VARIABLE}={text}: must be seconds, more than 0")


def _prefix() -> str:
    # torchrun restarts the ranks with the same store
    return f"vidrobust {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"


def _address() -> tuple[str, int]:
    return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])


def open_store() -> tuple[Any, Any, int, int]:
    """Return (store, store for reports, number of this rank, number of ranks).

    They are two connections: another thread that asks one waits until it has answered the first.
    On rank 0 the first one may also serve the store, which ends with it.

    Raises:
        UserError: if rank 0 cannot be reached, or cannot open its port.
    """
    number = int(os.environ["RANK"])
    count = int(os.environ["WORLD_SIZE"])
    try:
        serves = number == 0 and not launcher_holds_store()
        if not serves and not _is_reachable(_meeting().total_seconds()):
            _refuse_ended_rank()
            raise _not_met("nothing answers there")
        store = _connection(serves=serves)
        reports = _connection(serves=False, limit=timedelta(seconds=_CONNECT_S))
        return store, reports, number, count
    except (dist.DistError, ValueError) as error:
        raise _not_met((str(error).splitlines() or [""])[0].rstrip(".")) from None


def _connection(*, serves: bool, limit: timedelta | None = None) -> Any:
    address, port = _address()
    limit = limit or _meeting()
    return dist.TCPStore(
        address, port, None, serves, limit, wait_for_workers=False, multi_tenant=True
    )


def _not_met(reason: str) -> UserError:
    address, port = _address()
    return UserError(
        f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} has not met the others at"
        f" MASTER_ADDR:MASTER_PORT={address}:{port} ({reason}); start all ranks within"
        f" {_meeting().total_seconds():g} s, or set {_MEETING_VARIABLE}"
    )


def _is_reachable(limit_s: float) -> bool:
    """Wait until somebody listens at the address of the store, and return whether.

    torch waits too, but prints a warning for each try.
    """
    deadline = time.monotonic() + limit_s
    while True:
        with suppress(OSError), socket.create_connection(_address(), timeout=5):
            return True
        if time.monotonic() > deadline or rank_ended_early():
            return False
        time.sleep(_POLL_S)


def _refuse_ended_rank() -> None:
    """Raise UserError if a rank on this machine had begun, and has ended."""
    name = rank_ended_early()
    if name:
        raise UserError(reason_of_early_end(name))


def wait_for_all(store: Any, count: int, place: str) -> None:
    """Wait until all ranks have come to a place in the program.

    Args:
        store: what `own_part` returns.
        count: number of ranks.
        place: its name.

    Raises:
        UserError: if a rank has ended, or is late.
    """
    deadline = time.monotonic() + _meeting().total_seconds()
    store.add(place, 1)
    while (arrived := store.add(place, 0)) < count:
        if store.check(["cause"]):  # that rank has reported it
            store.add("asked", 1)
            raise UserError("another rank has ended")
        _refuse_ended_rank()
        if time.monotonic() > deadline:
            raise _not_met(f"only {arrived} have come")
        time.sleep(_POLL_S)


def meet(store: Any, count: int) -> None:
    """Wait until all ranks have come, and compare their arguments.

    Args:
        store: what `own_part` returns.
        count: number of ranks.

    Raises:
        UserError: if a rank has ended, or is late; for tasks of srun with different arguments.
    """
    wait_for_all(store, count, "arrived")
    if started_by_srun():
        mine = shlex.join(sys.argv)
        first = store.compare_set("arguments", "", mine).decode(errors="replace")
        if first != mine.encode(errors="replace").decode(errors="replace"):
            raise UserError(
                f"srun: the tasks of this step have different arguments ({first}; {mine}), but are"
                " the ranks of one run; set WORLD_SIZE=1 to run them independently of each other"
            )


def own_part(store: Any) -> Any:
    """Return the part of a store that belongs to this try of the launch."""
    return dist.PrefixStore(_prefix(), store)


def launch_name(store: Any) -> str:
    """Return a name of this launch, which the ranks of all its tries agree on; "" if unknown.

    Args:
        store: what `open_store` returns.
    """
    if not launcher_holds_store():
        return ""
    return str(store.compare_set("vidrobust launch", "", secrets.token_hex(8)).decode())


def answer(question: Callable[[], Any], limit_s: float = ANSWER_S) -> Any:
    """Return what the store answers.

    Args:
        question: asks the store.
        limit_s: seconds to wait.

    Raises:
        TimeoutError: if it does not answer, because the process that holds it is suspended.
    """
    answers: list[Any] = []
    errors: list[Exception] = []

    def ask() -> None:
        try:
            answers.append(question())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(limit_s)
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError
    return answers[0]


def claim(store: Any, message: str) -> bool:
    """Return whether this rank is the first of this try that reports why the run ends.

    Args:
        store: what `own_part` returns.
        message: the reason that this rank would report.
    """
    mine = f"{os.environ.get('RANK', 0)} {os.getpid()} {message}"
    first = answer(lambda: store.compare_set("cause", "", mine))
    return bool(first.decode(errors="replace") == mine)


def store_before_meeting() -> Any:
    """Return the part of the store for a rank that ends before the ranks have met, or None.

    An option may have been refused. If the store is rank 0's, then rank 0 serves it, and keeps it
    in `linger` until the others have asked.
    """
    if launcher_holds_store():
        # a launcher that was killed still answers until all its threads have ended
        time.sleep(_LAUNCHER_ENDS_S)
        if not _is_reachable(0):
            return None
        return own_part(_connection(serves=False, limit=timedelta(seconds=_REFUSAL_S)))
    names = ("RANK", "MASTER_ADDR", "MASTER_PORT")
    if not all(os.environ.get(name) for name in names) or int(os.environ["WORLD_SIZE"]) < 2:
        return None
    serves = os.environ["RANK"] == "0"
    if not serves and not _is_reachable(_REFUSAL_S):
        return None
    store = own_part(_connection(serves=serves))
    store.add("asked", 1)
    return store


def linger(store: Any) -> None:
    """Keep the store for the others, if this is rank 0's and it ends before they have met.

    Args:
        store: what `store_before_meeting` has returned.
    """
    if os.environ["RANK"] != "0" or launcher_holds_store():
        return
    deadline = time.monotonic() + _REFUSAL_S
    count = int(os.environ["WORLD_SIZE"])
    while store.add("asked", 0) < count and time.monotonic() < deadline:
        time.sleep(_POLL_S)
