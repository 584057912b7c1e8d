"""Rounds: what is queued for a plain datagram server is served and accounted for as if one by one."""

from __future__ import annotations

import contextlib
import functools
import os
import select
import socket
import socketserver
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

import prefork
from prefork.workers.identity import WAKE
from prefork.workers.listener import Listener
from prefork.workers.scoreboard import BOUNDS_NS, BUCKETS, SHORTEST_NS, Scoreboard, SlotField
from prefork.workers.settings import Settings
from prefork.workers.slot_writer import SlotWriter
from prefork.workers.states import ExitKind, Order, WorkerState
from prefork.workers.waits import SAMPLE_EVERY, sample_every
from prefork.workers.worker.choice import lanes_for
from prefork.workers.worker.datagrams import ROUND, Datagrams
from prefork.workers.worker.lanes import Common, Lane
from prefork.workers.worker.loop import Control, Loop
from prefork.workers.worker.side import ThisWorker
from prefork.workers.worker.source import Source
from prefork.workers.worker.takes import FRUITLESS_TRY
from tests.support.waiting import CEILING, Stopwatch, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

SLOW_NS = 3 * SHORTEST_NS

BASES = [socketserver.UDPServer, prefork.PreForkingUDPServer]


class Bench:
    """A worker's loop in this process, with a socket in whose queue a test puts datagrams."""

    def __init__(self, base: Any, metrics: str | None) -> None:
        self.handled: list[bytes] = []
        self.actions: dict[bytes, Callable[[Any], object]] = {
            b"last": lambda _: self.loop.leave(ExitKind.RETIRED)
        }
        bench = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                data = self.request[0]
                bench.handled.append(data)
                bench.actions.get(data, bool)(self)

        self.fds = [*os.pipe(), *os.pipe(), *os.pipe()]
        self.server = base(("127.0.0.1", 0), Handler)
        self.server.bench = self
        self.client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.client.connect(self.server.server_address)
        self.board = Scoreboard.create(1)
        self.writer = SlotWriter(self.board, 0)
        settings = Settings(workers=1, metrics=metrics)
        listener = Listener(self.server)
        listener.prepare(settings)
        self.source = Source(listener, self.writer, sample_every=sample_every(settings))
        self.common = Common(self.writer)
        self.loop = Loop(
            lanes_for([self.source], self.common),
            self.common,
            "worker",
            Control(os.getppid(), life=self.fds[0], wake=self.fds[4], signals=self.fds[2]),
        )

    @property
    def lane(self) -> Lane:
        """The lane that the loop takes while something is queued."""
        lane = self.loop._lanes[self.server.fileno()].for_queue
        assert lane is not None
        return lane

    def serve(self, *datagrams: bytes) -> list[bytes]:
        """Have the loop serve what is queued, up to ``last``; return what the handlers were given."""
        for data in [*datagrams, b"last"]:
            self.client.send(data)
        rescue = threading.Timer(CEILING, self._end)
        rescue.start()
        try:
            assert self.loop.run() is ExitKind.RETIRED
        finally:
            rescue.cancel()
            rescue.join()
        return self.handled

    def _end(self) -> None:
        self.loop.leave(ExitKind.ORPHANED)
        os.write(self.fds[5], WAKE)

    def order(self, order: Order) -> None:
        """Give the worker an order, as the master does."""
        os.write(self.fds[5], bytes((order,)))
        self.board.give_order(0, order)

    def word(self, field: SlotField) -> int:
        """Return a word of the worker's slot."""
        return self.board.word(0, field)

    @property
    def buckets(self) -> tuple[int, ...]:
        """The histogram of the durations."""
        start = SlotField.DURATIONS
        return tuple(self.board.snapshot().slots[0].words[start : start + BUCKETS])

    def close(self) -> None:
        """Take everything down."""
        self.server.server_close()
        self.client.close()
        self.loop._epoll.close()
        for fd in self.fds:
            os.close(fd)
        self.writer.detach()
        self.board.close()


@pytest.fixture(params=BASES)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """Give a loop for the standard library's server, and one for ours."""
    made = Bench(request.param, None)
    yield made
    made.close()


def numbered(count: int) -> list[bytes]:
    """Return this many different datagrams."""
    return [b"%d" % number for number in range(count)]


def slow(_: Any) -> None:
    """Take longer than a round."""
    end = time.monotonic_ns() + SLOW_NS
    while time.monotonic_ns() < end:
        pass


def fail(_: Any) -> None:
    """Raise."""
    raise RuntimeError("on purpose")


