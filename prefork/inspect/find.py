"""Choose the running pool that a command is about, or say why there is none."""

from __future__ import annotations

import contextlib
import os

import msgspec

from prefork.inspect.proc import is_of_another_user, owner_of, status_word, title_of
from prefork.inspect.running_pool import NoPoolError, RunningPool
from prefork.inspect.survey import Survey, look_around
from prefork.workers.errors import PreforkError
from prefork.workers.files import has_proc
from prefork.workers.kernel import why_no_process_can_be_held
from prefork.workers.text import escaped


class SeveralPoolsError(PreforkError):
    """More than one running pool matches. The text lists them, one on each line."""


class _Wanted(msgspec.Struct, frozen=True):
    """Which pool a command is about. None for what was not given."""

    pid: int | None
    name: str | None

    def matches(self, pool: RunningPool) -> bool:
        """Return whether a pool is meant.

        Where neither pid nor name was given, pools of other users are not meant. Root can see all
        pools, and a bare ``prefork stop`` must not end another user's lone one.
        """
        if self.pid is None and self.name is None:
            return not is_of_another_user(pool.pid)
        return self.pid in (None, pool.pid) and self.name in (None, pool.name)


def find_pool(which: str | None = None, name: str | None = None) -> RunningPool:
    """Return the one running pool that is meant. The caller closes it.

    which: a pid, or a name; None where only one pool of this user runs. name: a name, also one
    that looks like a pid. NoPoolError, SeveralPoolsError: no pool or more than one matches.
    """
    if not has_proc():
        raise NoPoolError(
            "/proc is not mounted here, and a command finds running pools there; mount it, or send "
            "signals to the master by kill"
        )
    if reason := why_no_process_can_be_held():
        raise NoPoolError(reason)
    survey = look_around()
    chosen = None
    try:
        chosen = _chosen(survey, _wanted(which, name))
        return chosen
    finally:
        survey.close(but=chosen)


def _wanted(which: str | None, name: str | None) -> _Wanted:
    if which is None:
        return _Wanted(None, name)
    return _Wanted(int(which), name) if _is_pid(which) else _Wanted(None, which)


def _is_pid(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 10


def _chosen(survey: Survey, wanted: _Wanted) -> RunningPool:
    found = [pool for pool in survey.pools if wanted.matches(pool)]
    # Another user may give its pool the name of one's own. That must not be in the way.
    found = [pool for pool in found if not is_of_another_user(pool.pid)] or found
    if len(found) == 1:
        return found[0]
    if found:
        lines = ["several pools are running; name one of them by its pid or name:", *_rows(found)]
        raise SeveralPoolsError("\n".join(lines))
    if wanted.pid is not None:
        raise NoPoolError(_why_not(wanted.pid, survey))
    raise NoPoolError(_why_none(survey, wanted.name))


def _rows(pools: list[RunningPool]) -> list[str]:
    return [f"  {pool.pid:>7}  {pool.name or '-':<16} {pool.where}".rstrip() for pool in pools]


def _why_not(pid: int, survey: Survey) -> str:
    """Return why a process is not a master that can be read."""
    if not os.path.exists(f"/proc/{pid}"):
        return f"there is no process {pid}"
    if pid in survey.unreadable:
        return _another_version(pid)
    try:
        os.listdir(f"/proc/{pid}/fd")
    except PermissionError:
        return _forbidden(pid)
    except OSError:
        return f"there is no process {pid}"
    with contextlib.suppress(OSError, ValueError):
        parent = int(status_word(pid, "PPid", "0"))
        if any(pool.pid == parent for pool in survey.pools):
            return f"process {pid} is not a master but belongs to a pool; its master is {parent}"
    return f"process {pid} is not the master of a pool"


def _why_none(survey: Survey, name: str | None) -> str:
    """Return why no pool is found, with all pools and masters that there are."""
    missing = "no pool is running" if name is None else f"no running pool is called {escaped(name)}"
    lines = [missing]
    if survey.pools:
        lines = [f"{missing}; these are running:", *_rows(survey.pools)]
    lines += map(_forbidden, survey.forbidden)
    lines += map(_another_version, survey.unreadable)
    return "\n".join(lines)


def _forbidden(pid: int) -> str:
    title = escaped(title_of(pid).decode("utf-8", "replace"))
    return (
        f"this user may not look at process {pid} ({title}), which belongs to {owner_of(pid)}; "
        "run the command as that user"
    )


def _another_version(pid: int) -> str:
    return (
        f"process {pid} runs another version of prefork, whose scoreboard this one cannot read; "
        "use the prefork that it was started with"
    )
