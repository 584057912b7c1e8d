"""The words that a worker writes while it serves: the hot path of the books (worker).

A request costs few stores. When it is taken, REQUEST_NS says since when it is in hand; that makes
the worker busy, without a store for the state. When it is over, ``account()`` adds its time to a
sum and 1 to a bucket of the histogram, and sets REQUEST_NS to 0. Good requests have no counter of
their own: there are as many as the histogram has counted, less those that went wrong.

A counter that a stray write has filled up stays full, and costs no request: each addition that would
leave the range of a word is done once more, within the range (``add()``). Only then does this cost
anything: a ``try`` is free, because Python enters its handler by a table. (What was added before the
addition that failed is added twice then, in a slot whose numbers are spoiled anyway.)
"""

from __future__ import annotations

from bisect import bisect_left
from enum import IntEnum

from prefork.workers.cancel import CancelReason, index_of_reason, reason_at
from prefork.workers.scoreboard import (
    BOUNDS_NS,
    CANCELLED_FIELDS,
    MOST,
    SHORTEST_NS,
    SLOT_WORDS,
    Scoreboard,
    SlotField,
)
from prefork.workers.states import WorkerState

# Plain integers for the words of the hot path: a member of an enum costs a look-up on its class
# each time.
ORDER = int(SlotField.ORDER)
REQUEST_NS = int(SlotField.REQUEST_NS)
IN_PROGRESS = int(SlotField.IN_PROGRESS)
CANCEL = int(SlotField.CANCEL)
CANCEL_HEARD = int(SlotField.CANCEL_HEARD)
_BUSY_NS = int(SlotField.BUSY_NS)
_DURATIONS = int(SlotField.DURATIONS)
_ANSWERS = int(SlotField.ANSWERS)


class Outcome(IntEnum):
    """How a request went. The value is the counter of the outcome; OK is 0 and has none."""

    OK = 0
    ERROR = SlotField.ERRORS
    REJECTED = SlotField.REJECTED
    CLIENT_TIMEOUT = SlotField.CLIENT_TIMEOUTS
    # One for each CancelReason, because each has a counter.
    CANCELLED_SOFT_TIMEOUT = SlotField.CANCELLED
    CANCELLED_CPU_TIMEOUT = SlotField.CANCELLED + 1
    CANCELLED_CLIENT_GONE = SlotField.CANCELLED + 2
    CANCELLED_COMMAND = SlotField.CANCELLED + 3
    CANCELLED_HANDLER = SlotField.CANCELLED + 4
    CANCELLED_URGENT = SlotField.CANCELLED + 5

    @classmethod
    def cancelled(cls, reason: CancelReason) -> Outcome:
        """Return the outcome of a request that has ended for this reason."""
        return cls(SlotField.CANCELLED + index_of_reason(reason))

    @property
    def reason(self) -> CancelReason | None:
        """Why the request was cancelled; None where it was not."""
        return reason_at(self - SlotField.CANCELLED) if self in CANCELLED_FIELDS else None

    @property
    def word(self) -> str:
        """The word of the log: ok, error, rejected, cancelled."""
        return "cancelled" if self in CANCELLED_FIELDS else self.name.lower()


class SlotWriter:
    """Writes the words of one slot, and cannot write to another one (the worker in that slot)."""

    def __init__(self, board: Scoreboard, slot: int) -> None:
        start = board.slot_at(slot)
        # A view of this slot alone: no arithmetic for each word, and an index out of it raises.
        self.words = board.words[start : start + SLOT_WORDS]
        self.is_detached = False
        """Whether this process is a fork of the worker, and not the worker."""

    def become(self, state: WorkerState) -> None:
        """Publish the worker's state."""
        self.words[SlotField.STATE] = state

    def count(self, field: SlotField) -> None:
        """Add one to a counter."""
        self.add(field, 1)

    def add(self, index: int, amount: int) -> None:
        """Add to a counter, within the range of a word."""
        words = self.words
        words[index] = min(max(0, words[index] + amount), MOST)

    def account(self, outcome: Outcome, duration_ns: int) -> None:
        """Count one finished request: its outcome and its time. No request is in hand after it."""
        words = self.words
        words[REQUEST_NS] = 0
        try:
            words[_BUSY_NS] += duration_ns
            if duration_ns <= SHORTEST_NS:  # most requests of a server for which a µs matters
                words[_DURATIONS] += 1
            else:
                words[_DURATIONS + bisect_left(BOUNDS_NS, duration_ns)] += 1
            if outcome:
                words[outcome] += 1
        except ValueError:
            self.add(_BUSY_NS, duration_ns)
            self.add(_DURATIONS + bisect_left(BOUNDS_NS, duration_ns), 1)
            if outcome:
                self.add(outcome, 1)

    def account_short(self, requests: int, duration_ns: int) -> None:
        """Count good requests of SHORTEST_NS at most each. No request is in hand after them.

        duration_ns: the time that they took together.
        """
        words = self.words
        words[REQUEST_NS] = 0
        try:
            words[_BUSY_NS] += duration_ns
            words[_DURATIONS] += requests
        except ValueError:
            self.add(_BUSY_NS, duration_ns)
            self.add(_DURATIONS, requests)

    def count_answer(self, place: int) -> None:
        """Count an answer of HTTP. place: among the counts of workers/answers.py."""
        words = self.words
        try:
            words[_ANSWERS + place] += 1
        except ValueError:
            self.add(_ANSWERS + place, 1)

    def detach(self) -> None:
        """Write to private memory from now on: this process is a fork of the worker."""
        self.words = memoryview(bytearray(SLOT_WORDS * 8)).cast("q")
        self.is_detached = True
