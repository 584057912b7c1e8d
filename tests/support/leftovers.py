"""What a test has left behind: processes, descriptors, sockets in the file system."""

from __future__ import annotations

import gc
import os
import signal
import stat
import time
from typing import TYPE_CHECKING

from tests.support.processes import Process, children_of, fds_of, reap_adopted

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PATIENCE = 5.0
"""Seconds in which what is on its way out may go: few, and enough for a loaded machine."""


def wait_for_no_children(patience: float = PATIENCE) -> list[Process]:
    """Return the children of this process that do not go by themselves, after killing and reaping them."""
    end = time.monotonic() + patience
    while (left := _children()) and time.monotonic() < end:
        time.sleep(0.005)
    for child in left:
        if not child.is_zombie:
            os.kill(child.pid, signal.SIGKILL)
        os.waitpid(child.pid, 0)
    return left


def _children() -> list[Process]:
    reap_adopted()  # dead orphans of programs under test are nobody's fault
    return children_of(os.getpid())


def wait_for_descriptors(before: Mapping[int, str], patience: float = PATIENCE) -> list[str]:
    """Return the descriptors of this process that were not there before, and those that are gone."""
    end = time.monotonic() + patience
    while (changed := _changes(before, fds_of())) and time.monotonic() < end:
        gc.collect()
        time.sleep(0.005)
    return changed


def _changes(before: Mapping[int, str], after: Mapping[int, str]) -> list[str]:
    opened = [f"{fd} -> {after[fd]} is new" for fd in sorted(after.keys() - before.keys())]
    closed = [f"{fd} -> {before[fd]} is gone" for fd in sorted(before.keys() - after.keys())]
    return opened + closed


def socket_files(folder: Path) -> list[Path]:
    """Return the sockets in a folder and below."""
    return [path for path in folder.rglob("*") if stat.S_ISSOCK(path.lstat().st_mode)]
