"""A running pool from outside: its description, its signals, its end."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.inspect.find import find_pool
from prefork.inspect.running_pool import NoSignalsError
from tests.support.boards import HERE, pools_of, scoreboard


@given(st.text(max_size=200))
def test_whatever_a_pool_says_of_itself(text: str) -> None:
    """A description of any text can be read, and the result never contains a control character."""
    with scoreboard(name="x") as board:
        board.description.write(text)
        with pools_of(HERE) as pools:
            (pool,) = pools
            assert str(pool).isprintable()
            assert pool.status()["scoreboard"] == "...."


def test_name_is_escaped() -> None:
    """Control characters in the name of a pool are escaped."""
    with scoreboard(name="\x1b[2J\nroot") as _, pools_of(HERE) as pools:
        assert pools[0].name == "\\x1b[2J\\nroot"


def test_signal_that_nobody_takes_is_not_sent() -> None:
    """A signal without a handler is not sent, because it would stop or end the program."""
    with scoreboard() as _, pools_of(HERE) as pools:
        for number in (signal.SIGTTIN, signal.SIGUSR1):
            with pytest.raises(NoSignalsError, match=f"{HERE} has no handler for {number.name}"):
                pools[0].send(number)


def test_signal_that_is_ignored_is_explained() -> None:
    """A master that was started with HUP ignored, as by nohup, is not sent one; the error says what to do."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with (
            scoreboard() as _,
            pools_of(HERE) as pools,
            pytest.raises(NoSignalsError, match="as nohup does; prefork upgrade reloads it, too"),
        ):
            pools[0].send(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_signal_that_is_taken_arrives() -> None:
    """A signal with a handler is sent."""
    arrived: list[int] = []
    before = signal.signal(signal.SIGTTIN, lambda number, _frame: arrived.append(number))
    try:
        with scoreboard() as _, pools_of(HERE) as pools:
            pools[0].send(signal.SIGTTIN)
        assert arrived == [signal.SIGTTIN]
    finally:
        signal.signal(signal.SIGTTIN, before)


def test_signal_that_is_blocked_is_sent() -> None:
    """A blocked signal is sent, because a master blocks its signals during an exec in place."""
    with scoreboard() as _, pools_of(HERE) as pools:
        with pytest.raises(NoSignalsError):
            pools[0].send(signal.SIGURG)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGURG})
        try:
            pools[0].send(signal.SIGURG)
            # Another thread of the test runner takes it in place of this one, and ignores it.
            others = len(os.listdir("/proc/self/task")) - 1
            assert signal.SIGURG in signal.sigpending() or others
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGURG})


def test_pool_that_was_closed_has_stopped() -> None:
    """A pool whose scoreboard is closed has stopped although its process runs, and its memory stays readable."""
    with contextlib.ExitStack() as life:
        life.enter_context(scoreboard(name="shop"))
        with find_pool(str(HERE)) as pool:
            assert not pool.has_stopped()
            life.close()
            assert pool.has_stopped()
            assert not pool.has_ended()
            assert pool.name == "shop"
