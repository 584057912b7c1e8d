"""A pool that serves while a test runs, in processes of its own (runs in the process of the test).

The test makes the server, so that the address is known and taken. A child of the test is then the master: it
is forked, and not started anew, so that the handlers may be classes that the test has defined. A thread would
do as a master, too, but each worker would then be forked from a process with threads, one of which is the test.

The child begins a session, and every process of the pool is in that session, unless a handler leaves it. That
is how the end of the block finds what is left.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import socket
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, Final

from prefork.inspect.find import find_pool
from prefork.mixin import PreForkingMixIn, serve
from prefork.workers.scoreboard import SlotField

READY_TIMEOUT: Final = 30.0
"""Seconds in which the first workers have to be ready."""

STOP_TIMEOUT: Final = 60.0
"""Seconds in which a graceful stop has to be over. Longer than ``graceful_timeout`` is by default."""

PATIENCE: Final = 1.0
"""Seconds in which processes that are about to end may do so."""

_LOOK: Final = 0.01
"""Seconds between two looks at what is left."""

_FORK: Final = multiprocessing.get_context("fork")


class PoolFailedError(AssertionError):
    """The pool did not become ready, or did not stop as it should. Its output is on standard error."""


class LeftBehindError(AssertionError):
    """Something of the pool is left after its stop. What can be ended was ended."""


class ServedPool:
    """A pool that serves: where it is, and who its processes are.

    address: the address of the first server, as clients connect to it. addresses: those of all servers, as
    a tuple. pid: of the master.
    """

    def __init__(self, addresses: Sequence[Any], pid: int) -> None:
        self.addresses = tuple(addresses)
        self.address = self.addresses[0]
        self.pid = pid

    def status(self) -> dict[str, Any]:
        """Return what ``prefork status --json`` shows of the pool at this moment."""
        with find_pool(str(self.pid)) as pool:
            return pool.status()

    def workers(self) -> list[int]:
        """Return the pids of the workers at this moment."""
        with find_pool(str(self.pid)) as pool:
            return [pid for slot in pool.snapshot().slots if (pid := slot[SlotField.PID])]


@contextlib.contextmanager
def serving(
    *servers: PreForkingMixIn,
    ready_timeout: float = READY_TIMEOUT,
    stop_timeout: float = STOP_TIMEOUT,
) -> Iterator[ServedPool]:
    """Serve with a pool while the block runs; the block begins when the first workers are ready.

    servers: made, and not serving yet. The pool takes them over: the process of the test cannot use
    their sockets any more, and they are closed at the end. ready_timeout: seconds in which the first
    workers have to be ready. stop_timeout: seconds in which the stop has to be over.

    PoolFailedError: the pool did not become ready, or did not stop in time with status 0. LeftBehindError:
    a process or a socket file is left. Signals work as they do for every master, except for a reload, which
    is refused because the program that was started is the test.
    """
    addresses = [server.server_address for server in servers]
    files = [path for server in servers if (path := _socket_file(server)) is not None]
    receiver, sender = _FORK.Pipe(duplex=False)
    master = _FORK.Process(
        target=_run_master, args=(servers, receiver, sender), name="prefork-test"
    )
    master.start()
    sender.close()
    for server in servers:
        _let_go(server)
    assert master.pid is not None  # noqa: S101 - it was started
    try:
        with contextlib.closing(receiver):
            _wait_ready(receiver, ready_timeout)
        yield ServedPool(addresses, master.pid)
    except BaseException:
        # What the test raises says more than what its pool leaves then.
        with contextlib.suppress(PoolFailedError, LeftBehindError):
            _end(master, servers, files, stop_timeout)
        raise
    _end(master, servers, files, stop_timeout)


def _run_master(
    servers: Sequence[PreForkingMixIn], receiver: Connection, sender: Connection
) -> None:
    """Be the master (child)."""
    os.setsid()
    receiver.close()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _log_to_stderr()
    when_ready = servers[0].when_ready

    def say_ready() -> None:
        when_ready()
        sender.send(None)

    servers[0].when_ready = say_ready  # type: ignore[method-assign]
    serve(*servers)  # multiprocessing prints what it raises


def _log_to_stderr() -> None:
    """Have warnings and errors of the pool reach standard error.

    A test runner has handlers that keep what is logged in memory, which here is not that of the test.
    """
    root = logging.getLogger()
    if root.handlers and not any(
        getattr(one, "stream", None) is sys.stderr for one in root.handlers
    ):
        root.addHandler(logging.StreamHandler())


def _wait_ready(receiver: Connection, seconds: float) -> None:
    if not receiver.poll(seconds):
        raise PoolFailedError(f"the pool was not ready after {seconds:g} s")
    try:
        receiver.recv()
    except EOFError:
        raise PoolFailedError("the pool ended before it was ready; see standard error") from None


def _end(
    master: Any, servers: Sequence[PreForkingMixIn], files: Sequence[str], seconds: float
) -> None:
    """Stop the pool, close the servers, and raise an exception for what is not as it should be."""
    pid = master.pid
    master.terminate()
    master.join(seconds)
    status = master.exitcode
    in_time = status is not None
    left = _wait_for_none(pid) if in_time else _processes_of(pid)
    for one in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)
    master.join()
    master.close()
    for server in servers:
        server.server_close()
    remains = [f"process {one}" for one in left] + [
        f"socket file {one}" for one in files if _is_socket(one)
    ]
    if not in_time:
        raise PoolFailedError(
            f"the pool had not stopped after {seconds:g} s; its processes were killed"
        )
    if status:
        raise PoolFailedError(f"the pool ended with status {status}; see standard error")
    if remains:
        raise LeftBehindError("the pool has left behind: " + ", ".join(remains))


def _wait_for_none(session: int) -> list[int]:
    """Return the processes of a session that do not end by themselves."""
    end = time.monotonic() + PATIENCE
    while (left := _processes_of(session)) and time.monotonic() < end:
        time.sleep(_LOOK)
    return left


def _processes_of(session: int) -> list[int]:
    """Return the live processes of a session."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                with open(f"/proc/{name}/stat", "rb") as file:
                    state, _, _, its_session = file.read().rpartition(b")")[2].split()[:4]
                if int(its_session) == session and state not in (b"Z", b"X"):
                    found.append(int(name))
    return found


def _let_go(server: Any) -> None:
    """Close this process's copy of the socket: the address is the pool's alone."""
    found = getattr(server, "socket", None)
    if isinstance(found, socket.socket):
        found.close()


def _socket_file(server: Any) -> str | None:
    address = server.server_address
    path = os.fsdecode(address) if isinstance(address, str | bytes) else ""
    return path if _is_socket(path) else None


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False
