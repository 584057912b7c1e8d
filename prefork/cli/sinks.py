"""Where a log goes: pipes, terminals, files and sockets, written to without ever waiting."""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
from typing import Final

from prefork.cli.log_lines import LONGEST

ATOMIC: Final = select.PIPE_BUF
"""Bytes that a pipe takes whole or not at all (pipe(7)); so lines of several workers never mix."""


class Sink:
    """Where bytes go; ``write`` gives how many it took and never waits. limit: bytes of a record."""

    limit = ATOMIC

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def write(self, data: bytes) -> int:
        """Write what is taken at once and return how many bytes that were; BlockingIOError for none."""
        return os.write(self.fd, data)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)


class FileSink(Sink):
    """A regular file, which never makes a writer wait for a reader.

    Its description stays shared with standard error, and so does its offset: with one of our
    own, what the application prints there would overwrite what we log.
    """

    limit = LONGEST


class SocketSink(Sink):
    """A socket, such as journald's; not waiting is asked for per call, its flags are not ours."""

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
    """A pipe or terminal that cannot be opened again (it belongs to another user, say).

    Its flags are shared with whoever gave it, so it is asked first. A pipe that says it can be
    written takes one atomic write; only other writers in between could make that one wait.
    """

    def write(self, data: bytes) -> int:
        """Write as ``Sink.write()``."""
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        if not poll.poll(0):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return os.write(self.fd, data)


def sink_for(fd: int) -> Sink | None:
    """Give a sink for what ``fd`` is, on a descriptor of our own; None if it is closed."""
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
    # O_NONBLOCK is a flag of the open file description, which the shell that started us shares:
    # set on its terminal it would break the shell. Opened again, the flag is ours alone.
    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_APPEND | os.O_NOCTTY | os.O_CLOEXEC
    try:
        return Sink(os.open(f"/proc/self/fd/{fd}", flags))
    except OSError:
        return PolledSink(os.dup(fd))
