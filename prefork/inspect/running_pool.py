"""A running pool, held to be read and to be signalled by other processes of its user."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import time
from typing import TYPE_CHECKING, Any, Self

from prefork.inspect.proc import is_taken, memories_of, scoreboards_of, status_word
from prefork.metrics.description import PoolDescription
from prefork.metrics.kernel import queues
from prefork.metrics.status import status
from prefork.workers import reports, system
from prefork.workers.errors import PreforkError
from prefork.workers.scoreboard import Scoreboard, Snapshot
from prefork.workers.text import escaped

if TYPE_CHECKING:
    import signal


class NoPoolError(PreforkError):
    """There is no such pool, or it may not be looked at."""


class NoSignalsError(PreforkError):
    """The master takes no signals, which would do to its program what their default is: end or stop it."""


class RunningPool:
    """A running master and its scoreboard, mapped read-only. A context manager: it holds descriptors."""

    def __init__(self, pid: int, number: int, pidfd: int, board: Scoreboard) -> None:
        self.pid = pid
        self.board = board
        self._link = f"/proc/{pid}/fd/{number}"
        self._pidfd = pidfd

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of it."""
        self.board.close()
        os.close(self._pidfd)

    def description(self) -> PoolDescription:
        """Return what the pool says of itself; an empty description where it says nothing, or nonsense."""
        return PoolDescription.from_text(self.board.description())

    @property
    def name(self) -> str | None:
        """The name of the pool, escaped."""
        return self.description().name

    @property
    def where(self) -> str:
        """Where it listens, for people, escaped."""
        return escaped(" ".join(one.name for one in self.description().listeners))

    def __str__(self) -> str:
        return " ".join(part for part in (str(self.pid), self.name or "-", self.where) if part)

    def snapshot(self) -> Snapshot:
        """Read all words."""
        return self.board.snapshot()

    def reports(self) -> dict[int, str]:
        """Return what the live workers have written of themselves, by slot, not yet escaped."""
        names = {reports.name_of(self.board.fd, slot): slot for slot in range(self.board.slots)}
        found: dict[int, str] = {}
        with contextlib.suppress(OSError):  # the master has ended, or is in the middle of an exec
            for number, name in memories_of(self.pid):
                if name in names:
                    found[names[name]] = _report(self.pid, number)
        return found

    def status(self) -> dict[str, Any]:
        """Describe the pool as it is now: the status of ``prefork.metrics.status``."""
        description = self.description()
        waiting = queues(description.listeners)
        return status(self.snapshot(), description, time.monotonic_ns(), queues=waiting)

    def has_ended(self) -> bool:
        """Tell whether the master is gone; its scoreboard can be read on."""
        return has_ended(self._pidfd)

    def has_stopped(self) -> bool:
        """Tell whether the pool is gone: its process may go on, which then has the scoreboard no more."""
        if self.has_ended():
            return True
        mine = os.fstat(self.board.fd)
        try:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(self._link), mine):
                    return False
            # What was the lowest number may have been that of mmap's duplicate, which an exec closes.
            # (A process that looks at itself would find what it looks with.)
            return self.pid == os.getpid() or mine.st_ino not in scoreboards_of(self.pid)
        except FileNotFoundError:
            return True
        except OSError:
            return False  # in the middle of an exec in place nobody may look

    def take_turn(self) -> bool:
        """Try to become the one command that changes this pool; ``end_turn()`` or the process' end gives it up.

        An advisory lock between commands on the memory that they all have open; the pool knows
        nothing of it.
        """
        try:
            fcntl.flock(self.board.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def end_turn(self) -> None:
        """Let the next command change the pool."""
        fcntl.flock(self.board.fd, fcntl.LOCK_UN)

    def is_suspended(self) -> bool:
        """Tell whether the master was stopped, by SIGSTOP or a debugger, and takes no orders for now."""
        with contextlib.suppress(OSError):
            return status_word(self.pid, "State", "")[:1] in ("T", "t")
        return False

    def send(self, number: signal.Signals) -> None:
        """Signal the master. One that has just ended is no error: see ``has_ended()``.

        NoSignalsError where nobody would take it; NoPoolError where it is not permitted.
        """
        if self.has_ended():
            return
        if not is_taken(self.pid, number):
            raise NoSignalsError(
                f"the master {self.pid} does not take {number.name}: serve_forever() runs in a thread of "
                "its program, or is starting or ending; stop or scale it from within"
            )
        try:
            system.signal_held(self._pidfd, number)
        except ProcessLookupError:
            return
        except PermissionError:
            raise NoPoolError(f"process {self.pid} may not be signalled by this user") from None


def _report(pid: int, number: int) -> str:
    try:
        fd = os.open(f"/proc/{pid}/fd/{number}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return ""  # its worker has ended meanwhile
    try:
        return reports.read(fd)
    finally:
        os.close(fd)


def has_ended(pidfd: int) -> bool:
    """Return whether the process behind a pidfd has ended."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))
