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
import select
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import setproctitle

from prefork.host.process import process
from prefork.inspect.proc import takes_signal
from prefork.workers import log, system
from prefork.workers.errors import SettingsError
from prefork.workers.programs import adopt_program, call_of, start_program

STEP: Final = 200
"""Milliseconds without a change after which the changes so far are one: a checkout writes many files."""

LOOK: Final = 300
"""Milliseconds between two looks at the settings files and at the master."""


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
    command = call_of("prefork.cli.watch", "main_of_watcher", arguments)
    watcher = start_program(command, has_terminal=True)
    log.event(logging.INFO, "master", "watches for changes", folder=folder, pid=watcher.pid)
    return watcher.release()


# --- the watcher's own process --------------------------------------------------------------------


def main_of_watcher() -> None:
    """Watch as the arguments of this process say: the master's pid, a folder, settings files."""
    master, folder, *settings_files = sys.argv[1:]
    watch(int(master), folder, settings_files)


def watch(master: int, folder: str, settings_files: Sequence[str]) -> None:
    """Send the master HUP when something has changed, until it has ended (the watcher)."""
    import watchfiles  # noqa: PLC0415 - an extra, and its thread is not for a master

    pidfd = system.hold_process(master)
    if os.getppid() != master:
        return
    title = f"prefork: watcher of {master} {folder}"
    ended = select.poll()
    ended.register(pidfd, select.POLLIN)
    seen = _stamps(settings_files)
    unsent = False
    for changes in watchfiles.watch(
        folder,
        watch_filter=watchfiles.PythonFilter(),
        step=STEP,
        rust_timeout=LOOK,
        yield_on_timeout=True,
    ):
        if ended.poll(0):
            return
        setproctitle.setproctitle(title)  # it does watch by now
        stamps = _stamps(settings_files)
        unsent = unsent or bool(changes) or stamps != seen
        seen = stamps
        # Before the master's handlers stand, and after its pool has stopped, a HUP would kill it.
        if unsent and takes_signal(master, signal.SIGHUP):
            unsent = False
            with contextlib.suppress(ProcessLookupError):
                system.signal_held(pidfd, signal.SIGHUP)


def _stamps(paths: Sequence[str]) -> list[tuple[int, int] | None]:
    """Return what tells whether files were rewritten or replaced; None for one that is not there."""
    stamps: list[tuple[int, int] | None] = []
    for path in paths:
        try:
            found = os.stat(path)
        except OSError:
            stamps.append(None)
        else:
            stamps.append((found.st_ino, found.st_mtime_ns))
    return stamps
