"""How the pool follows the limits of its machine or container while it runs (pure).

The CPU quota, the affinity and the memory limit of a running process can change: Kubernetes resizes
a pod in place, an operator moves a service to other CPUs. The master looks at them once a second
(``box_watch.py``). This module decides what a look means for the number of workers.

**Hysteresis.** A quota may flap, and to fork and to retire workers costs more than to wait. So the
number rises when RISE looks in a row allow more, to the least of what these looks allow. The number
falls when FALL looks in a row allow less, to the most of what these looks allow. A quota that changes
from second to second moves nothing, and a single look never counts.

**Memory** bounds how far the number rises: each further worker must fit below the limit, with
RESERVE of it left. Memory lets the number fall only if the limit is lower than it was when the
master began. Workers that have grown below an unchanged limit are what ``max_memory`` is for.
"""

from __future__ import annotations

import msgspec

RISE = 3
"""Looks in a row that have to allow more workers."""

FALL = 15
"""Looks in a row that have to allow fewer workers."""

RESERVE = 0.1
"""The share of a memory limit that is to stay free."""


class MemoryUse(msgspec.Struct, frozen=True):
    """What the memory limit means for the workers there are.

    limit: bytes that the container may use. used: bytes that it uses and that the kernel cannot take
    back by dropping caches. private: what one worker has of its own, more than 0. live: how many
    workers there are.
    """

    limit: int
    used: int
    private: int
    live: int

    @property
    def fits(self) -> int:
        """How many workers of this size fit below the limit, with RESERVE left; at least 1."""
        left = self.limit * (1 - RESERVE) - self.used
        return max(1, self.live + int(left // self.private))


class Following(msgspec.Struct, frozen=True):
    """What the policy remembers from one look to the next.

    size: the number of workers for the limits that the pool follows now. looks: the numbers that the
    last looks allowed, the oldest first.
    """

    size: int
    looks: tuple[int, ...] = ()


def allowed(size: int, cpus: int, memory: MemoryUse | None, *, is_tight: bool) -> int:
    """Return how many workers one look allows: one for each CPU, as far as memory lets them be.

    size: the number that the pool follows now. memory: None if no limit is known. is_tight: whether
    the memory limit is lower than when the master began.
    """
    if memory is None:
        return cpus
    return min(cpus, memory.fits if is_tight else max(size, memory.fits))


def follow(before: Following, look: int) -> Following:
    """Return what the pool follows after one more look."""
    looks = (*before.looks, look)[-FALL:]
    last = looks[-RISE:]
    size = before.size
    if len(last) == RISE and min(last) > size:
        size = min(last)
    elif len(looks) == FALL and max(looks) < size:
        size = max(looks)
    return Following(size, looks)
