"""What the agent tells HAProxy: the line for each state of a pool, and the server that gives it to clients."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from prefork.metrics.agent import (
    LONGEST_WINDOW,
    SHORTEST_WINDOW,
    Agent,
    Reading,
    answering_in_thread,
    idle_share,
    line_for,
)
from prefork.metrics.server import MOST_CLIENTS
from prefork.metrics.status import HUNG_AFTER, LONGEST_QUIET_NS, last_tick
from prefork.workers.scoreboard import PoolField, SlotField, pool_of
from prefork.workers.states import Order, Phase
from tests.support.boards import SECOND, occupy, scoreboard, take_request
from tests.support.waiting import wait_until
from tests.support.web import agent_line, received

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefork.metrics.agent import Mode
    from prefork.workers.scoreboard import Scoreboard

NOW = 1_000 * SECOND
EXAMPLES = Path(__file__).parents[2] / "examples" / "cluster"


def fail(error: BaseException) -> None:
    """Let the test fail where the agent complains."""
    raise error


@pytest.fixture(name="board")
def _board() -> Iterator[Scoreboard]:
    """Give the scoreboard of a pool with four idle workers."""
    with scoreboard(4, at=NOW) as board:
        for slot in range(4):
            occupy(board, slot, 4711 + slot, at=NOW)
        yield board


@pytest.mark.parametrize(
    ("reading", "mode", "line"),
    [
        (Reading(Phase.SERVING, 0.5, 0, 4), "maxconn", "ready up 100% maxconn:4"),
        (Reading(Phase.SERVING, 0.5, 0, 4, finishing=3), "maxconn", "ready up 100% maxconn:7"),
        (Reading(Phase.SERVING, 0.5, 0, 4, 0.25), "weight", "ready up 25%"),
        (Reading(Phase.SERVING, 0.5, 0, 4, 0.0), "weight", "ready up 1%"),
        (Reading(Phase.NOT_READY, 0.5, 0, 4), "maxconn", "drain"),
        (Reading(Phase.DRAINING, 0.5, 0, 0), "weight", "drain"),
        (Reading(Phase.LEAVING, 0.5, 0, 4), "maxconn", "drain"),
        (Reading(Phase.SERVING, 0.5, 1, 4), "maxconn", "down #1 listeners let no client in"),
        (Reading(Phase.SERVING, 0.5, 0, 0), "weight", "down #no worker is ready"),
        (
            Reading(Phase.SERVING, HUNG_AFTER + 1, 0, 4),
            "maxconn",
            "down #the master has not ticked for 11 s",
        ),
    ],
)
def test_line(reading: Reading, mode: Mode, line: str) -> None:
    """Each state of a pool has its line; with a stale scoreboard, without a worker or at a stop none says up."""
    assert line_for(reading, mode) == line


def test_workers_that_take_requests_are_counted(board: Scoreboard) -> None:
    """Idle and busy workers count; one that leaves, and one that starts, does not."""
    agent = Agent(board, "maxconn", fail)
    writers = [occupy(board, slot, 4711 + slot, at=NOW) for slot in range(4)]
    take_request(writers[0], NOW)
    board.give_order(1, Order.RETIRE)
    board.prepare_slot(2, 0, NOW)
    board.occupy_slot(2, 4, next(iter(board.snapshot().starts)))

    assert agent.read(NOW + SECOND // 10) == Reading(Phase.SERVING, 0.1, 0, 2)


def test_words_of_workers_never_break_the_line(board: Scoreboard) -> None:
    """Whatever workers write into their slots, a line comes out."""
    for mode in ("maxconn", "weight"):
        agent = Agent(board, mode, fail)
        for word in (-1, 2**63 - 1, -(2**63)):
            for slot in range(4):
                for field in range(SlotField.STATE, 112):
                    board.words[board.slot_at(slot) + field] = word
            assert agent.respond(b"").startswith((b"ready up ", b"down #"))


def test_idle_share_is_an_average(board: Scoreboard) -> None:
    """The weight comes from the time in which workers were idle since the last look, requests in hand included."""
    agent = Agent(board, "weight", fail)
    writer = occupy(board, 0, 4711, at=NOW)
    assert agent.read(NOW).idle_share == 1.0
    board.words[board.slot_at(1) + SlotField.BUSY_NS] += SECOND
    take_request(writer, NOW)
    assert agent.read(NOW + SECOND).idle_share == 0.5
    assert agent.read(NOW + SECOND + int(SHORTEST_WINDOW * 0.9e9)).idle_share == 0.5
    # After a long pause of HAProxy this moment counts alone: one of four workers is busy.
    assert agent.read(NOW + SECOND + int((LONGEST_WINDOW + 1) * 1e9)).idle_share == 0.75


def test_each_check_gets_a_new_average() -> None:
    """The window of the average is shorter than the time between two checks in the example with weights."""
    text = (EXAMPLES / "haproxy-weights.cfg").read_text("utf-8")
    (inter,) = re.findall(r"agent-inter (\d+)ms", text)
    assert int(inter) > 1100 * SHORTEST_WINDOW


def test_workers_that_finish_a_request_take_no_room(board: Scoreboard) -> None:
    """A worker that leaves after its request has a connection of HAProxy, and makes those that follow it neither busy nor fewer."""
    for mode, line in (("maxconn", b"ready up 100% maxconn:4\n"), ("weight", b"ready up 100%\n")):
        agent = Agent(board, mode, fail)
        writer = occupy(board, 3, 4714, at=NOW)
        take_request(writer, NOW)
        board.give_order(3, Order.RETIRE)
        agent.read(NOW)
        assert line_for(agent.read(NOW + SECOND), mode) + "\n" == line.decode()
        board.give_order(3, Order.SERVE)


def test_busy_time_of_a_slot_counts_once(board: Scoreboard) -> None:
    """Whatever a worker with threads adds up, or writes, it is busy for as long as the look at most."""
    agent = Agent(board, "weight", fail)
    agent.read(NOW)
    board.words[board.slot_at(1) + SlotField.BUSY_NS] += 1_000 * SECOND
    assert agent.read(NOW + SECOND).idle_share == 0.75


def test_idle_share_has_bounds() -> None:
    """No numbers make a share below 0 or above 1."""
    found = [idle_share(busy, 10, ready) for busy in (-99, 0, 99) for ready in (-1, 0, 1)]
    assert {0.0, 1.0} == set(found)
    assert idle_share(1, 0, 1) == 0.0


def test_loading_new_code_is_no_hang(board: Scoreboard) -> None:
    """While the master loads new code in place, the time that the code has for it does not count as silence."""
    board.set_pool(PoolField.QUIET_UNTIL_NS, NOW + 60 * SECOND)
    pool = pool_of(board)
    assert last_tick(pool, NOW + 50 * SECOND) == 0
    assert last_tick(pool, NOW + 72 * SECOND) == 12
    board.set_pool(PoolField.QUIET_UNTIL_NS, 2**63 - 1)
    late = NOW + LONGEST_QUIET_NS + 12 * SECOND
    assert last_tick(pool_of(board), late) == 12


def test_client_that_says_nothing_is_answered() -> None:
    """A client gets its line at once, also beside as many silent clients as there are places, and what it sends is ignored."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        with answering_in_thread(listener, lambda _received: b"drain\n", fail):
            silent = [socket.create_connection(address) for _ in range(MOST_CLIENTS + 5)]
            assert agent_line(address) == "drain"
            with socket.create_connection(address) as client:
                client.sendall(b"x" * 100_000)
                assert received(client) == b"drain\n"
            for one in silent:
                one.close()


def test_failure_gives_no_line() -> None:
    """An agent that cannot look says nothing, which changes nothing in HAProxy, and complains."""
    complaints: list[BaseException] = []
    agent = Agent(None, "maxconn", complaints.append)  # type: ignore[arg-type]  # it cannot look at this
    assert agent.respond(b"") == b""
    assert [type(one) for one in complaints] == [AttributeError]


def test_end_of_the_thread_is_noticed() -> None:
    """An exception in the agent's thread reaches the one who can end the process."""
    ends: list[BaseException] = []

    def respond(_received: bytes) -> bytes:
        raise ZeroDivisionError

    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        answering_in_thread(listener, respond, ends.append),
        socket.create_connection(listener.getsockname()),
    ):
        wait_until(lambda: ends, "the end of the thread")
    assert [type(one) for one in ends] == [ZeroDivisionError]
