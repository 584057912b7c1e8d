"""Every lane against one list of scenarios, and the standard library's own server through the same list.

A scenario queues three requests and says what goes wrong with the first. It is played twice: by a lane,
and by the same server class alone, whose ``_handle_request_noblock()`` is called as its own
``serve_forever()`` does. The calls on the server with their order, and what the clients receive, have to be
the same; where we differ on purpose, the scenario says how and why. The scenario also says what the
scoreboard has afterwards.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import select
import socket
import socketserver
import struct
import threading
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from prefork.workers.cancel import RequestTimeout
from prefork.workers.listener import Listener
from prefork.workers.scoreboard import Scoreboard, SlotField
from prefork.workers.slot_writer import ORDER, SlotWriter
from prefork.workers.states import Order
from prefork.workers.worker import no_empty_reply
from prefork.workers.worker.accounting import OneAtATime, Overlapping
from prefork.workers.worker.datagrams import ROUND
from prefork.workers.worker.lanes import Accounted, Common, Lane, OneByOne
from prefork.workers.worker.rounds import Rounds
from prefork.workers.worker.side import ThisWorker
from prefork.workers.worker.source import Source
from tests.support.waiting import CEILING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TCP, UDP = socketserver.TCPServer, socketserver.UDPServer

STEPS = (
    *("get_request", "verify_request", "process_request", "finish_request"),
    *("shutdown_request", "close_request", "handle_error"),
)
"""The calls on the server that a request goes through."""

WITHIN = "· "
"""Stands before what ``process_request()`` calls itself."""

# --- scenarios

TAKEN = ["get_request", "verify_request", "process_request", "· finish_request", "· handle"]
ENDED = ["shutdown_request", "close_request"]


def order_retire(stage: Stage) -> None:
    """Play the master, who asks the worker to leave while a request is in hand."""
    stage.worker.board.give_order(0, Order.RETIRE)


def become_a_fork(stage: Stage) -> None:
    """Do what happens in a process that a handler has forked."""
    stage.worker.has_left = True
    stage.worker.turn.end()
    stage.worker.writer.detach()


def extend_deadline(stage: Stage) -> None:
    """Ask for more time."""
    ThisWorker(0, 0, 1, stage.worker.writer, stage.worker.turn).extend_deadline(60)


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """What happens to the first of three requests, and what is to come of it.

    effects: by the name of a call, what it does the first times: an exception is raised, a function is
    called with the stage, anything else is returned. "handle" is the handler's own.
    overrides: whether that takes a server class with steps of its own. has_left: whether the client of
    the first request has reset its connection before anybody takes it.
    counts: the word that the scoreboard counts the request under; None where no request was taken.
    leaves: what ends the worker: an exception; "request", "round": after the one in hand.
    instead: the calls that we make, where the standard server would end or make fewer.
    """

    effects: dict[str, list[Any]] = {}
    overrides: bool = False
    has_left: bool = False
    counts: str | None = "ok"
    leaves: type[BaseException] | str | None = None
    instead: list[str] | None = None


SCENARIOS = {
    "request succeeds": Scenario(),
    "verify_request refuses": Scenario(
        effects={"verify_request": [False]}, overrides=True, counts="rejected"
    ),
    # The standard server calls both outside of its try. One client must not end a worker.
    "verify_request refuses, and shutdown_request raises": Scenario(
        effects={"verify_request": [False], "shutdown_request": [OSError("on purpose")]},
        overrides=True,
        counts="error",
        instead=["get_request", "verify_request", "shutdown_request", "handle_error", *ENDED],
    ),
    "verify_request raises": Scenario(
        effects={"verify_request": [RuntimeError("on purpose")]},
        overrides=True,
        counts="error",
        instead=["get_request", "verify_request", "handle_error", *ENDED],
    ),
    # The standard server would leave the request open.
    "verify_request raises SystemExit": Scenario(
        effects={"verify_request": [SystemExit(7)]},
        overrides=True,
        counts="error",
        leaves=SystemExit,
        instead=["get_request", "verify_request", *ENDED],
    ),
    "process_request raises": Scenario(
        effects={"process_request": [RuntimeError("on purpose")]}, overrides=True, counts="error"
    ),
    "handler raises Exception": Scenario(effects={"handle": [RuntimeError()]}, counts="error"),
    "handler raises SystemExit": Scenario(
        effects={"handle": [SystemExit(7)]}, counts="error", leaves=SystemExit
    ),
    "handler raises KeyboardInterrupt": Scenario(
        effects={"handle": [KeyboardInterrupt()]}, counts="error", leaves=KeyboardInterrupt
    ),
    # The standard server would end.
    "handler is cancelled": Scenario(
        effects={"handle": [RequestTimeout()]},
        counts="cancelled",
        instead=[*TAKEN, "request_cancelled", *ENDED],
    ),
    "handler is cancelled in a group of tasks": Scenario(
        effects={"handle": [BaseExceptionGroup("of tasks", [RequestTimeout()])]},
        counts="cancelled",
        instead=[*TAKEN, "request_cancelled", *ENDED],
    ),
    "handler is cancelled, and shutdown_request raises": Scenario(
        effects={"handle": [RequestTimeout()], "shutdown_request": [OSError("on purpose")]},
        overrides=True,
        counts="cancelled",
        instead=[*TAKEN, "request_cancelled", "shutdown_request"],
    ),
    "handler raises SystemExit, and shutdown_request raises": Scenario(
        effects={"handle": [SystemExit(7)], "shutdown_request": [OSError("on purpose")]},
        overrides=True,
        counts="error",
        leaves=OSError,
    ),
    # The standard server would leave the request open besides.
    "handle_error raises": Scenario(
        effects={"handle": [RuntimeError()], "handle_error": [RuntimeError("on purpose, too")]},
        counts="error",
        instead=[*TAKEN, "handle_error", *ENDED],
    ),
    # Counted by the master, who finds a dead worker with a request in hand.
    "handle_error raises SystemExit": Scenario(
        effects={"handle": [RuntimeError()], "handle_error": [SystemExit(7)]},
        counts="in hand",
        leaves=SystemExit,
    ),
    "shutdown_request raises": Scenario(
        effects={"shutdown_request": [OSError("on purpose")]}, overrides=True, counts="error"
    ),
    "shutdown_request raises twice": Scenario(
        effects={"shutdown_request": [OSError("on purpose"), OSError("again")]},
        overrides=True,
        counts="error",
        instead=[*TAKEN, "· shutdown_request", "handle_error", "shutdown_request"],
    ),
    "shutdown_request raises SystemExit": Scenario(
        effects={"shutdown_request": [SystemExit(7)]},
        overrides=True,
        counts="error",
        leaves=SystemExit,
    ),
    "close_request raises": Scenario(
        effects={"close_request": [OSError("on purpose")]}, overrides=True, counts="error"
    ),
    "client was aborted in the queue": Scenario(
        effects={"get_request": [ConnectionAbortedError(errno.ECONNABORTED, "on purpose")]},
        overrides=True,
        counts=None,
    ),
    "client has reset its connection": Scenario(has_left=True, counts="error"),
    # The standard server expects an OSError only.
    "get_request raises something else": Scenario(
        effects={"get_request": [ValueError("on purpose")]},
        overrides=True,
        counts=None,
        instead=["get_request"],
    ),
    "order arrives meanwhile": Scenario(effects={"handle": [order_retire]}, leaves="round"),
    "handler forks": Scenario(
        effects={"handle": [become_a_fork]}, counts="in hand", leaves="request"
    ),
    "handler extends its deadline": Scenario(effects={"handle": [extend_deadline]}),
}

# --- the stage


class Stage:
    """A server whose calls are noted, and its clients. worker: whose lane serves it, in our play."""

    worker: Worker

    def __init__(self, base: Any, scenario: Scenario, *, notes_in_class: bool) -> None:
        self.journal: list[str] = []
        self.in_hand: list[int] = []
        """How many requests the scoreboard shows to be in hand, seen by each handler."""
        self.effects = {name: list(effects) for name, effects in scenario.effects.items()}
        self.is_stream = not issubclass(base, UDP)
        self._here = threading.local()
        self._requests: list[Any] = []
        self._clients: list[socket.socket] = []
        members = {name: self._method(name) for name in STEPS} if notes_in_class else {}
        members["request_cancelled"] = lambda *_: self.journal.append("request_cancelled")
        self.server: Any = type("Noted", (base,), members)(("127.0.0.1", 0), self._handler())

    def note_on_object(self) -> None:
        """Note the calls from now on by methods of the object, after a lane has looked for any."""
        for name in STEPS:
            noting = functools.partial(self._call, name, getattr(self.server, name))
            setattr(self.server, name, noting)

    def _method(self, name: str) -> Any:
        def method(server: Any, *arguments: Any) -> Any:
            return self._call(name, getattr(super(type(server), server), name), *arguments)

        return method

    def _call(self, name: str, real: Callable[..., Any], *arguments: Any) -> Any:
        before = self._here.within = getattr(self._here, "within", "")
        self.journal.append(before + name)
        result = self._effect(name)
        if result is not None or name == "handle_error":
            return result
        if name == "process_request":
            self._here.within = WITHIN
        try:
            result = real(*arguments)
        except BlockingIOError:
            self.journal.pop()  # a take in vain is no call that counts
            raise
        finally:
            self._here.within = before
        if name == "process_request":
            self._join_threads()
        return result

    def _effect(self, name: str) -> Any:
        effects = self.effects.get(name)
        effect = effects.pop(0) if effects else None
        if isinstance(effect, BaseException):
            raise effect
        return effect(self) if callable(effect) and hasattr(self, "worker") else effect

    def _join_threads(self) -> None:
        """Have a request that is served in a thread be over, so that the calls come in one order."""
        for thread in set(threading.enumerate()) - {threading.current_thread()}:
            thread.join(CEILING)

    def _handler(self) -> type[socketserver.BaseRequestHandler]:
        stage = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                stage.journal.append(f"{WITHIN}handle")
                stage._requests.append(self.request)
                if hasattr(stage, "worker"):
                    stage.in_hand.append(stage.worker.counts["in hand"])
                stage._effect("handle")
                if stage.is_stream:
                    self.request.sendall(b"answer to " + self.request.recv(64))
                else:
                    self.request[1].sendto(b"answer to " + self.request[0], self.client_address)

        return Handler

    def ask(self, number: int, *, leave: bool) -> None:
        """Queue a request. leave: its client resets the connection."""
        client = socket.socket(socket.AF_INET, self.server.socket_type)
        client.settimeout(CEILING)
        client.connect(self.server.server_address)
        client.send(b"%d" % number)
        if leave:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
        else:
            self._clients.append(client)
        assert select.select([self.server], [], [], CEILING)[0]

    def answers(self) -> list[bytes]:
        """Close the server with all that it has left open; return what each client has received."""
        self._close_server()
        return [self._answer(client) for client in self._clients]

    def _answer(self, client: socket.socket) -> bytes:
        if not self.is_stream:
            client.setblocking(False)
        with contextlib.suppress(BlockingIOError, ConnectionError):
            return client.recv(64)
        return b""

    def _close_server(self) -> None:
        self.server.server_close()
        for request in self._requests:
            if self.is_stream:
                request.close()

    def close(self) -> None:
        """Take everything down."""
        self._close_server()
        for client in self._clients:
            client.close()


class Worker:
    """What a lane has of its worker."""

    common: Any

    def __init__(self, kind: Kind, server: Any) -> None:
        self.board = Scoreboard.create(1)
        self.writer = SlotWriter(self.board, 0)
        self.epoll = select.epoll()
        self.has_left = False
        listener = Listener(server)
        listener.prepare()
        self.common = Common(self.writer, kind.account(server, self.writer))
        self.common.begin("worker", self.epoll, bool)
        self.turn, self.takes = self.common.turn, self.common.takes
        self.source = Source(listener, self.writer, **kind.options)
        self.source.enter_wait_queue(self.epoll)
        self.lane = kind.make(self)

    def serve(self) -> None:
        """Have the lane serve until nothing is queued, or the worker is to leave."""
        self.takes.dry = False
        while not (self.takes.dry or self.has_left or self.writer.words[ORDER]):
            now = time.monotonic_ns()
            self.lane.serve(now, now + 10**10)

    @property
    def counts(self) -> dict[str, int]:
        """What the slot says: requests by outcome, and those in hand."""
        slot = self.board.snapshot().slots[0]
        return {
            "ok": slot.ok,
            "error": slot[SlotField.ERRORS],
            "rejected": slot[SlotField.REJECTED],
            "cancelled": slot.cancelled,
            "in hand": slot.in_progress,
        }

    def close(self) -> None:
        """Take everything down."""
        self.epoll.close()
        self.writer.detach()
        self.board.close()


# --- the lanes


class Kind(msgspec.Struct, frozen=True):
    """A lane, and a server class of which it serves an instance.

    plain: whether the server has the standard library's steps and no others, so that the lane may
    leave out those that come to nothing. options: how its source takes.
    """

    base: Any
    account: Callable[[Any, SlotWriter], Any]
    make: Callable[[Worker], Lane]
    plain: bool = False
    options: dict[str, Any] = {}

    @property
    def queued(self) -> int:
        """How many requests are queued: threads would serve several in any order."""
        return 1 if issubclass(self.base, socketserver.ThreadingMixIn) else 3

    def can_play(self, scenario: Scenario) -> bool:
        """Return whether a scenario can happen to such a server in the worker's main thread."""
        if self.plain and scenario.overrides:
            return False  # a worker would have chosen another lane
        if scenario.has_left and issubclass(self.base, UDP):
            return False  # a datagram has no connection
        if self.queued == 1 and scenario.counts == "cancelled":
            return False  # nothing is raised in a thread
        ends = {"handle_error", "shutdown_request", "close_request"}
        in_thread = ends & scenario.effects.keys()
        return self.queued > 1 or not (scenario.leaves or in_thread)

    def returns_early(self, scenario: Scenario) -> bool:
        """Return whether the lane returns after the first request, an exception aside."""
        in_a_round = self.first_round >= self.queued
        return scenario.leaves == "request" or (scenario.leaves == "round" and not in_a_round)

    @property
    def first_round(self) -> int:
        """How many requests the lane serves at least before it looks for an order: one that is measured goes alone."""
        return len(ROUND) if self.make is rounds and "sample_every" not in self.options else 1

    def makes(self, call: str) -> bool:
        """Return whether the lane makes a call of the standard server, and in a way that is noted."""
        if not self.plain or call == f"{WITHIN}handle":
            return True
        if issubclass(self.base, UDP) and call.startswith(WITHIN):
            return False
        return call not in ("get_request", "verify_request", "process_request")

    def noted(self, calls: list[str]) -> list[str]:
        """Return the calls so that they can be compared: of a plain server process_request() is not noted."""
        return [call.removeprefix(WITHIN) for call in calls] if self.plain else calls


