"""Failed takes: when a worker pauses, what it logs and counts, and when the queue counts as empty."""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING, Any

import pytest

from prefork.workers.scoreboard import Scoreboard, SlotField
from prefork.workers.slot_writer import SlotWriter
from prefork.workers.states import Order
from prefork.workers.worker.shortage import Meaning, meaning
from prefork.workers.worker.takes import FRUITLESS_BOUND, FRUITLESS_TRY, Takes

if TYPE_CHECKING:
    from collections.abc import Iterator

NOTHING = BlockingIOError(errno.EAGAIN, "nothing")
GONE = ConnectionAbortedError(errno.ECONNABORTED, "gone")
SHORT = OSError(errno.EMFILE, "no descriptors")
BROKEN = OSError(errno.EBADF, "closed")


class Source:
    """A source, and its listener in one, whose queue is said to be empty or not."""

    def __init__(self) -> None:
        self.listener = self
        self.empty = False

    def is_empty(self) -> bool:
        """Answer for the kernel."""
        return self.empty

    def meaning_of(self, error: Exception, *, draining: bool, empty: bool) -> Meaning:
        """Answer as the sources of sockets do."""
        return meaning(error, draining=draining, empty=empty)

    def __str__(self) -> str:
        return "tcp://here:1"


class Bench:
    """The takes of a worker whose pauses are counted."""

    def __init__(self) -> None:
        self.board = Scoreboard.create(1)
        self.writer = SlotWriter(self.board, 0)
        self.pauses = 0
        self.takes = Takes(self.writer)
        self.takes.begin("worker", self._pause)

    def _pause(self) -> None:
        self.pauses += 1

    def fail(self, source: Any, error: Exception, times: int = 1) -> int:
        """Have takes fail; return how many pauses that made."""
        before = self.pauses
        for _ in range(times):
            self.takes.failed(source, error)
        return self.pauses - before

    @property
    def accept_failures(self) -> int:
        """The counter of the slot."""
        return self.board.word(0, SlotField.ACCEPT_FAILURES)


@pytest.fixture
def bench() -> Iterator[Bench]:
    """Give the takes of a worker."""
    made = Bench()
    yield made
    made.writer.detach()
    made.board.close()


