"""What other ways to share clients would cost: the small measurements of docs/WHY-NOT.md, in a few seconds.

python benchmarks/alternatives.py
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import tempfile
import time
import timeit
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from _typeshed import FileDescriptorLike

TIMES: Final = 50_000
QUEUED: Final = 40
WORKERS: Final = 4
PATIENCE: Final = 3.0
"""Seconds that a client waits for an answer."""


def microseconds(call: Callable[[], Any]) -> float:
    """Return what a call takes on average."""
    return timeit.timeit(call, number=TIMES) / TIMES * 1e6


def lock_and_unlock(lock: Callable[[FileDescriptorLike, int], None]) -> float:
    """Return what it takes to get a lock of a file that no process holds, and to give it back."""
    with tempfile.TemporaryFile() as file:

        def pair() -> None:
            lock(file, fcntl.LOCK_EX)
            lock(file, fcntl.LOCK_UN)

        return microseconds(pair)


def pass_a_descriptor() -> float:
    """Return what it takes to send a descriptor over a Unix socket, to receive it, and to close the copy."""
    left, right = socket.socketpair()
    with left, right, Path(os.devnull).open("rb") as file:

        def one() -> None:
            socket.send_fds(left, [b"x"], [file.fileno()])
            _, (copy,), _, _ = socket.recv_fds(right, 1, 1)
            os.close(copy)

        return microseconds(one)


def listening_beside(address: tuple[str, int]) -> socket.socket:
    """Return a listening socket that shares its address with others (SO_REUSEPORT)."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(address)
    listener.listen(QUEUED)
    return listener


def lost_with_a_listener() -> int:
    """Queue clients on two sockets of one address and close one of them; return how many clients are reset."""
    first = listening_beside(("127.0.0.1", 0))
    second = listening_beside(first.getsockname())
    with contextlib.ExitStack() as stack:
        stack.enter_context(first)
        clients = [socket.create_connection(first.getsockname()) for _ in range(QUEUED)]
        for client in clients:
            stack.enter_context(client)
            client.sendall(b"x")
        second.close()
        return sum(map(is_reset, clients))


def is_reset(client: socket.socket) -> bool:
    """Return whether a connection, over which no answer comes, was reset."""
    client.settimeout(0.02)
    try:
        client.recv(1)
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True
    return True


@contextlib.contextmanager
def workers_that_take_turns(listener: socket.socket) -> Iterator[None]:
    """Fork workers of which the one that holds a lock waits in ``accept()``; each answers with its pid."""
    with tempfile.NamedTemporaryFile() as file:
        pids = []
        for _ in range(WORKERS):
            pid = os.fork()
            if not pid:
                serve_in_turns(listener, file.name)
            pids.append(pid)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def serve_in_turns(listener: socket.socket, path: str) -> None:
    """Be such a worker, until the end of this process."""
    with Path(path).open("rb") as file:
        while True:
            fcntl.flock(file, fcntl.LOCK_EX)
            client, _ = listener.accept()
            client.sendall(b"%d" % os.getpid())
            client.close()
            fcntl.flock(file, fcntl.LOCK_UN)


def answer(address: tuple[str, int]) -> int | None:
    """Return the pid of the worker that answers a client, None if none does in time."""
    with socket.create_connection(address, PATIENCE) as client:
        try:
            return int(client.recv(20))
        except TimeoutError:
            return None


def holder_of_the_lock() -> int:
    """Return the pid of the child that holds a lock of ``flock()`` while others wait for it."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        for line in Path("/proc/locks").read_text().splitlines():
            kind, _, _, pid, *_ = line.split()[1:]  # "->" is the first word of those that wait
            if kind == "FLOCK" and int(pid) in children():
                return int(pid)
    raise LookupError("no child holds a lock")


def children() -> set[int]:
    """Return the pids of the children of this process."""
    tasks = Path("/proc/self/task").glob("*/children")
    return {int(pid) for task in tasks for pid in task.read_text().split()}


def answered_while_the_holder_is_stopped() -> bool:
    """Stop the worker that holds the lock; return whether another one serves the next client."""
    with socket.create_server(("127.0.0.1", 0)) as listener, workers_that_take_turns(listener):
        address = listener.getsockname()
        assert answer(address) is not None
        os.kill(holder_of_the_lock(), signal.SIGSTOP)
        return answer(address) is not None


def main() -> None:
    """Measure, and print a line for each."""
    print(f"a lock and its release, flock()      {lock_and_unlock(fcntl.flock):.1f} µs")
    print(f"a lock and its release, fcntl()      {lock_and_unlock(fcntl.lockf):.1f} µs")
    print(f"a descriptor from process to process {pass_a_descriptor():.1f} µs")
    print(f"clients lost with one of two sockets {lost_with_a_listener()} of {QUEUED}")
    served = "is served" if answered_while_the_holder_is_stopped() else "waits"
    print(f"the lock's holder is stopped         the next client {served}")


if __name__ == "__main__":
    main()
