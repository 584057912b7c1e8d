"""How many workers the master keeps: what the operator wants, what load adds, and what is told of it."""

from __future__ import annotations

import logging

import msgspec

from prefork.workers import log
from prefork.workers.machine import Memory, affordable
from prefork.workers.pool.policy import load_of
from prefork.workers.pool.pool import Pool
from prefork.workers.pool.spares import Spares, wants_growth
from prefork.workers.pool.views import PoolView
from prefork.workers.scoreboard import PoolField
from prefork.workers.settings import Settings

LOOK_PAUSE = 0.02
"""Seconds for which workers that leave the idle tell nothing, after one has: what a pool that grows may take."""


class PoolSize:
    """The size of one pool (master). floor: the number to keep. size: with what load has added."""

    def __init__(self, settings: Settings, pool: Pool, floor: int, size: int) -> None:
        self.floor = floor
        self.spares = Spares(size)
        self._settings = settings
        self._pool = pool
        self._memory = Memory()
        self._announced_bound: int | None = None
        self._look_again_at = 0.0

    def move_floor(self, change: int, why: str) -> None:
        """Keep more or fewer workers from now on, between 1 and ``max_children``."""
        wanted = self.floor + change
        floor = max(1, min(wanted, self._settings.max_children))
        if floor not in (wanted, self._announced_bound):
            self._announced_bound = floor
            log.event(logging.WARNING, "master", "already at its limit", workers=floor, why=why)
        if floor == self.floor:
            return
        if floor == wanted:
            self._announced_bound = None
        old, self.floor = self.floor, floor
        self.spares = msgspec.structs.replace(self.spares, size=max(floor, self.spares.size))
        by_signal = PoolField.SCALED_UP_BY_SIGNAL if change > 0 else PoolField.SCALED_DOWN_BY_SIGNAL
        self._pool.board.count_pool(by_signal, abs(floor - old))
        self._announce(old, floor, why)

    def follow(self, spares: Spares) -> None:
        """Take what the policy has decided of the load."""
        before, self.spares = self.spares, spares
        if self._settings.min_spare is None:
            return
        board = self._pool.board
        board.count_pool(PoolField.GROWTH_REFUSED, spares.refused)
        if spares.refused and not before.refused:
            log.event(
                logging.WARNING,
                "master",
                "does not grow because of low memory",
                workers=spares.size,
            )
        if spares.at_ceiling and not before.at_ceiling:
            board.count_pool(PoolField.CEILING_REACHED)
            log.event(logging.WARNING, "master", "is at max_children", workers=spares.size)
        change = spares.size - before.size
        if change:
            by_load = PoolField.SCALED_UP_BY_LOAD if change > 0 else PoolField.SCALED_DOWN_BY_LOAD
            board.count_pool(by_load, abs(change))
            self._announce(before.size, spares.size, "load")

    def look_at_memory(self, view: PoolView) -> PoolView:
        """Look how many workers more there is memory for, but only when more are wanted."""
        load = load_of(view)
        if not wants_growth(load, self._settings):
            return view
        left = affordable(self._memory, self._pool.table.ready_pids, load.starting)
        return msgspec.structs.replace(view, affordable=left)

    def was_woken(self, now: float) -> None:
        """Note that somebody has woken the master; a worker that left the idle, perhaps."""
        self._look_again_at = now + LOOK_PAUSE

    def watch(self, now: float, *, serving: bool) -> float | None:
        """Have workers tell when they leave the idle, but not all the time; return when to look again."""
        can_grow = (
            self._settings.min_spare is not None
            and serving
            and self.spares.size < self._settings.max_children
        )
        pausing = now < self._look_again_at
        self._pool.board.set_pool(PoolField.WATCH, can_grow and not pausing)
        return self._look_again_at if can_grow and pausing else None

    def publish(self, *, were_ready: bool) -> None:
        """Put it on the scoreboard. were_ready: the first workers have been ready once."""
        board = self._pool.board
        board.set_pool(PoolField.FLOOR, self.floor)
        board.set_pool(PoolField.TARGET, self.spares.size)
        # All of them at first; later on half a pool still serves, and one that is replaced does not matter.
        board.set_pool(PoolField.NEEDED, max(1, self.floor // 2) if were_ready else self.floor)

    def _announce(self, old: int, new: int, why: str) -> None:
        log.event(logging.INFO, "master", "resized", old=old, new=new, why=why)
        self._pool.call_hook("pool_resized", old, new, why)
