"""``prefork run --watch``: reload whenever a source file of the application changes.

The watcher is a process of its own, because the library that watches starts a thread and a master
has none. It lives through the master's exec, sends HUP, and ends with the master. Whether changed
code is any good is decided by the trial of each reload; the watcher only notices.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from prefork.host.process import process
from prefork.workers import log
from prefork.workers.errors import SettingsError
from prefork.workers.programs import adopt_program, call_of, start_program


def refuse_where_impossible(workers: int) -> None:
    """Refuse ``--watch`` where it could not work: without its library, or without a pool to reload."""
    if importlib.util.find_spec("watchfiles") is None:
        allowed = "it needs the package watchfiles: pip install 'prefork[reload]'"
        raise SettingsError("watch", True, "flag --watch", allowed)
    if workers == 0:
        allowed = "without workers (workers = 0) there is nothing to reload"
        raise SettingsError("watch", True, "flag --watch", allowed)


def folder_of(target: str) -> str:
    """Return the folder in which the source files of a loaded TARGET are: of its file, or of its package."""
    place = target.rpartition(":")[0]
    if place.endswith(".py") or os.sep in place:
        return str(Path(place).resolve().parent)
    file = getattr(sys.modules.get(place.partition(".")[0]), "__file__", None)
    return os.getcwd() if file is None else str(Path(file).resolve().parent)


@contextlib.contextmanager
def watching(folder: str, settings_files: Sequence[str]) -> Iterator[None]:
    """Have a process watch while the body runs, and none afterwards (master; a trial has none)."""
    if process.is_trial:
        yield
        return
    # By its pid alone: a descriptor would be open in every worker, and is not there after an exec.
    pid = _previous_watcher() or _start(folder, settings_files)
    process.watcher = pid
    try:
        yield
    finally:
        # New code that has ended before it served is tried again when its files change, so that the
        # watcher is still needed.
        if process.handover is None and (watcher := adopt_program(pid)) is not None:
            watcher.end()


def _previous_watcher() -> int | None:
    """Return the pid of the watcher that an earlier image of this process has started, if it still lives."""
    previous = process.handover
    if previous is None or previous.watcher is None:
        return None
    watcher = adopt_program(previous.watcher)
    return None if watcher is None else watcher.release()


def _start(folder: str, settings_files: Sequence[str]) -> int:
    arguments = [str(os.getpid()), folder, *settings_files]
    command = call_of("prefork.cli.watcher", "main", arguments)
    watcher = start_program(command, has_terminal=True)
    log.event(logging.INFO, "master", "watches for changes", folder=folder, pid=watcher.pid)
    return watcher.release()
