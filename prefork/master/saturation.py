"""Notice a pool that cannot keep up, and say why (master).

A pool is saturated while every worker is busy and clients wait in the kernel's queue. A moment of that
is what a pool is for. After ``PATIENCE`` seconds the log gets one line, and one more when it is over.

Opposite causes look the same from outside, and the time that the workers compute tells them apart:

- They compute. There are too few workers, or too few CPUs.
- They wait, usually for clients: a connection that stays open between requests occupies a worker. More
  workers help little, because a few more clients occupy those, too.
- They wait in a pool that parks idle connections, such as one of a WSGI application. Then the wait is within
  requests, for a database or for a slow client. More workers help.

The cause is judged anew every ``PATIENCE`` seconds, because a long episode can change its nature. While an
episode lasts, its length and its cause are on the scoreboard, for the metrics, the status and the page.

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
from prefork.metrics.saturation import REASONS, REMEDIES
from prefork.workers import log
from prefork.workers.listener import Listener
from prefork.workers.parking import ResumeQueue
from prefork.workers.pool.views import PoolView
from prefork.workers.scoreboard import PoolField, Scoreboard
from prefork.workers.states import SaturationCause

PATIENCE = 10.0
"""Seconds of saturation before the log says so."""

GAP = 2.0
"""Seconds without saturation that end an episode."""

COMPUTES = 0.5
"""The share of the workers' time on a CPU from which on they are said to compute."""


class Episode(msgspec.Struct, frozen=True):
    """A time of saturation. since, last: the first and the last look that found it.

    cause: NONE until the episode has lasted for ``PATIENCE`` seconds. judged, cpu: when the CPU time of the
    workers was read last, and what ``cpu_of()`` returned.
    """

    since: float
    last: float
    judged: float
    cpu: Mapping[int, float]
    cause: SaturationCause = SaturationCause.NONE


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


def cause_of(share: float, *, parks: bool) -> SaturationCause:
    """Return the cause for a share of time on a CPU, as ``share_of_cpu()`` returns it.

    parks: whether all servers of the pool park their idle connections.
    """
    if share >= COMPUTES:
        return SaturationCause.WORKERS_COMPUTE
    return SaturationCause.HANDLERS_WAIT if parks else SaturationCause.WORKERS_WAIT


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


def clients_waiting(
    board: Scoreboard, links: Sequence[ResumeQueue], listeners: Sequence[Listener]
) -> int | None:
    """Return how many connections wait for a worker; None where the kernel does not say.

    These are the new ones that the kernel has queued, and the parked ones whose clients have spoken. Of the
    latter the kernel holds up to eleven in each link. It does not say how many, and they count as one.
    """
    found = queues([describe_listener(listener) for listener in listeners])
    depths = [queue.depth for queue in found.values() if queue.depth is not None]
    if links:
        depths.append(max(0, board.pool(PoolField.RESUMED_WAITING)))
        depths.append(sum(link.has_work() for link in links))
    return sum(depths) if depths else None


def publish_saturation(board: Scoreboard, cause: SaturationCause, seconds: float) -> None:
    """Write on the scoreboard why the pool does not keep up, and for how many seconds; NONE and 0 if it does."""
    board.set_pool(PoolField.SATURATION, cause)
    board.set_pool(PoolField.SATURATED_NS, int(seconds * 1e9))


class Saturation:
    """The saturation of one pool.

    publish: called in every tick, with the cause and the seconds of the present episode. waiting: returns how
    many clients wait for a worker of these listeners. parks: whether all servers park their idle connections.
    cpu: returns what ``cpu_of()`` returns; tests pass another one.
    """

    def __init__(
        self,
        listeners: Sequence[Listener],
        publish: Callable[[SaturationCause, float], None],
        waiting: Callable[[Sequence[Listener]], int | None],
        cpu: Callable[[set[int]], dict[int, float]] = cpu_of,
        *,
        parks: bool = False,
    ) -> None:
        self._listeners = listeners
        self._publish = publish
        self._parks = parks
        self._cpu = cpu
        self._waiting = waiting
        self._episode: Episode | None = None

    def look(self, view: PoolView, pids: set[int], now: float) -> None:
        """Look at the pool once, publish what is so, and log what has changed (in every tick).

        pids: of the live workers. A pool that stops is not saturated: its queue is meant to be served to the end.
        """
        if not view.phase.keeps_size:
            self._episode = None
        elif is_saturated(view):
            self._go_on(view, pids, now)
        elif self._episode is not None and now - self._episode.last >= GAP:
            self._end(self._episode)
        episode = self._episode
        if episode is None or episode.cause is SaturationCause.NONE:
            self._publish(SaturationCause.NONE, 0.0)
        else:
            self._publish(episode.cause, episode.last - episode.since)

    def _go_on(self, view: PoolView, pids: set[int], now: float) -> None:
        before = self._episode or Episode(now, now, now, self._cpu(pids))
        self._episode = episode = msgspec.structs.replace(before, last=now)
        if now - episode.judged < PATIENCE:
            return
        cpu = self._cpu(pids)
        share = share_of_cpu(episode.cpu, cpu, now - episode.judged)
        cause = cause_of(share, parks=self._parks)
        self._episode = msgspec.structs.replace(episode, judged=now, cpu=cpu, cause=cause)
        if episode.cause is SaturationCause.NONE:
            self._log(view, cause, share, now)

    def _end(self, episode: Episode) -> None:
        self._episode = None
        if episode.cause is not SaturationCause.NONE:
            seconds = episode.last - episode.since
            log.event(logging.INFO, "master", "no longer saturated", seconds=seconds)

    def _log(self, view: PoolView, cause: SaturationCause, share: float, now: float) -> None:
        waiting = self._waiting(self._listeners)
        log.event(
            logging.WARNING,
            "master",
            "saturated: all workers are busy and clients wait",
            workers=len(view.workers),
            waiting="unknown" if waiting is None else waiting,
            oldest_request=oldest_request(view, now),
            cpu=f"{share:.0%}",
            remedy=f"{REASONS[cause]}: {REMEDIES[cause]}",
        )
