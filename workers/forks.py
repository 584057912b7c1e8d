"""What a fork lets go of: the one list of it in this process, and the lock of that list (both).

A fork copies every descriptor and every object of the process, and of its threads only the one that
forks. Some copies do harm in the child:

- A copy of the life pipe's write end keeps the workers from noticing that the master has died.
- A copy of the pid file's lock is held for as long as the child lives.
- A number that the child has closed soon belongs to another file. An object that still knows the
  number would write into that file, or close it.
- A lock that another thread held at the fork stays locked for ever.

Each part of prefork that owns such a thing puts a function on the list (``add()``) that lets go of
it. Python calls these functions in every child, before any other code runs there. It does not
matter who forks: the pool, a hook of the program, a handler, ``multiprocessing``. A child has
afterwards:

any child of the master
    Nothing of the master's side: pidfds, epoll, life pipe (write end), wake-up pipe, socket of the
    metrics process, pid file, trial, the state of an earlier image. Nothing serves in the child,
    whatever the copies of the server objects say. It keeps what belongs to the program, also the
    sockets of its servers, and the pipes and the memory that workers use. These do no harm.
a worker
    The same, and nothing that belongs to other workers, to other pools of the process, or to
    servers that it does not serve (``let_go_of_others()``). It keeps its listeners, the scoreboard,
    the life pipe (read end), its own pipes and its report: see workers/pool/descriptors.py.
the metrics process
    The same as a worker, and no listener. It keeps the socket that it answers on.
a child that a worker forks, in a handler or by ``ForkingMixIn``
    No place in the pool: it takes no further request and writes into no slot. It keeps the
    request in hand and every descriptor of the worker.

The lock keeps the list true. Code that makes or closes descriptors which are on the list holds the
lock meanwhile. A fork holds it, too: it takes the lock before the kernel copies the process, and
releases it on both sides, as the C library does with the lock of ``malloc()``. So no child is made
of half a pool, and the child's copy of the lock is free. Two rules keep this from deadlocks. Our
code never forks while it holds the lock: a fork takes the program's own locks as well, in an order
of its own. And no code of the program runs under the lock.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Collection, Iterable
from typing import Final

import msgspec

lock: Final = threading.RLock()
"""Held while descriptors on the list are made or closed, and by every fork. Never fork under it."""


class Entry(msgspec.Struct, eq=False):
    """One thing on the list, as ``add`` returns it for ``remove``."""

    let_go: Callable[[], None]
    in_others: Callable[[Collection[object]], None] | None
    every_time: bool
    is_inherited: bool = False
    """Whether this process has got it through a fork, and has let go of the master's side."""


_entries: Final[list[Entry]] = []


def add(
    let_go: Callable[[], None],
    *,
    in_others: Callable[[Collection[object]], None] | None = None,
    every_time: bool = False,
) -> Entry:
    """Have a function called in every child that this process forks from now on.

    let_go: called in the child, in its only thread, before any other code; an OSError is ignored.
    every_time: whether the children of that child call it again. For descriptors they must not: the
    numbers may belong to other files by then.
    in_others: called by ``let_go_of_others()``, in a worker or a metrics process of another pool.
    """
    entry = Entry(let_go, in_others, every_time)
    with lock:
        _entries.append(entry)
    return entry


def remove(entry: Entry) -> None:
    """Take a thing off the list: it is closed, or this child is the one that it is for."""
    with lock, contextlib.suppress(ValueError):
        _entries.remove(entry)


def let_go_of_others(servers: Collection[object]) -> None:
    """Let go of what belongs to other pools and servers (worker, metrics process; once).

    servers: those that this process serves.
    """
    for entry in _entries:
        if entry.in_others is not None:
            entry.in_others(servers)
    # What stays is the business of the children of this process.
    _entries[:] = [entry for entry in _entries if entry.every_time or not entry.is_inherited]


def close(fds: Iterable[int]) -> None:
    """Close descriptors in a child, of which some may be closed already."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


def open_anew(fd: int, flags: int) -> None:
    """Give a descriptor of a pipe or terminal an open file description of its own (child, after a fork).

    A fork shares open file descriptions, and O_NONBLOCK is a flag of these. If one process could make
    the descriptor of another one blocking, that other one would wait in a write without end. Where
    the kernel refuses (no ``/proc``, no descriptor left), the description stays shared.
    """
    with contextlib.suppress(OSError):
        own = os.open(f"/proc/self/fd/{fd}", flags | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.dup2(own, fd, inheritable=False)
        finally:
            os.close(own)


def _let_go_in_child() -> None:
    failure: Exception | None = None
    try:
        for entry in _entries:
            if entry.every_time or not entry.is_inherited:
                entry.is_inherited = True
                try:
                    entry.let_go()
                except OSError:
                    pass
                except Exception as error:  # noqa: BLE001 - the others have to let go all the same
                    failure = failure or error
        if failure is not None:
            raise failure  # CPython reports it and goes on
    finally:
        lock.release()  # taken by the thread that forks, which is the one thread here


os.register_at_fork(
    before=lock.acquire, after_in_parent=lock.release, after_in_child=_let_go_in_child
)
