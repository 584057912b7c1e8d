"""What is done for each request beyond its words of the scoreboard; only where a setting asks for it (worker)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Any

from prefork.workers.access import AccessLog
from prefork.workers.scoreboard import BOUNDS_NS, Outcome, SlotField, SlotWriter
from prefork.workers.settings import Settings
from prefork.workers.source import Source
from prefork.workers.waits import sample_every

_QUEUE_WAIT_NS = int(SlotField.QUEUE_WAIT_NS)
_QUEUE_WAITS = int(SlotField.QUEUE_WAITS)


def witness_for(
    settings: Settings,
    writer: SlotWriter,
    worker: tuple[int, int],
    watch: memoryview,
    call_master: Callable[[], object],
) -> Witness | None:
    """Return what the settings ask for, None when that is nothing: then no request pays for it.

    worker: its slot and generation. watch: the one word by which the master says that few workers
    are idle. call_master: wakes it.
    """
    log = AccessLog(settings.access_log, *worker) if settings.access_log != "off" else None
    watched = watch if settings.min_spare is not None else None
    if log is None and watched is None and not sample_every(settings):
        return None
    return Witness(writer, watched, call_master, log)


class Witness:
    """Sees every request begin and end."""

    def __init__(
        self,
        writer: SlotWriter,
        watch: memoryview | None,
        call_master: Callable[[], object],
        log: AccessLog | None,
    ) -> None:
        self._writer = writer
        self._watch = watch
        self._call_master = call_master
        self._log = log

    def begins(self, request: Any, source: Source, was_idle: bool) -> int | None:
        """Note that a request was taken; return its queue wait in nanoseconds, None for unknown.

        The slot says by now that the worker is busy: the master that is woken here must not count
        it among the idle once more.
        """
        if was_idle and self._watch is not None and self._watch[0] == 1:
            self._call_master()
        if source.queue_wait is None:
            return None
        waited = source.queue_wait(request)
        if waited is not None:
            words = self._writer.words
            words[_QUEUE_WAIT_NS] += waited
            words[_QUEUE_WAITS + bisect_left(BOUNDS_NS, waited)] += 1
        return waited

    def ends(
        self, source: Source, address: Any, waited: int | None, outcome: Outcome, duration_ns: int
    ) -> None:
        """Note that a request is over."""
        if self._log is not None:
            self._log.write(source.listener, address, waited, outcome, duration_ns)
