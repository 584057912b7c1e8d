"""Signals on their way to the master: none is lost, none is counted twice, all are documented."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import select
import signal
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from docs import tables
from prefork.host.stopping import unattended
from prefork.master.lifecycle import MasterOrder
from prefork.master.signals import TABLE, SignalCounts, orders_of
from prefork.master.wakeup import Wakeup
from prefork.workers.identity import WAKE

if TYPE_CHECKING:
    from collections.abc import Iterator


HANDLED = [number for number in TABLE if number is not signal.SIGWINCH]


@pytest.fixture
def wakeup() -> Iterator[Wakeup]:
    """Give a wake-up pipe."""
    made = Wakeup()
    yield made
    made.close()


@contextlib.contextmanager
def dispositions(wanted: dict[signal.Signals, Any]) -> Iterator[None]:
    """Have other handlers for a while."""
    before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.fixture
def counts(wakeup: Wakeup) -> Iterator[SignalCounts]:
    """Give the counts of the signals of this process, whatever has started it."""
    made = SignalCounts()
    with dispositions(dict.fromkeys(HANDLED, signal.SIG_DFL)), made.open(wakeup):
        yield made


def receive(*numbers: signal.Signals) -> None:
    """Have this process get signals, one after the other."""
    for number in numbers:
        signal.raise_signal(number)


def is_woken(wakeup: Wakeup) -> bool:
    """Return whether a master that waits for these pipes would be woken."""
    poll = select.poll()
    wakeup.register(poll)
    return bool(poll.poll(0))


def fill(wakeup: Wakeup) -> None:
    """Leave no room in the pipe."""
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(wakeup.write_fd, WAKE * 4096)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(wakeup.write_fd, WAKE)


# --- counting


@pytest.mark.parametrize("number", HANDLED)
def test_each_signal_arrives(counts: SignalCounts, wakeup: Wakeup, number: signal.Signals) -> None:
    """Every signal of the table that is not ignored wakes the master and is taken once, then no more."""
    receive(number)

    assert is_woken(wakeup)
    assert counts.take(wakeup.drain()) == Counter({number: 1})
    assert counts.take(wakeup.drain()) == Counter()


def test_same_signals_are_counted(counts: SignalCounts, wakeup: Wakeup) -> None:
    """Three TTIN and two TTOU before the master looks are three and two: each is one worker."""
    receive(*[signal.SIGTTIN] * 3, *[signal.SIGTTOU] * 2, signal.SIGTERM)

    assert counts.take(wakeup.drain()) == Counter(
        {signal.SIGTTIN: 3, signal.SIGTTOU: 2, signal.SIGTERM: 1}
    )


def test_window_size_is_ignored(counts: SignalCounts, wakeup: Wakeup) -> None:
    """WINCH, which terminals send, wakes nobody."""
    receive(signal.SIGWINCH)

    assert wakeup.drain() == b""
    assert counts.take(b"") == Counter()


@given(st.binary(max_size=200))
def test_bytes_are_counted_by_kind(wakeup_bytes: bytes) -> None:
    """Whatever is in the pipe, only handled signals come out, each as often as its byte is there."""
    counts, wakeup = SignalCounts(), Wakeup()
    with dispositions(dict.fromkeys(HANDLED, signal.SIG_DFL)), counts.open(wakeup):
        taken = counts.take(wakeup_bytes)
    wakeup.close()

    assert taken == Counter(byte for byte in wakeup_bytes if byte in set(HANDLED))
    assert {type(number) for number in taken} <= {signal.Signals}
    assert 0 not in taken.values()


def test_wake_is_no_signal(counts: SignalCounts, wakeup: Wakeup) -> None:
    """What another thread writes into the master's pipe cannot be taken for a signal."""
    wakeup.wake()

    assert counts.take(wakeup.drain()) == Counter()
    assert WAKE[0] not in signal.valid_signals()
    assert len(WAKE) == 1


@pytest.mark.parametrize("capacity", [4096, 65536])
def test_full_pipe_loses_no_kind(wakeup: Wakeup, capacity: int) -> None:
    """In a storm that has filled the pipe, which may be small, a signal loses its count and never its kind."""
    fcntl.fcntl(wakeup.write_fd, fcntl.F_SETPIPE_SZ, capacity)
    counts = SignalCounts()
    with dispositions(dict.fromkeys(HANDLED, signal.SIG_DFL)), counts.open(wakeup):
        fill(wakeup)
        receive(*HANDLED, signal.SIGTTIN)

        assert counts.take(wakeup.drain()) == Counter(dict.fromkeys(HANDLED, 1))
        assert counts.take(wakeup.drain()) == Counter()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGTTIN])
def test_signal_between_drain_and_take_is_counted_once(
    counts: SignalCounts, wakeup: Wakeup, number: signal.Signals
) -> None:
    """A signal that comes when the pipe was just emptied counts once in this tick and the next together."""
    drained = wakeup.drain()
    receive(number)

    assert counts.take(drained) + counts.take(wakeup.drain()) == Counter({number: 1})


