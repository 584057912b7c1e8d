"""``prefork scale``: which size is meant, and when a pool has reached it."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from prefork.cli.commands.scale import command, is_settled, progress, wanted_size
from prefork.workers.scoreboard import PoolField, SlotField
from prefork.workers.states import Order
from tests.support.boards import SECOND, occupy, scoreboard

NOW = 1000 * SECOND


@pytest.mark.parametrize(
    ("size", "wanted"), [("4", 4), ("+1", 4), ("+7", 10), ("-2", 1), (" -1", 2), ("1", 1)]
)
def test_size_is_a_number_or_a_change(size: str, wanted: int) -> None:
    """N, +N and -N are computed from the present number of workers."""
    assert wanted_size(size, 3, 10) == wanted


@pytest.mark.parametrize("size", ["0", "11", "+8", "-3", "-99"])
def test_size_beyond_the_bounds(size: str) -> None:
    """The error for a number out of bounds names the present number and the bounds."""
    with pytest.raises(click.BadParameter, match=r"the pool keeps 3 now, and can keep 1 to 10 "):
        wanted_size(size, 3, 10)


def test_size_beyond_the_bounds_is_named_as_it_was_typed() -> None:
    """The error names what was typed and what it means."""
    with pytest.raises(click.BadParameter, match=r"^-3 means 0 workers, which is out of bounds"):
        wanted_size(" -3", 3, 10)


def test_number_after_the_pool_is_a_slip() -> None:
    """Where the pool and the number have changed places, the error gives the right command."""
    result = CliRunner().invoke(command, ["4711", "+2"])
    assert result.exit_code == 2
    assert "the number of workers comes first: prefork scale +2 4711" in result.output


@pytest.mark.parametrize("size", ["", "x", "1.5", "+", "--1", "1..4", "٣", "9" * 5000])
def test_size_that_is_no_number(size: str) -> None:
    """The error for a size that is not a number names the three forms."""
    with pytest.raises(click.BadParameter, match=r"is not N, \+N or -N"):
        wanted_size(size, 3, 10)


def test_scaled_is_who_has_the_workers_ready_and_none_too_many() -> None:
    """A pool has its size when enough workers are ready and none is left that neither the floor nor load needs."""
    with scoreboard(6, at=NOW) as board:
        board.set_pool(PoolField.TARGET, 3)
        occupy(board, 0, 11, at=NOW)
        occupy(board, 1, 12, at=NOW)
        board.prepare_slot(2, 0, NOW)
        board.words[board.slot_at(2) + SlotField.PID] = 13
        assert not is_settled(board.snapshot(), 3)
        assert progress(board.snapshot(), 3) == "[#############-------] 2 of 3 workers ready"
        occupy(board, 2, 13, at=NOW)
        assert is_settled(board.snapshot(), 3)
        occupy(board, 3, 14, at=NOW)
        board.give_order(3, Order.RETIRE)
        assert not is_settled(board.snapshot(), 3)
        assert (
            progress(board.snapshot(), 3)
            == "workers that finish their requests before they leave: 1"
        )
        board.set_pool(PoolField.TARGET, 4)
        assert is_settled(board.snapshot(), 3)
