"""The master's record of one worker: its process, its request, the steps to its end (pure).

A record only moves forward. The worker moves it from starting to ready. Everything else is decided
by the master, and each step may be the first one:

    starting ── note_ready() ──▸ ready ── note_proven() ──▸ proven
    ready, proven ─ its state says so ▸ leaving unasked   sys.exit(), an exception
    any of them ── ask_to_leave() ──▸ leaving         it finishes its request, or runs into leave_by
    any of them ── note_kill() ─────▸ killed          SIGKILL was sent
    any of them ── its process ends ▸ off the table   (workers/pool/deaths.py)

Escalation is state in this record, not waiting: the master never blocks on a worker. All instants
are seconds on the master's clock.
"""

from __future__ import annotations

import msgspec

from prefork.workers.cancel import flags_in
from prefork.workers.identity import WorkerInfo, WorkerPipes
from prefork.workers.pool.failures import PROVEN
from prefork.workers.pool.views import WorkerView
from prefork.workers.scoreboard import Scoreboard, SlotField
from prefork.workers.states import ExitCause, ExitKind, WorkerState, kind_at
from prefork.workers.system import Child

LONGEST_EXTENSION = 7 * 86_400.0
"""Seconds by which a handler may extend its deadline: the word is the worker's own."""

LONG_END = 1.0
"""Seconds after which a worker that leaves unasked is replaced, although its process has not ended.

Most ends take milliseconds, and then the replacement gets the same slot.
"""

_RECYCLE_REASONS = (ExitKind.MAX_REQUESTS, ExitKind.MAX_MEMORY)


class Dump(msgspec.Struct):
    """How far the stack dump of one worker has come; workers/pool/dumps.py has the procedure.

    dumped_at: when a dump before a kill was asked for; the kill follows DUMP_TIME later. None while
    no kill is near.
    show_at: when the answer goes into the log; None while no dump is under way.
    insist_at: when to ask with the second signal; None when that was done, or is not needed.
    kill_follows: whether the worker is to be killed after the dump that is under way.
    """

    dumped_at: float | None = None
    show_at: float | None = None
    insist_at: float | None = None
    kill_follows: bool = False


class Unread(msgspec.Struct):
    """A wake-up that the worker has not read yet; workers/pool/wakeups.py has the procedure.

    since: when the worker was woken, moved forward by all time that does not count against the worker.
    looked_at: until when time has been judged. progress: the words of the scoreboard that change with each
    request. cpu: the CPU time that the worker had used by ``looked_at``; None where that is unknown. stopped:
    whether the worker was stopped by a signal then.
    """

    since: float
    looked_at: float
    progress: tuple[int, int]
    cpu: float | None = None
    stopped: bool = False


class Asked(msgspec.Struct):
    """How far the worker was asked to end the request in hand (workers/pool/cancelling.py).

    A request begins with a new record. flags: of the reasons for which the worker was asked. at: when it was
    last asked, times: how often since the last new reason. is_unwanted: whether an operator wants the
    request to end. client_looked_at: when the worker was last to look at its client. cpu_before: the CPU seconds of the worker at
    the first look at this request. cpu_used: since then.
    """

    flags: int = 0
    at: float | None = None
    times: int = 0
    is_unwanted: bool = False
    client_looked_at: float | None = None
    cpu_before: float | None = None
    cpu_used: float | None = None

    def note(self, flags: int, now: float) -> None:
        """Note that the worker is asked now, for these new reasons or, without one, once more."""
        self.flags |= flags
        if flags:
            self.at, self.times = now, 1
        elif self.at is not None:
            self.at, self.times = now, self.times + 1


