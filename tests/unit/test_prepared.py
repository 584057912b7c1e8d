"""A worker before its fork: which lane each server gets, and that the master keeps nothing of it afterwards."""

from __future__ import annotations

import gc
import socketserver
import weakref
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

import prefork
from prefork.workers.identity import WorkerPipes
from prefork.workers.listener import Listener
from prefork.workers.scoreboard import Scoreboard
from prefork.workers.settings import Settings
from prefork.workers.spec import PoolLink, WorkerSpec
from prefork.workers.worker.lanes import Accounted, OneByOne
from prefork.workers.worker.prepared import PreparedWorker
from prefork.workers.worker.rounds import Rounds

if TYPE_CHECKING:
    from collections.abc import Iterator

PLAIN = {"tcp": prefork.PreForkingTCPServer, "udp": prefork.PreForkingUDPServer}

ACCOUNTS = [{}, {"min_spare": 1}, {"access_log": "text"}]
"""Settings with which requests are accounted for in different ways."""


class Threads(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """A server whose requests may overlap."""


class Verifying(socketserver.UDPServer):
    """A datagram server with a step of its own."""

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Accept every request."""
        return True


@contextmanager
def prepared(*bases: Any, **settings: Any) -> Iterator[PreparedWorker]:
    """Give a worker that is ready to be forked, with a server of each class."""
    board = Scoreboard.create(1)
    with ExitStack() as servers:
        listeners = [
            Listener(servers.enter_context(base(("127.0.0.1", 0), socketserver.BaseRequestHandler)))
            for base in bases
        ]
        spec = WorkerSpec(
            Settings(workers=1, **settings),
            listeners=listeners,
            wake=-1,
            credentials=None,
            title=("", ""),
            hooks=bool,
            enter=bool,
            metrics_dir=None,
        )
        link = PoolLink(board, -1, 1, bool)
        made = PreparedWorker(spec, link, 0, 0, WorkerPipes(-1, -1, -1))
        try:
            yield made
        finally:
            made.writer.detach()
            made = None  # type: ignore[assignment]
            board.close()


def lanes_of(worker: PreparedWorker) -> list[type]:
    """Return the lanes for one request at a time, in the order of the servers."""
    return [type(lane) for lane in worker.lanes]


@pytest.mark.parametrize("kind", PLAIN)
def test_plain_server_has_the_plain_lane(kind: str) -> None:
    """Without an access log, spares or threads requests are served one by one, queued plain datagrams in rounds."""
    with prepared(PLAIN[kind]) as worker:
        (lane,) = worker.lanes
        assert type(lane) is OneByOne
        assert isinstance(lane.for_queue, Rounds) is (kind == "udp")


def test_datagrams_of_a_server_with_its_own_step_go_one_by_one() -> None:
    """Where something stands between the socket and the handler there are no rounds."""
    with prepared(Verifying) as worker:
        (lane,) = worker.lanes
        assert lane.for_queue is None


@pytest.mark.parametrize("settings", ACCOUNTS[1:])
@pytest.mark.parametrize("kind", PLAIN)
def test_request_that_is_reported_goes_through_an_account(
    kind: str, settings: dict[str, Any]
) -> None:
    """With an access log, or with spares, every request goes through the account, queued or not."""
    with prepared(PLAIN[kind], **settings) as worker:
        (lane,) = worker.lanes
        assert type(lane) is Accounted
        assert lane.for_queue is None


def test_threads_of_one_server_put_all_into_the_account() -> None:
    """Beside a server whose requests may overlap the requests of a plain one are accounted for, too."""
    with prepared(PLAIN["tcp"], Threads, PLAIN["udp"]) as worker:
        assert lanes_of(worker) == [Accounted] * 3


def test_lanes_that_cannot_be_made_are_left_to_the_worker() -> None:
    """An error of a server's own code leaves the master alone: the worker meets it, and reports it."""

    class Odd(socketserver.TCPServer):
        broken = False

        @property
        def verify_request(self) -> Any:
            if self.broken:
                raise RuntimeError("on purpose")
            return super().verify_request

    Odd.broken = True
    with prepared(Odd) as worker:
        assert worker.lanes == []
        with pytest.raises(RuntimeError, match="on purpose"):
            worker.make_lanes()


@pytest.mark.parametrize("settings", ACCOUNTS)
@pytest.mark.parametrize("more", [[], [Threads]])
def test_master_keeps_nothing_of_a_worker_that_was_forked(
    settings: dict[str, Any], more: list[Any]
) -> None:
    """What was made for a worker has no circle, so that it goes at once, and its view of the scoreboard with it."""
    gc.disable()
    try:
        with prepared(PLAIN["tcp"], PLAIN["udp"], *more, **settings) as worker:
            writer = weakref.ref(worker.writer)
        del worker
        assert writer() is None
    finally:
        gc.enable()
