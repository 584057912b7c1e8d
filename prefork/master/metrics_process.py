"""The metrics process as the master keeps it: forked, watched, replaced, and ended last (master).

The metrics process is no worker: it has no slot, and ``max_children`` does not count it. It writes
a sign of life to an eventfd every second. The master kills it when these signs stop, because a
process that hangs or was stopped answers no client either.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import select
import signal
import threading
from enum import Enum, auto

import msgspec

from prefork.host.endpoint import Endpoint, is_same_place
from prefork.host.handover import MetricsState
from prefork.host.process import process
from prefork.master.metrics_main import LEAVE, MetricsSpec, live
from prefork.workers import forks, log, system
from prefork.workers.pool.failures import backoff
from prefork.workers.pool.pool import Pool
from prefork.workers.scoreboard import PoolField
from prefork.workers.spec import WorkerSpec
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


class Act(Enum):
    """What to do about the metrics process now."""

    NOTHING = auto()
    START = auto()
    KILL = auto()


class Record(msgspec.Struct, frozen=True):
    """What the master knows of the metrics process. Instants are seconds on the master's clock.

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


class MetricsProcess:
    """Keeps the metrics process of one pool. Where the setting ``metrics`` is off there is none.

    The constructor binds the address. It raises SettingsError for a text that is no address, and
    BindError for an address that cannot be bound. poll: where the master waits; the end of the
    process wakes it there.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        poll: select.epoll,
        *,
        previous: MetricsState | None = None,
        system: System = system,
    ) -> None:
        self._spec = spec
        self._system = system
        self._poll = poll
        self._record = Record()
        self._child: Child | None = None
        self._forking: int | None = None
        self._replacing = False
        """Whether the process is that of an earlier image, which has to leave."""
        self._beat = -1
        with forks.lock:
            self._endpoint = _endpoint(spec.settings.metrics, previous)
            if self._endpoint is not None:
                self._beat = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._on_list = forks.add(self._let_go_in_child)
        if previous is not None and previous.child is not None:
            self._child, self._replacing = previous.child, True
            self._system.adopt(self._child)
            self._record = Record(running=True)
            self._poll.register(self._child.pidfd, select.EPOLLIN)

    def replace_previous(self, now: float) -> None:
        """Ask the metrics process of an earlier image to leave, once this image has adopted all.

        Until then it answers: if this image fails, the next attempt takes some time. Until the next
        process runs, clients wait in the queue of the socket.
        """
        if self._child is not None and self._replacing:
            # It gives no sign of life any more. Where it does not leave, it is killed END_BOUND
            # from now.
            self._record = self._record.heard(now - SILENCE + END_BOUND)
            self._system.send(self._child, LEAVE)

    def handover_state(self) -> MetricsState | None:
        """Return what the next image of the master needs to go on answering."""
        if self._endpoint is None:
            return None
        folder = self._spec.metrics_dir
        return MetricsState(
            self._endpoint.address,
            self._endpoint.fd,
            self._child,
            title=_title(self._spec, self._endpoint),
            metrics_dir=None if folder is None else os.fsencode(folder),
            umask=self._spec.settings.umask,
            credentials=self._spec.credentials,
        )

    @property
    def endpoint(self) -> Endpoint | None:
        """What the metrics process answers on; None where there is none."""
        return self._endpoint

    @property
    def address(self) -> str | None:
        """Where the metrics process listens, with the real port; None where there is none."""
        return None if self._endpoint is None else self._endpoint.address

    def _let_go_in_child(self) -> None:
        # A child has the thread that has forked it, and with it the thread's number. The child of
        # the thread that is forking the metrics process is the metrics process, which keeps these.
        if self._endpoint is not None and self._forking != threading.get_ident():
            forks.close((self._endpoint.fd, self._beat))

    def tick(self, pool: Pool, now: float) -> None:
        """Look after the metrics process, without waiting. now: the master's clock."""
        if self._endpoint is None:
            self._collect(pool)  # a reload that has switched metrics off leaves one to collect
            return
        self._hear(now)
        self._collect(pool)
        match decide(self._record, now):
            case Act.START:
                self._start(self._endpoint, pool, now)
            case Act.KILL:
                self._kill()
            case Act.NOTHING:
                pass

    def stop(self) -> None:
        """End the metrics process and collect it. Waits END_BOUND and a moment at most."""
        if self._child is None:
            return
        self._system.send(self._child, LEAVE)
        if not self._system.wait_for_all([self._child], END_BOUND):
            self._system.send(self._child, signal.SIGKILL)
            self._system.wait_for_end(self._child)
        self._system.collect(self._child)
        self._forget_child()

    def close(self) -> None:
        """Release the address. The process has ended by now."""
        with forks.lock:
            forks.remove(self._on_list)
            if self._endpoint is not None:
                self._endpoint.close()
                os.close(self._beat)
                self._endpoint = None

    def _hear(self, now: float) -> None:
        if self._child is None or not self._drain_beat():
            return
        if self._record.heard_at is None:
            log.event(logging.INFO, str(self), "ready", address=self.address)
        self._record = self._record.heard(now)

    def _drain_beat(self) -> bool:
        with contextlib.suppress(BlockingIOError):
            return os.eventfd_read(self._beat) > 0
        return False

    def _collect(self, pool: Pool) -> None:
        if self._child is None or (status := self._system.collect(self._child)) is None:
            return
        subject = str(self)
        self._forget_child()
        self._record = self._record.ended()
        pool.board.set_pool(PoolField.METRICS_PID, 0)
        replaced, self._replacing = self._replacing, False
        if self._record.failures <= 1 and not replaced:  # one line for a row of failures
            log.event(logging.ERROR, subject, "exited", cause=cause_of(status))

    def _start(self, endpoint: Endpoint, pool: Pool, now: float) -> None:
        self._record = self._record.started(now)
        self._drain_beat()  # signs of life of the previous process
        spec = MetricsSpec(
            worker_spec=self._spec,
            link=pool.link,
            listener=endpoint.fd,
            beat=self._beat,
            title=_title(self._spec, endpoint),
        )
        (self._child,), error = self._fork(spec)
        if self._child is None:
            self._record = self._record.ended()
            if self._record.failures == 1:
                log.event(logging.ERROR, str(self), "fork failed, retrying", error=error)
            return
        self._poll.register(self._child.pidfd, select.EPOLLIN)
        pool.board.set_pool(PoolField.METRICS_PID, self._child.pid)
        pool.board.count_pool(PoolField.METRICS_STARTS)

    def _fork(self, spec: MetricsSpec) -> tuple[list[Child | None], OSError | None]:
        self._forking = threading.get_ident()
        try:
            return self._system.fork_children([functools.partial(live, spec)])
        finally:
            self._forking = None

    def _kill(self) -> None:
        if self._child is not None:
            log.event(logging.ERROR, str(self), "gives no sign of life, killed")
            self._system.send(self._child, signal.SIGKILL)
            self._record = msgspec.structs.replace(self._record, killed=True)

    def _forget_child(self) -> None:
        if self._child is not None:
            self._poll.unregister(self._child.pidfd)
            self._system.release(self._child)
            self._child = None

    def __str__(self) -> str:
        return "metrics" if self._child is None else f"metrics pid={self._child.pid}"


def _title(spec: WorkerSpec, endpoint: Endpoint) -> str:
    name = f"[{spec.settings.name}] " if spec.settings.name else ""
    return f"prefork: metrics {name}{endpoint.address}"


def cause_of(status: ExitStatus) -> ExitCause:
    """Return the cause that the log names for a process that is no worker."""
    if status.signal is not None:
        return ExitCause(ExitKind.KILLED, status.signal)
    return ExitCause(ExitKind.EXITED, status.code)


def _endpoint(address: str | None, previous: MetricsState | None) -> Endpoint | None:
    """Return where to answer: the previous socket if it has the wanted address, or a new one."""
    if previous is None:
        return None if address is None else Endpoint(address)
    kept = Endpoint(previous.address, previous.fd)
    if address is not None and is_same_place(address, kept.address):
        return kept
    # Should this image fail before it has adopted everything, the next attempt needs the old socket.
    new = None if address is None else Endpoint(address)
    process.close_after_handover(kept.close)
    return new
