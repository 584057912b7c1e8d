"""Requests that do not come from a socket: when a worker asks ``get_request()`` for the next one (worker).

``get_request()`` of such a server returns a request and an address, as every other does. It returns None,
or raises BlockingIOError, where there is nothing to take yet. The worker then *rests*: it asks again
when the descriptor of the server becomes readable, if the server has one in this worker, and after an
interval in any case. While requests are found it asks again at once, so that the queue, wherever it is,
is empty before a worker rests.

**One descriptor for the loop.** The worker's loop waits in one ``epoll_wait()`` for all its sources. An
epoll of the source's own is what the loop waits for here. In that epoll are a timer and the server's
descriptor. The timer that has expired stays readable, and means: ask again at once. To rest, the worker
sets the timer anew. So a source of this kind has its turn among the others like a socket, and nothing else
in the worker knows about it.

**The descriptor of the server** is often a connection to a database, opened in ``worker_init()``, and
another one after the database was restarted. So ``fileno()`` is called at each rest. The descriptor is
watched edge-triggered: only what arrives counts. A descriptor that stays readable although there is nothing
to take, because ``get_request()`` does not read from it, would otherwise keep the worker busy for ever. The
events are fetched before the call, so that what arrives while ``get_request()`` looks ends the rest that follows,
unless ``get_request()`` itself has read it. In that case it has to look again by itself (docs/JOBS.md).

**A descriptor that cannot be watched.** ``fileno()`` may raise, for example while a database is away, and it may
return a descriptor that is closed. Requests can still be taken then, so this is no failed take: the worker rests
for the interval. The log has one line when that begins and one when it is over, however many requests are
served in between.
"""

from __future__ import annotations

import contextlib
import logging
import select
from typing import Any

from prefork.workers import log, system
from prefork.workers.polled import descriptor_of
from prefork.workers.worker.shortage import Meaning
from prefork.workers.worker.side import current_worker
from prefork.workers.worker.source import Source, Take

LEAST_INTERVAL = 0.01
"""Seconds between two questions at least, after an answer that there is nothing."""

LONGEST_INTERVAL = 1e9
"""Seconds between two questions at most: a timer of the kernel takes no infinity."""

INTERVAL_WITH_DESCRIPTOR = 5.0
"""Seconds after which a worker asks although the server's descriptor is silent.

A request can come back without a message: when a worker is killed, its database lets go of what it had locked.
"""


class PolledSource(Source):
    """Where a worker gets the requests of a server without a socket.

    interval: the seconds between two questions while there is nothing, and the server has no descriptor.
    """

    def __init__(self, *arguments: Any, interval: float, **options: Any) -> None:
        self._interval = min(max(LEAST_INTERVAL, interval), LONGEST_INTERVAL)
        self._epoll: select.epoll | None = None
        self._timer: system.TimerDescriptor | None = None
        self._watched: int | None = None
        self._rests = False
        self._is_unwatched = False
        """Whether the log has said that the descriptor of the server cannot be watched."""
        super().__init__(*arguments, **options)

    @property
    def fd(self) -> int:
        """The descriptor that the loop waits for: that of the epoll with the timer."""
        return super().fd if self._epoll is None else self._epoll.fileno()

    @property
    def is_drained(self) -> bool:
        """Whether a worker takes what is queued before it leaves: no, others will find it where it is."""
        return False

    def meaning_of(self, error: Exception, *, draining: bool, empty: bool) -> Meaning:  # noqa: ARG002 - of no importance here
        """Return what a failed take means. All but BlockingIOError says that the server's own code has failed."""
        if draining:
            return Meaning.DRAINED
        return Meaning.NOTHING if isinstance(error, BlockingIOError) else Meaning.SHORTAGE

    def enter_wait_queue(self, epoll: select.epoll) -> None:
        """Have this epoll report when it is time to ask (worker)."""
        if self._epoll is None or self._timer is None:
            self._epoll, self._timer = select.epoll(), system.TimerDescriptor()
            self._epoll.register(self._timer.fd, select.EPOLLIN)
            self._timer.expire_after(0)
        epoll.register(self._epoll, select.EPOLLIN)

    def leave_wait_queue(self, epoll: select.epoll) -> None:
        """Ask no more."""
        epoll.unregister(self.fd)

    def close(self) -> None:
        """Give back the descriptors, where the process goes on after the worker: in tests."""
        if self._epoll is not None and self._timer is not None:
            self._epoll.close()
            self._timer.close()

    def _take_of_program(self) -> Take:
        get_request: Any = self.server.get_request

        def take() -> tuple[Any, Any]:
            self._fetch_events()
            try:
                taken = get_request()
            except BlockingIOError:
                taken = None
            except Exception:
                self._rest(self._interval)
                raise
            if taken is None:
                self._rest_until_due()
                raise BlockingIOError
            if self._rests:
                self._ask_at_once()
            found: tuple[Any, Any] = taken
            return found

        return take

    def _fetch_events(self) -> None:
        if self._epoll is not None and self._watched is not None:
            self._epoll.poll(0)

    def _ask_at_once(self) -> None:
        self._rests = False
        if self._timer is not None:
            self._timer.expire_after(0)

    def _rest(self, seconds: float) -> None:
        self._rests = True
        if self._timer is not None:
            self._timer.expire_after(seconds)

    def _rest_until_due(self) -> None:
        self._rest(self._interval)  # in any case: RequestCancelled may come out of fileno()
        try:
            self._watch_descriptor()
        except Exception as error:  # noqa: BLE001 - fileno() is code of the program
            self._note_unwatched(error)
            return
        self._note_watched()
        if self._watched is not None:
            self._rest(INTERVAL_WITH_DESCRIPTOR)

    def _watch_descriptor(self) -> None:
        """Watch the descriptor that the server has now. Raises what ``fileno()`` raises, and OSError."""
        fd = descriptor_of(self.server)
        is_open = fd is not None and fd >= 0
        if self._epoll is not None:
            # The kernel cannot wait for a regular file. Then the interval remains.
            with contextlib.suppress(PermissionError):
                self._watch(self._epoll, fd if is_open else None)

    def _note_unwatched(self, error: Exception) -> None:
        if not self._is_unwatched:
            self._is_unwatched = True
            what = "cannot watch the descriptor of its server, asking at intervals"
            log.failure(logging.ERROR, _subject(), what, error, listener=self.listener)

    def _note_watched(self) -> None:
        if self._is_unwatched:
            self._is_unwatched = False
            what = "watches the descriptor of its server again"
            log.event(logging.WARNING, _subject(), what, listener=self.listener)

    def _watch(self, epoll: select.epoll, fd: int | None) -> None:
        """Watch this descriptor, and no earlier one.

        The kernel forgets a descriptor that is closed. The same number can be another file by now, so
        it is registered at each rest; the kernel says so where it has it already.
        """
        if self._watched not in (None, fd):
            with contextlib.suppress(OSError):  # closed
                epoll.unregister(self._watched)
        self._watched = None
        if fd is not None:
            with contextlib.suppress(FileExistsError):
                epoll.register(fd, select.EPOLLIN | select.EPOLLET)
            self._watched = fd


def _subject() -> str:
    return str(current_worker() or "worker")
