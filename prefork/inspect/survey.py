"""Find the running masters of this machine by their scoreboards.

A master keeps its scoreboard open, so the scoreboard appears as a descriptor in ``/proc/PID/fd``. A
user who may open that descriptor may read everything about the pool, even while the master hangs.
No file or socket has to be agreed upon.

Any process can create a memfd with the same name and hand its descriptor to another process, which
need not know what it is given. A worker can do so with its own scoreboard. A command of root's would
then signal a daemon of root's that has no pool. So nothing that is found is trusted: the size, the
seals and the layout are checked, the memory must have been made by the user whose process has it,
and the process must hold the proof that it is the master (prefork/workers/proof.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from typing import Final

import msgspec

from prefork.inspect.proc import (
    effective_user_of,
    memories_of,
    own_pid_of,
    scoreboards_of,
    title_of,
)
from prefork.inspect.running_pool import RunningPool, has_ended
from prefork.workers import proof, system
from prefork.workers.scoreboard import Scoreboard
from prefork.workers.settings import MOST_CHILDREN

_MASTERS_TITLE: Final = b"prefork: master"


class Survey(msgspec.Struct, frozen=True):
    """The masters that were found.

    pools: those that can be read, which the caller has to close. forbidden: pids of processes of
    other users that have a master's title. unreadable: pids of masters whose scoreboard has the
    layout of another version.
    """

    pools: list[RunningPool]
    forbidden: list[int]
    unreadable: list[int]

    def close(self, *, but: RunningPool | None = None) -> None:
        """Close all pools except one."""
        for pool in self.pools:
            if pool is not but:
                pool.close()


def look_around() -> Survey:
    """Return every running master of this machine; the pools are in the order of their pids."""
    survey = Survey([], [], [])
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            _add_pools_of(int(entry), survey)
    survey.pools.sort(key=lambda pool: pool.pid)
    return survey


def _add_pools_of(pid: int, survey: Survey) -> None:
    try:
        numbers = list(scoreboards_of(pid).values())
    except PermissionError:
        if title_of(pid).startswith(_MASTERS_TITLE):
            survey.forbidden.append(pid)
        return
    except OSError:
        return  # the process has ended
    for number in numbers:
        try:
            pool = _attached(pid, number)
        except OSError:
            continue  # the process or the descriptor is gone, or the memfd is no scoreboard
        except ValueError:
            if title_of(pid).startswith(_MASTERS_TITLE) and pid not in survey.unreadable:
                survey.unreadable.append(pid)
            continue
        if pool is not None:
            survey.pools.append(pool)


def _attached(pid: int, number: int) -> RunningPool | None:
    """Hold a process and map its scoreboard.

    Returns None where the process is not the master of the scoreboard. ValueError: the scoreboard
    has another layout.
    """
    with contextlib.ExitStack() as undo:
        # The pidfd is opened before anything is read. If the process ends and another one gets its
        # pid in between, the pidfd says so, and has_ended() below finds out.
        pidfd = system.hold_process(pid)
        undo.callback(os.close, pidfd)
        board = _mapped(pid, number)
        if board is None:
            return None
        undo.callback(board.close)
        held = _proof_of(pid, board.fd) if 1 <= board.slots <= MOST_CHILDREN else None
        if held is None:
            return None
        undo.callback(os.close, held)
        if has_ended(pidfd):
            return None
        undo.pop_all()
    return RunningPool(pid, number, pidfd, board, held)


def _proof_of(pid: int, board: int) -> int | None:
    """Open the proof that a process is the master of a scoreboard; None without one.

    OSError: the process has ended.
    """
    user, own_pid = effective_user_of(pid), own_pid_of(pid)
    if os.fstat(board).st_uid != user:
        return None
    for number, name in memories_of(pid):
        if name == proof.MEMFD_NAME:
            with contextlib.suppress(FileNotFoundError), _opened(pid, number) as fd:
                if proof.holds(fd, board, own_pid, user):
                    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    return None


@contextlib.contextmanager
def _opened(pid: int, number: int) -> Iterator[int]:
    """Open what a process has under a descriptor, for reading.

    O_NONBLOCK is set because the number may belong to another file by now, a pipe for instance, and
    ``open()`` of a pipe waits.
    """
    fd = os.open(f"/proc/{pid}/fd/{number}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        yield fd
    finally:
        os.close(fd)


def _mapped(pid: int, number: int) -> Scoreboard | None:
    """Map a memfd for reading; None where its owner could still shrink it.

    A mapping of a memfd that is shrunk afterwards ends its reader with SIGBUS.
    """
    with _opened(pid, number) as fd:
        if not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
            return None
        own = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    try:
        return Scoreboard.attach(own)
    except BaseException:
        os.close(own)
        raise
