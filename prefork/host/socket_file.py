"""Making room for the file of a Unix socket (a leaf).

``bind()`` refuses a path that exists, and a server that was killed leaves its file behind. So a
stale file has to be removed first, and the file of a live server has to stay. ``connect()`` shows
which of them it is: it is refused where no process listens. Between ``bind()`` and ``listen()`` a
live server looks stale, too. A lock on the folder keeps two starts of prefork from meeting in that
moment.
"""

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
"""Seconds to wait for the lock on a folder: any process that may read it can lock it for ever."""

_LOCK_PAUSE = 0.01


@contextlib.contextmanager
def one_start_at_a_time(path: str) -> Iterator[None]:
    """Hold the lock on the folder of ``path``, so that no other start runs at the same time.

    The body looks for a stale file, binds and listens. Where the folder cannot be locked, it runs
    all the same.
    """
    try:
        folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # bind() reports what is wrong with the folder
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
    """Remove the socket at ``path`` if no process listens on it any more.

    kind: the type of the socket that is going to be bound there. Raises OSError where the file must
    stay.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise FileExistsError(errno.EEXIST, "a file that is no socket is there", path)
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError as error:
            if error.errno == errno.EPROTOTYPE:  # a live socket of another type
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), path) from None
            if not isinstance(error, BlockingIOError):
                raise
    raise OSError(errno.EADDRINUSE, "another process listens there", path)
