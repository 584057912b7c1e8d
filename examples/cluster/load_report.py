"""Report the load of a pool to Envoy, in a header of each answer (ORCA).

Envoy's policy client_side_weighted_round_robin gives a machine the weight ``rps / utilization``: the requests
a second that the machine could serve if all its workers were busy. Both numbers are those of the whole pool,
so the workers need memory in common. Each slot has a row of it, which the slot's worker alone writes.

A request counts from the call of the application to the end of its body, because a worker is busy for as long.
The report goes out with the head of the answer, so it is about the requests before this one.

``LoadReport(application)`` is made before the fork, as module code is, so that all workers share the memory.
"""

from __future__ import annotations

import mmap
import time
from typing import TYPE_CHECKING, Any

import prefork

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

SLOTS = 256
ROW = 3  # words of a slot: requests so far, busy nanoseconds so far, end of the last request
PERIOD = 0.25  # seconds for which a worker repeats the same report
GONE = 10.0  # seconds after its last request in which a slot counts as one of the pool's workers


class LoadReport:
    """A WSGI application that adds the header ``endpoint-load-metrics`` to the answers of another one."""

    def __init__(self, application: WSGIApplication) -> None:
        self._application = application
        self._words = memoryview(mmap.mmap(-1, SLOTS * ROW * 8)).cast("Q")
        self._report = ""
        self._looked = 0.0
        self._requests = self._busy = 0

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        began = time.monotonic_ns()

        def started(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
            if report := self._current(time.monotonic()):
                headers = [*headers, ("endpoint-load-metrics", report)]
            return start_response(status, headers, *exc_info)

        def ended() -> None:
            self._count(time.monotonic_ns() - began)

        try:
            parts = self._application(environ, started)
        except BaseException:
            ended()
            raise
        return Body(parts, ended)

    def _count(self, busy: int) -> None:
        worker = prefork.current_worker()
        if worker is not None and worker.slot < SLOTS:
            row = worker.slot * ROW
            self._words[row] += 1
            self._words[row + 1] += busy
            self._words[row + 2] = time.monotonic_ns()

    def _current(self, now: float) -> str:
        """Return the report on the time since this worker last looked, PERIOD ago or more."""
        passed = now - self._looked
        if passed < PERIOD:
            return self._report
        requests, busy = sum(self._words[0::ROW]), sum(self._words[1::ROW])
        since = int((now - GONE) * 1e9)
        workers = sum(last > since for last in self._words[2::ROW])
        if self._looked and workers:
            rate = (requests - self._requests) / passed
            share = (busy - self._busy) / passed / 1e9 / workers
            self._report = (
                f"TEXT application_utilization={min(share, 1.0):.4f},rps_fractional={rate:.2f}"
            )
        self._looked, self._requests, self._busy = now, requests, busy
        return self._report


class Body:
    """The body of an answer. The server calls ``close()`` when it is done with it, also after a failure."""

    def __init__(self, parts: Iterable[bytes], ended: Callable[[], None]) -> None:
        self._parts = parts
        self._ended = ended

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._parts)

    def close(self) -> None:
        try:
            if hasattr(self._parts, "close"):
                self._parts.close()
        finally:
            self._ended()
