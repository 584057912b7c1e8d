"""The file of a Unix socket: making room for it, and knowing it again (a leaf)."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat


def remove_stale(path: str, kind: int) -> None:
    """Remove the socket at ``path`` if nobody listens on it any more; OSError where it must stay.

    kind: the socket type that is going to be bound there.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise FileExistsError(errno.EEXIST, "there is a file of another kind", path)
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError as error:
            if error.errno == errno.EPROTOTYPE:  # of the other type: somebody's all the same
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), path) from None
            if not isinstance(error, BlockingIOError):
                raise
    raise OSError(errno.EADDRINUSE, "somebody listens there", path)


def identity_of(path: str) -> tuple[int, int]:
    """Return which file it is, whatever it is called."""
    found = os.lstat(path)
    return found.st_dev, found.st_ino


def unlink_if_still(path: str, identity: tuple[int, int]) -> None:
    """Remove the file, unless the path is a successor's by now."""
    with contextlib.suppress(OSError):
        if identity_of(path) == identity:
            os.unlink(path)
