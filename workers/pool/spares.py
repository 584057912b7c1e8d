"""How many workers load asks for (pure): fast to grow, slow to shrink.

Growing goes by the workers that are idle now, those that start counted as idle, so that slow
imports cause no storm of forks. Shrinking goes by the least number of idle workers over a window:
the kernel hands clients to all workers in turn, so that no single one is idle for long.
"""

from __future__ import annotations

import math

import msgspec

from prefork.workers.settings import Settings

GROWTH_CAP = 32
"""Most workers added at once: Apache's top rate."""

GROWTH_CALM = 1.0
"""Seconds without growth after which it begins with one worker again."""

WINDOW = 15
"""Whole seconds that a surplus of idle workers has to last: 5 meant four times as many forks under steady load."""


class Load(msgspec.Struct, frozen=True):
    """What the policy sees of the load.

    idle: workers that are ready, stay and have no request. starting: those that are not ready yet.
    affordable: how many workers more the memory that is left can bear; None when nobody looked.
    oom_killed: workers that the kernel has killed because of low memory since the last decision.
    waiting: the kernel's queue is not empty.
    """

    idle: int
    starting: int
    waiting: bool = False
    affordable: int | None = None
    oom_killed: int = 0


class Spares(msgspec.Struct, frozen=True):
    """What the policy remembers of the load from one decision to the next.

    size: workers wanted. step: how many were added the last time. grown_at: when that was.
    minima: the least number of idle workers in each of the last whole seconds, oldest first.
    least: that of the running second, which began at ``second``. at_ceiling: more were wanted
    than ``max_children`` allows. refused: workers not added because of low memory, this time.
    """

    size: int
    step: int = 0
    grown_at: float = -math.inf
    minima: tuple[int, ...] = ()
    least: int = 0
    second: float = -math.inf
    at_ceiling: bool = False
    refused: int = 0


def follow_load(spares: Spares, load: Load, floor: int, settings: Settings, now: float) -> Spares:
    """Return how many workers are wanted from now on, between the floor and ``max_children``."""
    if settings.min_spare is None:
        return Spares(floor)
    if load.starting and now - spares.grown_at < GROWTH_CALM:
        # A step that boots is not over: with boots of a second growth would not double.
        spares = msgspec.structs.replace(spares, grown_at=now)
    spares = _watch(spares, load, now)
    # What the kernel had to kill because of low memory is not put back: it would be killed again.
    size = max(floor, spares.size - load.oom_killed)
    spares = msgspec.structs.replace(spares, size=size, refused=0)
    if wants_growth(load, settings):
        return _grow(spares, load, settings, now)
    at_ceiling = spares.at_ceiling and spares.size >= settings.max_children
    spares = msgspec.structs.replace(spares, at_ceiling=at_ceiling)
    return _shrink(spares, floor, settings)


def wants_growth(load: Load, settings: Settings) -> bool:
    """Tell whether there are fewer idle workers than wanted, those that start included."""
    return settings.min_spare is not None and load.idle + load.starting < settings.min_spare


def _watch(spares: Spares, load: Load, now: float) -> Spares:
    """Keep the least number of idle workers of each second."""
    if now < spares.second + 1.0:
        return msgspec.structs.replace(spares, least=min(spares.least, load.idle))
    minima = (*spares.minima, spares.least)[-WINDOW:] if spares.second > -math.inf else ()
    return msgspec.structs.replace(spares, minima=minima, least=load.idle, second=now)


def _grow(spares: Spares, load: Load, settings: Settings, now: float) -> Spares:
    room = settings.max_children - spares.size
    step = min(GROWTH_CAP, 2 * spares.step) if now - spares.grown_at < GROWTH_CALM else 1
    if not load.waiting:
        # Nobody waits: the reserve is filled up. The last step of a doubling would be for nobody.
        step = min(GROWTH_CAP, (settings.min_spare or 0) - load.idle - load.starting)
    wanted = min(max(1, step), room)
    if wanted <= 0:
        return msgspec.structs.replace(spares, at_ceiling=True)
    affordable = wanted if load.affordable is None else min(wanted, load.affordable)
    grown = msgspec.structs.replace(spares, refused=wanted - affordable, at_ceiling=False)
    if affordable == 0:
        return grown
    return msgspec.structs.replace(
        grown, size=spares.size + affordable, step=affordable, grown_at=now, minima=()
    )


def _shrink(spares: Spares, floor: int, settings: Settings) -> Spares:
    """Let one go where a surplus has lasted; the next one a second later at the earliest."""
    surplus = len(spares.minima) == WINDOW and min(spares.minima) > settings.most_spare
    if not surplus or spares.size <= floor:
        return spares
    # One less of them is idle from now on, in the seconds that were counted before, too.
    minima = tuple(least - 1 for least in spares.minima)[1:]
    return msgspec.structs.replace(
        spares, size=spares.size - 1, minima=minima, least=spares.least - 1, at_ceiling=False
    )