def test_storm_does_not_nest(counts: SignalCounts, wakeup: Wakeup) -> None:
    """Thousands of signals, from another thread and of all kinds, raise nothing, and each kind is taken."""
    stop = threading.Event()

    def storm() -> None:
        while not stop.is_set():
            for number in HANDLED:
                os.kill(os.getpid(), number)

    thread = threading.Thread(target=storm, daemon=True)
    thread.start()
    total: Counter[signal.Signals] = Counter()
    while any(total[number] < 50 for number in HANDLED):
        total += counts.take(wakeup.drain())
    stop.set()
    thread.join()
    counts.take(wakeup.drain())

    assert total.keys() == set(HANDLED)


# --- orders


@pytest.mark.parametrize("number", HANDLED)
def test_each_signal_is_an_order(number: signal.Signals) -> None:
    """Every handled signal is one order of the same name, however often it came."""
    change = {signal.SIGTTIN: 3, signal.SIGTTOU: -3}.get(number, 0)

    assert list(orders_of(Counter({number: 3}))) == [(MasterOrder(number.name), change)]


def test_orders_that_are_no_signals() -> None:
    """The other orders are what shutdown(), a failure and a repetition make."""
    assert {str(order) for order in MasterOrder} - {number.name for number in HANDLED} == {
        "shutdown()",
        "failure",
        "again",
    }


@given(st.integers(0, 9), st.integers(0, 9))
def test_ttin_and_ttou_are_one_order(more: int, less: int) -> None:
    """TTIN and TTOU of one tick are one order for the difference, and none if they cancel each other."""
    arrived = +Counter({signal.SIGTTIN: more, signal.SIGTTOU: less, signal.SIGUSR1: 1})
    wanted = [(MasterOrder.TTIN if more > less else MasterOrder.TTOU, more - less)]

    assert list(orders_of(arrived)) == [
        (MasterOrder.USR1, 0),
        *(wanted if more != less else []),
    ]


def test_stop_comes_before_what_it_makes_void(counts: SignalCounts, wakeup: Wakeup) -> None:
    """Of the signals of one tick those that stop the pool are obeyed first, whenever they came."""
    receive(*reversed(HANDLED))
    orders = [order for order, _ in orders_of(counts.take(wakeup.drain()))]

    assert orders[:3] == [MasterOrder.TERM, MasterOrder.INT, MasterOrder.QUIT]
    others = {MasterOrder.USR1, MasterOrder.HUP, MasterOrder.USR2, MasterOrder.URG}
    assert set(orders[3:]) == others


# --- what was there before


def test_handlers_are_put_back(wakeup: Wakeup) -> None:
    """After serve_forever() every disposition and the wake-up descriptor are what they were, also after an error."""

    def mine(number: int, _: object) -> None:
        """Stand for a handler of the program."""

    wanted = dict.fromkeys(TABLE, mine) | {signal.SIGUSR2: signal.SIG_DFL}
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    with dispositions(wanted):
        wakeup_before = signal.set_wakeup_fd(writer)
        try:
            with contextlib.suppress(RuntimeError), SignalCounts().open(wakeup):
                handled = [number for number in TABLE if signal.getsignal(number) != wanted[number]]
                raise RuntimeError("the program failed")
            found = {number: signal.getsignal(number) for number in TABLE}
        finally:
            found_fd = signal.set_wakeup_fd(wakeup_before)
    os.close(reader)
    os.close(writer)

    assert handled == HANDLED
    assert found == wanted
    assert found_fd == writer


