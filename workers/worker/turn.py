"""How long a lane goes on taking requests before it returns to the loop (worker)."""

from __future__ import annotations


class Turn:
    """The end of the turn in progress, as two instants (monotonic nanoseconds) that can be moved to now.

    A lane reads the clock after each request anyway, for the books, and compares what it reads
    with these. To stop a lane is to set an instant to 0. So nothing is added to the path of a
    request for the few events that end a turn early: the worker is to leave, this process turns out
    to be a fork of the worker, or a deadline was extended.
    """

    __slots__ = ("round_until", "until")

    def __init__(self) -> None:
        self.until = 0
        """The lane returns after the first request that ends at this instant or later; 0: it was ended."""
        self.round_until = 0
        """The datagram that ends after this instant is the last of its round."""

    def end(self) -> None:
        """Have the lane return after the request in hand (any thread, signal handlers)."""
        self.until = self.round_until = 0

    def end_round(self) -> None:
        """Have the next datagram begin a round of its own (any thread)."""
        self.round_until = 0
