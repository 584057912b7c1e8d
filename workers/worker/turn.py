"""How long a lane goes on taking requests before it returns to the loop (worker)."""

from __future__ import annotations

AT_ONCE_NS = 8_000
"""A wait shorter than this did not sleep: there is a queue."""


class Turn:
    """When the turn in progress ends: two instants, in monotonic nanoseconds.

    A lane reads the clock after each request for the books, and compares the reading with these
    instants. Setting one of them to 0 stops the lane after the request in hand. So the few events that
    end a turn early add nothing to the path of a request: the worker is to leave, this process is one
    that a handler has forked, or a deadline was extended.
    """

    __slots__ = ("is_last", "round_until", "until")

    def __init__(self) -> None:
        self.until = 0
        """The lane returns after the first request that ends at this instant or later; 0 after ``end()``."""
        self.round_until = 0
        """The first datagram that ends after this instant is the last of its round."""
        self.is_last = False
        """Whether the worker takes nothing more once this turn is over (``max_requests = 1``)."""

    def end(self) -> None:
        """Have the lane return after the request in hand (any thread, signal handlers)."""
        self.until = self.round_until = 0

    def end_round(self) -> None:
        """Have the next datagram begin a round of its own (any thread)."""
        self.round_until = 0
