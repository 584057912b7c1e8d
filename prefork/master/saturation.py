"""Notice a pool that cannot keep up, and say why (master).

A pool is saturated while every worker is busy and clients wait in the kernel's queue. A moment of that
is what a pool is for. After ``PATIENCE`` seconds the log gets one line, and one more when it is over.

Two opposite causes look the same from outside, and the time that the workers compute tells them apart:

- They compute. There are too few workers, or too few CPUs.
- They wait, usually for clients: a connection that stays open between requests occupies a worker. More
  workers help little, because a few more clients occupy those, too.

The episode goes on over short gaps. With short requests a look now and then finds a worker between two
of them, although the pool is as full as before.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec

from prefork.host.description import describe_listener
from prefork.metrics.kernel import queues
from prefork.workers import log
from prefork.workers.listener import Listener
from prefork.workers.pool.views import PoolView

PATIENCE = 10.0
"""Seconds of saturation before the log says so."""

GAP = 2.0
"""Seconds without saturation that end an episode."""

COMPUTES = 0.5
"""The share of the workers' time on a CPU from which on they are said to compute."""

REMEDY_COMPUTING = (
    "the workers compute: raise workers, or max_children with min_spare, up to the number of CPUs"
)
REMEDY_WAITING = (
    "the workers wait, and connections that stay open hold a worker: set client_timeout or min_spare, "
    "put ThreadingMixIn behind the mix-in, or park idle connections (ParkingMixIn)"
)


class Episode(msgspec.Struct, frozen=True):
    """A time of saturation. since, last: the first and the last look that found it.

    cpu: what ``cpu_of()`` returned at the beginning. said: whether the log has a
    line about it.
    """

    since: float
    last: float
    cpu: Mapping[int, float]
    said: bool = False


def is_saturated(view: PoolView) -> bool:
    """Return whether every worker that takes requests is busy, while clients wait."""
    serving = [one for one in view.workers if one.ready and one.leave_by is None]
    return view.work_waiting and bool(serving) and not any(one.idle for one in serving)


def oldest_request(view: PoolView, now: float) -> float:
    """Return the age of the oldest request in hand, in seconds."""
    return max(
        (now - one.busy_since for one in view.workers if one.busy_since is not None), default=0.0
    )


def share_of_cpu(before: Mapping[int, float], after: Mapping[int, float], seconds: float) -> float:
    """Return which share of their time the workers that lived all the while computed, or wanted to."""
    spent = [after[pid] - before[pid] for pid in before if pid in after]
    return sum(spent) / (len(spent) * seconds) if spent and seconds > 0 else 0.0


def cpu_of(pids: set[int]) -> dict[int, float]:
    """Return the seconds for which each of these processes had a CPU, or was waiting for one.

    On a busy machine a worker that computes is mostly waiting for its turn. A process that has ended is
    left out.
    """
    used = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            used[pid] = time.clock_gettime(((~pid) << 3) | 2)  # clock_getcpuclockid(3)
            used[pid] += _waited_for_cpu(pid)
    return used


def _waited_for_cpu(pid: int) -> float:
    """Return the seconds that the main thread of a process has waited for a CPU; 0 where nothing says."""
    with (
        contextlib.suppress(OSError, ValueError, IndexError),
        open(f"/proc/{pid}/schedstat", encoding="ascii") as file,
    ):
        return int(file.read().split()[1]) / 1e9
    return 0.0


def clients_waiting(listeners: Sequence[Listener]) -> int | None:
    """Return how many connections the kernel has queued; None where it does not say."""
    found = queues([describe_listener(listener) for listener in listeners])
    depths = [queue.depth for queue in found.values() if queue.depth is not None]
    return sum(depths) if depths else None


class Saturation:
    """The saturation of one pool.

    cpu, waiting: return what ``cpu_of()`` and ``clients_waiting()`` return; tests pass other ones.
    """

    def __init__(
        self,
        listeners: Sequence[Listener],
        cpu: Callable[[set[int]], dict[int, float]] = cpu_of,
        waiting: Callable[[Sequence[Listener]], int | None] = clients_waiting,
    ) -> None:
        self._listeners = listeners
        self._cpu = cpu
        self._waiting = waiting
        self._episode: Episode | None = None

    def look(self, view: PoolView, pids: set[int], now: float) -> None:
        """Look at the pool once, and log what has changed (in every tick while the pool serves).

        pids: of the live workers.
        """
        episode = self._episode
        if is_saturated(view):
            if episode is None:
                episode = Episode(now, now, self._cpu(pids))
            episode = msgspec.structs.replace(episode, last=now)
            if not episode.said and now - episode.since >= PATIENCE:
                self._say(episode, view, pids, now)
                episode = msgspec.structs.replace(episode, said=True)
        elif episode is not None and now - episode.last >= GAP:
            if episode.said:
                seconds = episode.last - episode.since
                log.event(logging.INFO, "master", "no longer saturated", seconds=seconds)
            episode = None
        self._episode = episode

    def _say(self, episode: Episode, view: PoolView, pids: set[int], now: float) -> None:
        waiting = self._waiting(self._listeners)
        share = share_of_cpu(episode.cpu, self._cpu(pids), now - episode.since)
        log.event(
            logging.WARNING,
            "master",
            "saturated: all workers are busy and clients wait",
            workers=len(view.workers),
            waiting="unknown" if waiting is None else waiting,
            oldest_request=oldest_request(view, now),
            cpu=f"{share:.0%}",
            remedy=REMEDY_COMPUTING if share >= COMPUTES else REMEDY_WAITING,
        )