def test_queue_is_served_in_order_and_counted(bench: Bench) -> None:
    """A hundred datagrams, among them one that is slow, two that fail and one too long: all are handled and booked."""
    errors: list[object] = []
    bench.server.handle_error = lambda request, _: errors.append(request[0])
    bench.server.max_packet_size = 10
    bench.loop.settle_steps()
    bench.actions |= {b"7": slow, b"40": fail, b"41": fail}
    sent = numbered(99)
    sent[60] = b"y" * 11
    began = time.monotonic_ns()
    handled = bench.serve(*sent)
    elapsed = time.monotonic_ns() - began
    assert handled == [*sent[:60], b"y" * 10, *sent[61:], b"last"]
    assert errors == [b"40", b"41"]
    assert bench.word(SlotField.ERRORS) == 2
    assert bench.word(SlotField.TRUNCATED) == 1
    assert sum(bench.buckets) == 100
    longer = sum(bench.buckets[1:])
    assert 1 <= longer <= 1 + elapsed // SHORTEST_NS, "the slow one is none of the short ones"
    assert sum(bench.buckets[: BOUNDS_NS.index(5_000_000)]) < 100
    assert SLOW_NS <= bench.word(SlotField.BUSY_NS) <= elapsed
    assert bench.word(SlotField.REQUEST_NS) == 0


