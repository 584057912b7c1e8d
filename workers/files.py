"""Files that other users may reach, too: which file a path leads to, its lock, its mode (a leaf).

A path and the number of a descriptor are names, and names are used again: another process may have
replaced the file since, and a closed descriptor's number goes to the next file that is opened.
Device and inode together identify the file itself for as long as it exists.

A lock by ``flock()`` takes no permission to write: who may read a file can lock it for ever. A lock
by ``fcntl()`` takes it, so that is the one which decides.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
import struct
from collections.abc import Iterator
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


@contextlib.contextmanager
def binding_with_mode(sock: socket.socket, mode: int) -> Iterator[None]:
    """Have a Unix socket that is bound in the body get a file with exactly this mode.

    The kernel makes the file with the mode of the socket, less the umask. Afterwards the mode could
    only be set through the path. By then another user who may write to the folder could have put a
    symbolic link there, and ``chmod()`` would follow it. The umask is that of the whole process: a
    file that another thread makes meanwhile gets it, too.
    """
    os.fchmod(sock.fileno(), mode)
    before = os.umask(0o777 & ~mode)
    try:
        yield
    finally:
        os.umask(before)


def lock(fd: int) -> bool:
    """Lock a file for this open file description; return whether no other process has locked it.

    fd: open for writing. The lock ends when every descriptor of that description is closed. Raises
    OSError where the file system has no locks.
    """
    # struct flock: type, whence, start, length, pid; the zeros lock the whole file.
    request = struct.pack("hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, request)
    except (BlockingIOError, PermissionError):
        return False
    # Programs that look by flock() whether the file is in use see it so. The lock above decides.
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return True


def has_proc() -> bool:
    """Return whether ``/proc`` is mounted and shows this process.

    Some containers and chroots lack it.
    """
    return os.path.exists("/proc/self/stat")