class Handle(msgspec.Struct):
    """One live worker, as the master knows it.

    spread: the worker's share of ``jitter``, 0 to 1.
    requests_before: how many requests its slot had served before.
    ready_at: when the master saw that the worker was ready; None before.
    proven: whether the worker has outlived its first moments (PROVEN).
    request_ns: the request in hand as the scoreboard names it, by the monotonic nanoseconds of its
    beginning; 0 for none. With threads it is the oldest one.
    busy_since: the beginning of that request on the master's clock.
    seen_at: when the master last looked.
    slow_noted: whether that request was reported as slow.
    asked: how far the worker was asked to end that request.
    asked_for, leave_by: why the master asked the worker to leave, and its deadline for that.
    killed_for: why the master killed the worker.
    hang_up_at: when the worker is to be told to end idle connections.
    leaving_since: when the master saw that the worker leaves without having been asked.
    unread: the wake-up that the worker has not read yet; None while there is none.
    """

    info: WorkerInfo
    child: Child
    pipes: WorkerPipes
    spawned_at: float
    spread: float = 0.0
    requests_before: int = 0
    ready_at: float | None = None
    proven: bool = False
    request_ns: int = 0
    busy_since: float | None = None
    seen_at: float = 0.0
    slow_noted: bool = False
    asked: Asked = msgspec.field(default_factory=Asked)
    asked_for: ExitCause | None = None
    leave_by: float | None = None
    killed_for: ExitCause | None = None
    hang_up_at: float | None = None
    leaving_since: float | None = None
    dump: Dump = msgspec.field(default_factory=Dump)
    unread: Unread | None = None

    def __str__(self) -> str:
        return str(self.info)

    @property
    def slot(self) -> int:
        """The worker's place in the pool."""
        return self.info.slot

    @property
    def is_ready(self) -> bool:
        """Whether the worker has booted."""
        return self.ready_at is not None

    # --- steps forward

    def note_ready(self, board: Scoreboard, now: float) -> bool:
        """Note that the worker is ready, if it has written so; return whether that was news.

        What counts is the word that the worker itself writes, not the state of its slot. A worker
        that was asked to leave while it booted has the state ``retiring``, and may be ready as
        well.
        """
        if self.is_ready or board.word(self.slot, SlotField.STATE) == WorkerState.STARTING:
            return False
        self.ready_at = now
        return True

    def note_proven(self, now: float) -> bool:
        """Note if the worker has outlived its first moments; return whether that was news."""
        if self.proven or self.ready_at is None or now - self.ready_at < PROVEN:
            return False
        self.proven = True
        return True

    def has_served(self, board: Scoreboard) -> bool:
        """Return whether the worker has taken a request, by what it wrote itself."""
        in_hand = board.word(self.slot, SlotField.REQUEST_NS)
        return bool(in_hand) or board.requests(self.slot) > self.requests_before

    def ask_to_leave(self, cause: ExitCause, leave_by: float) -> None:
        """Note that the worker was asked to leave."""
        self.asked_for, self.leave_by = cause, leave_by

    def note_leaving(self, board: Scoreboard, now: float) -> None:
        """Note if the worker leaves without having been asked, by its own word.

        A worker that leaves never writes another word. But the word may be a stray write of a sibling;
        then the worker writes its state again.
        """
        if self.asked_for is not None or not self.is_ready:
            return
        if board.word(self.slot, SlotField.STATE) != WorkerState.RETIRING:
            self.leaving_since = None
        elif self.leaving_since is None:
            self.leaving_since = now

    def is_away(self, now: float) -> bool:
        """Return whether the worker has been leaving unasked for long."""
        return self.leaving_since is not None and now - self.leaving_since >= LONG_END

    def note_kill(self, cause: ExitCause | None) -> None:
        """Note that the worker was killed. cause: None for that of its retirement."""
        self.killed_for = cause or self.asked_for

    # --- what the policy sees

    def look(self, board: Scoreboard, now: float, now_ns: int) -> None:
        """Note what the worker has written about itself. now_ns: on the monotonic clock."""
        self.note_leaving(board, now)
        self._note_request(board.word(self.slot, SlotField.REQUEST_NS), now, now_ns)

    def view(self, board: Scoreboard, now: float, *, serves_once: bool = False) -> WorkerView:
        """Return what the policy sees of the worker, after ``look()``.

        serves_once: whether a worker takes one request and no other.
        """
        slot = self.slot
        recycle_request = kind_at(board.word(slot, SlotField.RECYCLE_REQUEST) - 1)
        unread = self.unread
        return WorkerView(
            slot=slot,
            ready=self.is_ready,
            idle=board.state(slot) is WorkerState.IDLE,
            generation=self.info.generation,
            spawned_at=self.spawned_at,
            leave_by=self.leave_by,
            busy_since=self.busy_since,
            extension=self._extension(board),
            recycle_request=recycle_request if recycle_request in _RECYCLE_REASONS else None,
            spread=self.spread,
            unread_since=None if unread is None else unread.since,
            stopped=unread is not None and unread.stopped,
            dumped_at=self.dump.dumped_at,
            slow_noted=self.slow_noted,
            cpu_used=self.asked.cpu_used,
            seen_at=now,
            is_unwanted=self.asked.is_unwanted,
            asked=self.asked.flags,
            asked_at=self.asked.at,
            times_asked=self.asked.times,
            has_heard=self._has_heard(board),
            client_looked_at=self.asked.client_looked_at,
            killed=self.killed_for is not None,
            leaving_since=self.leaving_since,
            is_spent=serves_once and self.is_ready and recycle_request is ExitKind.MAX_REQUESTS,
            is_away=self.is_away(now),
        )

    def _note_request(self, request_ns: int, now: float, now_ns: int) -> None:
        if request_ns != self.request_ns:
            # A request that begins later is another one. Where the beginning moves back, the worker was
            # taking this request before (accounting.watched_take()), and the time goes on.
            is_same = 0 < request_ns < self.request_ns
            self.request_ns = request_ns
            if not is_same:
                self._begin_request(now, now_ns)
        self.seen_at = now

    def _begin_request(self, now: float, now_ns: int) -> None:
        self.slow_noted, self.busy_since, self.asked = False, None, Asked()
        if self.request_ns:
            # The request began after the previous look. Time in which the master did not run does not
            # count, nor an earlier beginning that a worker may claim.
            age = min(max(0.0, (now_ns - self.request_ns) / 1e9), now - self.seen_at)
            self.busy_since = now - age

    def _has_heard(self, board: Scoreboard) -> bool:
        """Return whether the worker reports that it has raised all that it was asked for."""
        flags = self.asked.flags
        heard = flags_in(board.word(self.slot, SlotField.CANCEL_HEARD), self.request_ns)
        return not flags & ~heard

    def _extension(self, board: Scoreboard) -> float:
        slot = self.slot
        if not self.request_ns or board.word(slot, SlotField.EXTENDED_FOR_NS) != self.request_ns:
            return 0.0
        return min(max(0.0, board.word(slot, SlotField.EXTENSION_NS) / 1e9), LONGEST_EXTENSION)
