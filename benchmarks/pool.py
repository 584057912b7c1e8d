"""What the pool itself costs: memory, start, replacement, idling."""

from __future__ import annotations

import os
import signal
import statistics
import time

import psutil
from load import ask_once
from processes import Server, running
from table import markdown

IDLE_WORKERS = 8
MANY_WORKERS = 256


def report(kills: int, idle_seconds: float) -> str:
    """Return a table of the pool's own figures."""
    rows = [*_idle_rows(idle_seconds), *_replacement_rows(kills), _start_row()]
    return markdown(["the pool itself", "measured"], rows)


def _idle_rows(seconds: float) -> list[list[str]]:
    with running("tcp", "pool", "--workers", IDLE_WORKERS) as server:
        _wait_ready(server, IDLE_WORKERS)
        newborn = _private_of_workers(server)
        for _ in range(10 * IDLE_WORKERS):
            ask_once(server)
        served = _private_of_workers(server)
        master = _private_mib(server.pid)
        before = server.cpu_seconds()
        time.sleep(seconds)
        share = (server.cpu_seconds() - before) / seconds
    return [
        ["private memory (USS) of an idle worker", f"{newborn:.2f} MiB"],
        ["the same, when it has served ten requests", f"{served:.2f} MiB"],
        ["private memory (USS) of the master", f"{master:.2f} MiB"],
        [f"CPU of an idle pool of {IDLE_WORKERS}", f"{share:.3%} of a core"],
    ]


def _replacement_rows(kills: int) -> list[list[str]]:
    """Return the rows of replacement times, each from the kill until the replacement is ready."""
    with running("tcp", "pool", "--workers", 4) as server:
        _wait_ready(server, 4)
        times = []
        for _ in range(kills):
            victim = server.workers()[0]
            start = time.monotonic()
            os.kill(victim, signal.SIGKILL)
            times.append((server.next_told()["ready"] - start) * 1000)
    p50, p99 = statistics.median(times), statistics.quantiles(times, n=100, method="inclusive")[98]
    return [
        [f"kill -9 → replacement ready, p50 of {kills}", f"{p50:.1f} ms"],
        [f"kill -9 → replacement ready, p99 of {kills}", f"{p99:.1f} ms"],
    ]


def _start_row() -> list[str]:
    with running("tcp", "pool", "--workers", MANY_WORKERS) as server:
        took = _wait_ready(server, MANY_WORKERS) - server.serving_since
    return [f"serve_forever() → {MANY_WORKERS} workers ready", f"{took:.2f} s"]


def _wait_ready(server: Server, workers: int) -> float:
    """Wait until this many workers have reported that they are ready; return the instant of the last one."""
    return max(server.next_told()["ready"] for _ in range(workers))


def _private_of_workers(server: Server) -> float:
    return statistics.median(_private_mib(pid) for pid in server.workers())


def _private_mib(pid: int) -> float:
    private: int = psutil.Process(pid).memory_full_info().uss
    return private / 2**20
