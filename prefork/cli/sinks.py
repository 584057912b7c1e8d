"""Descriptors to which a log is written without ever waiting: a pipe, a terminal, a file or a socket.

Standard error is shared with the shell or the supervisor that started the program. O_NONBLOCK is a
flag of the open file description, so setting it on standard error would also set it for them, and a
shell cannot work with a non-blocking terminal. Therefore a pipe or terminal is opened once more
through ``/proc/self/fd``, which gives an open file description of its own. A regular file never
makes a writer wait. A socket cannot be opened again, but takes MSG_DONTWAIT for each call.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
from typing import Final

from prefork.cli.log_lines import LONGEST
from prefork.workers import forks

ATOMIC: Final = select.PIPE_BUF
"""Bytes that a pipe takes as a whole or not at all (pipe(7)), so that lines of several workers
never mix.
"""


_FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_NOCTTY


class Sink:
    """A non-blocking descriptor of its own, which ``close()`` closes.

    limit: the most bytes of one record that are written as a whole.
    """

    limit = ATOMIC

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def write(self, data: bytes) -> int:
        """Write what can be written at once, and return how many bytes that were.

        BlockingIOError: nothing could be written without waiting. OSError: the reader is gone, for
        instance, or the disk is full.
        """
        return os.write(self.fd, data)

    def part(self) -> None:
        """Share no open file description with the parent any more (child, just after the fork)."""

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)


class OwnSink(Sink):
    """A pipe or terminal that was opened anew, so that O_NONBLOCK is set for this process alone."""

    def part(self) -> None:
        """Open it once more: a worker must not be able to make the master's description blocking."""
        forks.open_anew(self.fd, _FLAGS)


class FileSink(Sink):
    """A regular file.

    The open file description stays shared with standard error, and with it the offset. With an
    offset of its own, the log would be overwritten by what the application prints.
    """

    limit = LONGEST


class SocketSink(Sink):
    """A socket, such as the one of journald."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self._socket = socket.socket(fileno=fd)

    def write(self, data: bytes) -> int:
        """Send as ``Sink.write()``."""
        return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class PolledSink(Sink):
    """A pipe or terminal that cannot be opened again, because it belongs to another user for instance.

    Its open file description is shared and has to stay blocking. So the sink asks ``poll()`` first.
    A pipe that is ready takes one atomic write. The write waits only if another writer fills the
    pipe between the two calls.
    """

    def write(self, data: bytes) -> int:
        """Write as ``Sink.write()``."""
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        if not poll.poll(0):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return os.write(self.fd, data)


def sink_for(fd: int) -> Sink | None:
    """Return a sink that writes to the file behind ``fd`` through a descriptor of its own; None if ``fd`` is closed."""
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISSOCK(mode):
            return SocketSink(os.dup(fd))
        if stat.S_ISREG(mode):
            return FileSink(os.dup(fd))
        return _reopened(fd)
    except OSError:
        return None


def _reopened(fd: int) -> Sink:
    try:
        return OwnSink(os.open(f"/proc/self/fd/{fd}", _FLAGS | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError:
        return PolledSink(os.dup(fd))
