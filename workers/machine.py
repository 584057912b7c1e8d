"""What this machine or container allows: CPUs and memory, read from /proc and control groups.

The kernel reports the resources of the whole machine to every process, also to one in a container.
The bounds of the container stand in its control groups: directories under /sys/fs/cgroup, each of
which may bound a resource for all processes in it. A group lies within its parent, so that the
tightest bound of a group and its ancestors holds. There are two versions of control groups, with
different file names; both may be mounted at the same time.

The master reads these few small files; a worker reads its own private memory. A file that is
missing or unreadable means that nothing is known: nothing here raises.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

import msgspec

PROC = Path("/proc")
MOUNT = Path("/sys/fs/cgroup")


def _read(path: Path) -> str:
    """Return the text of a small file, "" when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


# --- control groups ------------------------------------------------------------------------------

_MOUNTS: dict[int, dict[str, tuple[str, ...]]] = {
    1: {"cpu": ("cpu", "cpu,cpuacct"), "memory": ("memory",)},
    2: {"cpu": ("", "unified"), "memory": ("", "unified")},
}
"""The directories below the mount point that hold the groups of a controller, by version."""


class Group(msgspec.Struct, frozen=True):
    """A control group that may bound this process: its own one, or an ancestor. version: 1 or 2."""

    version: int
    directory: Path

    def text(self, name: str) -> str:
        """Return the text of a file of the group, "" where there is none."""
        return _read(self.directory / name)

    def number(self, name: str) -> int | None:
        """Return the number in a file; None for no such file and for no number ("max")."""
        text = self.text(name).strip()
        return int(text) if text.isascii() and text.isdigit() else None

    def table(self, name: str) -> dict[str, int]:
        """Return a file whose lines are a word and a number; other lines are left out."""
        words = (line.split() for line in self.text(name).splitlines())
        return {pair[0]: int(pair[1]) for pair in words if len(pair) == 2 and pair[1].isdigit()}


