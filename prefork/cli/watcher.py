"""The watcher's own process."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from collections.abc import Sequence
from typing import Final

import setproctitle

from prefork.inspect.proc import takes_signal
from prefork.workers import system

STEP: Final = 200
"""Milliseconds without a change after which the changes so far are one: a checkout writes many files."""

LOOK: Final = 300
"""Milliseconds between two looks at the settings files and at the master."""


def main() -> None:
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
