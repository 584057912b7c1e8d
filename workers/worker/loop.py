"""A worker's loop: wait, serve, obey, and leave between two requests (worker).

Before a take, a worker waits in ``epoll_wait()`` with EPOLLEXCLUSIVE, for one event at a time. Now and
then it goes to the tail of the kernel's wait queue, so that the kernel wakes idle workers in turn. If a
worker dies between its wake-up and its take, the wake-up is lost; the master makes up for that, since it
checks for waiting clients at every tick. A worker takes without waiting only while requests are queued:
``accept()`` makes the new socket before it looks, so that a take in vain costs 4 µs, while
``epoll_wait()`` costs 0.4. docs/DESIGN.md has the figures of the alternatives.

The loop does not know how requests are served. Each source has a lane for that (lanes.py), which the
loop calls when there is something to take.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import threading
from collections.abc import Callable, Sequence
from time import monotonic_ns

import msgspec

from prefork.workers import system
from prefork.workers.slot_writer import ORDER
from prefork.workers.states import ExitKind, Order
from prefork.workers.worker.choice import lanes_for
from prefork.workers.worker.lanes import Common, Lane
from prefork.workers.worker.trimming import REST
from prefork.workers.worker.turn import AT_ONCE_NS

WAIT_BOUND = 5.0
"""Seconds for which an idle worker sleeps before it looks for clients by itself.

The master looks for them far more often and wakes idle workers. This bound is for the time in which
the master cannot. Each wake-up costs some 200 µs on a machine at rest: 40 workers that wake twice a
second would cost 1.6 % of a core.
"""

TURNS_IN_PLACE = 8
"""Turns after which a worker goes to the tail of the wait queue.

Otherwise the kernel wakes the same worker again and again: one of eight got 2989 of 3000 requests.
"""

LOADED_AFTER = 3
"""Waits in a row that did not sleep, after which requests are taken to be queued.

After one such wait there may have been a single client, and a take in vain costs as much as ten waits.
"""

BURST_NS = 50_000_000
"""How long a loaded worker takes without waiting. Between two such bursts it looks at everything else."""

SHARED_BURST_NS = 2_000_000
"""The same for a worker with several listeners, each of which has to wait for the bursts of the others.

