"""Runs: what a server object knows of its serving, and every server object of this process.

The first use of a server makes its ``Run`` (``run_of()``). The methods of the mix-in ask the ``Run``
from any thread. ``serving.py`` fills the ``Run`` in, and carries out what was asked.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Collection, Sequence
from typing import Any, Final

import msgspec

from prefork.master.announcements import Announcements
from prefork.master.master import Master
from prefork.reloading import sockets
from prefork.workers import forks
from prefork.workers.listener import Listener
from prefork.workers.polled import PolledQueue, descriptor_of
from prefork.workers.settings import Settings
from prefork.workers.worker.side import WorkerSide

RUN: Final = "_prefork_run"
"""The attribute of a server that holds its ``Run``."""


class _KnownServers:
    """Every server object of this process.

    A worker must close the sockets of those that it does not serve, and no server is served in a
    child that the program forks for itself.
    """

    def __init__(self) -> None:
        self._servers: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
        forks.add(self._forget_serving, in_others=self._let_go_of_others, every_time=True)

    def add(self, server: Any) -> None:
        """Add a server. The program alone decides how long the object lives."""
        self._servers[id(server)] = server

    def _forget_serving(self) -> None:
        """Drop the copies of ``Run`` (any child): nothing serves these servers here.

        A copy names a master that is not here, and its lock may be held by a thread that is not here.
        A new one is made when the child asks for it. A worker puts its own back, and the children of
        the worker keep that.
        """
        for server in self._servers.values():
            run: Run | None = vars(server).get(RUN)
            if run is not None and run.side is None:
                del vars(server)[RUN]

    def _let_go_of_others(self, served: Collection[object]) -> None:
        """Close the sockets of the servers that this worker does not serve.

        The socket objects live on, and one would later close whatever file had got its number. So
        each number gets /dev/null in place of the socket.
        """
        if len(self._servers) == len(served):
            return  # the usual case; to go through the servers would copy some pages
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for other in [server for server in self._servers.values() if server not in served]:
            with contextlib.suppress(Exception):  # not bound, closed, or without a descriptor
                os.dup2(null, other.fileno(), inheritable=False)
        os.close(null)


_known = _KnownServers()


def make_known(server: Any) -> None:
    """Note a server that is being made. It adopts the socket that an earlier image has for it."""
    _known.add(server)
    sockets.prepare(server)


def run_of(server: Any) -> Run:
    """Return the ``Run`` of a server."""
    run: Run | None = vars(server).get(RUN)
    # The first call makes it. There is no __init__() for that, because many programs call
    # TCPServer.__init__() directly.
    return vars(server).setdefault(RUN, Run()) if run is None else run


class Run:
    """Whether one server is being served, by which master and thread, and the wait for its end.

    side: in a worker, what the server object knows of the worker; None in the master. given: the settings
    that the program has given to ``serve()``; None where the servers' attributes alone count.
    """

    def __init__(self) -> None:
        # A signal handler of the program may call shutdown() while this very thread holds the lock.
        self.lock = threading.RLock()
        self.stopped = threading.Event()
        self.shutdown_asked = False
        self.master: Master | None = None
        self.running = False
        self.thread: int | None = None
        self.close_at_end = False
        self.without_workers = False
        self.listener: Listener | None = None
        self.side: WorkerSide | None = None
        self.given: Settings | None = None

    @property
    def is_served_here(self) -> bool:
        """Whether the calling thread is the one that serves: it must not wait for the end of the serving."""
        return self.thread == threading.get_ident() and not self.stopped.is_set()

    def ask_shutdown(self) -> None:
        """Have the serving end (any thread). A serving that has not begun will end at once."""
        with self.lock:
            self._ask_shutdown()

    def ask_close(self) -> bool:
        """Have the serving end, and the server closed by the thread that serves.

        Return False if no other thread serves: then the caller closes it.
        """
        with self.lock:
            if not self.running or self.thread == threading.get_ident():
                return False
            self.close_at_end = True
            self._ask_shutdown()
            return True

    def _ask_shutdown(self) -> None:
        self.shutdown_asked = True
        if self.master is not None:
            self.master.ask_shutdown()

    def begin(self) -> None:
        """Note that this thread begins to serve. RuntimeError if the server is being served."""
        with self.lock:
            if self.running:
                raise RuntimeError("this server is already serving")
            self.running = True
            self.thread = threading.get_ident()
            self.stopped.clear()

    def begin_without_workers(self) -> bool:
        """Note that this process begins to serve. Return False if it was asked to end before."""
        with self.lock:
            self.without_workers = not self.shutdown_asked
            return self.without_workers

    def end(self) -> bool:
        """Note the end. Return whether the server is to be closed before ``stopped`` is set."""
        with self.lock:
            is_to_close, self.close_at_end = self.close_at_end, False
            self.running = self.shutdown_asked = False
            return is_to_close


class Served(msgspec.Struct, frozen=True):
    """One server that is being served. behind: the server as ``super()`` of the mix-in has it."""

    server: Any
    run: Run
    behind: Any

    @property
    def listener(self) -> Listener:
        """The listener of its socket; another one if the server has another socket by now."""
        fd = descriptor_of(self.server)
        if self.run.listener is None or not self.run.listener.is_still(fd):
            self.run.listener = PolledQueue(self.server) if fd is None else Listener(self.server)
        return self.run.listener


def announcements_of(all_served: Sequence[Served]) -> Announcements:
    """Return what makes the servers known to others: what their ``make_announcement()`` returns, if they have one."""
    makers = [getattr(one.server, "make_announcement", None) for one in all_served]
    made = [make() for make in makers if make is not None]
    return Announcements([one for one in made if one is not None])
