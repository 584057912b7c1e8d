"""One look at a running pool: its status, and what the kernel reports about its workers."""

from __future__ import annotations

import time
from typing import Final

import psutil

from prefork.inspect.running_pool import RunningPool
from prefork.inspect.view import Look, ProcessUsage

MOST_MEASURED: Final = 100
"""The most workers whose private memory is measured, because the kernel needs 0.2 ms for each.

In a larger pool the resident memory is shown instead.
"""


def look(pool: RunningPool) -> Look:
    """Return one look at a pool and at the processes of its workers.

    A pool in a container knows its workers by pids that mean other processes here. Then no process
    is looked at.
    """
    status = pool.status()
    pids = [one["pid"] for one in status["slots"] if one["pid"]]
    if status["pid"] != pool.pid:
        pids = []
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
