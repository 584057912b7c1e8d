"""What a fork lets go of: the one list of it for this process, and the lock of that list (both).

A fork copies every descriptor and every object of the process, and none of its threads but the one
that forks. Some copies do harm in the child. Its copy of the life pipe's write end keeps the workers
from noticing that the master has died. Its copy of the pid file's lock outlives the master, too. A
number that the child closes may belong to another file afterwards, so that an object which still
knows the number writes into that file. A lock that another thread held stays locked for ever.

Each part of prefork that owns such a thing adds a function here that lets go of it. Python calls the
functions in every child, before any other code runs there, whoever forks: the pool, a hook, a
handler, ``multiprocessing``. What each kind of child has afterwards:

=============================== =========================================== ==============================================
the child                       lets go of                                  keeps, and why
=============================== =========================================== ==============================================
any child of the program        the master's side: life pipe (write end),   the program's own files, also listening
                                pidfds, epoll, wake-up pipe, socket of      sockets, as after every fork of a program
                                the metrics process, pid file, the state    with ``socketserver``; the scoreboard, the
                                of an earlier image; the state of serving   workers' pipes: harmless while it lives
a worker                        that, and then: pipes of other workers,     its listeners, scoreboard, life pipe (read
                                everything of other pools of the process,   end), wake-up pipes of its own and of the
                                sockets of servers that it does not serve   master, its report
the metrics process             as a worker; its pipe to the master and     the scoreboard for reading, the socket that
                                all servers' sockets as well                it answers on, the life pipe (read end)
a child that a worker forks     its place in the pool: it takes no further  the request in hand, the connection, and
(a handler, ``ForkingMixIn``)   request and writes into no slot             every descriptor of the worker
=============================== =========================================== ==============================================

The lock makes the list true at any instant. Whoever makes or closes descriptors that are on the list
holds the lock meanwhile. A fork takes the lock, too, before the kernel copies the process, and
releases it on both sides, as the C library does with ``malloc``: so no child is made of half a pool,
and no child has a copy of the lock that stays locked. Two rules keep this free of deadlocks. No
code forks while it holds the lock, because a fork takes the program's own locks in an order of
its own. And no code of the program runs under the lock.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Collection, Iterable
from typing import Final

import msgspec

lock: Final = threading.RLock()
"""Held while descriptors on the list are made or closed, and by every fork. Hold it around no fork."""


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
    Children of that child do not call it again, for the numbers may be other files' by then, unless
    ``every_time`` is set. in_others: called besides in a worker or a metrics process of another pool
    (see ``let_go_of_others``).
    """
    entry = Entry(let_go, in_others, every_time)
    with lock:
        _entries.append(entry)
    return entry


def remove(entry: Entry) -> None:
    """Take a thing off the list: it is closed, or this process is the one that it is for."""
    with lock, contextlib.suppress(ValueError):
        _entries.remove(entry)


def let_go_of_others(servers: Collection[object]) -> None:
    """Let go of all that belongs to other pools and servers (a worker or the metrics process, once).

    servers: those that this process serves.
    """
    for entry in _entries:
        if entry.in_others is not None:
            entry.in_others(servers)
    # What stays is what every child of this process lets go of, too.
    _entries[:] = [entry for entry in _entries if entry.every_time]


def close(fds: Iterable[int]) -> None:
    """Close descriptors in a child, of which some may be closed already."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


def _let_go_in_child() -> None:
    try:
        for entry in _entries:
            if entry.every_time or not entry.is_inherited:
                entry.is_inherited = True
                with contextlib.suppress(OSError):
                    entry.let_go()
    finally:
        lock.release()  # taken by the thread that forks, which is the one thread here


os.register_at_fork(
    before=lock.acquire, after_in_parent=lock.release, after_in_child=_let_go_in_child
)
