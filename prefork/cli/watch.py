"""``prefork run --watch``: reload whenever a source file of the application changes (master).

A process of its own watches the files, because the library for that starts a thread and a master
has no threads. The watcher sends HUP to the master, survives the master's exec, and ends with the
master. Each reload first loads the code on trial, so the watcher need not know whether a change is
complete.
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
    """Raise SettingsError where ``--watch`` cannot work: without its library, or without workers."""
    if importlib.util.find_spec("watchfiles") is None:
        allowed = (
            "--watch needs the package watchfiles; install it by pip install 'prefork[reload]'"
        )
        raise SettingsError("watch", True, "flag --watch", allowed)
    if workers == 0:
        allowed = "without workers there is no pool to reload; remove --watch, or workers = 0"
        raise SettingsError("watch", True, "flag --watch", allowed)


def folder_of(target: str) -> str:
    """Return the folder with the source files of a loaded TARGET: that of its file or its package."""
    place = target.rpartition(":")[0]
    if place.endswith(".py") or os.sep in place:
        return str(Path(place).resolve().parent)
    file = getattr(sys.modules.get(place.partition(".")[0]), "__file__", None)
    return os.getcwd() if file is None else str(Path(file).resolve().parent)


@contextlib.contextmanager
def watching(
    folder: str, settings_files: Sequence[str], log_as: tuple[str, str] = ("info", "text")
) -> Iterator[None]:
    """Run the watcher while the body runs (master). A trial has no watcher.

    log_as: the level and the form of the log, to which the watcher writes what has changed.

    The watcher is known by its pid alone. A descriptor of it would be open in every worker, and
    would be closed by an exec. After an exec, new code that has ended before it served is tried
    again when its files change, so the watcher is still needed then and is left running.
    """
    if process.is_trial:
        yield
        return
    pid = _previous_watcher() or _start(folder, settings_files, log_as)
    process.watcher = pid
    try:
        yield
    finally:
        if process.handover is None and (watcher := adopt_program(pid)) is not None:
            watcher.end()


def _previous_watcher() -> int | None:
    """Return the pid of the live watcher that this process has started before an exec, or None."""
    previous = process.handover
    if previous is None or previous.watcher is None:
        return None
    watcher = adopt_program(previous.watcher)
    return None if watcher is None else watcher.release()


def _start(folder: str, settings_files: Sequence[str], log_as: tuple[str, str]) -> int:
    arguments = [str(os.getpid()), *log_as, folder, *settings_files]
    command = call_of("prefork.cli.watcher", "main", arguments)
    watcher = start_program(command, has_terminal=True)
    log.event(logging.INFO, "master", "watches for changes", folder=folder, pid=watcher.pid)
    return watcher.release()
