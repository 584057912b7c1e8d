"""A running pool from outside: what it says of itself, its signals, its end."""

from __future__ import annotations

import contextlib
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.inspect.find import find_pool
from prefork.inspect.running_pool import NoSignalsError
from tests.support.boards import HERE, pools_of, scoreboard


@given(st.text(max_size=200))
def test_whatever_a_pool_says_of_itself(text: str) -> None:
    """Nonsense is nothing said, and no name can steer a terminal or begin a line."""
    with scoreboard(name="x") as board:
        board.set_description(text)
        with pools_of(HERE) as pools:
            (pool,) = pools
            assert str(pool).isprintable()
            assert pool.status()["scoreboard"] == "...."


def test_name_is_escaped() -> None:
    """A name from shared memory is shown, not obeyed."""
    with scoreboard(name="\x1b[2J\nroot") as _, pools_of(HERE) as pools:
        assert pools[0].name == "\\x1b[2J\\nroot"


def test_signal_that_nobody_takes_is_not_sent() -> None:
    """TTIN would stop the program, USR1 end it, where serve_forever() runs in a thread and handles neither."""
    with scoreboard() as _, pools_of(HERE) as pools:
        for number in (signal.SIGTTIN, signal.SIGUSR1):
            with pytest.raises(NoSignalsError, match=f"{HERE} has no handler for {number.name}"):
                pools[0].send(number)


def test_signal_that_is_taken_arrives() -> None:
    """With a handler installed it is sent."""
    arrived: list[int] = []
    before = signal.signal(signal.SIGTTIN, lambda number, _frame: arrived.append(number))
    try:
        with scoreboard() as _, pools_of(HERE) as pools:
            pools[0].send(signal.SIGTTIN)
        assert arrived == [signal.SIGTTIN]
    finally:
        signal.signal(signal.SIGTTIN, before)


def test_signal_that_is_blocked_is_sent() -> None:
    """A master that is about to exec in place blocks its signals and handles them afterwards."""
    with scoreboard() as _, pools_of(HERE) as pools:
        with pytest.raises(NoSignalsError):
            pools[0].send(signal.SIGURG)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGURG})
        try:
            pools[0].send(signal.SIGURG)
            assert signal.SIGURG in signal.sigpending()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGURG})


def test_pool_that_was_closed_has_stopped() -> None:
    """The program may go on; its scoreboard is gone, and what was read stays readable."""
    with contextlib.ExitStack() as life:
        life.enter_context(scoreboard(name="shop"))
        with find_pool(str(HERE)) as pool:
            assert not pool.has_stopped()
            life.close()
            assert pool.has_stopped()
            assert not pool.has_ended()
            assert pool.name == "shop"
