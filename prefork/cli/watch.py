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
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import setproctitle

from prefork.inspect.proc import takes_signal
from prefork.reloading import handover, trial
from prefork.workers import log, system
from prefork.workers.errors import SettingsError

STEP: Final = 200
"""Milliseconds without a change after which the changes so far are one: a checkout writes many files."""

LOOK: Final = 300
"""Milliseconds between two looks at the settings files and at the master."""

# The path of this interpreter is handed over, so that an uninstalled checkout finds itself too.
_START: Final = """
import sys
count = int(sys.argv[1])
sys.path[:], words = sys.argv[2 : 2 + count], sys.argv[2 + count :]
from prefork.cli.watch import watch
watch(int(words[0]), words[1], words[2:])
"""


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
    if trial.is_on_trial():
        yield
        return
    pid = _of_before() or _start(folder, settings_files)
    handover.keep_watcher(pid)
    try:
        yield
    finally:
        # New code that has ended before it served is tried again when it is mended: so it watches on.
        if handover.pending() is None:
            _end(pid)


def _of_before() -> int | None:
    """Return the watcher that an earlier image of this process has started, if it still lives."""
    previous = handover.pending()
    if (
        previous is None
        or previous.watcher is None
        or (child := _own_child(previous.watcher)) is None
    ):
        return None
    os.close(child.pidfd)
    return child.pid


def _start(folder: str, settings_files: Sequence[str]) -> int:
    words = [str(len(sys.path)), *sys.path, str(os.getpid()), folder, *settings_files]
    child = subprocess.Popen(  # noqa: S603 - our own interpreter, no shell
        [sys.executable, "-c", _START, *words],
        stdin=subprocess.DEVNULL,
        process_group=0,  # a Ctrl-C of the terminal is the master's
    )
    child.returncode = 0  # it is ended and collected by its pid: the next image has no such object
    log.event(logging.INFO, "master", "watches for changes", folder=folder, pid=child.pid)
    return child.pid


def _end(pid: int) -> None:
    child = _own_child(pid)
    if child is not None:
        system.send(child, signal.SIGKILL)  # it has nothing to clean up
        system.wait_for_end(child)
        system.collect(child)
        os.close(child.pidfd)


def _own_child(pid: int) -> system.Child | None:
    """Hold a child that lives; None where the pid is nobody's or a stranger's by now, or it has ended."""
    with contextlib.suppress(OSError):
        child = system.Child(pid, system.hold_process(pid))
        if system.collect(child) is None:
            return child
        os.close(child.pidfd)
    return None


# --- the watcher's own process --------------------------------------------------------------------


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
