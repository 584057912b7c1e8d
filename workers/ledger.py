"""The ledger: which values of a slot's counters the master has believed last (master; pure).

The counters on the scoreboard are totals that never fall, and any worker can write over them. The
ledger is the master's own copy, in memory that no worker can write to. It is brought up to date when
a worker has ended and again before the next one is forked (``settle()``). Only one thing is asked of
a counter then: can it have come from the value that was believed, in the time since? A total that has
fallen cannot, and neither can one that has grown faster than any worker counts. Such a counter is set
back to the value that was believed. So a stray write spoils a total until the slot gets its next
worker, as at a reload, and what the counter had counted before is not lost.

A write within the bounds is not noticed. It is then a number that the workers could have reached.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

MOST: Final = 2**62
"""The largest total that is believed: a year of a thousand threads, in nanoseconds, is far below."""


class Growth(msgspec.Struct, frozen=True):
    """How fast one counter can grow. per_second: at the most. burst: at once, whatever the time."""

    per_second: int
    burst: int

    def reaches(self, found: int, before: int, passed_ns: int) -> bool:
        """Return whether a counter can have this value, this long after another one (pure)."""
        most = before + self.burst + self.per_second * max(0, passed_ns) // 10**9
        return before <= found <= min(most, MOST)


class Ledger:
    """The counters of all slots of one scoreboard.

    growth: how fast each counter of a slot can grow, by its field. words: how many words a slot has.
    content: what an earlier image of the master has left. Without it, what stands on the scoreboard
    at the first look is believed as far as it is in range.
    """

    def __init__(
        self, growth: Mapping[int, Growth], slots: int, words: int, content: bytes = b""
    ) -> None:
        self._growth = growth
        self._words = words
        # One word more for each slot: when it was settled, on the monotonic clock. 0 for never.
        size = slots * (words + 1) * 8
        self._own = memoryview(bytearray(content if len(content) == size else size)).cast("q")

    def content(self) -> bytes:
        """Return what the next image of the master needs to go on."""
        return self._own.tobytes()

    def settle(self, slot: int, found: memoryview[int], now_ns: int) -> None:
        """Believe what can be true of a slot's counters, and set the others back (no live worker).

        found: the words of the slot on the scoreboard. now_ns: on the monotonic clock.
        """
        start = slot * (self._words + 1)
        own = self._own[start : start + self._words + 1]
        settled_at = own[self._words]
        passed = now_ns - settled_at if settled_at else MOST * 10**9
        for field, growth in self._growth.items():
            if growth.reaches(found[field], own[field], passed):
                own[field] = found[field]
            else:
                found[field] = own[field]
        own[self._words] = now_ns