def test_what_was_ignored_stays_ignored(wakeup: Wakeup, caplog: pytest.LogCaptureFixture) -> None:
    """HUP under nohup, and INT of a job in the background, do nothing to the master, which logs them; the others do."""
    caplog.set_level(logging.INFO, logger="prefork")
    ignored = {signal.SIGHUP: signal.SIG_IGN, signal.SIGINT: signal.SIG_IGN}
    counts = SignalCounts()
    with dispositions(dict.fromkeys(HANDLED, signal.SIG_DFL) | ignored):
        with counts.open(wakeup):
            receive(signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
            taken = counts.take(wakeup.drain())
        left = {number: signal.getsignal(number) for number in ignored}

    assert taken == Counter({signal.SIGTERM: 1})
    assert left == ignored
    (line,) = [one.getMessage() for one in caplog.records if "ignores signals" in one.getMessage()]
    assert line.endswith('signals="SIGINT SIGHUP"')


def test_other_threads_cannot_open(wakeup: Wakeup) -> None:
    """Outside the main thread Python refuses handlers, and nothing is changed."""
    before = {number: signal.getsignal(number) for number in TABLE}
    refused = []

    def attempt() -> None:
        try:
            with SignalCounts().open(wakeup):
                pass
        except ValueError as error:
            refused.append(error)

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()

    assert len(refused) == 1
    assert before == {number: signal.getsignal(number) for number in TABLE}


def test_late_stop_is_given_to_the_program(wakeup: Wakeup) -> None:
    """A TERM that comes after the loop's last look reaches the program's own handler."""
    came: list[int] = []
    counts = SignalCounts()
    with dispositions(dict.fromkeys(HANDLED, lambda number, _: came.append(number))):
        with counts.open(wakeup):
            counts.take(wakeup.drain())
            receive(signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
        assert came == [signal.SIGTERM]


def test_stop_that_was_obeyed_reaches_the_program_once(wakeup: Wakeup) -> None:
    """A TERM that has ended the serving reaches the program's own handler afterwards, and a late one adds nothing."""
    came: list[int] = []
    counts = SignalCounts()
    with dispositions(dict.fromkeys(HANDLED, lambda number, _: came.append(number))):
        with counts.open(wakeup):
            receive(signal.SIGTERM)
            counts.take(wakeup.drain())
            receive(signal.SIGTERM)
        assert came == [signal.SIGTERM]


def test_stop_is_not_repeated_without_a_handler_of_the_program(wakeup: Wakeup) -> None:
    """Where the default stands, a stop that was obeyed is over: it would end the program."""
    counts = SignalCounts()
    defaults = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    with dispositions(defaults), counts.open(wakeup):
        assert not any(map(counts.is_programs_own, HANDLED))
        receive(signal.SIGTERM, signal.SIGINT)
        counts.take(wakeup.drain())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_as_the_handlers_are_installed(
    wakeup: Wakeup, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """A signal at any step of opening reaches the program's handler or is taken, whatever comes first."""
    real = signal.signal
    for step in range(len(HANDLED) + 1):
        came: list[int] = []
        calls = iter(range(100))

        def install(
            which: int, handler: Any, calls: Iterator[int] = calls, step: int = step
        ) -> Any:
            if next(calls) == step:
                signal.raise_signal(number)
            return real(which, handler)

        counts = SignalCounts()
        programs = dict.fromkeys(HANDLED, lambda n, _, came=came: came.append(n))
        with dispositions(programs), monkeypatch.context() as patch:
            patch.setattr(signal, "signal", install)
            with counts.open(wakeup):
                if step == len(HANDLED):
                    signal.raise_signal(number)
                taken = counts.take(wakeup.drain())
        assert came == [number] or taken[number] == 1, f"lost at step {step}"


def test_handler_that_raises_as_the_handlers_are_installed(wakeup: Wakeup) -> None:
    """Ctrl-C in the middle of opening leaves every disposition and the wake-up descriptor as they were."""

    class Interrupting(dict[int, Any]):
        """What notes the handlers that were there; a signal comes then."""

        def __setitem__(self, number: int, handler: Any) -> None:
            super().__setitem__(number, handler)
            if number == signal.SIGTTIN:
                raise KeyboardInterrupt

    counts = SignalCounts()
    counts._before = Interrupting()  # type: ignore[assignment]
    before = {number: signal.getsignal(number) for number in HANDLED}
    with pytest.raises(KeyboardInterrupt), counts.open(wakeup):
        pass
    assert {number: signal.getsignal(number) for number in HANDLED} == before
    assert signal.set_wakeup_fd(-1) != wakeup.write_fd


@pytest.mark.processes
@pytest.mark.usefixtures("counts")
def test_child_has_the_handlers_of_the_program() -> None:
    """A child that the program forks while it serves has the dispositions that the program had before."""
    pid = os.fork()
    if pid == 0:
        found = {signal.getsignal(number) for number in HANDLED}
        os._exit(found != {signal.SIG_DFL})
    assert os.waitpid(pid, 0)[1] == 0
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL, "the master has its own"


# --- before the master serves


def test_noted_signals_are_orders(wakeup: Wakeup) -> None:
    """What was noted before the pool began is taken at the first look, except for its size."""
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGTTIN):
        unattended.note(number)
    counts = SignalCounts()
    with dispositions(dict.fromkeys(HANDLED, signal.SIG_DFL)), counts.open(wakeup):
        assert counts.take(b"") == Counter({signal.SIGTERM: 1, signal.SIGHUP: 1})
        assert counts.take(b"") == Counter()
    assert unattended.take() == []


# --- the docs


def test_table_in_the_docs_has_every_signal() -> None:
    """The docs' table has one row per signal, in the table's order, with both meanings."""
    rows = [line.strip("| ").split(" | ") for line in tables.signals().splitlines()[2:]]

    assert rows == [
        [number.name.removeprefix("SIG"), *meanings] for number, meanings in TABLE.items()
    ]
    assert all(all(row) for row in rows)


def test_promised_signals_are_in_the_table() -> None:
    """The signals that the design promises an answer to have one, and PIPE is left to the program."""
    names = ("TERM", "INT", "QUIT", "HUP", "USR2", "TTIN", "TTOU", "USR1", "URG", "WINCH")

    assert {number.name for number in TABLE} == {f"SIG{name}" for name in names}