class ThreadingTCPServer(socketserver.ThreadingMixIn, TCP):
    """The standard library's own."""


class QuietUDPServer(UDP):
    """Runs its handlers as ``PreForkingUDPServer`` does."""

    finish_request = no_empty_reply.finish_request


def no_account(_server: Any, _writer: SlotWriter) -> None:
    """Return nothing: the lane keeps the books."""


def one_at_a_time(_server: Any, writer: SlotWriter) -> OneAtATime:
    """Return the account for an access log, or for spares."""
    return OneAtATime(writer)


def overlapping(server: Any, writer: SlotWriter) -> Overlapping:
    """Return the account for requests that may overlap."""
    account = Overlapping(writer)
    account.watch(server)
    return account


def one_by_one(worker: Worker) -> Lane:
    """Make the usual lane."""
    return OneByOne(worker.source, worker.common)


def accounted(worker: Worker) -> Lane:
    """Make the lane with an account."""
    return Accounted(worker.source, worker.common, worker.common.account)


def rounds(worker: Worker) -> Lane:
    """Make the lane of queued datagrams."""
    assert worker.source.datagrams is not None
    return Rounds(worker.source, worker.common, worker.source.datagrams)


KINDS = {
    "OneByOne": Kind(TCP, no_account, one_by_one),
    "OneByOne, plain server": Kind(TCP, no_account, one_by_one, plain=True),
    "OneByOne, datagrams": Kind(UDP, no_account, one_by_one),
    "OneByOne, plain server, datagrams": Kind(UDP, no_account, one_by_one, plain=True),
    "Accounted": Kind(TCP, one_at_a_time, accounted),
    "Accounted, datagrams": Kind(UDP, one_at_a_time, accounted),
    "Accounted, overlapping": Kind(TCP, overlapping, accounted),
    "Accounted, in threads": Kind(ThreadingTCPServer, overlapping, accounted),
    "Accounted, in threads, measured": Kind(
        ThreadingTCPServer, overlapping, accounted, options={"sample_every": 1}
    ),
    "OneByOne, measured": Kind(TCP, no_account, one_by_one, options={"sample_every": 2}),
    "OneByOne, with client_timeout": Kind(
        TCP, no_account, one_by_one, plain=True, options={"client_timeout": CEILING}
    ),
    "OneByOne, quiet datagrams": Kind(QuietUDPServer, no_account, one_by_one, plain=True),
    "OneByOne, measured datagrams": Kind(
        UDP, no_account, one_by_one, plain=True, options={"sample_every": 2}
    ),
    "Rounds": Kind(UDP, no_account, rounds, plain=True),
    "Rounds, quiet datagrams": Kind(QuietUDPServer, no_account, rounds, plain=True),
    "Rounds, measured datagrams": Kind(
        UDP, no_account, rounds, plain=True, options={"sample_every": 2}
    ),
}