A request that takes longer than this is a burst by itself. With shorter requests a worker waits once for many
of them, in place of once for each. A pool that parks has two listeners: that of new connections, and
that of those whose clients have spoken again.
"""

CHORES_BOUND = 0.5
"""Seconds for which an idle worker sleeps if its server class has something done between requests."""

PAUSE = 0.05
"""Seconds between two takes that will probably fail."""


class Control(msgspec.Struct, frozen=True):
    """How a worker hears of everything that is not a request.

    master_pid: the worker's parent, as long as the master lives. life: a pipe whose other end closes
    with the master. wake: a pipe into which the master writes orders, and WAKE when the worker is to look
    around.
    signals: a pipe into which Python writes the number of each signal.
    """

    master_pid: int
    life: int
    wake: int
    signals: int


class Loop:
    """Serve until there is a reason to leave."""

    def __init__(
        self,
        lanes: Sequence[Lane],
        common: Common,
        identity: str,
        control: Control,
        checks: Sequence[Callable[[], None]] = (),
    ) -> None:
        self.chores: list[Callable[[], None]] = []
        """What a server class behind the mix-in has done between requests."""
        self.terminated: dict[int, object] = {}
        """Holds TERM once it has come: its ``setdefault`` is the handler, a function of C that notes it."""
        self._reason: ExitKind | None = None
        self._common = common
        self._writer = common.writer
        self._control = control
        self._checks = checks
        self._thread = threading.get_ident()
        self._burst_ns = BURST_NS if len(lanes) == 1 else SHARED_BURST_NS
        self._epoll = select.epoll()
        self._news = select.poll()
        self._order = 0
        """The highest order that the master has given to this worker."""
        self._is_reading = False
        """Whether an order may have left the pipe and is not noted yet."""
        for fd in (control.life, control.wake, control.signals):
            self._epoll.register(fd, select.EPOLLIN)
            self._news.register(fd, select.POLLIN)
        common.begin(identity, self._epoll, self._pause)
        for lane in lanes:
            lane.source.enter_wait_queue(self._epoll)
        self._lanes = _by_descriptor(lanes)
        self._parkings = {
            source.parking for lane in lanes if (source := lane.source).parking is not None
        }
        if common.account is not None:  # there always is one where servers park
            for parking in self._parkings:
                parking.begin(self._epoll, common.account, self._go_to_the_tail)

    def run(self) -> ExitKind:
        """Serve until there is a reason to leave, and return it. Raises SystemExit if a handler does."""
        # One event at a time: the kernel puts a descriptor that is still ready at the end of its list,
        # so that a busy listener starves neither the others nor the news of the master.
        #
        # There are two speeds. Usually a turn is one request, and the worker waits before the next. If
        # the wait did not sleep (AT_ONCE_NS) several times in a row, requests are queued, and the next
        # turn is a burst, in which the lane takes one request after the other without a wait.
        poll, writer, lanes = self._epoll.poll, self._writer, self._lanes
        bound = longest = self._longest_wait()
        soon = self._wait_after_request()
        chores = [*self.chores, *self._checks]
        turns, at_once, ended = 0, 0, monotonic_ns()
        while not (self._reason or self._order or (writer.words[ORDER] and self.is_ordered())):
            events = poll(bound, 1)
            lane = lanes.get(events[0][0]) if events else None
            if lane is None:
                self._look_at(events)
                bound = longest
            else:
                bound = soon
                now = until = monotonic_ns()
                at_once = at_once + 1 if now - ended < AT_ONCE_NS else 0
                if at_once == LOADED_AFTER:
                    at_once, until, lane = 0, now + self._burst_ns, lane.for_queue or lane
                ended = lane.serve(now, until)
                turns += 1
                if turns % TURNS_IN_PLACE == 0:
                    self._take_fresh_place()
            for chore in chores:
                chore()
        return self._reason or self._obey()

    def _longest_wait(self) -> float:
        return CHORES_BOUND if self.chores else WAIT_BOUND

    def _wait_after_request(self) -> float:
        """Return for how long a worker sleeps before it looks at its heap, which it does once after requests."""
        longest = self._longest_wait()
        return min(REST, longest) if system.can_trim_heap() else longest

    def settle_steps(self) -> None:
        """Find again which steps the servers leave as they are, and choose the lanes again."""
        sources = [lane.source for lane in self._lanes.values()]
        for source in sources:
            source.settle_steps()
        self._lanes = _by_descriptor(lanes_for(sources, self._common))

    def leave(self, reason: ExitKind) -> None:
        """Have ``run()`` return after the request in hand (any thread, signal handlers)."""
        if self._reason is None:
            self._reason = reason
        self._common.turn.end()

    def rest_if_spent(self, call_master: Callable[[], None]) -> None:
        """After its only request, take nothing more and wait for the order to leave; called after each turn."""
        if not (self._common.turn.is_last and self._lanes):
            return
        if not self._epoll.closed:  # it is while the pool drains
            for lane in self._lanes.values():
                lane.source.leave_wait_queue(self._epoll)
        self._lanes.clear()
        call_master()

    def wait_finished(self) -> None:
        """Wait for requests that threads still have in hand; the master bounds the wait."""
        if self._common.account is not None:
            self._common.account.wait_finished()

    def is_asked_to_leave(self) -> bool:
        """Return whether this worker should end soon: what ``server.stopping`` says (any thread)."""
        if self._reason or self.terminated or self._order:
            return True
        if not self._writer.words[ORDER]:
            return False
        if threading.get_ident() == self._thread:
            return self.is_ordered()
        # A thread of a handler only looks whether something is in the pipe. If it read the order, the
        # loop would not wake for it; and until it had noted the order, others would find none.
        # The three are looked at in the order in which the loop changes them, so that an answer that was yes
        # stays yes.
        return self._has_orders() or self._is_reading or bool(self._order)

    def is_ordered(self) -> bool:
        """Return whether the master has ordered this worker to leave (the thread of the loop).

        The word of the scoreboard makes the worker ask, because reading a word costs the hot path
        nothing. Any worker can write the word. What counts is the worker's own pipe, which the
        master alone writes to. A word without an order in the pipe is a stray write, and is undone.
        """
        if not self._order and self._has_orders():
            self._read_orders()
        if not self._order:
            self._writer.words[ORDER] = Order.SERVE
        return bool(self._order)

    def _has_orders(self) -> bool:
        """Return whether something is in the pipe from the master (any thread)."""
        # Each call makes a poll object. One object for all threads raises RuntimeError in each thread that
        # calls it while another thread is in it, also in that of the loop.
        poll = select.poll()
        poll.register(self._control.wake, select.POLLIN)
        return bool(poll.poll(0))

    def _read_orders(self) -> None:
        self._is_reading = True
        # A fork of this process may have been faster.
        with contextlib.suppress(BlockingIOError):
            self._order = max((self._order, *os.read(self._control.wake, 4096)))
        self._is_reading = False

    def _obey(self) -> ExitKind:
        """Do what the master's order asks for before this worker leaves; return why it leaves."""
        if self._order == Order.DRAIN:
            self._drain()
        return self._reason or ExitKind.RETIRED

    def _drain(self) -> None:
        """Serve what the kernel has queued. The master has closed the intake, so no new client arrives."""
        # The worker waits no more. Without its epoll, a worker at its limit of descriptors has one to
        # accept with.
        self._epoll.close()
        for parking in self._parkings:
            parking.is_draining = True
        # One source may bring work to another: a request that was parked comes back. So the drain is over
        # when all were found empty one after the other.
        left = [one for one in self._lanes.values() if one.source.is_drained]
        empty = not left
        while not empty and self._lanes and self._reason is None:
            empty = True
            for lane in left:
                empty &= self._serve_queued(lane)

    def _serve_queued(self, lane: Lane) -> bool:
        """Serve one source while something is queued and can be taken; return whether nothing is left."""
        takes = self._common.takes
        takes.draining, takes.dry = True, False
        while not takes.dry and self._lanes and self._reason is None:
            now = monotonic_ns()
            lane.serve(now, now)
            for check in self._checks:
                check()
            self._look_around()
            if takes.is_stalled(lane.source):
                break
        return takes.dry and not lane.source.listener.may_bring_more()

    def _take_fresh_place(self) -> None:
        """Go to the tail of every wait queue; entering one reports at once a client that already waits there."""
        # A process that a handler has forked comes here on its way out. It shares the epoll with its
        # worker and must not change it.
        if self._reason is not None:
            return
        self._look_around()
        self._common.publish()
        for lane in self._lanes.values():
            lane.source.assert_nonblocking()
        self._go_to_the_tail()

    def _go_to_the_tail(self) -> None:
        """Become the last one that the kernel wakes for a request."""
        for lane in self._lanes.values():
            lane.source.leave_wait_queue(self._epoll)
            lane.source.enter_wait_queue(self._epoll)

    def _look_at(self, events: list[tuple[int, int]]) -> None:
        """Act on what came in place of a request, and look for clients whose wake-up was lost."""
        for fd, _ in events:
            self._heed(fd)
        if not events:  # nothing has come for as long as this worker waits
            self._common.trimming.look()
        self._take_fresh_place()

    def _heed(self, fd: int) -> None:
        """Act on the end of the life pipe, on the master's wake-up, or on a signal.

        Anything else is a connection that a handler has left to another process (parking.py).
        """
        if fd == self._control.life:
            self.leave(ExitKind.ORPHANED)
        elif fd == self._control.wake:
            self._read_orders()
            if self._order:
                self._writer.words[ORDER] = self._order
        elif fd == self._control.signals and signal.SIGTERM in os.read(fd, 4096):
            # The byte comes even on 3.13.0, where a child of a thread does not run handlers.
            self.leave(ExitKind.RETIRED)

    def _pause(self) -> None:
        """Wait a little before the next take, and act at once on what comes meanwhile."""
        for fd, _ in self._news.poll(PAUSE * 1000):
            self._heed(fd)

    def _look_around(self) -> None:
        """Check what no event reports. Raises OSError if a handler has closed a server's socket."""
        # The life pipe reports the end of the master, unless another process holds its other end.
        if os.getppid() != self._control.master_pid:
            self.leave(ExitKind.ORPHANED)
        if any(lane.source.is_closed for lane in self._lanes.values()):
            raise OSError(errno.EBADF, "a handler closed the server's socket")


def _by_descriptor(lanes: Sequence[Lane]) -> dict[int, Lane]:
    """Return the lanes by what the loop's epoll reports."""
    return {lane.source.fd: lane for lane in lanes}