@pytest.fixture
def source() -> Any:
    """Give a source."""
    return Source()


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged, without the facts."""
    return [record.getMessage().split(" listener=")[0] for record in caplog.records]


def test_a_few_takes_in_vain_cost_nothing(bench: Bench, source: Any) -> None:
    """A worker whose siblings are faster does not pause, logs nothing and counts no failure."""
    assert bench.fail(source, NOTHING, FRUITLESS_BOUND // FRUITLESS_TRY - 1) == 0
    assert bench.accept_failures == 0


class Polled(Source):
    """A source that waits by itself when there is nothing to take."""

    def meaning_of(self, error: Exception, *, draining: bool, empty: bool) -> Meaning:
        """Answer as a server without a socket does."""
        is_nothing = isinstance(error, BlockingIOError)
        return (
            Meaning.NOTHING
            if is_nothing
            else super().meaning_of(error, draining=draining, empty=empty)
        )


def test_source_that_waits_by_itself_costs_nothing(bench: Bench, caplog: Any) -> None:
    """A source that waits by itself is never pausing because it has nothing, and to have nothing ends a shortage."""
    source: Any = Polled()
    assert bench.fail(source, NOTHING, 10 * FRUITLESS_BOUND) == 0
    assert bench.takes.fruitless == 0
    assert bench.fail(source, ValueError("no database"), 2) == 2
    assert bench.fail(source, NOTHING, 2) == 0
    assert [line.partition(" ")[2] for line in logged(caplog)] == [
        "cannot take requests, retrying",
        "takes requests again",
    ]


def test_endless_vain_takes_pause(bench: Bench, source: Any, caplog: Any) -> None:
    """A descriptor that stays readable and never brings anything makes the worker pause, silently."""
    bench.fail(source, NOTHING, FRUITLESS_BOUND // FRUITLESS_TRY - 1)
    assert bench.fail(source, NOTHING, 3) == 3
    assert logged(caplog) == []


def test_some_takes_in_vain_are_enough_to_pause(bench: Bench, source: Any) -> None:
    """A worker spins only briefly on a descriptor that brings nothing: it pauses before the twentieth take."""
    assert bench.fail(source, NOTHING, 20) > 0


def test_success_clears_the_points(bench: Bench, source: Any) -> None:
    """Takes in vain that are interrupted by one that succeeds never add up to a pause."""
    for _ in range(FRUITLESS_BOUND):
        assert bench.fail(source, NOTHING) == 0
        bench.takes.succeeded(source)


def test_clients_that_are_gone_cost_no_pause(bench: Bench, source: Any, caplog: Any) -> None:
    """A thousand clients that were gone in a row are passed over without a pause or a line."""
    assert bench.fail(source, GONE, FRUITLESS_BOUND - 1) == 0
    assert (logged(caplog), bench.accept_failures) == ([], 0)


def test_clients_that_are_gone_for_ever_are_a_shortage(
    bench: Bench, source: Any, caplog: Any
) -> None:
    """An error that should belong to one client and never ends is logged once, counted, and pauses."""
    bench.fail(source, GONE, FRUITLESS_BOUND - 1)
    assert bench.fail(source, GONE, 3) == 3
    assert logged(caplog) == ["worker cannot take requests, retrying"]
    assert bench.accept_failures == 3


@pytest.mark.parametrize("error", [SHORT, ValueError("the program's own")])
def test_shortage_pauses_at_once_and_is_logged_once(
    bench: Bench, source: Any, caplog: Any, error: Exception
) -> None:
    """Each take that fails for lack of something pauses and is counted; the log has its beginning and its end."""
    caplog.set_level(logging.INFO)
    assert bench.fail(source, error, 5) == 5
    assert bench.takes.is_stalled(source)
    bench.takes.succeeded(source)
    bench.takes.succeeded(source)
    assert not bench.takes.is_stalled(source)
    assert bench.accept_failures == 5
    began, ended = logged(caplog)
    assert began.startswith("worker cannot take requests, retrying")
    assert ended == "worker takes requests again"
    assert caplog.records[0].levelname == "ERROR"


def test_end_of_each_shortage_is_noticed(bench: Bench, caplog: Any) -> None:
    """With two sources stalled, a success of one leaves points, so that the success of the other is looked at."""
    caplog.set_level(logging.INFO)
    first, second = Source(), Source()
    bench.fail(first, SHORT)
    bench.fail(second, SHORT)
    bench.takes.succeeded(first)  # type: ignore[arg-type]
    assert bench.takes.fruitless
    bench.takes.succeeded(second)  # type: ignore[arg-type]
    assert not bench.takes.fruitless
    assert logged(caplog).count("worker takes requests again") == 2


def test_stalled_source_pauses_for_a_sibling_too(bench: Bench, source: Any) -> None:
    """While a source is stalled, a take that finds nothing pauses: it proves nothing about the shortage."""
    bench.fail(source, SHORT)
    assert bench.fail(source, NOTHING) == 1
    assert bench.takes.is_stalled(source)


def test_lost_listener_is_raised(bench: Bench, source: Any) -> None:
    """The error that says that the worker has lost its listener ends the worker."""
    with pytest.raises(OSError, match="closed"):
        bench.takes.failed(source, BROKEN)


@pytest.mark.parametrize(
    ("error", "empty", "dry"),
    [(NOTHING, False, True), (SHORT, True, True), (SHORT, False, False), (GONE, True, False)],
)
def test_when_the_queue_is_dry(
    bench: Bench, source: Any, error: OSError, empty: bool, dry: bool
) -> None:
    """While draining, a queue is dry when a take found nothing, or failed for a shortage on an empty queue."""
    bench.board.give_order(0, Order.DRAIN)
    source.empty = empty
    bench.takes.failed(source, error)
    assert bench.takes.dry is dry


def test_drain_of_an_endless_failure_ends(bench: Bench, source: Any) -> None:
    """A drain is not held for ever by a source whose takes fail without end."""
    bench.board.give_order(0, Order.DRAIN)
    bench.fail(source, GONE, FRUITLESS_BOUND)
    assert bench.takes.dry


def test_drained_queue_is_no_failure(bench: Bench, source: Any, caplog: Any) -> None:
    """A shortage while no client waits is neither counted nor logged, and costs no pause."""
    bench.board.give_order(0, Order.DRAIN)
    source.empty = True
    assert bench.fail(source, SHORT) == 0
    assert (logged(caplog), bench.accept_failures) == ([], 0)


def test_each_try_for_a_thread_pauses(
    bench: Bench, source: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A request that gets no thread makes one pause for each try, and one line at the beginning and the end."""
    for _ in range(3):
        bench.takes.wait_for_process(source, RuntimeError("can't start new thread"))
    assert bench.pauses == 3
    assert bench.accept_failures == 3
    assert bench.takes.fruitless
    bench.takes.succeeded(source)
    assert [record.getMessage().splitlines()[0] for record in caplog.records] == [
        "worker cannot take requests, retrying listener=tcp://here:1",
        "worker takes requests again listener=tcp://here:1",
    ]
