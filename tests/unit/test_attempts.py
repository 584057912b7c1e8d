"""When a program that fails after the exec is run again, and when the process ends."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prefork.host.handover import Attempt
from prefork.reloading.attempts import LONGEST_PAUSE, Act, decide, following, pause

NOW = 1000.0


def test_pauses_double_from_a_tenth_of_a_second_to_their_bound() -> None:
    """A shortage that has passed at once costs a tenth of a second, broken code one attempt in half a minute."""
    pauses, attempt = [], Attempt()
    for _ in range(12):
        pauses.append(pause(attempt))
        attempt = following(attempt, NOW, workers=1)
    assert pauses[:4] == [0.1, 0.2, 0.4, 0.8]
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE


@given(st.integers(1, 10**6), st.integers(1, 1000), st.floats(0, 10**6))
def test_while_workers_are_left_there_is_always_a_next_attempt(
    number: int, workers: int, waited: float
) -> None:
    """However often it has failed, the program is run again within the longest pause, and the process does not end."""
    attempt = Attempt(number=number, is_last=True)
    act = decide(attempt, NOW, NOW + waited, workers=workers)
    assert act in (Act.WAIT, Act.RUN_AGAIN)
    assert act is Act.RUN_AGAIN or waited < LONGEST_PAUSE


def test_without_workers_there_is_one_more_attempt_at_once() -> None:
    """When the last worker has gone one attempt is made without a pause, and after it the process ends."""
    attempt = Attempt(number=20, is_ordered=False)
    assert decide(attempt, NOW, NOW, workers=0) is Act.RUN_AGAIN
    last = following(attempt, NOW, workers=0)
    assert decide(last, NOW, NOW, workers=0) is Act.END


def test_order_begins_the_pauses_anew() -> None:
    """HUP means that the code may be good by now; since when it has failed is kept."""
    first = following(Attempt(), NOW, workers=3)
    second = following(first, NOW + 1, workers=3)
    ordered = following(second, NOW + 2, workers=3, is_ordered=True)
    assert (first.number, second.number, ordered.number) == (2, 3, 1)
    assert (first.is_ordered, ordered.is_ordered) == (False, True)
    assert ordered.failing_since == NOW
