"""Find the running masters of this machine by their scoreboards.

A master shows its scoreboard as a descriptor in ``/proc/PID/fd``; whoever may open that one may read
all about the pool, also while the master hangs. No file and no socket has to be agreed upon.

What is found is checked as a stranger's: any process can make a memfd of that name.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import Final

import msgspec

from prefork.inspect.proc import own_pid_of, scoreboards_of, title_of
from prefork.inspect.running_pool import RunningPool, has_ended
from prefork.workers import system
from prefork.workers.scoreboard import PoolField, Scoreboard
from prefork.workers.settings import MOST_CHILDREN

_MASTERS_TITLE: Final = b"prefork: master"


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
        numbers = list(scoreboards_of(pid).values())
    except PermissionError:
        if title_of(pid).startswith(_MASTERS_TITLE):
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
            if title_of(pid).startswith(_MASTERS_TITLE) and pid not in survey.unreadable:
                survey.unreadable.append(pid)
            continue
        if pool is not None:
            survey.pools.append(pool)


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
        is_masters = board.pool(PoolField.MASTER_PID) == own_pid_of(pid)
        if not is_masters or not 1 <= board.slots <= MOST_CHILDREN or has_ended(pidfd):
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