PLAYED = [
    pytest.param(kind, scenario, id=f"{name}: {title}")
    for name, kind in KINDS.items()
    for title, scenario in SCENARIOS.items()
    if kind.can_play(scenario)
]


# --- the two plays


@pytest.fixture(autouse=True)
def _unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a round last as long as it has room: on a loaded machine a millisecond may end it early."""
    monkeypatch.setattr("prefork.workers.worker.rounds.SHORTEST_NS", 10**10)


def queue_up(stage: Stage, kind: Kind, scenario: Scenario) -> None:
    """Queue the requests."""
    for number in range(kind.queued):
        stage.ask(number, leave=scenario.has_left and number == 0)


@contextlib.contextmanager
def played_by_lane(kind: Kind, scenario: Scenario) -> Iterator[Stage]:
    """Give the stage after a lane has served."""
    stage = Stage(kind.base, scenario, notes_in_class=not kind.plain)
    stage.worker = Worker(kind, stage.server)
    if kind.plain:
        stage.note_on_object()
    with contextlib.closing(stage), contextlib.closing(stage.worker):
        queue_up(stage, kind, scenario)
        if isinstance(scenario.leaves, type):
            with pytest.raises(scenario.leaves):
                stage.worker.serve()
        else:
            stage.worker.serve()
        yield stage


def played_by_standard_server(kind: Kind, scenario: Scenario) -> tuple[list[str], list[bytes]]:
    """Return the calls of the standard library's server, and what its clients have received."""
    leaves = scenario.leaves if isinstance(scenario.leaves, type) else ()
    with contextlib.closing(Stage(kind.base, scenario, notes_in_class=True)) as stage:
        queue_up(stage, kind, scenario)
        with contextlib.suppress(leaves):
            while select.select([stage.server], [], [], 0)[0]:
                stage.server._handle_request_noblock()
                if kind.returns_early(scenario):
                    break
        return stage.journal, stage.answers()


