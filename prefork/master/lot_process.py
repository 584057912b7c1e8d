"""The lot as the master keeps it: forked, watched, replaced, handed over at a reload (master).

The lot is a supervised process (supervised.py). Unlike the metrics process it lives through a reload, with all the connections that it holds. The master owns the links
between workers and lot, so that a lot that has died can be replaced under the workers' feet: they
send to the same link, and what they have sent meanwhile waits in it.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import logging
import os
import select
import socket
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import msgspec

from prefork.host.handover import LotState
from prefork.host.process import process
from prefork.master.supervised import Record, SupervisedProcess
from prefork.parking.lot_main import (
    LEAVE,
    RESERVE,
    Limits,
    LotSpec,
    descriptors_allowed,
    live,
)
from prefork.workers import forks, log, system
from prefork.workers.errors import SettingsError
from prefork.workers.listener import Kind, Listener
from prefork.workers.parking import Link, ResumeQueue
from prefork.workers.pool.pool import Pool
from prefork.workers.scoreboard import PoolField
from prefork.workers.settings import Settings
from prefork.workers.spec import WorkerSpec
from prefork.workers.system import System

MOST_PARKED: Final = 10_000
"""Parked connections at a time, where neither ``max_parked`` nor the limit of descriptors says less."""

START_INTERVAL: Final = 0.2
"""Seconds between two starts of a lot, at least."""

DRAIN_BOUND: Final = 1.0
"""Seconds that the lot has at a stop for giving back the connections whose clients have spoken."""


def can_park(server: Any) -> bool:
    """Return whether the handlers of a server park their connections."""
    handler = getattr(server, "RequestHandlerClass", None)
    handler = getattr(handler, "func", handler)  # a functools.partial of a class
    return bool(getattr(handler, "can_park", False) or getattr(server, "park_new", False))


def limits_of(settings: Settings) -> Limits:
    """Return what the lot is bounded by: what the settings ask for, and what the kernel allows."""
    most = min(settings.max_parked or MOST_PARKED, _most_allowed())
    return Limits(most, settings.park_timeout or None)


def refuse_too_many(most: int, source: str) -> None:
    """Raise SettingsError for a ``max_parked`` that the kernel does not allow.

    source: where the value came from.
    """
    if most > (allowed := _most_allowed()):
        reason = (
            f"at most {allowed}: a process of this user may have {descriptors_allowed()} descriptors "
            f"(RLIMIT_NOFILE), of which {RESERVE} are for the lot itself"
        )
        raise SettingsError("max_parked", most, source, reason)


def _most_allowed() -> int:
    return max(1, descriptors_allowed() - RESERVE)


class Links:
    """The links of one pool: one for each listener whose server parks.

    previous: those of an earlier image, by the name of their listener. Made before the workers, and
    closed after them.
    """

    def __init__(self, listeners: Sequence[Listener], previous: Sequence[Link] = ()) -> None:
        self._servers = [one.server for one in listeners]
        known = {one.listener: one for one in previous}
        self.of_listener: dict[int, Link] = {}
        with forks.lock:
            for listener in listeners:
                if listener.kind is Kind.STREAM and can_park(listener.server):
                    link = known.pop(listener.name, None) or Link.make(listener.name)
                    self.of_listener[listener.fd] = link
            self.unclaimed = tuple(known.values())
            """Links of the earlier image whose servers do not park any more."""
            self._on_list = forks.add(_nothing, in_others=self._close_in_others)
        self.queues = [
            ResumeQueue(one, self.of_listener[one.fd].workers_end)
            for one in listeners
            if one.fd in self.of_listener
        ]

    @property
    def all(self) -> tuple[Link, ...]:
        """The links in use."""
        return tuple(self.of_listener.values())

    @property
    def for_workers(self) -> Mapping[int, int]:
        """The workers' end of each link, by the descriptor of the listener."""
        return {fd: link.workers_end for fd, link in self.of_listener.items()}

    def close(self) -> None:
        """Close both ends of all links (master, after the last worker)."""
        with forks.lock:
            forks.remove(self._on_list)
            for link in (*self.all, *self.unclaimed):
                forks.close(link.fds)
            self.of_listener, self.unclaimed = {}, ()

    def keep(self) -> None:
        """Have this process keep the links: it is the lot of this pool (lot process)."""
        forks.remove(self._on_list)

    def _close_in_others(self, servers: Collection[object]) -> None:
        """Close the lot's ends; in a process that is no worker of this pool all (any child)."""
        is_ours = any(server in servers for server in self._servers)
        for link in self.all:
            forks.close((link.lots_end,) if is_ours else link.fds)


def _nothing() -> None:
    """Do nothing: a child of the master keeps the links, because the workers and the lot need them."""


