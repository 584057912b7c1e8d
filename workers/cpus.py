"""How many CPUs this process may really use: its affinity, bounded by the cgroup's CPU quota.

A container with a quota of two CPUs on a 64-core machine would otherwise get 64 workers that
throttle each other; ``os.process_cpu_count()`` does not look at quotas.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from prefork.workers.cgroups import MOUNT, PROC, Group, groups


class Usable(msgspec.Struct, frozen=True):
    """count: CPUs to plan for, at least 1. reason: what bounds it, in words for one log line."""

    count: int
    reason: str


def usable_cpus(proc: Path = PROC, cgroups: Path = MOUNT, affinity: int | None = None) -> Usable:
    """Count the CPUs usable here; runs in the master, reads a few small files, never raises.

    proc, cgroups, affinity: where to look and what to assume instead of the running process
    (tests give captured trees).
    """
    allowed = affinity if affinity is not None else len(os.sched_getaffinity(0))
    quotas = (_quota(group) for group in groups("cpu", proc, cgroups))
    quota = min((quota for quota in quotas if quota is not None), default=None)
    if quota is None or quota >= allowed:
        return Usable(max(1, allowed), f"affinity {allowed}, no lower cgroup quota")
    # Rounded up: with a quota of 1.5 CPUs two workers use all of it, one would leave a third idle.
    count = max(1, -int(-quota // 1))
    return Usable(count, f"cgroup quota {quota:.4g}, affinity {allowed}")


def _quota(group: Group) -> float | None:
    """Return quota by period in CPUs; None where there is no limit ("max", -1) or no such file."""
    if group.version == 2:
        words = group.text("cpu.max").split()
    else:
        words = [group.text(f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    try:
        quota, period = (int(word) for word in words)
    except ValueError:
        return None
    return quota / period if quota > 0 and period > 0 else None
