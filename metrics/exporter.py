"""What the metrics process answers: /metrics, /livez, /readyz, /status and the status page.

Every answer is computed from the scoreboard, the kernel's tables and the files of the handlers' own
metrics. So the metrics process answers while every worker is busy, and while the master hangs. Only
that process imports this module, because it brings prometheus_client and psutil along.
"""

from __future__ import annotations

import gzip
import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import gzip_accepted
from prometheus_client.multiprocess import MultiProcessCollector

from prefork.metrics import kernel, web
from prefork.metrics.collector import MemoryCollector, PoolCollector
from prefork.metrics.description import PoolDescription
from prefork.metrics.exposition import choose_encoder
from prefork.metrics.names import METRICS
from prefork.metrics.page import page
from prefork.metrics.server import Server
from prefork.metrics.slots import FILES
from prefork.metrics.status import HUNG_AFTER, is_ready, last_tick, status
from prefork.metrics.web import TEXT, Request, Response
from prefork.workers.scoreboard import PoolField, Scoreboard, Snapshot
from prefork.workers.states import READY

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

MERGE_TRIES = 3
"""How often the handlers' files are read: a reading during the first write of a file can fail."""


class Routes:
    """The routes over one scoreboard, made once for the life of the process: no total may fall.

    directory: where handlers put their own metrics, None where there are none. complain: called
    with whatever went wrong with these; the pool's own metrics are served all the same.
    """

    def __init__(
        self, board: Scoreboard, directory: str | None, complain: Callable[[BaseException], None]
    ) -> None:
        self._board = board
        users = UserMetrics(directory, complain) if directory is not None else None
        self._all = _registry(PoolCollector(board), users)
        self._costly = _registry(MemoryCollector(board), None)
        self._page, self._page_policy = page()
        self._routes: Mapping[str, Callable[[Request], Response]] = {
            "/": self._show_page,
            "/metrics": self._metrics,
            "/livez": self._livez,
            "/readyz": self._readyz,
            "/status": self._status,
        }

    def respond(self, request: Request) -> Response:
        """Answer a request."""
        route = self._routes.get(request.path)
        return web.failure(HTTPStatus.NOT_FOUND) if route is None else route(request)

    def _show_page(self, _request: Request) -> Response:
        return Response(self._page, "text/html; charset=utf-8", policy=self._page_policy)

    def _livez(self, _request: Request) -> Response:
        return live_verdict(self._board.snapshot(), time.monotonic_ns())

    def _readyz(self, _request: Request) -> Response:
        return ready_verdict(self._board.snapshot())

    def _status(self, _request: Request) -> Response:
        description = PoolDescription.from_text(self._board.description.read())
        queues = kernel.queues(description.listeners)
        found = status(self._board.snapshot(), description, time.monotonic_ns(), queues=queues)
        return Response(json.dumps(found).encode(), "application/json")

    def _metrics(self, request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        body = encode(self._chosen(request.query.get("name[]", [])))
        headers = {"Vary": "Accept, Accept-Encoding"}
        if gzip_accepted(request.headers.get("accept-encoding", "")):
            # The lightest level: the text is a tenth larger than at the usual one, in a third of
            # the time.
            body = gzip.compress(body, compresslevel=1)
            headers["Content-Encoding"] = "gzip"
        return Response(body, content_type, headers=headers)

    def _chosen(self, names: list[str]) -> Any:
        if not names:
            return self._all
        costly = any(name in METRICS and METRICS[name].opt_in for name in names)
        chosen = [self._all, self._costly] if costly else [self._all]
        return _Joined([registry.restricted_registry(names) for registry in chosen])


def run(
    listener: socket.socket,
    routes: Routes,
    *,
    complain: Callable[[BaseException], None],
    heed: Mapping[int, Callable[[], bool]],
    beat: Callable[[], bool],
) -> None:
    """Serve the routes until ``heed`` or ``beat`` return True, as ``Server`` does."""
    respond = web.responder(routes.respond, complain)
    Server(listener, respond, heed=heed, beat=beat).run()


# --- verdicts


def live_verdict(snapshot: Snapshot, now_ns: int) -> Response:
    """Return the answer of /livez: whether the master ticks."""
    age = last_tick(snapshot, now_ns)
    if age > HUNG_AFTER:
        text = f"the master has not ticked for {age:.0f} s\n"
        return Response(text.encode(), TEXT, HTTPStatus.SERVICE_UNAVAILABLE)
    return Response(b"live\n")


def ready_verdict(snapshot: Snapshot) -> Response:
    """Return the answer of /readyz: whether the pool should get traffic, and why not."""
    if is_ready(snapshot):
        return Response(b"ready\n")
    phase = snapshot.phase.name.lower()
    ready = snapshot.count(*READY)
    text = f"not ready: phase={phase} ready={ready} needed={snapshot[PoolField.NEEDED]}"
    if closed := snapshot[PoolField.LISTENERS_CLOSED]:
        text = f"{text} listeners_closed={closed}"
    text = f"{text}\n"
    return Response(text.encode(), TEXT, HTTPStatus.SERVICE_UNAVAILABLE)


# --- what handlers count themselves


_merge: Callable[[list[str]], Iterable[Metric]] = MultiProcessCollector.merge


class UserMetrics:
    """The metrics that the handlers keep, merged from files (docs/METRICS.md)."""

    def __init__(self, directory: str, complain: Callable[[BaseException], None]) -> None:
        self._directory = directory
        self._complain = complain

    def collect(self) -> Iterable[Metric]:
        """Return the merged metrics; none where a file cannot be read.

        A total that lacks the part of one file would fall for a moment.
        """
        failure: Exception | None = None
        for _ in range(MERGE_TRIES):
            try:
                merged: Iterable[Metric] = _merge(self._files())
            except Exception as error:  # noqa: BLE001 - half a write can look like anything
                failure = error
            else:
                return merged
        if failure is not None:
            self._complain(failure)
        return []

    def _files(self) -> list[str]:
        names = filter(FILES.fullmatch, os.listdir(self._directory))
        paths = [os.path.join(self._directory, name) for name in names]
        # A file is empty until its first write, and for ever if its process was killed before that.
        return [path for path in paths if os.access(path, os.R_OK) and os.path.getsize(path)]


class _Merged:
    """The pool's own metrics, then those of the handlers, except under a name of the pool's."""

    def __init__(self, own: Any, users: UserMetrics | None) -> None:
        self._own = own
        self._users = users

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        names = set()
        for metric in self._own.collect():
            names.add(metric.name)
            yield metric
        if self._users is not None:
            yield from (one for one in self._users.collect() if one.name not in names)


class _Joined:
    """Several registries as one."""

    def __init__(self, registries: list[Any]) -> None:
        self._registries = registries

    def collect(self) -> Iterator[Metric]:
        for registry in self._registries:
            yield from registry.collect()


def _registry(own: Any, users: UserMetrics | None) -> CollectorRegistry:
    # With this argument the filter by name works for collectors that describe nothing.
    registry = CollectorRegistry(support_collectors_without_names=True)
    registry.register(_Merged(own, users))
    return registry
