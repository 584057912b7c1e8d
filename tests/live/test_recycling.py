"""Recycling: at a limit a worker is replaced, start, ready, retire, and no client notices."""

from __future__ import annotations

import contextlib
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from prefork.workers.scoreboard import SlotField
from prefork.workers.states import ExitKind, StartReason
from tests.support.board import board_of
from tests.support.clients import ask, datagram_client, read_to_the_end, send
from tests.support.load import Load, request
from tests.support.sampling import ChildrenWatch
from tests.support.server import serving
from tests.support.waiting import let_pass, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.server import Program


def recycled(program: Program, cause: str) -> int:
    """Return how many workers have left for this cause so far."""
    return len(program.logged(f"exited cause={cause} "))


@pytest.mark.parametrize("base", ["PreForkingTCPServer", "PreForkingUnixStreamServer"])
def test_max_requests_under_load_loses_nothing(
    start: Callable[..., Program], tmp_path: object, base: str
) -> None:
    """Workers that are recycled again and again cost no request, and never leave the pool short by more than one."""
    members = {} if base == "PreForkingTCPServer" else {"address": f"{tmp_path}/socket"}
    program = start(serving(base=base, workers=4, max_children=8, max_requests=40, **members))
    address = program.address()
    program.wait_workers(4)
    with (
        Load(address, clients=6) as load,
        ChildrenWatch(program.pid) as watch,
        board_of(program.pid) as board,
    ):
        wait_until(lambda: recycled(program, "max_requests") >= 25, "25 workers recycled")
        snapshot = board.snapshot()
    assert load.lost == {}
    assert watch.most <= 8
    assert snapshot.starts[StartReason.RECYCLED] >= 25
    assert snapshot.exits[ExitKind.MAX_REQUESTS] >= 25
    sys.stdout.write(f"{load.answered} requests, {recycled(program, 'max_requests')} recycled\n")


def test_max_requests_without_room_goes_one_by_one(start: Callable[..., Program]) -> None:
    """In a pool at max_children a worker leaves before its successor starts, one at a time, and nothing is lost."""
    program = start(serving(workers=3, max_children=3, max_requests=40))
    address = program.address()
    with Load(address, clients=4) as load, ChildrenWatch(program.pid) as watch:
        wait_until(lambda: recycled(program, "max_requests") >= 15, "15 workers recycled")
    assert load.lost == {}
    assert watch.most <= 3


def test_limit_is_kept_within_its_jitter(start: Callable[..., Program]) -> None:
    """A worker serves about max_requests less its jitter, not a multiple."""
    program = start(serving(workers=1, max_children=2, max_requests=100, jitter=0.5))
    address = program.address()
    served: dict[int, int] = {}
    while recycled(program, "max_requests") < 6:
        done = request(address, "x")
        served[done.worker] = served.get(done.worker, 0) + 1
        if len(program.workers()) > 1:  # it serves on while its successor boots
            program.wait_workers(1)
    counts = [served[pid] for pid in list(served)[:5]]
    assert all(50 <= count <= 100 + 10 for count in counts), counts
    assert len(set(counts)) > 1, counts


def test_max_lifetime_replaces_workers_at_rest(start: Callable[..., Program]) -> None:
    """An idle pool is renewed after max_lifetime, worker by worker, and is never short of one."""
    program = start(serving(workers=2, max_children=4, max_lifetime=0.6, jitter=0.2))
    address = program.address()
    first = program.wait_workers(2)
    wait_until(lambda: not first & program.workers(), "all first workers replaced")
    wait_until(lambda: recycled(program, "max_lifetime") >= 2, "both exits logged")
    ask(address)
    with board_of(program.pid) as board:
        assert sum(one[SlotField.SPAWNS] for one in board.snapshot().slots) >= 4


def test_worker_that_has_grown_too_large_is_replaced(start: Callable[..., Program]) -> None:
    """max_memory counts private memory: one leak and the worker is replaced; shared pages do not count."""
    program = start("""
        from tests.support.app import *

        shared = bytearray(b"x") * 60_000_000
        leak = []
        serve(Run, workers=2, max_children=4, max_memory="30M", jitter=0, shared=shared, leak=leak)
    """)
    address = program.address()
    first = program.wait_workers(2)
    fat = int(ask(address, "self.server.leak.append(bytearray(b'x') * 40_000_000)").split()[0])
    wait_until(
        lambda: ask(address, "0") and fat not in program.workers(), "the fat worker has left"
    )
    wait_until(lambda: recycled(program, "max_memory") == 1, "its exit is logged")
    let_pass(0.2)
    assert first - {fat} <= program.workers()


# --- max_requests = 1: one request for each process


SINGLE = {
    "plain": ("Echo", "prefork.PreForkingTCPServer", {}),
    "threads": ("Echo", "Threads", {}),
    "no room": ("Echo", "prefork.PreForkingTCPServer", {"max_children": 2}),
    "spares": ("Echo", "prefork.PreForkingTCPServer", {"min_spare": 2}),
    "access log": ("Echo", "prefork.PreForkingTCPServer", {"access_log": "text"}),
}


@pytest.mark.parametrize("kind", SINGLE)
def test_one_request_for_each_process(start: Callable[..., Program], kind: str) -> None:
    """With max_requests = 1 no process serves two requests, also under load, and no request is lost."""
    handler, base, members = SINGLE[kind]
    program = start(f"""
from tests.support.app import *
import prefork, socketserver
class Threads(prefork.PreForkingMixIn, socketserver.ThreadingMixIn, socketserver.TCPServer):
    pass
serve({handler}, {base}, workers=2, max_requests=1, **{members!r})
""")
    address = program.address()
    pids: list[str] = []

    def client() -> None:
        pids.extend(ask(address).split()[0] for _ in range(25))

    with ThreadPoolExecutor(4) as clients:
        for done in [clients.submit(client) for _ in range(4)]:
            done.result()
    assert len(pids) == 100
    assert len(set(pids)) == 100
    assert program.logged(" exited cause=(?!max_requests)") == []
    assert program.stop() == 0


def test_one_datagram_for_each_process(start: Callable[..., Program]) -> None:
    """With max_requests = 1 queued datagrams are not served in rounds, but by one process each."""
    program = start(serving("EchoDatagram", base="PreForkingUDPServer", workers=2, max_requests=1))
    address = program.address()
    with datagram_client(address) as client:
        for _ in range(20):
            client.send(b"hello")
        pids = [client.recv(100).split()[0] for _ in range(20)]
    assert len(set(pids)) == 20


def test_queue_is_drained_by_one_process_for_each_request(start: Callable[..., Program]) -> None:
    """At a stop, what the kernel has queued is served by one process for each request, too."""
    program = start(serving("Echo", workers=2, max_requests=1, max_children=2, pause=0.1))
    address = program.address()
    with contextlib.ExitStack() as clients:
        waiting = [clients.enter_context(send(address, "hello")) for _ in range(8)]
        program.terminate()
        pids = [read_to_the_end(client).split()[0] for client in waiting]
    assert len(set(pids)) == 8
    assert program.wait() == 0


def test_graceful_timeout_is_no_deadline_of_the_only_request(start: Callable[..., Program]) -> None:
    """A worker that serves its only request is asked to leave when the request is over, not before."""
    program = start(serving("Echo", workers=1, max_requests=1, graceful_timeout=0.1, pause=1.0))
    address = program.address()
    assert ask(address).endswith("hello")
    program.wait_logged("exited cause=max_requests")
    assert not program.logged("killed")
