"""HAProxy's agent check: one line that says how much traffic this pool should get (metrics process).

HAProxy connects, reads one line and closes. The line sets the state of the server in HAProxy, and either
how many connections HAProxy may have open to it at once (``maxconn``) or its weight:

==============================  ===========================================================
the line                        when
==============================  ===========================================================
``ready up 100% maxconn:N``     N workers take requests (``agent_mode = maxconn``)
``ready up W%``                 W is the share of them that is idle (``agent_mode = weight``)
``drain``                       from TERM on: the pool finishes what it has, and takes nothing new
``down #REASON``                no worker takes requests, or the scoreboard is too old
==============================  ===========================================================

With ``maxconn``, HAProxy keeps a request in its own queue while no worker is free. So the request waits in
one queue for the first free worker of any machine, and not on one machine while workers of another are idle.

**The line never says up with stale counts.** The counts come from the scoreboard, which the master keeps. A
master that hangs replaces no worker, and leaves a worker that has died on the scoreboard. So after
``HUNG_AFTER`` without a tick the line says ``down``, whatever the scoreboard says. HAProxy keeps the last line
of an agent that does not answer, so a server with an agent needs HAProxy's own ``check`` as well.

**Nothing else delays the line.** The agent has a thread of its own in the metrics process, so a scrape does
not delay the agent. The agent asks neither the master nor a worker.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Literal

import msgspec

from prefork.metrics.server import LAST_ANSWERS, Responder, Server
from prefork.metrics.status import HUNG_AFTER, last_tick
from prefork.workers.scoreboard import PoolField, Scoreboard, SlotField, pool_of
from prefork.workers.states import READY, Phase, WorkerState

Mode = Literal["maxconn", "weight"]

SHORTEST_WINDOW: Final = 0.2
"""Seconds over which the idle share is averaged, at least. A single moment says little: of two workers
none, one or both are idle. A check that comes sooner gets the previous average.

The window is shorter than the ``agent-inter`` of 0.25 s that the examples have. HAProxy's timer is not exact,
and with equal lengths a check that came a moment early would get an average of twice that age.
"""

LONGEST_WINDOW: Final = 5.0
"""Seconds over which the idle share is averaged, at most."""


# --- what to say (pure)


class Reading(msgspec.Struct, frozen=True):
    """What the agent reads of its pool at one moment.

    last_tick: seconds since the master's last tick. listeners_closed: listeners that let no client in.
    ready: workers that take requests. idle_share: the part of their time in which they were idle, 0 to 1.
    finishing: retiring workers that still have a request in hand; HAProxy counts their connections.
    """

    phase: Phase
    last_tick: float
    listeners_closed: int
    ready: int
    idle_share: float = 1.0
    finishing: int = 0


def line_for(reading: Reading, mode: Mode) -> str:
    """Return the line of the agent, without its end (pure)."""
    if reading.last_tick > HUNG_AFTER:
        return f"down #the master has not ticked for {reading.last_tick:.0f} s"
    if reading.phase is not Phase.SERVING:
        return "drain"
    if reading.listeners_closed > 0:
        return f"down #{reading.listeners_closed} listeners let no client in"
    if reading.ready <= 0:
        return "down #no worker is ready"
    if mode == "weight":
        # 0% would be the same as drain. When every worker of every machine is busy, HAProxy would then
        # have no server left.
        return f"ready up {max(1, round(100 * reading.idle_share))}%"
    return f"ready up 100% maxconn:{reading.ready + reading.finishing}"


def idle_share(busy_ns: int, length_ns: int, ready: int) -> float:
    """Return the idle part of the workers' time, 0 to 1 (pure).

    busy_ns: how long workers had a request in hand, added up. length_ns: the length of the window.
    """
    if length_ns <= 0 or ready <= 0:
        return 0.0
    return min(1.0, max(0.0, 1 - busy_ns / (length_ns * ready)))


# --- reading


class Agent:
    """Answers for one pool. complain: called with an exception that keeps a client from getting a line."""

    def __init__(
        self, board: Scoreboard, mode: Mode, complain: Callable[[BaseException], None]
    ) -> None:
        self._board = board
        self._mode = mode
        self._complain = complain
        self._read_ns = 0
        self._busy_ns: list[int] = []
        self._idle_share = 1.0

    def respond(self, _received: bytes) -> bytes:
        """Return the line, whatever the client has sent; an empty answer where there is none to give."""
        try:
            return f"{line_for(self.read(time.monotonic_ns()), self._mode)}\n".encode("ascii")
        except Exception as error:  # noqa: BLE001 - the next client may get its line
            self._complain(error)
            return b""

    def read(self, now_ns: int) -> Reading:
        """Return a reading of the pool. now_ns: CLOCK_MONOTONIC."""
        board = self._board
        pool = pool_of(board)
        states = [board.state(slot) for slot in range(board.slots)]
        ready = [slot for slot, state in enumerate(states) if state in READY]
        if self._mode == "weight":
            self._average(now_ns, ready, states.count(WorkerState.BUSY))
        return Reading(
            phase=pool.phase,
            last_tick=last_tick(pool, now_ns),
            listeners_closed=pool[PoolField.LISTENERS_CLOSED],
            ready=len(ready),
            idle_share=self._idle_share,
            finishing=sum(
                state is WorkerState.RETIRING and board.word(slot, SlotField.REQUEST_NS) > 0
                for slot, state in enumerate(states)
            ),
        )

    def _average(self, now_ns: int, ready: Sequence[int], busy: int) -> None:
        """Bring the idle share up to date, unless the window that began with the last reading is too short.

        Where the last reading is too old, the share of this moment has to do.

        ready: the slots whose workers take requests. busy: how many of them have one in hand. A retiring
        worker may be busy for long with its last request, and takes no share of theirs. A worker with threads
        counts once, however many requests it has in hand.
        """
        length_ns = now_ns - self._read_ns
        if length_ns < SHORTEST_WINDOW * 1e9:
            return
        busy_ns = [_busy_ns(self._board, slot, now_ns) for slot in range(self._board.slots)]
        if length_ns > LONGEST_WINDOW * 1e9 or not self._busy_ns:
            self._idle_share = 1 - busy / len(ready) if ready else 0.0
        else:
            grown = (busy_ns[slot] - self._busy_ns[slot] for slot in ready)
            in_hand_ns = sum(min(length_ns, max(0, more)) for more in grown)
            self._idle_share = idle_share(in_hand_ns, length_ns, len(ready))
        self._read_ns, self._busy_ns = now_ns, busy_ns


def _busy_ns(board: Scoreboard, slot: int, now_ns: int) -> int:
    """Return for how long a slot's workers have had a request in hand, with the one that is in hand now."""
    since = board.word(slot, SlotField.REQUEST_NS)
    return board.word(slot, SlotField.BUSY_NS) + (max(0, now_ns - since) if since > 0 else 0)


# --- answering


@contextlib.contextmanager
def answering_in_thread(
    listener: socket.socket, respond: Responder, died: Callable[[BaseException], None]
) -> Iterator[None]:
    """Answer in a thread of its own for the length of a block.

    died: called in the thread with an exception that has ended it. No exception should.
    """
    end = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    server = Server(listener, respond, heed={end: lambda: True}, beat=lambda: False)

    def live() -> None:
        try:
            server.run()
        except BaseException as error:  # noqa: BLE001 - whatever it is, the process must not go on without it
            died(error)

    thread = threading.Thread(target=live, name="agent", daemon=True)
    thread.start()
    try:
        yield
    finally:
        os.eventfd_write(end, 1)
        thread.join(2 * LAST_ANSWERS)
        os.close(end)
