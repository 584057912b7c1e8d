"""One look at a running pool: its status, and what the kernel says of its workers."""

from __future__ import annotations

import time
from typing import Final

import psutil

from prefork.inspect.running_pool import RunningPool
from prefork.inspect.view import Look, ProcessUsage

MOST_MEASURED: Final = 100
"""Live workers up to which private memory is asked for: it costs the kernel a walk of 0.2 ms each."""


def look(pool: RunningPool) -> Look:
    """Read a pool and what the kernel says of its workers."""
    status = pool.status()
    pids = [one["pid"] for one in status["slots"] if one["pid"]]
    if status["pid"] != pool.pid:
        pids = []  # a pool in a container: its pids are others here
    measured = len(pids) <= MOST_MEASURED
    return Look(time.monotonic(), status, {pid: _usage(pid, private=measured) for pid in pids})


def _usage(pid: int, *, private: bool) -> ProcessUsage:
    try:
        process = psutil.Process(pid)
        times = process.cpu_times()
        cpu = times.user + times.system
    except (psutil.Error, OSError):
        return ProcessUsage()
    try:
        memory = process.memory_full_info().uss if private else process.memory_info().rss
    except (psutil.Error, OSError):
        memory = None
    return ProcessUsage(cpu, memory)
