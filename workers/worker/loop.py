"""The worker: wait, take, process, publish, and leave between two requests.

How it waits: in epoll_wait() with EPOLLEXCLUSIVE before a take, for one event at a time. Going to
the tail of the wait queue now and then has the kernel wake idle workers in turn. A wake-up that
is lost with the worker it went to is made good by the master, which looks for waiting clients at
every tick. Only where there is a queue does a worker take eagerly: accept() makes the new socket
before it looks, so a try that fails costs 4 µs, where epoll_wait() costs 0.4. docs/DESIGN.md has
the figures of the alternatives.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import select
import signal
import socketserver
from collections.abc import Callable, Sequence
from time import monotonic_ns
from typing import Any

from prefork.workers import log
from prefork.workers.scoreboard import ORDER, REQUEST_NS, SHORTEST_NS, Outcome, SlotWriter
from prefork.workers.states import ExitKind, Order
from prefork.workers.worker.accounting import AT_ONCE_NS, Overlapping, account_for
from prefork.workers.worker.datagrams import MSG_DONTWAIT, Datagrams
from prefork.workers.worker.source import Source, is_made_plainly
from prefork.workers.worker.takes import Takes
from prefork.workers.worker.witness import Witness

WAIT_BOUND = 5.0
"""Seconds an idle worker sleeps before it tries for itself.

The master looks for waiting clients far more often and wakes the idle; this is for the time in
which it cannot. Each wake-up costs some 200 µs on a machine at rest, so that 40 workers which
wake twice a second would cost 1.6 % of a core.
"""

TURNS_IN_PLACE = 8
"""Requests after which a worker goes to the tail of the wait queue, so that idle workers take turns.

The kernel wakes the same worker again and again otherwise: 2989 of 3000 requests to one of eight.
"""

LOADED_AFTER = 3
"""Waits in a row that were none, after which there is a queue.

