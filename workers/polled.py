"""A server whose requests do not come from a socket, as the pool sees it (master, workers).

The requests of such a server are rows of a table, files of a folder, or whatever its ``get_request()``
finds. ``fileno()`` is missing or returns None in the master, so there is nothing that all processes share
and wait for. Each worker asks for itself (workers/worker/polled.py).
"""

from __future__ import annotations

from socketserver import BaseServer
from typing import Any

from prefork.workers.listener import Kind, Listener
from prefork.workers.settings import Settings
from prefork.workers.text import escaped

NO_DESCRIPTOR = -1


def descriptor_of(server: Any) -> int | None:
    """Return the descriptor of a server; None where ``fileno()`` is missing or returns None (any process).

    A server without one in the master has none that its processes could share, and is polled. Code of
    the program runs: whatever ``fileno()`` raises is raised.
    """
    fileno = getattr(server, "fileno", None)
    return None if fileno is None else fileno()


class PolledQueue(Listener):
    """What stands for the listener of a server without a descriptor (master, workers).

    Of a listener it has what the master and a worker ask while they serve. What waits for a worker is
    known to the server's own code only, so the answer is that nothing does.
    """

    def __init__(self, server: BaseServer) -> None:
        self.server = server
        self.kind = Kind.POLLED
        self.fd = NO_DESCRIPTOR
        self.family = self.socket_type = -1
        self._path = None
        self.name = escaped(type(server).__name__)

    @property
    def is_inherited(self) -> bool:
        """Whether another process holds a descriptor of it: there is none."""
        return False

    def is_still(self, fd: int | None) -> bool:
        """Return whether the server is still without a descriptor."""
        return fd is None

    def prepare(self, settings: Settings | None = None) -> None:
        """Do nothing: there is no socket to set up."""

    def restore(self) -> None:
        """Do nothing: there is no socket to leave as it was."""

    def assert_nonblocking(self) -> None:
        """Do nothing: ``get_request()`` says by itself that there is nothing yet."""

    def has_work(self) -> bool:
        """Return False: only ``get_request()`` knows, and it takes what it finds."""
        return False

    def is_empty(self) -> bool:
        """Return True: what has not been taken stays where it is, for the next pool."""
        return True

    def needs_draining(self) -> bool:
        """Return False, for the same reason."""
        return False

    def close_intake(self) -> None:
        """Do nothing: workers that are to leave take nothing more."""

    def remove_path(self) -> int | None:
        """Return None: there is no file of a socket."""
        return None