def groups(controller: str, proc: Path = PROC, mount: Path = MOUNT) -> Iterator[Group]:
    """Yield the groups that may bound a resource of this process, from the innermost outwards.

    controller: "cpu" or "memory". proc, mount: where to look; tests pass captured trees.
    """
    # A line for each hierarchy, number:controllers:path. Version 2 names no controllers.
    for line in _read(proc / "self" / "cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            yield from _upwards(2, controller, path, mount)
        elif controller in controllers.split(","):
            yield from _upwards(1, controller, path, mount)


def _upwards(version: int, controller: str, path: str, mount: Path) -> Iterator[Group]:
    # In a container without a cgroup namespace the path is the host's, which does not exist here.
    # The mounted root is the container's own group then. So directories that do not exist are
    # passed over.
    inner = PurePosixPath("/", *(part for part in PurePosixPath(path).parts if part != ".."))
    for name in _MOUNTS[version][controller]:
        for level in (inner, *inner.parents):
            directory = mount / name / level.relative_to("/")
            if directory.is_dir():
                yield Group(version, directory)


# --- CPUs ----------------------------------------------------------------------------------------


class Usable(msgspec.Struct, frozen=True):
    """count: the CPUs to plan for, at least 1. reason: what bounds them, for a log line."""

    count: int
    reason: str


def usable_cpus(proc: Path = PROC, mount: Path = MOUNT, affinity: int | None = None) -> Usable:
    """Count the CPUs that this process can use: its affinity, bounded by the groups' CPU quota.

    Without the quota a container of two CPUs on a machine of 64 would get 64 workers that throttle
    each other. ``os.process_cpu_count()`` does not look at quotas.

    proc, mount, affinity: where to look and what to assume instead of this process; tests pass
    captured trees.
    """
    allowed = affinity if affinity is not None else len(os.sched_getaffinity(0))
    quotas = (_quota(group) for group in groups("cpu", proc, mount))
    quota = min((quota for quota in quotas if quota is not None), default=None)
    if quota is None or quota >= allowed:
        return Usable(max(1, allowed), f"affinity {allowed}, no lower cgroup quota")
    # Rounded up: two workers use all of a quota of 1.5 CPUs, one worker would leave a third of it
    # idle.
    count = max(1, -int(-quota // 1))
    return Usable(count, f"cgroup quota {quota:.4g}, affinity {allowed}")


def _quota(group: Group) -> float | None:
    """Return the quota in CPUs; None where there is no limit ("max", -1) or no such file."""
    if group.version == 2:
        words = group.text("cpu.max").split()
    else:
        words = [group.text(f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    try:
        quota, period = (int(word) for word in words)
    except ValueError:
        return None
    return quota / period if quota > 0 and period > 0 else None


# --- memory --------------------------------------------------------------------------------------

_UNLIMITED = 1 << 60
"""Bytes from which a limit is none: version 1 writes a number near 2**63 for "unlimited"."""


class Memory(msgspec.Struct, frozen=True):
    """The memory of this machine, or the part of it that the control groups allow this process.

    proc, mount: where to look; tests pass captured trees.
    """

    proc: Path = PROC
    mount: Path = MOUNT

    def left(self) -> int | None:
        """Return the bytes that can still be used here; None where they are not known."""
        lefts = [self._left_of_machine(), *map(_left_of, groups("memory", self.proc, self.mount))]
        return min((left for left in lefts if left is not None), default=None)

    def limit(self) -> int | None:
        """Return the lowest limit of the groups in bytes; None where there is none."""
        limits = map(_limit_of, groups("memory", self.proc, self.mount))
        return min((limit for limit in limits if limit is not None), default=None)

    def used(self, limit: int) -> int | None:
        """Return what the group with this limit uses, without what the kernel can take back; None if not known."""
        for group in groups("memory", self.proc, self.mount):
            if _limit_of(group) == limit:
                return _used_of(group)
        return None

    def oom_kills(self) -> int:
        """Return how many processes the kernel has killed because of low memory.

        The innermost group that counts them decides. Without such a group the kills of the whole
        machine count, because the kernel kills without a group's limit only when the machine itself
        is full.
        """
        for group in groups("memory", self.proc, self.mount):
            name = "memory.events" if group.version == 2 else "memory.oom_control"
            if (kills := group.table(name).get("oom_kill")) is not None:
                return kills
        words = _read(self.proc / "vmstat").split()
        return int(words[words.index("oom_kill") + 1]) if "oom_kill" in words else 0

    def private(self, pid: int) -> int | None:
        """Return the private bytes of a process (USS); None when they cannot be read."""
        text = _read(self.proc / str(pid) / "smaps_rollup")
        return sum(_kilobytes(text, "Private_")) * 1024 if text else None

    def _left_of_machine(self) -> int | None:
        text = _read(self.proc / "meminfo")
        return next((number * 1024 for number in _kilobytes(text, "MemAvailable")), None)


def _left_of(group: Group) -> int | None:
    limit, used = _limit_of(group), _used_of(group)
    return None if limit is None or used is None else max(0, limit - used)


def _limit_of(group: Group) -> int | None:
    limit = group.number("memory.max" if group.version == 2 else "memory.limit_in_bytes")
    return None if limit is None or limit >= _UNLIMITED else limit


def _used_of(group: Group) -> int | None:
    version_2 = group.version == 2
    usage = group.number("memory.current" if version_2 else "memory.usage_in_bytes")
    if usage is None:
        return None
    stat = group.table("memory.stat")
    prefix = "" if version_2 else "total_"
    # Pages that cache files count as used, and the kernel gives them back when memory is needed.
    cache = stat.get(f"{prefix}inactive_file", 0) + stat.get(f"{prefix}active_file", 0)
    return usage - cache


def _kilobytes(text: str, prefix: str) -> Iterator[int]:
    for line in text.splitlines():
        if line.startswith(prefix):
            words = line.split()
            if len(words) > 1 and words[1].isdigit():
                yield int(words[1])


LEAST_PRIVATE = 1 << 20
"""Bytes that a worker is assumed to need at least: just forked, it has hardly any of its own."""


def affordable(memory: Memory, ready: Collection[int], starting: int) -> int | None:
    """Return how many more workers fit into the memory that is left; None if not known (master).

    ready: the pids of ready workers. The first of them stands for the size of every worker: reading
    one takes about 0.1 ms. starting: workers that have not taken their share of what is left yet.
    """
    left = memory.left()
    if left is None:
        return None
    sizes = (memory.private(pid) for pid in itertools.islice(ready, 1))
    size = max((size for size in sizes if size is not None), default=0)
    return max(0, left // max(LEAST_PRIVATE, size) - starting)
