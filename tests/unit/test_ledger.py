"""The ledger: a total that a worker has written over is set back, one that was counted is believed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.workers.ledger import MOST, Growth, Ledger

SECOND = 10**9

GROWTH = {1: Growth(per_second=1000, burst=10), 2: Growth(per_second=SECOND, burst=0)}

WORDS = 4


def words_of(*words: int) -> memoryview[int]:
    """Invent the words of a slot."""
    made = memoryview(bytearray(WORDS * 8)).cast("q")
    for field, word in enumerate(words):
        made[field] = word
    return made


@given(st.integers(0, 10 * 1000 + 10), st.integers(0, 10 * SECOND))
def test_what_can_have_been_counted_is_believed(events: int, time: int) -> None:
    """Totals that grow no faster than they can are left alone, at every look."""
    ledger = Ledger(GROWTH, 2, WORDS)
    words = words_of(7, 100, 5)
    ledger.settle(1, words, SECOND)
    words[1], words[2] = 100 + events, 5 + time
    ledger.settle(1, words, 11 * SECOND)

    assert words.tolist() == [7, 100 + events, 5 + time, 0]


@pytest.mark.parametrize("found", [-(2**63), -1, 0, 99, 100 + 10 * 1000 + 11, 2**62 + 1, 2**63 - 1])
def test_what_cannot_have_been_counted_is_set_back(found: int) -> None:
    """A total that has fallen, or that has grown too fast, is the one that was believed before; others stay."""
    ledger = Ledger(GROWTH, 2, WORDS)
    words = words_of(7, 100, 5)
    ledger.settle(0, words, SECOND)
    words[0], words[1], words[2] = -3, found, 6
    ledger.settle(0, words, 11 * SECOND)

    assert words.tolist() == [-3, 100, 6, 0]


@pytest.mark.parametrize(("found", "believed"), [(-1, 0), (MOST + 1, 0), (MOST, MOST), (5, 5)])
def test_first_look_believes_what_is_in_range(found: int, believed: int) -> None:
    """Without a value from before, only what no total can be is set back, to 0."""
    words = words_of(0, found, found)
    Ledger(GROWTH, 1, WORDS).settle(0, words, SECOND)

    assert words.tolist() == [0, believed, believed, 0]


def test_next_image_goes_on() -> None:
    """What one image has believed, the next one believes, for each slot."""
    slots = 3
    first = Ledger(GROWTH, slots, WORDS)
    for slot in range(slots):
        first.settle(slot, words_of(0, 100 * slot, slot), SECOND)
    following = Ledger(GROWTH, slots, WORDS, first.content())
    for slot in range(slots):
        words = words_of(0, -1, -1)
        following.settle(slot, words, 2 * SECOND)
        assert words.tolist() == [0, 100 * slot, slot, 0]


def test_content_of_another_size_is_none() -> None:
    """A content for another number of slots is not believed, as if there were none."""
    content = Ledger(GROWTH, 2, WORDS).content()
    assert Ledger(GROWTH, 3, WORDS, content).content() == bytes(3 * (WORDS + 1) * 8)


def test_total_never_exceeds_a_word() -> None:
    """However long a slot has lived, what is believed leaves room to count on."""
    ledger = Ledger(GROWTH, 1, WORDS)
    words = words_of(0, 0, MOST)
    ledger.settle(0, words, SECOND)
    words[2] = 2**63 - 1
    ledger.settle(0, words, 2**62)

    assert words[2] == MOST