@pytest.mark.parametrize(("kind", "scenario"), PLAYED)
def test_lane_does_what_the_standard_server_does(
    kind: Kind, scenario: Scenario, caplog: pytest.LogCaptureFixture
) -> None:
    """A lane makes the same calls in the same order, its clients receive the same, and the books are right."""
    caplog.set_level(logging.CRITICAL, "prefork")
    with played_by_lane(kind, scenario) as stage:
        counts, in_hand = stage.worker.counts, stage.in_hand
        our_calls, our_answers = stage.journal, stage.answers()

    if scenario.instead is None:
        calls, answers = played_by_standard_server(kind, scenario)
    else:
        calls, answers = played_by_standard_server(kind, SCENARIOS["request succeeds"])
        used_up = len(calls) // kind.queued if scenario.counts is not None else 0
        calls = [*scenario.instead, *calls[used_up:]]
        answers = our_answers[:1] + answers[1:]
        if isinstance(scenario.leaves, type):  # the others stay in the queue, for other workers
            calls, answers = scenario.instead, our_answers
    assert kind.noted(our_calls) == kind.noted([call for call in calls if kind.makes(call)])
    assert our_answers == answers

    leaves_early = isinstance(scenario.leaves, type) or kind.returns_early(scenario)
    expected = dict.fromkeys(counts, 0)
    if scenario.counts is not None:
        expected[scenario.counts] = 1
    expected["ok"] += 0 if leaves_early else kind.queued - (scenario.counts is not None)
    assert counts == expected
    assert set(in_hand) <= {1}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_order_that_came_before_is_obeyed_after_one_request(kind: Kind) -> None:
    """A lane looks at the order after a request, or after a round, and never takes on and on."""
    stage = Stage(kind.base, Scenario(), notes_in_class=not kind.plain)
    stage.worker = Worker(kind, stage.server)
    with contextlib.closing(stage), contextlib.closing(stage.worker):
        queue_up(stage, kind, Scenario())
        order_retire(stage)
        now = time.monotonic_ns()
        assert stage.worker.lane.serve(now, now + 10**10) > now
        assert len(stage.in_hand) == min(kind.first_round, kind.queued)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_nothing_queued_costs_nothing(kind: Kind) -> None:
    """A lane that finds nothing returns the instant it was given, blocks nowhere, and counts nothing."""
    stage = Stage(kind.base, Scenario(), notes_in_class=not kind.plain)
    stage.worker = Worker(kind, stage.server)
    with contextlib.closing(stage), contextlib.closing(stage.worker):
        assert stage.worker.lane.serve(111, 10**18) == 111
        assert set(stage.worker.counts.values()) == {0}
        assert stage.worker.takes.dry


@pytest.mark.parametrize("kind", [kind for kind in KINDS.values() if kind.queued == 3])
def test_turn_without_a_burst_is_one_request(kind: Kind) -> None:
    """Without time beyond now a lane serves one request, or one round, and leaves the rest of the queue."""
    stage = Stage(kind.base, Scenario(), notes_in_class=not kind.plain)
    stage.worker = Worker(kind, stage.server)
    with contextlib.closing(stage), contextlib.closing(stage.worker):
        queue_up(stage, kind, Scenario())
        now = time.monotonic_ns()
        assert stage.worker.lane.serve(now, now) > now
        assert len(stage.in_hand) == min(kind.first_round, kind.queued)
