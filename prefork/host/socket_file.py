"""Making room for the file of a Unix socket (a leaf)."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator

LOCK_TIME = 2.0
"""Seconds to wait for another start in the same folder; whoever may read a folder can lock it for ever."""

_LOCK_PAUSE = 0.01


@contextlib.contextmanager
def one_start_at_a_time(path: str) -> Iterator[None]:
    """Keep other starts in the folder of ``path`` away from the steps between looking and listening.

    A socket that is bound and does not listen yet looks like one that was left behind.
    """
    try:
        folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # bind() will say what is wrong with it, if anything is
        yield
        return
    try:
        _lock(folder)
        yield
    finally:
        os.close(folder)


def _lock(folder: int) -> None:
    give_up_at = time.monotonic() + LOCK_TIME
    while time.monotonic() < give_up_at:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(_LOCK_PAUSE)


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
