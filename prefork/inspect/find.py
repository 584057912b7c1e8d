"""Choose the running pool that a command is about, or say why there is none."""

from __future__ import annotations

import contextlib
import os

from prefork.inspect.proc import owner_of, status_word, title_of
from prefork.inspect.running_pool import NoPoolError, RunningPool
from prefork.inspect.survey import Survey, look_around
from prefork.workers.errors import PreforkError
from prefork.workers.text import escaped


class SeveralPoolsError(PreforkError):
    """It was not said which of several pools is meant; the text lists them, one a line."""


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
        return f"no permission to look at process {pid}: it belongs to {owner_of(pid)}; ask as that user"
    except OSError:
        return f"there is no process {pid}"
    with contextlib.suppress(OSError, ValueError):
        parent = int(status_word(pid, "PPid", "0"))
        if any(pool.pid == parent for pool in survey.pools):
            return f"process {pid} belongs to a pool; its master is {parent}"
    return f"process {pid} is not the master of a pool"


def _why_none(survey: Survey, name: str | None) -> str:
    asked = "no pool is running" if name is None else f"no running pool is called {escaped(name)}"
    lines = [asked]
    if survey.pools:
        lines = [f"{asked}; there are:", *_rows(survey.pools)]
    lines += [
        f"no permission to look at process {pid} ({escaped(title_of(pid).decode('utf-8', 'replace'))}): "
        f"it belongs to {owner_of(pid)}; ask as that user"
        for pid in survey.forbidden
    ]
    lines += [_another_version(pid) for pid in survey.unreadable]
    return "\n".join(lines)


def _another_version(pid: int) -> str:
    return f"process {pid} runs another version of prefork, whose scoreboard this one cannot read"
