"""The number of workers that the master keeps: what the operator orders, and what load adds (master).

There are two numbers. The *floor* is what TTIN and TTOU move; it begins as the setting ``workers``. The
*size* is what the pool is kept at: the floor, or more while load asks for more. Both stay between 1 and
``max_children``. With ``workers = auto`` the floor follows the limits of the machine or container
(``box.py``), and so does the ceiling if ``max_children`` was not given. The policy decides about the load (``workers/pool/spares.py``); this module carries the
numbers from tick to tick, counts, logs and publishes each change, and calls the hook ``pool_resized()``.
"""

from __future__ import annotations

import logging

import msgspec

from prefork.host.handover import MasterState
from prefork.master.box_watch import BoxWatch
from prefork.workers import log
from prefork.workers.machine import Memory, affordable
from prefork.workers.pool.policy import load_of
from prefork.workers.pool.pool import Pool
from prefork.workers.pool.spares import Spares, wants_growth
from prefork.workers.pool.views import PoolView
from prefork.workers.scoreboard import PoolField
from prefork.workers.settings import Settings, room_for

LOOK_PAUSE = 0.02
"""Seconds after a wake-up in which workers that become busy do not wake the master again.

Under load every request would wake the master otherwise. A pool that grows can wait this long.
"""


class FirstSize(msgspec.Struct, frozen=True):
    """The numbers at which a master begins, in workers.

    floor_set: the setting ``workers`` from which the floor comes; 0 if the floor comes from load.
    """

    floor: int
    floor_set: int
    size: int


def first_size(settings: Settings, previous: MasterState | None) -> FirstSize:
    """Return the numbers at which a master begins (pure).

    previous: what an earlier image has left. The pool keeps the size that it had, whatever the new
    settings say, because the workers that serve are those of the previous code. The new settings
    count when the new code has proved that it can start a worker (``PoolSize.follow_settings()``).
    """
    if previous is None:
        return FirstSize(settings.workers, settings.workers, settings.workers)
    if settings.min_spare is None and previous.size > previous.floor:
        # Load made the pool larger, and the new settings do not follow load.
        return FirstSize(previous.size, 0, previous.size)
    return FirstSize(previous.floor, previous.floor_set, previous.size)


