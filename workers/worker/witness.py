"""What is done for each request beyond its words of the scoreboard; only where a setting asks for it (worker)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prefork.workers.scoreboard import Outcome, Scoreboard
from prefork.workers.settings import Settings
from prefork.workers.worker.access import AccessLog
from prefork.workers.worker.source import Source


def witness_for(
    settings: Settings,
    worker: tuple[int, int],
    board: Scoreboard,
    call_master: Callable[[], object],
) -> Witness | None:
    """Return what the settings ask for, None when that is nothing: then no request pays for it.

    worker: its slot and generation. board: where the master says that few workers are idle.
    call_master: wakes it.
    """
    log = AccessLog(settings.access_log, *worker) if settings.access_log != "off" else None
    watch = board.watch_words() if settings.min_spare is not None else None
    if log is None and watch is None:
        return None
    return Witness(watch, call_master, log)


class Witness:
    """Sees every request begin and end."""

    def __init__(
        self,
        watch: memoryview | None,
        call_master: Callable[[], object],
        log: AccessLog | None,
    ) -> None:
        self._watch = watch
        self._call_master = call_master
        self._log = log

    def begins(self, was_idle: bool) -> None:
        """Note that a request was taken.

        The slot says by now that the worker is busy: the master that is woken here must not count
        it among the idle once more.
        """
        if was_idle and self._watch is not None and self._watch[0] == 1:
            self._call_master()

    def ends(
        self, source: Source, address: Any, waited: int | None, outcome: Outcome, duration_ns: int
    ) -> None:
        """Note that a request is over."""
        if self._log is not None:
            self._log.write(source.listener, address, waited, outcome, duration_ns)
