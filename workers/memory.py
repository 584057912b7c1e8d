"""How much memory is left for workers, what one of them costs, and whether the kernel ran out of it.

Read by the master, a few small files each time; nothing here raises.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
from pathlib import Path

import msgspec

from prefork.workers.cgroups import MOUNT, PROC, Group, groups, read

_UNLIMITED = 1 << 60
"""Version 1 writes a number near 2**63 for no limit."""


class Memory(msgspec.Struct, frozen=True):
    """This machine's memory, or the part of it that the process's cgroups allow.

    proc, mount: where to look (tests give captured trees).
    """

    proc: Path = PROC
    mount: Path = MOUNT

    def left(self) -> int | None:
        """Return the bytes that can still be used here; None when nothing tells."""
        lefts = [self._left_of_machine(), *map(_left_of, groups("memory", self.proc, self.mount))]
        return min((left for left in lefts if left is not None), default=None)

    def oom_kills(self) -> int:
        """Return how often the kernel has killed for want of memory, here or, if nothing tells, anywhere."""
        for group in groups("memory", self.proc, self.mount):
            name = "memory.events" if group.version == 2 else "memory.oom_control"
            if (kills := group.table(name).get("oom_kill")) is not None:
                return kills
        words = read(self.proc / "vmstat").split()
        return int(words[words.index("oom_kill") + 1]) if "oom_kill" in words else 0

    def private(self, pid: int) -> int | None:
        """Return the private bytes of a process (USS); None when it is gone or may not be looked at."""
        text = read(self.proc / str(pid) / "smaps_rollup")
        return sum(_kilobytes(text, "Private_")) * 1024 if text else None

    def _left_of_machine(self) -> int | None:
        text = read(self.proc / "meminfo")
        return next((number * 1024 for number in _kilobytes(text, "MemAvailable")), None)


def _left_of(group: Group) -> int | None:
    version_2 = group.version == 2
    limit = group.number("memory.max" if version_2 else "memory.limit_in_bytes")
    usage = group.number("memory.current" if version_2 else "memory.usage_in_bytes")
    if limit is None or usage is None or limit >= _UNLIMITED:
        return None
    stat = group.table("memory.stat")
    prefix = "" if version_2 else "total_"
    # What caches files is counted as used and given back when it is wanted.
    cache = stat.get(f"{prefix}inactive_file", 0) + stat.get(f"{prefix}active_file", 0)
    return max(0, limit - usage + cache)


def _kilobytes(text: str, prefix: str) -> Iterator[int]:
    for line in text.splitlines():
        if line.startswith(prefix):
            words = line.split()
            if len(words) > 1 and words[1].isdigit():
                yield int(words[1])


LEAST_PRIVATE = 1 << 20
"""Bytes that a worker is taken to need at least: one just forked has hardly touched anything."""


def affordable(memory: Memory, ready: Collection[int], starting: int) -> int | None:
    """Return how many workers more the memory can bear; None when nothing tells (master).

    ready: the pids of workers, of which one is taken for what they all cost. starting: workers
    that have not taken their share of what is left yet. A look costs some 0.1 ms.
    """
    left = memory.left()
    if left is None:
        return None
    sizes = (memory.private(pid) for pid in itertools.islice(ready, 1))
    size = max((size for size in sizes if size is not None), default=0)
    return max(0, left // max(LEAST_PRIVATE, size) - starting)


CREDIT_TIME = 2.0
"""Seconds after which a kill for want of memory that fits no dead worker was somebody else's."""


class OomAttribution:
    """Tells of which dead worker the kernel's counter speaks (master)."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._seen = memory.oom_kills()
        self._credit = 0
        self._credit_until = 0.0

    def accuses(self, now: float) -> bool:
        """Say whether the kernel has killed for want of memory just now; each of its kills counts once.

        Asked for a worker that ended by a SIGKILL which was not the master's.
        """
        kills = self._memory.oom_kills()
        fresh, self._seen = kills - self._seen, kills
        if fresh > 0:
            self._credit, self._credit_until = fresh, now + CREDIT_TIME
        if self._credit <= 0 or now > self._credit_until:
            return False
        self._credit -= 1
        return True