class PoolSize:
    """The floor and the size of one pool. first: where they begin."""

    def __init__(self, pool: Pool, first: FirstSize) -> None:
        self.floor = first.floor
        self.floor_set = first.floor_set
        """The setting ``workers`` from which the floor comes; 0 if the floor comes from load."""
        self.spares = Spares(first.size)
        self.settings = pool.spec.settings
        """The settings, with ``workers`` and ``max_children`` as they hold now."""
        self._pool = pool
        self._memory = Memory()
        self._box: BoxWatch | None = None
        if "workers" in self.settings.automatic:
            self._box = BoxWatch(self.settings.workers, pool.table, memory=self._memory)
        self._announced_bound: int | None = None
        self._look_again_at = 0.0

    def move_floor(self, change: int, why: str) -> None:
        """Move the floor by this many workers, as far as 1 or ``max_children``. why: for log and hook.

        A floor at one of these limits is logged once, until it leaves the limit.
        """
        wanted = self.floor + change
        floor = max(1, min(wanted, self.settings.max_children))
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

    def follow_settings(self) -> None:
        """Take over the setting ``workers`` of new code, whose first worker is ready.

        If the setting is as before, the floor stays what TTIN and TTOU have made of it.
        """
        if self.floor_set == self.settings.workers:
            return
        old, self.floor = self.floor, self.settings.workers
        self.floor_set = self.settings.workers
        self.spares = msgspec.structs.replace(self.spares, size=max(self.floor, self.spares.size))
        if self.floor != old:
            self._announce(old, self.floor, "reload")

    def look_at_box(self, now: float, *, serving: bool) -> None:
        """Have the floor and the ceiling follow the limits of the machine or container, if they are automatic.

        serving: whether the pool is kept at its size, and no reload is under way.
        """
        if self._box is not None and serving and self._box.look(now):
            self._follow_box(self._box.following.size, self._box.reason)

    def _follow_box(self, fit: int, reason: str) -> None:
        """Take over the number of workers that the limits allow.

        A floor that TTIN and TTOU have moved stays, because an order is worth more than a guess. It
        follows the limits again from the moment at which both are equal.
        """
        slots, before = self._pool.table.size, self.settings
        ceiling = before.max_children
        if "max_children" in before.automatic:
            room = room_for(fit, follows_load=before.min_spare is not None)
            ceiling = min(slots, room)
        fit = max(1, min(fit, ceiling))
        old, is_ordered = self.floor, self.floor != self.floor_set
        self.settings = msgspec.structs.replace(before, workers=fit, max_children=ceiling)
        self.floor_set = fit
        self.floor = min(old, ceiling) if is_ordered else fit
        size = min(ceiling, max(self.floor, self.spares.size))
        self.spares = msgspec.structs.replace(self.spares, size=size)
        change = self.floor - old
        if change:
            by_box = PoolField.SCALED_UP_BY_BOX if change > 0 else PoolField.SCALED_DOWN_BY_BOX
            self._pool.board.count_pool(by_box, abs(change))
        if change or ceiling != before.max_children:
            log.event(
                logging.INFO,
                "master",
                "resized",
                old=old,
                new=self.floor,
                why="box",
                reason=reason,
                max_children=ceiling,
            )
            self._pool.call_hook("pool_resized", old, self.floor, "box")

    def follow(self, spares: Spares) -> None:
        """Take over what the policy has decided about the load."""
        before, self.spares = self.spares, spares
        if self.settings.min_spare is None:
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
            log.event(logging.WARNING, "master", "has reached max_children", workers=spares.size)
        change = spares.size - before.size
        if change:
            by_load = PoolField.SCALED_UP_BY_LOAD if change > 0 else PoolField.SCALED_DOWN_BY_LOAD
            board.count_pool(by_load, abs(change))
            self._announce(before.size, spares.size, "load")

    def look_at_memory(self, view: PoolView) -> PoolView:
        """Return the view with the number of workers that memory allows, if load asks for more workers.

        Reading the memory of processes is slow, so it is read only then.
        """
        load = load_of(view)
        if not wants_growth(load, self.settings):
            return view
        left = affordable(self._memory, self._pool.table.ready_pids, load.starting)
        return msgspec.structs.replace(view, affordable=left)

    def was_woken(self, now: float) -> None:
        """Note that the master was woken, perhaps by a worker that has become busy."""
        self._look_again_at = now + LOOK_PAUSE

    def watch(self, now: float, *, serving: bool) -> float | None:
        """Publish whether a worker that becomes busy wakes the master; return when to look again.

        Workers wake the master only while the pool can grow, and not within LOOK_PAUSE of the last
        time. serving: the pool is kept at its size. Return None if there is no instant to wait for.
        """
        can_grow = (
            self.settings.min_spare is not None
            and serving
            and self.spares.size < self.settings.max_children
        )
        pausing = now < self._look_again_at
        self._pool.board.set_pool(PoolField.WATCH, can_grow and not pausing)
        return self._look_again_at if can_grow and pausing else None

    def publish(self, *, were_ready: bool) -> None:
        """Put the numbers on the scoreboard. were_ready: all first workers have been ready once."""
        board = self._pool.board
        board.set_pool(PoolField.FLOOR, self.floor)
        board.set_pool(PoolField.TARGET, self.spares.size)
        board.set_pool(PoolField.CEILING, self.settings.max_children)
        board.set_pool(PoolField.USABLE_CPUS, 0 if self._box is None else self._box.cpus)
        # A pool is ready at first when all its workers are. Later on half of them are enough: a worker
        # that is being replaced does not make the pool unready.
        board.set_pool(PoolField.NEEDED, max(1, self.floor // 2) if were_ready else self.floor)

    def _announce(self, old: int, new: int, why: str) -> None:
        log.event(logging.INFO, "master", "resized", old=old, new=new, why=why)
        self._pool.call_hook("pool_resized", old, new, why)