After one it may have been a single client, and a take that fails costs as much as four waits.
"""

BURST_NS = 50_000_000
"""How long a loaded worker takes without waiting before; between two bursts it looks at all else."""

CHORES_BOUND = 0.5
"""Seconds an idle worker sleeps when its server class has something done between requests."""

PRESSURE_PAUSE = 0.05
"""Seconds between two tries while accept() has no descriptor or memory to give."""


GOOD = Outcome.OK  # an enum's look-up costs as much as a frame


class Loop:
    """Serve until there is a reason to leave; runs in the worker process."""

    def __init__(
        self,
        sources: list[Source],
        writer: SlotWriter,
        identity: str,
        *,
        master_pid: int,
        life: int,
        wake_read: int,
        wakeup: int,
        witness: Witness | None = None,
        checks: Sequence[Callable[[], None]] = (),
    ) -> None:
        self.chores: list[Callable[[], None]] = []
        """What a server class behind the mix-in wants done between requests."""
        self.terminated: dict[int, object] = {}
        """Holds TERM when it came: its ``setdefault`` is the handler, a function of C that notes it."""
        self._reason: ExitKind | None = None
        self._writer = writer
        self._identity = identity
        self._master_pid = master_pid
        self._life = life
        self._bell = wake_read
        self._wakeup = wakeup
        self._takes = Takes(writer, identity, self._pause)
        self._checks = checks
        self._sources = {source.listener.fd: source for source in sources}
        self._account = account_for([source.server for source in sources], writer, witness)
        if isinstance(self._account, Overlapping):
            self.settle_steps()  # it watches some of them
        self._epoll = select.epoll()
        self._control = select.poll()
        for fd in (life, wake_read, wakeup):
            self._epoll.register(fd, select.EPOLLIN)
            self._control.register(fd, select.POLLIN)
        for fd in self._sources:
            self._take_place(fd)

    def run(self) -> ExitKind:
        """Serve; return why it is time to leave. SystemExit of a handler goes through."""
        poll, sources, writer = self._epoll.poll, self._sources, self._writer
        # A busy listener must not starve the others: one request of each, or one round.
        burst = BURST_NS if len(sources) == 1 else 0
        bound = CHORES_BOUND if self.chores else WAIT_BOUND
        turns, at_once, ended = 0, 0, monotonic_ns()
        chores = [*self.chores, *self._checks]
        while self._reason is None:
            if order := writer.words[ORDER]:
                return self._drain() if order == Order.DRAIN else ExitKind.RETIRED
            # One event at a time: the kernel puts what is still ready at the end of its list, so
            # that a busy listener starves neither the others nor the news of the master.
            events = poll(bound, 1)
            source = sources.get(events[0][0]) if events else None
            if source is not None:
                now = monotonic_ns()
                at_once = at_once + 1 if now - ended < AT_ONCE_NS else 0
                loaded = at_once == LOADED_AFTER
                if loaded:
                    at_once = 0
                if loaded and source.datagrams is not None and self._account is None:
                    ended = self._serve_datagrams(source, source.datagrams, now, now + burst)
                else:
                    ended = self._serve(source, now, now + burst if loaded else now)
                turns += 1
            elif events:
                self._heed(events[0][0])
            # A process that a handler has forked shares the epoll with its worker: hands off.
            if self._reason is None and (source is None or turns % TURNS_IN_PLACE == 0):
                self._take_fresh_place()
            for chore in chores:
                chore()
        return self._reason

    def _drain(self) -> ExitKind:
        """Serve what the kernel has queued, then leave: nobody comes in any more."""
        # Nobody waits in it any more, and a worker at its limit has a descriptor to accept with.
        self._epoll.close()
        # What is in an inherited socket's queue is for its other holder.
        left = [one for one in self._sources.values() if not one.listener.is_inherited]
        while left and self._reason is None:
            left = [source for source in left if not self._serve_queued(source)]
        return self._reason or ExitKind.RETIRED

    def _serve_queued(self, source: Source) -> bool:
        """Serve as long as something is queued and can be taken; tell whether nothing is left."""
        takes = self._takes
        takes.dry = False
        while not takes.dry and self._reason is None:
            now = monotonic_ns()
            self._serve(source, now, now)
            self._look_around()
            if takes.is_stalled(source):
                break
        return takes.dry

    def settle_steps(self) -> None:
        """Look again which steps the servers leave as they are."""
        for source in self._sources.values():
            source.settle_steps()

    def leave(self, reason: ExitKind) -> None:
        """Have ``run()`` return after the request in hand (also from a signal handler)."""
        if self._reason is None:
            self._reason = reason

    def wait_finished(self) -> None:
        """Wait for requests that threads still have in hand; the master bounds it."""
        if self._account is not None:
            self._account.wait_finished()

    def is_asked_to_leave(self) -> bool:
        """Tell whether this worker should end soon: what ``server.stopping`` says."""
        return bool(self._reason or self.terminated or self._writer.order() != Order.SERVE)

    def _serve(self, source: Source, now: int, until: int) -> int:
        """Serve one request, or what is queued until an instant; return the instant of its end.

        now, until: monotonic nanoseconds; ``now`` is returned when there was nothing to take.

        Does for each what ``BaseServer`` does, in its order, and accounts for it. The hot path:
        whatever Python does in it costs two or three times what it does in a tight loop, because
        the caches are cold after each system call.
        """
        server, take, writer, account = source.server, source.take, self._writer, self._account
        verify, process, takes = source.verify, source.process, self._takes
        while True:
            try:
                request, address = take()
            except Exception as error:  # noqa: BLE001 - an overridden get_request() may raise what it likes
                takes.failed(source, error)
                return now
            if takes.fruitless:
                takes.succeeded(source)
            outcome = GOOD
            if account is None:
                writer.words[REQUEST_NS] = now
            else:
                account.taken(request, now, address, source)
            try:
                if verify is None or verify(request, address):
                    process(request, address)
                else:
                    outcome = Outcome.REJECTED
                    self._reject(server, request)
            except Exception:  # noqa: BLE001 - handle_error() is where the server class says what to do
                outcome = Outcome.ERROR
                self._settle(server, request, address)
            except BaseException:
                self._abandon(server, request, now)
                raise
            if account is None:
                since, now = now, monotonic_ns()
                writer.account(outcome, now - since)
            else:
                now = account.returned(request, outcome)
            if now >= until or writer.words[ORDER] or self._reason is not None:
                return now

    def _serve_datagrams(self, source: Source, datagrams: Datagrams, now: int, until: int) -> int:
        """Serve what is queued, or until an instant, without a place in the wait queue meanwhile.

        With one, each reply would be an event on the socket for the kernel to look at, 0.3 µs.
        """
        self._epoll.unregister(source.listener.fd)
        now = self._serve_rounds(source, datagrams, now, until)
        if self._reason is None:  # or it is a forked process: hands off, as in run()
            self._take_place(source.listener.fd)
        return now

    def _serve_rounds(self, source: Source, datagrams: Datagrams, now: int, until: int) -> int:
        """Do as ``_serve()`` does, where handling is all there is to a datagram.

        All of a datagram's way is 5 µs. What need not be done for each of them is done for a
        round of a few; once a millisecond is over, the datagram in hand is its last. REQUEST_NS
        is the beginning of the round, so that a deadline comes that much early at most. The books
        are kept at the end of the round, or when one of it fails.
        """
        server, writer, account_short = source.server, self._writer, self._writer.account_short
        sock, size, timeout = datagrams.socket, datagrams.size, datagrams.socket.gettimeout
        most, new = datagrams.most, object.__new__
        while True:
            receive, room = datagrams.next_round()
            handler_class = source.handler_class()
            plain = is_made_plainly(handler_class)
            writer.round_over, done = False, 0
            writer.words[REQUEST_NS] = begun = since = now
            limit = now + SHORTEST_NS
            for done in room:
                try:
                    data, address = receive(most, MSG_DONTWAIT)
                except Exception as error:  # noqa: BLE001 - as in _serve()
                    self._end_round(source, datagrams, done, done, now - begun)
                    self._takes.failed(source, error)
                    return now
                request = (data if len(data) <= size else datagrams.cut(data)), sock
                try:
                    if plain:  # what calling the class does, in three calls of five: 0.2 µs less
                        handler = new(handler_class)
                        handler.request = request
                        handler.client_address = address
                        handler.server = server
                        try:
                            handler.handle()
                        finally:
                            handler.finish()
                    else:
                        handler_class(request, address, server)
                except Exception:  # noqa: BLE001 - as in _serve()
                    self._end_round(source, datagrams, done + 1, done, now - begun)
                    return self._fail(server, request, address, now)
                except BaseException:
                    account_short(done, now - begun)
                    self._abandon(server, request, now)
                    raise
                since, now = now, monotonic_ns()
                # With a timeout, which a handler may have set, to receive would be to wait.
                if now > limit or writer.round_over or timeout():
                    break
            if now - since <= SHORTEST_NS:
                self._end_round(source, datagrams, done + 1, done + 1, now - begun)
            else:
                self._end_round(source, datagrams, done + 1, done, since - begun)
                writer.account(GOOD, now - since)
            if now >= until or writer.words[ORDER] or self._reason is not None:
                return now

    def _end_round(
        self, source: Source, datagrams: Datagrams, taken: int, short: int, duration_ns: int
    ) -> None:
        """Keep the books of a round. short: those that are accounted for here, all in so long."""
        self._writer.account_short(short, duration_ns)
        datagrams.count(taken)
        if taken and self._takes.fruitless:
            self._takes.succeeded(source)

    def _fail(self, server: socketserver.BaseServer, request: Any, address: Any, since: int) -> int:
        """End a request whose handler raised, and account for it; return the instant of its end."""
        self._writer.words[REQUEST_NS] = since
        self._settle(server, request, address)
        now = monotonic_ns()
        self._writer.account(Outcome.ERROR, now - since)
        return now

    def _reject(self, server: socketserver.BaseServer, request: Any) -> None:
        if self._account is not None:
            self._account.judge(request, Outcome.REJECTED)
        server.shutdown_request(request)

    def _settle(self, server: socketserver.BaseServer, request: Any, address: Any) -> None:
        if self._account is not None:
            self._account.judge(request, Outcome.ERROR)
        end = functools.partial(server.shutdown_request, request)
        for step in (functools.partial(server.handle_error, request, address), end):
            try:
                step()
            except Exception as error:  # noqa: BLE001 - costs this request, not the worker
                log.failure(
                    logging.ERROR, self._identity, "could not end a failed request properly", error
                )

    def _abandon(self, server: socketserver.BaseServer, request: Any, since: int) -> None:
        """End the request that ends the worker."""
        if self._account is None:
            self._writer.account(Outcome.ERROR, monotonic_ns() - since)
        else:
            self._account.judge(request, Outcome.ERROR)
            self._account.returned(request, Outcome.ERROR)
        server.shutdown_request(request)

    def _take_fresh_place(self) -> None:
        """Go to the tail of the wait queue; adding a listener also looks at what waits there already."""
        self._look_around()
        for fd, source in self._sources.items():
            source.assert_nonblocking()
            self._epoll.unregister(fd)
            self._take_place(fd)

    def _take_place(self, fd: int) -> None:
        self._epoll.register(fd, select.EPOLLIN | select.EPOLLEXCLUSIVE)

    def _heed(self, fd: int) -> None:
        """Act on the end of the life pipe, the pipe by which the master wakes it, and what signals wrote into the pipe."""
        if fd == self._life:
            self.leave(ExitKind.ORPHANED)
        elif fd == self._bell:
            os.read(fd, 4096)
        elif signal.SIGTERM in os.read(fd, 4096):
            # The byte comes even on 3.13.0, where a child of a thread does not run handlers.
            self.leave(ExitKind.RETIRED)

    def _pause(self) -> None:
        """Wait a little before the next take; act on what the master and signals say meanwhile."""
        for fd, _ in self._control.poll(PRESSURE_PAUSE * 1000):
            self._heed(fd)

    def _look_around(self) -> None:
        """Look at what no event tells."""
        # The life pipe tells of the master's end, unless another process holds its other end.
        if os.getppid() != self._master_pid:
            self.leave(ExitKind.ORPHANED)
        if any(source.is_closed for source in self._sources.values()):
            raise OSError(errno.EBADF, "a handler closed the server's socket")
