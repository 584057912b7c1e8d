"""The process that ``prefork run --watch`` starts: it watches files and sends HUP to the master."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import sys
from collections.abc import Sequence
from typing import Final

import setproctitle

from prefork.cli import logs
from prefork.inspect.proc import takes_signal
from prefork.workers import log, system

STEP: Final = 200
"""Milliseconds without a change that end a group of changes. A checkout writes many files at once.
"""

MOST_NAMED: Final = 5
"""Changed files that a line of the log names."""

LOOK: Final = 300
"""Milliseconds between two checks of the settings files and of the master."""


def main() -> None:
    """Watch as ``sys.argv`` says.

    The arguments are the master's pid, the level and the form of its log, a folder, and any number
    of settings files.
    """
    master, level, form, folder, *settings_files = sys.argv[1:]
    logs.set_up(level, form)
    logging.getLogger("watchfiles").setLevel(logging.WARNING)  # our own line names the files
    watch(int(master), folder, settings_files)


def watch(master: int, folder: str, settings_files: Sequence[str]) -> None:
    """Send HUP to the master after each change, until the master has ended.

    folder: Python files in it and below are watched. settings_files: paths that are watched also
    while they do not exist. A HUP is sent only to a master that handles it; otherwise the change is
    remembered. HUP would end a process that has no handler for it.
    """
    import watchfiles  # noqa: PLC0415 - an optional extra

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
        setproctitle.setproctitle(title)  # tests wait for the title: files are watched now
        stamps = _stamps(settings_files)
        settings_changed = [path for path in stamps if stamps[path] != seen[path]]
        changed = sorted({os.path.relpath(path, folder) for _, path in changes}) + settings_changed
        if changed:
            log.event(logging.INFO, "watcher", "files changed", files=_in_short(changed))
        unsent = unsent or bool(changed)
        seen = stamps
        if unsent and takes_signal(master, signal.SIGHUP):
            unsent = False
            with contextlib.suppress(ProcessLookupError):
                system.signal_held(pidfd, signal.SIGHUP)


def _in_short(paths: Sequence[str]) -> str:
    """Return the first few of these paths as text, and how many there are besides."""
    more = f" and {len(paths) - MOST_NAMED} more" if len(paths) > MOST_NAMED else ""
    return " ".join(paths[:MOST_NAMED]) + more


def _stamps(paths: Sequence[str]) -> dict[str, tuple[int, int] | None]:
    """Return inode and time of change of each file, None for a file that does not exist."""
    stamps: dict[str, tuple[int, int] | None] = {}
    for path in paths:
        stamps[path] = None
        with contextlib.suppress(OSError):
            found = os.stat(path)
            stamps[path] = found.st_ino, found.st_mtime_ns
    return stamps
