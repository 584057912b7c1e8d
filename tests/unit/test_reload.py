"""The outcome of a reload on the scoreboard: a reader that waits for the counter finds all of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from prefork.host.handover import Attempt
from prefork.reloading.caretaker import Caretaker
from prefork.reloading.reload import Reload
from prefork.workers.scoreboard import PoolField, Scoreboard
from prefork.workers.states import ReloadState
from tests.support.boards import scoreboard

if TYPE_CHECKING:
    from collections.abc import Callable


def end_of(board: Scoreboard, method: Callable[..., None], *arguments: str) -> None:
    """Call what ends a reload, on a reload that has nothing but a scoreboard."""
    silent = SimpleNamespace(ready=lambda _: None, ready_as_before=lambda _: None)
    reload: Any = object.__new__(Reload)
    reload._pool, reload._notifier = SimpleNamespace(board=board, generation=1), silent
    method(reload, *arguments)


def failing(board: Scoreboard, **attempt: bool) -> Caretaker:
    """Return a caretaker that has nothing but a scoreboard and an attempt that has failed."""
    caretaker: Any = object.__new__(Caretaker)
    caretaker._board, caretaker._is_uncounted = board, False
    caretaker._state = SimpleNamespace(
        attempt=Attempt(**attempt), pool=SimpleNamespace(generation=7)
    )
    return cast("Caretaker", caretaker)


OUTCOMES: dict[str, tuple[Callable[[Scoreboard], None], PoolField, ReloadState, str]] = {
    "it succeeds": (
        lambda board: end_of(board, Reload._succeed),
        *(PoolField.RELOADS, ReloadState.DONE, ""),
    ),
    "it fails": (
        lambda board: end_of(board, Reload._fail, "no reason"),
        *(PoolField.RELOADS_FAILED, ReloadState.FAILED, "no reason"),
    ),
    "the new code ends after the exec": (
        lambda board: failing(board)._publish_failure("the new code ended before"),
        *(PoolField.RELOADS_FAILED, ReloadState.FAILED, "the new code ended before"),
    ),
}


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_counter_is_last(outcome: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the counter of an outcome goes up, the state and the report are those of the outcome."""
    ends, counter, state, report = OUTCOMES[outcome]
    found = []

    def count(board: Scoreboard, field: PoolField) -> None:
        found.append((field, board.pool(PoolField.RELOAD_STATE), board.reload_report.read()))

    monkeypatch.setattr(Scoreboard, "count_pool", count)
    with scoreboard(1) as board:
        board.reload_report.write("an earlier failure")
        ends(board)

    ((field, found_state, found_report),) = found
    assert (field, found_state) == (counter, state)
    assert found_report.startswith(report)
    assert "earlier" not in found_report


def test_attempt_that_nobody_ordered_is_not_counted() -> None:
    """An attempt of the caretaker's own that fails is no reload; the generation is that of the workers again."""
    with scoreboard(1) as board:
        board.set_pool(PoolField.GENERATION, 8)
        failing(board, is_ordered=False)._publish_failure("no reason")
        assert board.pool(PoolField.RELOADS_FAILED) == 0
        assert board.pool(PoolField.RELOAD_STATE) == ReloadState.FAILED
        assert board.pool(PoolField.GENERATION) == 7
