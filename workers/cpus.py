"""How many CPUs this process may really use: its affinity, bounded by the cgroup's CPU quota.

A container with a quota of two CPUs on a 64-core machine would otherwise get 64 workers that
throttle each other; ``os.process_cpu_count()`` does not look at quotas.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    _QuotaOf = Callable[[Path], float | None]

_CGROUP_V1_MOUNTS = ("cpu", "cpu,cpuacct")
_CGROUP_V2_MOUNTS = ("", "unified")


@dataclass(frozen=True, slots=True)
class Usable:
    """count: CPUs to plan for, at least 1. reason: what bounds it, in words for one log line."""

    count: int
    reason: str


def usable_cpus(
    proc: Path = Path("/proc"),
    cgroups: Path = Path("/sys/fs/cgroup"),
    affinity: int | None = None,
) -> Usable:
    """Count the CPUs usable here; runs in the master, reads a few small files, never raises.

    proc, cgroups, affinity: where to look and what to assume instead of the running process
    (tests give captured trees).
    """
    allowed = affinity if affinity is not None else len(os.sched_getaffinity(0))
    quota = min(_quotas(proc, cgroups), default=None)
    if quota is None or quota >= allowed:
        return Usable(max(1, allowed), f"affinity {allowed}, no lower cgroup quota")
    # Rounded up: with a quota of 1.5 CPUs two workers use all of it, one would leave a third idle.
    count = max(1, -int(-quota // 1))
    return Usable(count, f"cgroup quota {quota:.4g}, affinity {allowed}")


def _quotas(proc: Path, cgroups: Path) -> Iterator[float]:
    """Every CPU quota, in CPUs, that bounds this process: its own cgroup's and its ancestors'."""
    for line in _read(proc / "self" / "cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            yield from _quotas_upwards(cgroups, _CGROUP_V2_MOUNTS, path, _quota_v2)
        elif "cpu" in controllers.split(","):
            yield from _quotas_upwards(cgroups, _CGROUP_V1_MOUNTS, path, _quota_v1)


def _quotas_upwards(
    cgroups: Path, mounts: tuple[str, ...], path: str, quota_of: _QuotaOf
) -> Iterator[float]:
    # In a container without a cgroup namespace the path is the host's and does not exist here;
    # the mounted root then is the container's own cgroup. So absent directories are passed over.
    inner = PurePosixPath("/", *(part for part in PurePosixPath(path).parts if part != ".."))
    for mount in mounts:
        for level in (inner, *inner.parents):
            quota = quota_of(cgroups / mount / level.relative_to("/"))
            if quota is not None:
                yield quota


def _quota_v2(directory: Path) -> float | None:
    return _ratio(_read(directory / "cpu.max").split())


def _quota_v1(directory: Path) -> float | None:
    quota, period = _read(directory / "cpu.cfs_quota_us"), _read(directory / "cpu.cfs_period_us")
    return _ratio([quota.strip(), period.strip()])


def _ratio(words: list[str]) -> float | None:
    """Turn quota and period into CPUs; None where there is no limit ("max", -1) or no such file."""
    try:
        quota, period = (int(word) for word in words)
    except ValueError:
        return None
    return quota / period if quota > 0 and period > 0 else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