class LotProcess:
    """Keeps the lot of one pool. Without a server that parks there is none.

    poll: where the master waits; the end of the process and its signs of life wake it there.
    previous: the lot of an earlier image of this master.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        links: Links,
        poll: select.epoll,
        *,
        previous: LotState | None = None,
        system: System = system,
    ) -> None:
        self._spec = spec
        self._links = links
        self._process = SupervisedProcess("lot", LEAVE, poll, system)
        self._limits = limits_of(spec.settings) if links.all else None
        self._control: socket.socket | None = None
        self._give_up_at: float | None = None
        self._on_list = forks.add(self._let_go_in_child)
        self._known: set[str] | None = None
        """The listeners whose links the lot of an earlier image has; None where there is none."""
        if previous is not None:
            self._hold(previous)

    def _hold(self, previous: LotState) -> None:
        """Hold the lot of an earlier image, and leave to the next attempt what it would need."""
        if previous.child is None or previous.control is None:
            return  # its lot has died; tick() starts one, which finds what waits in the links
        self._process.hold(previous.child)
        # A duplicate, which may be closed together with this object if this image fails.
        control = fcntl.fcntl(previous.control, fcntl.F_DUPFD_CLOEXEC, 3)
        self._control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, control)
        process.close_after_handover(functools.partial(os.close, previous.control))
        self._known = {one.listener for one in previous.links}

    def adopt(self, now: float) -> None:
        """Go on with the lot of an earlier image, once this image has adopted all that it left.

        Tells the lot the limits and the links that are new, or to leave if no server parks any more.
        """
        for link in self._links.unclaimed:
            ResumeQueue.of_unclaimed(link).close_intake()
        if self._known is None or self._process.child is None or self._control is None:
            return
        self._process.record = Record(running=True, started_at=now, heard_at=now)
        if self._limits is None:
            self._process.ask_to_leave()
            return
        try:
            self._control.send(msgspec.msgpack.encode(self._limits), socket.MSG_DONTWAIT)
            for link in self._links.all:
                if link.listener not in self._known:
                    socket.send_fds(self._control, [b"L"], [link.lots_end], socket.MSG_DONTWAIT)
        except OSError as error:
            what = "cannot be told the settings, replaced"
            log.event(logging.ERROR, str(self._process), what, error=error)
            self._process.kill()

    def handover_state(self) -> LotState | None:
        """Return what the next image of the master needs to go on with the lot; None without one.

        A lot that has just died leaves its links, in which the workers' connections wait.
        """
        if self._process.child is None and not self._links.all:
            return None
        control = None if self._control is None else self._control.fileno()
        return LotState(self._process.child, control, self._links.all)

    def _let_go_in_child(self) -> None:
        if self._control is not None:
            os.close(self._control.detach())

    # --- in every tick

    def tick(self, pool: Pool, now: float, *, draining: bool) -> None:
        """Look after the lot, without waiting. draining: whether the pool serves its queues and leaves."""
        self._collect(pool)
        if self._limits is None:
            return
        self._hear(now)
        self._bound_drain(now, draining=draining)
        start = functools.partial(self._start, pool, self._limits)
        self._process.tick(now, start, interval=START_INTERVAL)

    def stop(self) -> None:
        """End the lot and collect it. Waits END_BOUND and a moment at most."""
        self._process.stop()
        self._close_control()

    def close(self) -> None:
        """Close the links. No worker and no lot is left by now."""
        forks.remove(self._on_list)
        self._links.close()

    def _hear(self, now: float) -> None:
        if self._control is None:
            return
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while self._control.recv(16, socket.MSG_DONTWAIT):
                self._process.note_sign_of_life(now, max_parked=self._most)

    @property
    def _most(self) -> int:
        return 0 if self._limits is None else self._limits.most

    def _bound_drain(self, now: float, *, draining: bool) -> None:
        if not draining:
            return
        if self._give_up_at is None:
            self._give_up_at = now + DRAIN_BOUND
        elif now >= self._give_up_at:
            for queue in self._links.queues:
                queue.give_up()

    def _collect(self, pool: Pool) -> None:
        subject = str(self._process)
        if (status := self._process.collect()) is None:
            return
        self._close_control()
        pool.board.set_pool(PoolField.LOT_PID, 0)
        if self._limits is None:
            return
        lost = max(0, pool.board.pool(PoolField.PARKED))
        pool.board.set_pool(PoolField.PARKED, 0)
        pool.board.set_pool(PoolField.RESUMED_WAITING, 0)
        self._process.log_end(subject, status, connections_lost=lost)

    def _start(self, pool: Pool, limits: Limits) -> None:
        try:
            ours, theirs = socket.socketpair(
                socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK
            )
        except OSError as refused:
            self._process.note_failure(refused)
            return
        with theirs:
            name = f" [{self._spec.settings.name}]" if self._spec.settings.name else ""
            spec = LotSpec(
                worker_spec=self._spec,
                link=pool.link,
                links=self._links.all,
                control=(ours.fileno(), theirs.fileno()),
                limits=limits,
                keep_links=self._links.keep,
                title=f"prefork: lot{name}",
            )
            child = self._process.fork(functools.partial(live, spec))
        if child is None:
            ours.close()
            return
        self._control = ours
        pool.board.set_pool(PoolField.LOT_PID, child.pid)
        pool.board.count_pool(PoolField.LOT_STARTS)

    def _close_control(self) -> None:
        with forks.lock:
            if self._control is not None:
                self._control.close()
                self._control = None
