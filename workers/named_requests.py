"""How a command names a request to the master: by an advisory lock (any process).

A command reads the scoreboard and cannot write to it, and a signal has no room for the number of a request.
So the command locks one byte of the scoreboard's memory: the byte whose offset is the number of the request.
Then it sends the master a signal, and the master asks the kernel for each request in hand whether the byte
with its number is locked. The byte need not exist, because the kernel keeps locks by number. A
command that ends, however it ends, holds no lock any more.

The number of a request belongs to that request alone, so a command that comes late names nothing.
"""

from __future__ import annotations

import fcntl
import struct
from typing import Final

_FLOCK: Final = "hhqqi0q"
"""``struct flock``: type, whence, start, length, pid."""


def name(fd: int, request: int) -> None:
    """Name a request until ``fd`` is closed. fd: the scoreboard, open for reading."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_RDLCK, 0, request, 1, 0))


def is_named(fd: int, request: int) -> bool:
    """Return whether another holder of this memory names the request. fd: the master's own."""
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, 0, request, 1, 0)
    found: int = struct.unpack(_FLOCK, fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))[0]
    return found != fcntl.F_UNLCK
