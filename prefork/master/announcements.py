"""What makes a pool known to others: its entries in a registry such as rpcbind, kept by the master.

A pool is announced when its first workers are ready, and stays announced over a reload. The entries are
taken back as soon as the pool begins to stop, so that clients which ask the registry go elsewhere. A
registry may be slow, or be restarted. So an ``Announcement`` waits for nothing in a tick of the master.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from prefork.workers.states import Phase


class Announcement(Protocol):
    """What makes one server known. All methods are called by the master."""

    def tick(self, now: float, *, serving: bool) -> float | None:
        """Do what can be done without waiting; return when there is more to do, None for no such instant.

        now: seconds of a monotonic clock. serving: whether the server is to be known, or to be known no
        longer. An exception stops the pool.
        """

    def settle(self, *, serving: bool) -> None:
        """Do all that is to be done, and wait for it, about a second at most."""

    def close(self) -> None:
        """Give back descriptors."""


class Announcements:
    """The announcements of all servers of one pool."""

    def __init__(self, all_of_them: Sequence[Announcement] = ()) -> None:
        self._all = all_of_them

    def tick(self, now: float, *, ready: bool, phase: Phase) -> float | None:
        """Have each one do what can be done now; return when there is more to do.

        ready: whether the first workers of this image were ready. Before that nothing is announced, and
        what an earlier image has announced stays.
        """
        if not self._all or not (ready or phase is not Phase.SERVING):
            return None
        serving = phase is Phase.SERVING
        instants = [one.tick(now, serving=serving) for one in self._all]
        return min((one for one in instants if one is not None), default=None)

    def begin_without_workers(self) -> None:
        """Make the servers known, where no master does."""
        for one in self._all:
            one.settle(serving=True)

    def end(self) -> None:
        """Take back what is left, when the last worker has gone. Waits a second for each one at most."""
        for one in self._all:
            one.settle(serving=False)
            one.close()
