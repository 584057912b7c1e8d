"""When the caretaker runs the program again, and when it gives up (pure).

New code that fails after the exec may be good: the system may have run out of descriptors, memory
or processes for a second, or a file was being written. So the program is run again without an
order, and the pause before each attempt doubles from 0.1 s to LONGEST_PAUSE. An attempt costs what
loading the application costs, and harms nothing that serves.

While workers are left, there is no last attempt: they serve, and each of them is worth more than
none. When the last one has gone, nobody is served by waiting. So one more attempt is made at once,
and if that fails, too, the process ends with an exit status by which its supervisor sees it.
"""

from __future__ import annotations

from enum import Enum, auto

from prefork.host.handover import Attempt
from prefork.workers.pool.failures import backoff

LONGEST_PAUSE = 30.0
"""Seconds between two attempts at most: for how long a good program can be kept waiting."""


class Act(Enum):
    """What the caretaker does next."""

    WAIT = auto()
    RUN_AGAIN = auto()
    END = auto()


def pause(attempt: Attempt) -> float:
    """Return the seconds from the end of an attempt that has failed to the next one."""
    return backoff(attempt.number, LONGEST_PAUSE)


def decide(attempt: Attempt, failed_at: float, now: float, *, workers: int) -> Act:
    """Return what to do after an attempt that has failed.

    failed_at, now: seconds on the master's clock. workers: how many of the previous ones are left.
    """
    if not workers:
        return Act.END if attempt.is_last else Act.RUN_AGAIN
    return Act.RUN_AGAIN if now >= failed_at + pause(attempt) else Act.WAIT


def following(attempt: Attempt, now: float, *, workers: int, is_ordered: bool = False) -> Attempt:
    """Return the attempt that follows one that has failed. is_ordered: by HUP or USR2.

    An order means that the code may have been corrected, so the pauses begin anew.
    """
    return Attempt(
        number=1 if is_ordered else attempt.number + 1,
        is_ordered=is_ordered,
        is_last=not workers,
        failing_since=now if attempt.failing_since is None else attempt.failing_since,
    )
