"""How one image of the master follows another: what is handed over, and how the new one takes it up."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence

import msgspec

from prefork.host.description import shown
from prefork.host.handover import Inventory, MasterState
from prefork.host.named_socket import SocketName
from prefork.host.process import process
from prefork.reloading.exec import CONTROL_SIGNALS, hand_over
from prefork.reloading.reload import Reload, Step
from prefork.workers import log, system
from prefork.workers.files import identity_of
from prefork.workers.listener import Listener
from prefork.workers.pool.pool import Pool
from prefork.workers.settings import Settings


class Predecessor(msgspec.Struct, frozen=True):
    """What an earlier image of the master has left to this one.

    abandoned: its sockets that no server of this image asked for.
    """

    state: MasterState
    abandoned: list[Listener]


class Succession:
    """Both ends of a reload in one master (its every tick, while it serves).

    predecessor: what an earlier image has left, None in the first one. metrics: where the metrics process listens. state_to_hand_over: returns what this image would leave.
    """

    def __init__(
        self,
        reload: Reload,
        pool: Pool,
        listeners: Sequence[Listener],
        *,
        predecessor: Predecessor | None,
        metrics: str | None,
        state_to_hand_over: Callable[[], MasterState],
    ) -> None:
        self.reload = reload
        self._pool = pool
        self._listeners = listeners
        self._predecessor = predecessor
        self._abandoned = [] if predecessor is None else list(predecessor.abandoned)
        self._metrics = metrics
        self._state_to_hand_over = state_to_hand_over
        self._roll_at_latest = 0.0

    def take_up(self, settings: Settings, now: float) -> None:
        """Have everything in hand again; only now do signals come through (their handlers stand)."""
        if self._predecessor is None:
            return
        process.adopted()
        system.unblock(CONTROL_SIGNALS)
        for key, old, new in _changes(self._predecessor.state.settings, shown(settings)):
            log.event(logging.INFO, "master", "has a changed setting", key=key, old=old, new=new)
        for listener in self._abandoned:
            log.event(logging.INFO, f"listener {listener}", "is not wanted any more")
            listener.close_intake()
        self._roll_at_latest = now + settings.graceful_timeout

    def step(self, now: float) -> None:
        """Go on with a reload that is wanted or under way."""
        if self.reload.rolling:
            self._watch_roll(now)
        elif self.reload.tick(now, self._inventory) is Step.HAND_OVER:
            self._hand_over()

    def may_roll(self, now: float) -> bool:
        """Tell whether workers of before may go: what is queued on sockets that are given up is theirs."""
        if not self._abandoned or not self.reload.rolling:
            return True
        waiting = any(listener.needs_draining() for listener in self._abandoned)
        return not waiting or now >= self._roll_at_latest

    @property
    def handed_over(self) -> tuple[int, ...]:
        """The sockets that the next image's servers take by their address."""
        kept = self.kept
        return tuple(one.fd for one in self._listeners if one.is_socket and one.fd not in kept)

    @property
    def kept(self) -> tuple[int, ...]:
        """The sockets that a program knows by their number."""
        inherited = {one.fd for one in self._listeners if one.is_inherited}
        return tuple(sorted(inherited.union(process.systemd_sockets.still_open())))

    def _inventory(self) -> Inventory:
        pidfile = process.pidfile
        return Inventory(
            sockets=tuple(SocketName.of(fd) for fd in self.handed_over),
            kept=self.kept,
            metrics=self._metrics,
            pidfile=None if pidfile is None else identity_of(pidfile),
        )

    def _watch_roll(self, now: float) -> None:
        pool = self._pool
        fresh = pool.table.count_ready(pool.generation)
        if not fresh and pool.failures.boots:
            # Of the code that is here now no worker starts; those of before are left alone.
            pool.generation -= 1
            self.reload.fail("the first new worker did not start", pool.failures.last_report)
        elif fresh and not pool.table.has_older(pool.generation) and self.may_roll(now):
            self.reload.succeed(pool.generation)
            self._close_abandoned()

    def _close_abandoned(self) -> None:
        for listener in self._abandoned:
            listener.remove_path()
            os.close(listener.fd)
        self._abandoned = []

    def _hand_over(self) -> None:
        """Become the new code; returns only if that cannot be."""
        self._pool.call_hook("on_reload")
        for handler in log.logger.handlers:
            handler.flush()
        try:
            hand_over(self._state_to_hand_over())
        except OSError as error:
            self.reload.fail(f"the program cannot be run again: {error.strerror}")


def floor_after(before: MasterState | None, settings: Settings) -> int:
    """Return the number of workers to keep: what TTIN and TTOU made of it, unless the setting has changed."""
    if before is not None and settings.workers == before.floor_set:
        return min(before.floor, settings.max_children)
    return settings.workers


def _changes(before: dict[str, str], now: dict[str, str]) -> list[tuple[str, str, str]]:
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return [(key, before.get(key, "-"), now.get(key, "-")) for key in keys]
