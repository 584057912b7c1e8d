"""Find the running masters of this machine by their scoreboards, and hold one to read and to signal.

A master shows its scoreboard as a descriptor in ``/proc/PID/fd``; whoever may open that one may read
all about the pool, also while the master hangs. No file and no socket has to be agreed upon.

What is found is checked as a stranger's: any process can make a memfd of that name.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
import select
import time
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec

from prefork.metrics.kernel import queues
from prefork.metrics.status import status
from prefork.workers import reports, system
from prefork.workers.errors import PreforkError
from prefork.workers.scoreboard import MEMFD_NAME, PoolField, Scoreboard, Snapshot
from prefork.workers.settings import MOST_CHILDREN
from prefork.workers.text import escaped

if TYPE_CHECKING:
    import signal
    from collections.abc import Iterator

_MEMORY: Final = "/memfd:"
_DELETED: Final = " (deleted)"
"""How /proc shows a memfd, before and after its name."""

_MASTERS_TITLE: Final = b"prefork: master"


class NoPoolError(PreforkError):
    """There is no such pool, or it may not be looked at."""


class SeveralPoolsError(PreforkError):
    """It was not said which of several pools is meant; the text lists them, one a line."""


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

    def about(self) -> dict[str, Any]:
        """Return what the pool says of itself, {} if that is nothing or nonsense."""
        with contextlib.suppress(ValueError, RecursionError):
            about = json.loads(self.board.about())
            if isinstance(about, dict):
                return about
        return {}

    @property
    def name(self) -> str | None:
        """The name of the pool, escaped."""
        name = self.about().get("name")
        return escaped(name) if isinstance(name, str) and name else None

    @property
    def where(self) -> str:
        """Where it listens, for people, escaped."""
        names = [one.get("name") for one in _listeners(self.about())]
        return escaped(" ".join(name for name in names if isinstance(name, str)))

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
            for number, name in _memories_of(self.pid):
                if name in names:
                    found[names[name]] = _report(self.pid, number)
        return found

    def status(self) -> dict[str, Any]:
        """Describe the pool as it is now: the status of ``prefork.metrics.status``."""
        about = self.about()
        waiting = queues(_listeners(about))
        return status(self.snapshot(), about, time.monotonic_ns(), queues=waiting)

    def has_ended(self) -> bool:
        """Tell whether the master is gone; its scoreboard can be read on."""
        return _has_ended(self._pidfd)

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
            return self.pid == os.getpid() or mine.st_ino not in _scoreboards_of(self.pid)
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
            return _status_word(self.pid, "State", "")[:1] in ("T", "t")
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


class Survey(msgspec.Struct, frozen=True):
    """What a look around has found.

    pools: to be closed by whoever has them. forbidden: masters (by their title) of other users.
    unreadable: processes with a scoreboard of another version.
    """

    pools: list[RunningPool]
    forbidden: list[int]
    unreadable: list[int]

    def close(self, *, but: RunningPool | None = None) -> None:
        """Let go of all pools but one."""
        for pool in self.pools:
            if pool is not but:
                pool.close()


# --- looking around ------------------------------------------------------------------------------


def look_around() -> Survey:
    """Find every running master that this process may read."""
    survey = Survey([], [], [])
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            _look_at(int(entry), survey)
    survey.pools.sort(key=lambda pool: pool.pid)
    return survey


def _look_at(pid: int, survey: Survey) -> None:
    try:
        numbers = list(_scoreboards_of(pid).values())
    except PermissionError:
        if _title(pid).startswith(_MASTERS_TITLE):
            survey.forbidden.append(pid)
        return
    except OSError:
        return  # it has ended meanwhile
    for number in numbers:
        try:
            pool = _attached(pid, number)
        except OSError:
            continue  # process or descriptor went meanwhile, or it is no scoreboard at all
        except ValueError:
            if _title(pid).startswith(_MASTERS_TITLE) and pid not in survey.unreadable:
                survey.unreadable.append(pid)
            continue
        if pool is not None:
            survey.pools.append(pool)


def _scoreboards_of(pid: int) -> dict[int, int]:
    """Return the descriptors that look like scoreboards, one for the inode of each memory behind them."""
    found: dict[int, int] = {}
    for number, name in _memories_of(pid):
        if name == MEMFD_NAME:
            with contextlib.suppress(FileNotFoundError):
                inode = os.stat(f"/proc/{pid}/fd/{number}").st_ino
                # Most often the master's own, which stays over an exec in place; Python's mmap has
                # a duplicate of it.
                found[inode] = min(number, found.get(inode, number))
    return found


def _memories_of(pid: int) -> Iterator[tuple[int, str]]:
    """Yield the descriptors that are a memfd, each with its name."""
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            link = os.readlink(f"/proc/{pid}/fd/{number}")
            if link.startswith(_MEMORY) and link.endswith(_DELETED):
                yield int(number), link[len(_MEMORY) : -len(_DELETED)]


def _report(pid: int, number: int) -> str:
    try:
        fd = os.open(f"/proc/{pid}/fd/{number}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return ""  # its worker has ended meanwhile
    try:
        return reports.read(fd)
    finally:
        os.close(fd)


def _attached(pid: int, number: int) -> RunningPool | None:
    """Hold a process and map its scoreboard; None if it is not the master. ValueError for another layout."""
    with contextlib.ExitStack() as undo:
        # Held before it is looked at: its pid cannot become another's in between unnoticed.
        pidfd = system.hold_process(pid)
        undo.callback(os.close, pidfd)
        board = _mapped(pid, number)
        if board is None:
            return None
        undo.callback(board.close)
        is_masters = board.pool(PoolField.MASTER_PID) == _own_pid(pid)
        if not is_masters or not 1 <= board.slots <= MOST_CHILDREN or _has_ended(pidfd):
            return None
        undo.pop_all()
    return RunningPool(pid, number, pidfd, board)


def _mapped(pid: int, number: int) -> Scoreboard | None:
    # Not blocking: by now the number may be another file's, a pipe's for one.
    fd = os.open(f"/proc/{pid}/fd/{number}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        # One that could be shrunk would end this process with SIGBUS at the next look.
        if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
            return Scoreboard.attach(fd)
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def _own_pid(pid: int) -> int:
    """Return the pid by which a process knows itself: in a container it is another one than here."""
    return int(_status_word(pid, "NSpid", str(pid)).split()[-1])


def _status_word(pid: int, key: str, otherwise: str) -> str:
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name == key:
                return value.strip() or otherwise
    return otherwise


def is_taken(pid: int, number: signal.Signals) -> bool:
    """Tell whether a process handles a signal, or keeps it blocked until it does: over an exec in place."""
    with contextlib.suppress(OSError, ValueError):
        caught, blocked = (int(_status_word(pid, key, "0"), 16) for key in ("SigCgt", "SigBlk"))
        return bool((caught | blocked) >> (number - 1) & 1)
    return False


def _has_ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def _title(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read(4096).replace(b"\0", b" ").strip()
    except OSError:
        return b""


def _listeners(about: dict[str, Any]) -> list[dict[str, Any]]:
    listed = about.get("listeners")
    return [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []


# --- choosing ------------------------------------------------------------------------------------


def find_pool(which: str | None = None, name: str | None = None) -> RunningPool:
    """Return the running pool that is meant; the caller closes it.

    which: a pid or a name, None if there is only one. name: a name, whatever it looks like.
    NoPoolError or SeveralPoolsError says what to do about it.
    """
    survey = look_around()
    chosen = None
    try:
        chosen = _chosen(survey, which, name)
        return chosen
    finally:
        survey.close(but=chosen)


def _chosen(survey: Survey, which: str | None, name: str | None) -> RunningPool:
    pid = int(which) if which is not None and _is_pid(which) else None
    wanted_name = name if which is None or pid is not None else which
    found = [
        pool
        for pool in survey.pools
        if pid in (None, pool.pid) and wanted_name in (None, pool.name)
    ]
    if pid is None and wanted_name is None:
        # Root sees everybody's: a bare `prefork stop` must not end another user's lone pool.
        found = [pool for pool in found if not _is_anothers(pool.pid)]
    if len(found) == 1:
        return found[0]
    if found:
        raise SeveralPoolsError(
            "\n".join(["several pools are running; say which, by its pid or name:", *_rows(found)])
        )
    if pid is not None:
        raise NoPoolError(_why_not(pid, survey))
    raise NoPoolError(_why_none(survey, wanted_name))


def _is_anothers(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return os.stat(f"/proc/{pid}").st_uid != os.geteuid()
    return False


def _is_pid(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 10


def _rows(pools: list[RunningPool]) -> list[str]:
    return [f"  {pool.pid:>7}  {pool.name or '-':<16} {pool.where}".rstrip() for pool in pools]


def _why_not(pid: int, survey: Survey) -> str:
    """Say why this process is none that can be read."""
    if not os.path.exists(f"/proc/{pid}"):
        return f"there is no process {pid}"
    if pid in survey.unreadable:
        return _another_version(pid)
    try:
        os.listdir(f"/proc/{pid}/fd")
    except PermissionError:
        return (
            f"no permission to look at process {pid}: it belongs to {_owner(pid)}; ask as that user"
        )
    except OSError:
        return f"there is no process {pid}"
    with contextlib.suppress(OSError, ValueError):
        parent = int(_status_word(pid, "PPid", "0"))
        if any(pool.pid == parent for pool in survey.pools):
            return f"process {pid} belongs to a pool; its master is {parent}"
    return f"process {pid} is not the master of a pool"


def _why_none(survey: Survey, name: str | None) -> str:
    asked = "no pool is running" if name is None else f"no running pool is called {escaped(name)}"
    lines = [asked]
    if survey.pools:
        lines = [f"{asked}; there are:", *_rows(survey.pools)]
    lines += [
        f"no permission to look at process {pid} ({escaped(_title(pid).decode('utf-8', 'replace'))}): "
        f"it belongs to {_owner(pid)}; ask as that user"
        for pid in survey.forbidden
    ]
    lines += [_another_version(pid) for pid in survey.unreadable]
    return "\n".join(lines)


def _another_version(pid: int) -> str:
    return f"process {pid} runs another version of prefork, whose scoreboard this one cannot read"


def _owner(pid: int) -> str:
    try:
        uid = os.stat(f"/proc/{pid}").st_uid
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
    except OSError:
        return "another user"
