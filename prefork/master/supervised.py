"""A child of the master that is no worker: forked, watched, killed when it is silent, collected (master).

The metrics process and the lot are such children. Each has no slot, and ``max_children`` does not count
it. Each gives a sign of life every second. The master kills a process whose signs stop, because a
process that hangs or was stopped serves nobody, and replaces one that has ended. What the process is
for, how its signs arrive, and what it needs, is the business of its owner.
"""

from __future__ import annotations

import logging
import select
import signal
from collections.abc import Callable
from enum import Enum, auto
from typing import Any

import msgspec

from prefork.workers import log
from prefork.workers.pool.failures import backoff
from prefork.workers.states import ExitCause, ExitKind, ExitStatus
from prefork.workers.system import Child, System

START_INTERVAL = 1.0
"""Seconds between two starts, at least. A process that has run for longer is replaced at once."""

FAILURE_CAP = 30.0
"""Seconds between two starts, at most, while each process dies before its first sign of life."""

BOOT_BOUND = 15.0
"""Seconds from the fork to the first sign of life. Imports take some 0.2 s of processor time."""

SILENCE = 10.0
"""Seconds without a sign of life after which the process is killed. It gives one every second."""

END_BOUND = 1.0
"""Seconds that the process has for leaving."""


# --- what to do, decided


class Act(Enum):
    """What to do about the process now."""

    NOTHING = auto()
    START = auto()
    KILL = auto()


class Record(msgspec.Struct, frozen=True):
    """What the master knows of the process. Instants are seconds on the master's clock.

    heard_at: the last sign of life; None before the first. failures: how many processes in a row
    ended before their first sign of life.
    """

    running: bool = False
    started_at: float = float("-inf")
    heard_at: float | None = None
    killed: bool = False
    failures: int = 0

    def started(self, now: float) -> Record:
        """Return the record once a process was forked."""
        return Record(running=True, started_at=now, failures=self.failures)

    def heard(self, now: float) -> Record:
        """Return the record once the process has given a sign of life."""
        return msgspec.structs.replace(self, heard_at=now, failures=0)

    def ended(self) -> Record:
        """Return the record once the process has ended, or could not be forked."""
        failures = self.failures + (self.heard_at is None)
        return Record(started_at=self.started_at, failures=failures)


def decide(record: Record, now: float, *, interval: float = START_INTERVAL) -> Act:
    """Return what to do about such a process now (pure). interval: seconds between two starts, at least."""
    if not record.running:
        pause = max(interval, backoff(record.failures, FAILURE_CAP))
        return Act.START if now >= record.started_at + pause else Act.NOTHING
    if record.killed:
        return Act.NOTHING
    if record.heard_at is None:
        return Act.KILL if now >= record.started_at + BOOT_BOUND else Act.NOTHING
    return Act.KILL if now >= record.heard_at + SILENCE else Act.NOTHING


def cause_of(status: ExitStatus) -> ExitCause:
    """Return the cause that the log names for a process that is no worker."""
    if status.signal is not None:
        return ExitCause(ExitKind.KILLED, status.signal)
    return ExitCause(ExitKind.EXITED, status.code)


# --- done


class SupervisedProcess:
    """The one process of its kind that a pool has, or the place for it while there is none.

    name: its word in the log. leave: the signal that asks it to end. poll: where the master waits; the
    end of the process wakes it there.
    """

    def __init__(self, name: str, leave: int, poll: select.epoll, system: System) -> None:
        self.child: Child | None = None
        self.record = Record()
        self._name = name
        self._leave = leave
        self._poll = poll
        self._system = system

    def hold(self, child: Child) -> None:
        """Hold the process of an earlier image of this master."""
        self.child = child
        self._system.adopt(child)
        self.record = Record(running=True)
        self._poll.register(child.pidfd, select.EPOLLIN)

    def tick(self, now: float, start: Callable[[], None], *, interval: float) -> None:
        """Start or kill the process where that is due. interval: seconds between two starts, at least."""
        match decide(self.record, now, interval=interval):
            case Act.START:
                self.record = self.record.started(now)
                start()
            case Act.KILL:
                log.event(logging.ERROR, str(self), "gives no sign of life, killed")
                self.kill()
            case Act.NOTHING:
                pass

    def fork(self, live: Callable[[set[int]], Any]) -> Child | None:
        """Fork the process; return None where that fails, which is logged. live: its whole life."""
        (child,), error = self._system.fork_children([live])
        if child is None:
            self.note_failure(error)
            return None
        self.child = child
        self._poll.register(child.pidfd, select.EPOLLIN)
        return child

    def note_failure(self, error: OSError | None) -> None:
        """Note that the process could not be started: one line for a row of failures."""
        self.record = self.record.ended()
        if self.record.failures == 1:
            log.event(logging.ERROR, str(self), "fork failed, retrying", error=error)

    def note_sign_of_life(self, now: float, **facts: Any) -> None:
        """Note a sign of life. facts: what the log says of a process that gives its first one."""
        if self.record.heard_at is None:
            log.event(logging.INFO, str(self), "ready", **facts)
        self.record = self.record.heard(now)

    def ask_to_leave(self) -> None:
        """Ask the process to end."""
        if self.child is not None:
            self._system.send(self.child, self._leave)

    def kill(self) -> None:
        """Kill the process; it is collected when it has ended."""
        if self.child is not None:
            self._system.send(self.child, signal.SIGKILL)
            self.record = msgspec.structs.replace(self.record, killed=True)

    def collect(self) -> ExitStatus | None:
        """Return how the process has ended; None while it lives, and where there is none."""
        if self.child is None or (status := self._system.collect(self.child)) is None:
            return None
        self._forget()
        self.record = self.record.ended()
        return status

    def log_end(self, subject: str, status: ExitStatus, **facts: Any) -> None:
        """Log how the process has ended: one line for a row of failures. subject: its name while it lived."""
        if self.record.failures <= 1:
            log.event(logging.ERROR, subject, "exited", cause=cause_of(status), **facts)

    def stop(self) -> None:
        """End the process and collect it. Waits END_BOUND and a moment at most."""
        if self.child is None:
            return
        self.ask_to_leave()
        if not self._system.wait_for_all([self.child], END_BOUND):
            self._system.send(self.child, signal.SIGKILL)
            self._system.wait_for_end(self.child)
        self._system.collect(self.child)
        self._forget()

    def _forget(self) -> None:
        if self.child is not None:
            self._poll.unregister(self.child.pidfd)
            self._system.release(self.child)
            self.child = None

    def __str__(self) -> str:
        return self._name if self.child is None else f"{self._name} pid={self.child.pid}"
