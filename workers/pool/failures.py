"""What went wrong with new workers lately, and when the next one may be forked (pure).

Two questions are kept apart.

*Does the next worker die in the same way?* A worker that dies while it boots, or that crashes
within PROVEN seconds of being ready without having served, says that it does. A pause follows,
which doubles from 0.1 s to LONGEST_PAUSE while tries fail in a row. Three rules keep the pause
from doing more harm than the failure:

- Workers that were forked before the last pause began say nothing new. Eight workers that fail
  together are one failure, because all of them met the same moment.
- A worker that has served says nothing about the next one: its request may have killed it. Such a
  worker is replaced at once, in a pause too. Otherwise a client that knows a request which
  crashes its worker would keep out all others.
- The pause never exceeds one second. Whatever kept workers from booting (a database that
  restarts) ends without notice, and clients may be waiting.

*Can the kernel fork?* When it refuses, nothing at all is forked until the next try.

What bounds the rate of forks: while boots fail, one worker is tried at a time. Replacements of
workers that died unexpectedly are limited however quickly clients can crash workers: at once to
the size of the pool and EXTRA_RESPAWNS, and afterwards to as many a second, evenly. Recycling,
growth and reloads have limits of their own, in policy.py.

Instants are seconds on the master's clock.
"""

from __future__ import annotations

from prefork.workers.states import ExitCause, ExitKind

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 1.0
"""Seconds between two tries at the most. A pool may stay down for this long after workers can boot again."""

PROVEN = 1.0
"""Seconds that a worker has to be ready before its death says nothing about the next one."""

CRASH_LOOP = 6
"""Failures in a row that are a crash loop: with the pauses in between, some two and a half seconds."""

EXTRA_RESPAWNS = 32
"""Replacements beyond the size of the pool, at once and then each second: some 30 ms of forking here."""

REPORT_INTERVAL = 30.0
"""Seconds after which a report that repeats itself is logged once more."""

_SIGKILL, _SIGTERM = 9, 15


def backoff(failures: int, cap: float) -> float:
    """Return the seconds to wait after this many failures in a row: 0.1, 0.2, 0.4 … up to the cap."""
    return min(cap, FIRST_PAUSE * 2 ** min(failures - 1, 16)) if failures > 0 else 0.0


def is_crash(cause: ExitCause) -> bool:
    """Return whether a worker ended by its own code, and was not killed from outside."""
    if cause.kind is ExitKind.KILLED:
        return cause.status not in (_SIGKILL, _SIGTERM)
    return cause.kind is ExitKind.EXITED and cause.status != 0


def most_respawns(size: int) -> int:
    """Return how many workers may be replaced after an unexpected death at once, and then each second."""
    return size + EXTRA_RESPAWNS


class Failures:
    """Counts failures in a row by their kind, and replacements by their rate (master).

    The methods are told of events with the instant ``now``. ``fork_at`` and ``try_at`` are what the policy
    asks for.
    """

    def __init__(self) -> None:
        self.fork_at = 0.0
        """The kernel has refused a fork: no fork at all before this instant."""
        self.try_at = 0.0
        """New workers fail: none before this instant but for those that had served."""
        self.ever_ready = False
        self.own_fault = False
        """Whether the last worker that died before it was ready did so by its own code."""
        self.last_report = ""
        self.forks = 0
        self.boots = 0
        self.died_booting = 0
        """Every worker that died before it was ready since one was; ``boots`` counts them by tries."""
        self.early_deaths = 0
        self._pause_began = float("-inf")
        self._reported_at = float("-inf")
        self._respawns = 0.0
        """Replacements that count against the next ones: all that were made, less what time has taken off."""
        self._respawns_at = 0.0
        """When time was last taken into account."""

    @property
    def probing(self) -> bool:
        """Whether to try one worker at a time: no worker has booted since the last failed try."""
        return self.forks + self.boots > 0

    @property
    def is_crash_loop(self) -> bool:
        """Whether new workers die again and again."""
        return max(self.boots, self.early_deaths) >= CRASH_LOOP

    # --- what the kernel refuses

    def fork_failed(self, now: float) -> None:
        """Note that the kernel refused a process or a descriptor."""
        self.forks += 1
        self.fork_at = now + backoff(self.forks, LONGEST_PAUSE)

    def forked(self) -> None:
        """Note that forks work."""
        self.forks = 0

    # --- workers that fail

    def boot_failed(self, report: str, now: float, *, forked_at: float, own_fault: bool) -> None:
        """Note a death before ready. own_fault: by its own code rather than by a kill from outside."""
        self.own_fault, self.last_report = own_fault, report
        self.died_booting += 1
        if forked_at >= self._pause_began:
            self.boots += 1
            self._pause(self.boots, now)

    def died_early(self, report: str, now: float, *, forked_at: float) -> None:
        """Note a crash right after ready of a worker that had served nothing."""
        self.last_report = report
        if forked_at >= self._pause_began:
            self.early_deaths += 1
            self._pause(self.early_deaths, now)

    def became_ready(self) -> None:
        """Note that a worker has booted: the application can, so that nothing is gained by waiting."""
        self.ever_ready = True
        self.boots = self.died_booting = 0
        if not self.early_deaths:
            self.try_at = 0.0

    def proved(self) -> None:
        """Note that a worker has outlived its first moments."""
        self.early_deaths = 0

    @property
    def is_row(self) -> bool:
        """Whether boots have failed again and again: from then on there is one try a second."""
        return self.boots >= CRASH_LOOP

    def was_reported(self, report: str, now: float) -> bool:
        """Return whether a report of a worker that failed repeats one that was logged a moment ago.

        report: to be noted by ``boot_failed()`` afterwards. A False means that the report is logged now.
        """
        if report == self.last_report and now < self._reported_at + REPORT_INTERVAL:
            return True
        self._reported_at = now
        return False

    def _pause(self, failures: int, now: float) -> None:
        self._pause_began = now
        self.try_at = now + backoff(failures, LONGEST_PAUSE)

    # --- replacements

    def respawned(self, count: int) -> None:
        """Note that this many workers were forked in place of those that died unexpectedly."""
        self._respawns += count

    def respawns_left(self, size: int, now: float) -> int:
        """Return how many more such workers may be forked now. size: of the pool."""
        most = most_respawns(size)
        taken_off = most * (now - self._respawns_at)
        self._respawns, self._respawns_at = max(0.0, self._respawns - taken_off), now
        return max(0, int(most - self._respawns))
