"""Which file a path or a descriptor leads to, so that nothing is done to another one (a leaf).

A path and the number of a descriptor are names, and names are used again: another process may have
replaced the file since, and a closed descriptor's number goes to the next file that is opened.
Device and inode together identify the file itself for as long as it exists.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

Identity = tuple[int, int]
"""Device and inode."""


def identity_of(place: str | Path | int) -> Identity:
    """Return which file is at a path or behind a descriptor; OSError where there is none.

    A symbolic link is a file of its own: the file that it points to does not count.
    """
    found = os.fstat(place) if isinstance(place, int) else os.lstat(place)
    return found.st_dev, found.st_ino


def is_still(place: str | Path | int, identity: Identity | None) -> bool:
    """Return whether this path or descriptor leads to that file; False where it leads to none."""
    try:
        return identity_of(place) == identity
    except OSError:
        return False


def unlink_if_still(path: str | Path, identity: Identity) -> int | None:
    """Remove the path if it leads to that file; return the file's mode, None if it stays."""
    try:
        found = os.lstat(path)
        if (found.st_dev, found.st_ino) == identity:
            os.unlink(path)
            return stat.S_IMODE(found.st_mode)
    except OSError:
        pass
    return None


def has_proc() -> bool:
    """Return whether ``/proc`` is mounted and shows this process.

    Some containers and chroots lack it.
    """
    return os.path.exists("/proc/self/stat")
