"""The proof by which other processes know the master of a scoreboard (master; read by commands).

The scoreboard itself proves nothing. Each worker has its descriptor and can write to it. A worker of
another user can therefore pass it on to any process that takes descriptors, for example to a daemon
of root's, and write the pid of that daemon into it. If that were enough, a command of root's would
send HUP or TERM to a daemon that has no pool.

So the master keeps a second memfd. It says which process is the master of which scoreboard, and is
sealed against writes at once. A process is believed to be the master only if it holds such a memfd
that

- belongs to the user of the process, so another user cannot have made it;
- is sealed, so its content is what its maker wrote;
- names the scoreboard by its inode, and the process by the pid that it has in its own PID namespace.

The pid makes the memfd worthless in any other process, so a start time is not needed: a process that
has got the pid of an ended master does not hold the memfd. An exec in place keeps pid and memfd.
Children of the master close it (workers/pool/descriptors.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import Final

MEMFD_NAME: Final = "prefork-master"
"""The name of the memory in /proc."""

_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def create(board: int) -> int:
    """Make the proof that this process is the master of a scoreboard; return its descriptor.

    board: the scoreboard's descriptor. OSError: there is no descriptor or no memory left.
    """
    fd = os.memfd_create(MEMFD_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.write(fd, _content(os.getpid(), os.fstat(board).st_ino))
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def holds(fd: int, board: int, pid: int, user: int) -> bool:
    """Return whether a memfd proves that a process is the master of a scoreboard (any process).

    fd: of the memfd. board: the scoreboard's descriptor. pid: of the process in its own PID
    namespace. user: the effective user of the process.
    """
    with contextlib.suppress(OSError):  # no memfd, or one that cannot be sealed
        is_sealed = fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS == _SEALS
        expected = _content(pid, os.fstat(board).st_ino)
        found = os.pread(fd, len(expected) + 1, 0)
        return is_sealed and os.fstat(fd).st_uid == user and found == expected
    return False


def _content(pid: int, inode: int) -> bytes:
    return f"process {pid} is the master of scoreboard {inode}\n".encode()