def test_many_are_served_in_a_round(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a few waits that were none a round has more than one turn: this file tests what it is about."""
    rounds = []
    monkeypatch.setattr(Datagrams, "count", lambda _, received: rounds.append(received))
    bench.serve(*numbered(200))
    assert max(rounds) == len(ROUND)
    assert sum(rounds) <= 200


def test_request_is_as_old_as_its_round_at_most(bench: Bench) -> None:
    """REQUEST_NS, from which a deadline counts, is not more than a millisecond before the end of the one before."""
    seen = []

    def note(_: Any) -> None:
        seen.append(bench.word(SlotField.REQUEST_NS))
        ended.append(time.monotonic_ns())

    ended = [0]
    sent = numbered(200)
    bench.actions |= dict.fromkeys(sent, note)
    bench.actions[b"100"] = lambda handler: (slow(handler), note(handler))
    bench.serve(*sent)
    assert len(seen) == 200
    ages = [before - since for before, since in zip(ended, seen, strict=False)]
    assert max(ages) <= SHORTEST_NS
    assert len(set(seen)) < 100, "most share a round"


def test_extension_is_for_the_request_that_asked(bench: Bench) -> None:
    """A deadline that a datagram's handler has extended is not that of the next datagrams."""
    info = ThisWorker(0, 0, os.getpid(), bench.writer, bench.common.turn)
    extended = []

    def look(_: Any) -> None:
        extended.append(bench.word(SlotField.EXTENDED_FOR_NS) == bench.word(SlotField.REQUEST_NS))

    def extend(handler: Any) -> None:
        info.extend_deadline(60)
        look(handler)

    sent = numbered(60)
    bench.actions |= {**dict.fromkeys(sent, look), b"30": extend, b"31": extend}
    bench.serve(*sent)
    assert [number for number, is_extended in enumerate(extended) if is_extended] == [30, 31]


def test_end_of_the_worker_in_a_round(bench: Bench) -> None:
    """SystemExit of a handler goes through; what was served before it is counted, and it itself as an error."""
    bench.actions[b"33"] = lambda _: (_ for _ in ()).throw(SystemExit(7))
    with pytest.raises(SystemExit):
        bench.serve(*numbered(50))
    assert sum(bench.buckets) == 34
    assert bench.word(SlotField.ERRORS) == 1
    assert bench.word(SlotField.REQUEST_NS) == 0


def test_error_that_ends_the_worker_in_a_round(bench: Bench) -> None:
    """When handle_error() ends the worker, what was served before is counted all the same."""

    def leave(*_: Any) -> None:
        raise SystemExit(7)

    bench.server.handle_error = leave
    bench.actions[b"33"] = fail
    with pytest.raises(SystemExit):
        bench.serve(*numbered(50))
    assert sum(bench.buckets) == 33
    assert bench.word(SlotField.REQUEST_NS) != 0, (
        "the one in hand is counted by who finds the worker dead"
    )


def test_timeout_that_a_handler_has_set_makes_no_round_wait(bench: Bench) -> None:
    """A worker whose handler has set a timeout on the socket does not wait in it when its queue is empty."""

    def retire() -> None:
        bench.order(Order.RETIRE)

    def set_timeout(handler: Any) -> None:
        handler.request[1].settimeout(2 * CEILING)
        timer.start()

    timer = threading.Timer(0.05, retire)
    bench.actions[b"last"] = set_timeout
    watch = Stopwatch()
    bench.serve(*numbered(24))
    timer.join()
    assert watch.seconds < CEILING / 2


def test_round_that_brings_something_ends_what_was_fruitless(bench: Bench) -> None:
    """A worker to which datagrams come one by one, each taken from an empty queue, does not pause for it."""
    bench.server.handle_error = lambda *_: None
    bench.actions |= {b"30": slow, b"60": fail}
    for number in range(100):
        bench.client.send(b"%d" % number)
        assert select.select([bench.server], [], [], CEILING)[0]
        now = time.monotonic_ns()
        bench.lane.serve(now, now + 10**9)
        assert bench.common.takes.fruitless <= FRUITLESS_TRY
    assert len(bench.handled) == 100


def test_order_is_obeyed_after_a_round(bench: Bench) -> None:
    """A worker that is asked to retire leaves the rest of the queue to the others after one round at most."""
    bench.actions[b"20"] = lambda _: bench.order(Order.RETIRE)
    handled = bench.serve(*numbered(100))
    assert 21 <= len(handled) <= 21 + len(ROUND)


def test_word_without_the_masters_byte_is_no_order(bench: Bench) -> None:
    """An order that another worker has written into the slot is not obeyed, and is taken back."""
    at = bench.board.slot_at(0) + SlotField.ORDER
    for number, order in enumerate((Order.RETIRE, Order.DRAIN, 77)):
        bench.actions[b"%d" % number] = lambda _, order=order: bench.board.words.__setitem__(
            at, int(order)
        )
    assert bench.serve(*numbered(100)) == [*numbered(100), b"last"]
    assert bench.word(SlotField.ORDER) == Order.SERVE


@pytest.mark.parametrize("order", [Order.RETIRE, Order.DRAIN])
def test_byte_of_the_master_is_an_order(bench: Bench, order: Order) -> None:
    """An order in the worker's pipe is obeyed, also where the word in the slot was written over."""
    bench.actions[b"last"] = lambda _: os.write(bench.fds[5], bytes((order,)))
    assert bench.serve(*numbered(3)) == [*numbered(3), b"last"]


def test_thread_that_asks_takes_no_order_from_the_worker(bench: Bench) -> None:
    """A thread of a handler sees that the worker is to leave, and the worker is woken by the order all the same."""
    found: list[bool] = []

    def ask() -> None:
        bench.order(Order.RETIRE)
        found.append(bench.loop.is_asked_to_leave())

    found.append(bench.loop.is_asked_to_leave())
    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert found == [False, True]
    assert select.select([bench.fds[4]], [], [], 0)[0]
    assert bench.loop.is_asked_to_leave()  # now in the thread of the loop, which reads it
    assert not select.select([bench.fds[4]], [], [], 0)[0]
    thread = threading.Thread(target=lambda: found.append(bench.loop.is_asked_to_leave()))
    thread.start()
    thread.join()
    assert found == [False, True, True]
    assert bench.word(SlotField.ORDER) == Order.RETIRE


def test_threads_that_ask_at_once_get_an_answer(bench: Bench) -> None:
    """Threads of handlers that ask at the same time whether the worker is to leave disturb neither each other nor it."""
    bench.order(Order.RETIRE)
    failures: list[BaseException] = []
    together = threading.Barrier(4)

    def ask() -> None:
        together.wait(CEILING)
        try:
            assert all(bench.loop.is_asked_to_leave() for _ in range(5000))
        except (AssertionError, RuntimeError) as error:
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert bench.loop.is_ordered()


def test_thread_that_asks_while_the_order_is_read(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that asks when the order has left the pipe and is not noted yet hears that the worker is to leave."""
    found: list[bool] = []
    read = os.read

    def read_and_ask(fd: int, size: int) -> bytes:
        data = read(fd, size)
        thread = threading.Thread(target=lambda: found.append(bench.loop.is_asked_to_leave()))
        thread.start()
        thread.join()
        return data

    bench.order(Order.RETIRE)
    monkeypatch.setattr(os, "read", read_and_ask)
    assert bench.loop.is_ordered()
    assert found == [True]


def test_worker_that_is_woken_says_what_it_does(bench: Bench) -> None:
    """What was written over the state and the request in hand of an idle worker is put right when it is woken."""

    def scribble() -> None:
        base = bench.board.slot_at(0)
        bench.board.words[base + SlotField.STATE] = WorkerState.RETIRING
        bench.board.words[base + SlotField.REQUEST_NS] = 7
        os.write(bench.fds[5], WAKE)
        with contextlib.suppress(AssertionError):
            wait_until(lambda: words() == (WorkerState.IDLE, 0), "put right")
        found.append(words())
        bench.order(Order.RETIRE)

    def words() -> tuple[int, int]:
        return bench.word(SlotField.STATE), bench.word(SlotField.REQUEST_NS)

    found: list[tuple[int, int]] = []
    thread = threading.Thread(target=scribble)
    bench.actions[b"last"] = lambda _: thread.start()
    bench.serve(*numbered(3))
    thread.join()
    assert found == [(WorkerState.IDLE, 0)]


@pytest.mark.parametrize("number", [0, 20])
def test_setup_that_the_class_gets_is_called_from_the_next_round_on(
    bench: Bench, number: int
) -> None:
    """A handler class that is given a ``setup()`` while it is in use has it called, in rounds as ever."""
    calls: list[bytes] = []

    def give_setup(handler: Any) -> None:
        type(handler).setup = lambda handler: calls.append(handler.request[0])

    sent = numbered(100)
    bench.actions[sent[number]] = give_setup
    bench.serve(*sent)
    expected = [*sent[number + 1 :], b"last"]
    assert calls == expected[len(expected) - len(calls) :]
    assert len(calls) >= len(expected) - len(ROUND)


@pytest.mark.parametrize("name", ["__init__", "setup"])
def test_patched_base_of_handlers_is_called(
    bench: Bench, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a program has put in the place of a method of BaseRequestHandler is called, in rounds as ever."""
    standard = getattr(socketserver.BaseRequestHandler, name)
    calls: list[str] = []

    @functools.wraps(standard)
    def replaced(*arguments: Any) -> None:
        calls.append(name)
        standard(*arguments)

    monkeypatch.setattr(socketserver.BaseRequestHandler, name, replaced)
    bench.serve(*numbered(20))
    assert len(calls) >= 20


def is_in_epoll(bench: Bench) -> bool:
    """Return whether the worker waits for its socket."""
    entries = Path(f"/proc/self/fdinfo/{bench.loop._epoll.fileno()}").read_text().splitlines()
    return bench.server.fileno() in {int(one.split()[1]) for one in entries if one[:4] == "tfd:"}


def test_round_needs_no_place_in_the_wait_queue(bench: Bench) -> None:
    """While rounds are served the socket is out of the worker's epoll; it is in it before and afterwards."""
    seen: list[bool] = [is_in_epoll(bench)]
    bench.actions[b"look"] = lambda _: seen.append(is_in_epoll(bench))
    for data in [b"look"] * 20:
        bench.client.send(data)
    now = time.monotonic_ns()
    bench.lane.serve(now, now + 10**10)
    assert [*seen, is_in_epoll(bench)] == [True, *[False] * 20, True]


def become_a_fork(handler: Any) -> None:
    """Do what happens in a process that a handler has forked."""
    handler.server.bench.loop.leave(ExitKind.RETIRED)
    handler.server.bench.writer.detach()


def test_fork_leaves_the_wait_queue_as_it_is_after_a_round(bench: Bench) -> None:
    """A process that a handler has forked in a round does not put the socket back: its worker does."""
    bench.actions[b"fork"] = become_a_fork
    bench.client.send(b"fork")
    now = time.monotonic_ns()
    bench.lane.serve(now, now + 10**10)
    assert bench.handled == [b"fork"]
    assert not is_in_epoll(bench)


def test_fork_takes_nothing_more(bench: Bench) -> None:
    """A process that a handler has forked ends with that very request, in the middle of a round."""
    bench.actions[b"20"] = become_a_fork
    assert bench.serve(*numbered(100)) == numbered(21)


def test_fork_lets_the_wait_queue_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The epoll of a process that a handler has forked is that of its worker, whose place it must not change."""
    moves = []
    monkeypatch.setattr("prefork.workers.worker.loop.TURNS_IN_PLACE", 1)
    monkeypatch.setattr(
        bench.source, "leave_wait_queue", lambda _: moves.append(len(bench.handled))
    )
    monkeypatch.setattr(bench.source, "enter_wait_queue", bool)
    bench.serve(b"0")
    assert bench.handled == [b"0", b"last"]
    assert moves == [1], "the last one left the loop as a fork does"


def test_another_handler_class_counts_from_the_next_round(bench: Bench) -> None:
    """A handler that puts another class in its place is obeyed after one round at most."""
    others: list[bytes] = []

    class Other(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            others.append(self.request[0])
            if self.request[0] == b"last":
                bench.loop.leave(ExitKind.RETIRED)

    bench.actions[b"20"] = lambda handler: setattr(handler.server, "RequestHandlerClass", Other)
    sent = numbered(100)
    assert bench.serve(*sent) + others == [*sent, b"last"]
    assert len(others) >= 100 - 20 - len(ROUND)


class _Made(socketserver.BaseRequestHandler):
    """Writes into its class's journal what is done to it; a subclass is made in a way of its own."""

    journal: ClassVar[list[str]] = []
    react: ClassVar[Callable[[Any], object]] = bool

    def __setattr__(self, name: str, value: object) -> None:
        self.journal.append(f"{name} set")
        super().__setattr__(name, value)

    def handle(self) -> None:
        self.journal.append("handle")
        type(self).react(self)

    def finish(self) -> None:
        self.journal.append("finish")


class _SetUp(_Made):
    def setup(self) -> None:
        self.journal.append("setup")


class _Initialised(_Made):
    def __init__(self, *arguments: Any) -> None:
        self.journal.append("init")
        super().__init__(*arguments)


class _New(_Made):
    def __new__(cls, *_arguments: Any) -> Self:
        cls.journal.append("new")
        return super().__new__(cls)


class _Calling(type):
    def __call__(cls, *arguments: Any) -> object:
        vars(_Made)["journal"].append("call")
        return super().__call__(*arguments)


class _Called(_Made, metaclass=_Calling):
    pass


class _OwnFinish(_Made):
    def handle(self) -> None:
        self.finish = lambda: self.journal.append("own finish")  # type: ignore[method-assign]
        super().handle()


class _Raises(_Made):
    def handle(self) -> None:
        super().handle()
        raise RuntimeError("on purpose")


class _RaisesLate(_Made):
    def finish(self) -> None:
        super().finish()
        raise RuntimeError("on purpose")


def function(request: Any, _client_address: Any, _server: Any) -> None:
    """Handle without a class."""
    _Made.journal.append("function")
    _Made.react(SimpleNamespace(request=request))


@pytest.mark.parametrize(
    "given",
    [_Made, _SetUp, _Initialised, _New, _Called, _OwnFinish, _Raises, _RaisesLate, function],
    ids=lambda given: given.__name__.strip("_"),
)
def test_handler_is_made_as_by_calling_it(
    bench: Bench, given: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is given as the handler class, in a round happens to it what happens when it is called."""
    called: list[str] = []
    monkeypatch.setattr(_Made, "journal", called)
    with contextlib.suppress(RuntimeError):
        given((b"", None), None, bench.server)

    served: list[str] = []
    monkeypatch.setattr(_Made, "journal", served)
    monkeypatch.setattr(
        _Made, "react", lambda handler: bench.actions.get(handler.request[0], bool)(handler)
    )
    bench.server.RequestHandlerClass = given
    bench.server.handle_error = lambda *_: None
    bench.serve(*numbered(50))
    assert called
    assert served == called * 51


def test_handler_class_that_is_none_costs_requests_not_the_worker(bench: Bench) -> None:
    """Where a handler has put something in its class's place that cannot be called, each request fails by itself."""
    errors: list[bytes] = []

    def note(request: Any, _: Any) -> None:
        errors.append(request[0])
        if request[0] == b"last":
            bench.loop.leave(ExitKind.RETIRED)

    bench.server.handle_error = note
    bench.server.RequestHandlerClass = None
    bench.serve(*numbered(50))
    assert errors == [*numbered(50), b"last"]


@pytest.mark.parametrize("name", ["verify_request", "process_request", "close_request"])
def test_server_with_a_step_of_its_own_has_no_rounds(name: str) -> None:
    """Where something stands between the socket and the handler, each datagram goes the whole way."""
    calls = []

    def step(self: Any, *arguments: Any) -> Any:
        calls.append(name)
        return getattr(super(type(self), self), name)(*arguments)

    bench = Bench(type("Own", (socketserver.UDPServer,), {name: step}), None)
    with contextlib.closing(bench):
        bench.serve(*numbered(50))
    assert len(calls) == 51


@pytest.mark.parametrize("base", BASES)
def test_every_seventh_is_measured(base: Any) -> None:
    """With metrics the queue wait of the first datagram is published, and then of every seventh, by rounds or not."""
    bench = Bench(base, "127.0.0.1:0")
    with contextlib.closing(bench):
        bench.serve(*numbered(99))
        start = SlotField.QUEUE_WAITS
        words = bench.board.snapshot().slots[0].words
    assert sum(words[start : start + BUCKETS]) == -(-100 // SAMPLE_EVERY)
