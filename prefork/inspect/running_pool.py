"""A running pool, held by another process of its user to be read and signalled.

Signals are the only way in, and shared memory is the only way out. The master does not notice a
reader.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import time
from typing import TYPE_CHECKING, Any, Final, Self

from prefork.inspect.proc import (
    ignores_signal,
    memories_of,
    owner_of,
    scoreboards_of,
    status_word,
    takes_signal,
)
from prefork.metrics.description import PoolDescription
from prefork.metrics.kernel import queues
from prefork.metrics.status import status
from prefork.workers import named_requests, reports, system
from prefork.workers.errors import PreforkError
from prefork.workers.scoreboard import Scoreboard, Snapshot
from prefork.workers.text import escaped

if TYPE_CHECKING:
    import signal


class NoPoolError(PreforkError):
    """No pool matches, or this user may not read it. The text says what to do."""


class NoSignalsError(PreforkError):
    """The master has no handler for the signal.

    Sent anyway, the signal would end or stop its program.
    """


class NotPermittedError(PreforkError):
    """This user may not send a signal to the master."""


class PoolEndedError(PreforkError):
    """The pool has ended while a command looked at it."""


class RunningPool:
    """A running master and its scoreboard, which is mapped read-only.

    The object holds three descriptors, so it is a context manager. Everything can still be read after
    the master has ended: the memory stays as the master left it.

    pid: the master's, as seen from here. number: the descriptor of the scoreboard in the master.
    pidfd, board, proof: taken over, and closed by ``close()``. proof: the descriptor of the memfd by
    which the process is known as the master.
    """

    def __init__(self, pid: int, number: int, pidfd: int, board: Scoreboard, proof: int) -> None:
        self.pid = pid
        self.board = board
        self._link = f"/proc/{pid}/fd/{number}"
        self._pidfd = pidfd
        self._proof = proof

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptors."""
        self.board.close()
        os.close(self._pidfd)
        os.close(self._proof)

    def description(self) -> PoolDescription:
        """Return the pool's description of itself, an empty one while there is none or where it cannot be read."""
        return PoolDescription.from_text(self.board.description.read())

    @property
    def name(self) -> str | None:
        """The name of the pool, escaped; None where it has none."""
        return self.description().name

    @property
    def where(self) -> str:
        """The addresses that the pool listens on, escaped, with spaces in between."""
        return escaped(" ".join(one.name for one in self.description().listeners))

    def __str__(self) -> str:
        return " ".join(part for part in (str(self.pid), self.name or "-", self.where) if part)

    def snapshot(self) -> Snapshot:
        """Return a copy of all words of the scoreboard."""
        return self.board.snapshot()

    def reports(self) -> dict[int, str]:
        """Return the reports of the live workers by slot: stacks, or a traceback.

        The text is not escaped.

        The result lacks workers that end meanwhile. It is empty during an exec in place, when no
        process may look into another one's descriptors.
        """
        names = {reports.name_of(self.board.fd, slot): slot for slot in range(self.board.slots)}
        found: dict[int, str] = {}
        with contextlib.suppress(OSError):
            for number, name in memories_of(self.pid):
                if name in names:
                    found[names[name]] = _report(self.pid, number)
        return found

    def status(self) -> dict[str, Any]:
        """Return the status of the pool now, as ``prefork.metrics.status.status()`` describes it."""
        description = self.description()
        waiting = queues(description.listeners)
        return status(self.snapshot(), description, time.monotonic_ns(), queues=waiting)

    def has_ended(self) -> bool:
        """Return whether the master's process has ended."""
        return has_ended(self._pidfd)

    def has_stopped(self) -> bool:
        """Return whether the pool has ended. The process of its master may go on without it.

        A master that has closed its scoreboard has no pool any more. So the question is whether the
        process still has this memory open. The descriptor of the first look is checked first. An
        exec in place may have closed it: the lowest number can have been the duplicate of ``mmap``.
        Then all descriptors are searched. A process that looks at itself finds the descriptor that
        this object holds, so the search is left out there.
        """
        if self.has_ended():
            return True
        mine = os.fstat(self.board.fd)
        try:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(self._link), mine):
                    return False
            return self.pid == os.getpid() or mine.st_ino not in scoreboards_of(self.pid)
        except FileNotFoundError:
            return True
        except OSError:
            return False  # in the middle of an exec in place no process may look

    def take_turn(self) -> bool:
        """Try to become the one command that changes this pool; return whether that succeeded.

        The turn is an advisory lock on the proof of the master, which all commands have open, and
        which no worker has: a lock on the scoreboard could be held by a worker for ever. The pool
        does not know about it. ``end_turn()`` gives the turn up, and so does the end of the
        process.
        """
        try:
            fcntl.flock(self._proof, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def end_turn(self) -> None:
        """Let the next command change the pool."""
        fcntl.flock(self._proof, fcntl.LOCK_UN)

    def name_request(self, request: int) -> None:
        """Name a request to the master, until this object is closed; a signal has the master look."""
        named_requests.name(self.board.fd, request)

    def is_suspended(self) -> bool:
        """Return whether the master is stopped, by SIGSTOP or by a debugger, and cannot act on signals now."""
        with contextlib.suppress(OSError):
            return status_word(self.pid, "State", "")[:1] in ("T", "t")
        return False

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the master.

        Nothing happens if the master has just ended: see ``has_ended()``.

        NoSignalsError: the master has no handler for this signal. NotPermittedError: this user may
        not send it.
        """
        if self.has_ended():
            return
        if not takes_signal(self.pid, number):
            raise NoSignalsError(_why_not_taken(self.pid, number))
        try:
            system.signal_held(self._pidfd, number)
        except ProcessLookupError:
            return
        except PermissionError:
            raise NotPermittedError(
                f"this user may not send {number.name} to the master {self.pid}, which belongs to "
                f"{owner_of(self.pid)}; run the command as that user"
            ) from None


def _why_not_taken(pid: int, number: signal.Signals) -> str:
    """Return why a master has no handler for a signal, and the remedy."""
    if ignores_signal(pid, number):
        return (
            f"the master {pid} ignores {number.name}, because its program was started with this signal "
            f"ignored{_OTHER_WAYS.get(number.name, '')}; to change that, start it in another way"
        )
    return (
        f"the master {pid} has no handler for {number.name}: its serve_forever() does not run in "
        "the main thread, or is starting or ending; try again, or call shutdown() in its program"
    )


_OTHER_WAYS: Final = {"SIGHUP": ", as nohup does; prefork upgrade reloads it, too"}
"""What to do instead of sending a signal that a master ignores."""


def _report(pid: int, number: int) -> str:
    try:
        fd = os.open(f"/proc/{pid}/fd/{number}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return ""  # the worker has ended
    try:
        return reports.read(fd)
    finally:
        os.close(fd)


def has_ended(pidfd: int) -> bool:
    """Return whether the process behind a pidfd has ended."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))
