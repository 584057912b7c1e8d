"""Failures of new workers in a row, and how long to wait before the next fork (pure).

There are three kinds of failure: a fork that the kernel refuses, a worker that dies before it is
ready, and a worker that crashes within a second of being ready. Each kind has a row of its own,
which ends with the first success of that kind. The longer the row, the longer the pause before the
next fork. While any row lasts, one worker is tried at a time (``probing``).
"""

from __future__ import annotations

from prefork.workers.states import ExitCause, ExitKind

FIRST_BACKOFF = 0.1
BOOT_BACKOFF_CAP = 30.0
FORK_BACKOFF_CAP = 1.0
"""Forks fail because of low memory or too many processes; both may end at any time."""

PROVEN = 1.0
"""Seconds that a worker has to be ready before its death says nothing about the next one."""

CRASH_LOOP = 6
"""Failures in a row that are a crash loop; with the back-off they take some three seconds."""

_SIGKILL, _SIGTERM = 9, 15


def backoff(failures: int, cap: float) -> float:
    """Return the seconds to wait after failures in a row: 0.1, 0.2, 0.4 … up to the cap."""
    return min(cap, FIRST_BACKOFF * 2 ** min(failures - 1, 16)) if failures > 0 else 0.0


def is_crash(cause: ExitCause) -> bool:
    """Return whether a worker ended by its own code.

    A bad exit status and a fault such as SIGSEGV are its own; SIGKILL and SIGTERM are sent by
    others.
    """
    if cause.kind is ExitKind.KILLED:
        return cause.status not in (_SIGKILL, _SIGTERM)
    return cause.kind is ExitKind.EXITED and cause.status != 0


class Failures:
    """Counts failures in a row, by kind (master). Instants are seconds on the master's clock."""

    def __init__(self) -> None:
        self.retry_at = 0.0
        """The instant before which there is no fork."""
        self.ever_ready = False
        self.own_fault = False
        """Whether the last worker that died before it was ready ended by its own code."""
        self.last_report = ""
        self.forks = 0
        self.boots = 0
        self.early_deaths = 0

    @property
    def probing(self) -> bool:
        """Whether to fork one worker at a time."""
        return self.forks + self.boots + self.early_deaths > 0

    @property
    def is_crash_loop(self) -> bool:
        """Whether new workers die again and again."""
        return max(self.boots, self.early_deaths) >= CRASH_LOOP

    def fork_failed(self, now: float) -> None:
        """Note that the kernel has refused a process or a descriptor."""
        self.forks += 1
        self._wait(backoff(self.forks, FORK_BACKOFF_CAP), now)

    def forked(self) -> None:
        """Note that a fork has succeeded."""
        self.forks = 0

    def boot_failed(self, report: str, now: float, *, own_fault: bool) -> None:
        """Note a death before ready. own_fault: whether the worker ended by its own code."""
        self.boots += 1
        self.own_fault, self.last_report = own_fault, report
        self._wait(backoff(self.boots, BOOT_BACKOFF_CAP), now)

    def died_early(self, report: str, now: float) -> None:
        """Note a crash right after ready, which the next worker would probably repeat."""
        self.early_deaths += 1
        self.last_report = report
        self._wait(backoff(self.early_deaths, BOOT_BACKOFF_CAP), now)

    def became_ready(self) -> None:
        """Note that a worker has booted, so the application is able to."""
        self.ever_ready = True
        self.boots = 0

    def proved(self) -> None:
        """Note that a worker has outlived its first moments."""
        self.early_deaths = 0

    def _wait(self, seconds: float, now: float) -> None:
        self.retry_at = max(self.retry_at, now + seconds)
