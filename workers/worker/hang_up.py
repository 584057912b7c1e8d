"""Ending idle connections of HTTP when the worker is to leave (worker).

A handler of ``http.server`` keeps the connection after an answer, and waits in a read for the next
request. A browser leaves such a connection idle for minutes. Without help the worker could not leave
before ``graceful_timeout``, and then it would be killed.

So the master sends a signal to a worker that was asked to leave and still has a request in hand
(workers/pool/hang_ups.py). Python calls the handler of the signal in the main thread, also in the
middle of a read. If a handler is between two requests, its connection is shut down for reading:
the read returns as at the end of the client's data, and the handler ends as if the client had gone.
``shutdown()`` takes nothing away. A request that has arrived by then is still read from the queue of
the socket, and answered.

Whether a handler is between two requests is read from what is there anyway, so that requests pay
nothing for it. All of this has to hold:

- The thread is in the read of a socket, and ``handle_one_request()`` has called it. That one reads
  the line of the request itself. Headers are read by ``parse_request()``, and a body by the
  program's ``do_POST()``. The layers of ``ssl`` in between do not count.
- The handler has read a request before. A client that has just connected is about to send one.
- The kernel has sent something on the connection since the last byte came in. Otherwise a part of
  the next request may have been read.

Only HTTP is treated so. Its clients know that the server may close an idle connection, and send the
request again (RFC 9112, section 9.3.1). In other protocols a client may be in the middle of a
dialogue. For the same reason connections other than TCP are left alone: the kernel does not tell
when their last byte came.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, Final

_READ: Final = socket.SocketIO.readinto.__code__

_AGES: Final = struct.Struct("=44xI4xI")
"""The beginning of ``struct tcp_info``, up to ``tcpi_last_data_sent`` and ``tcpi_last_data_recv``."""


def hang_up(_number: int, frame: FrameType | None) -> None:
    """End the connections of handlers that are between two requests (signal handler)."""
    try:
        for connection in _idle_connections(frame):
            with contextlib.suppress(OSError):  # the client has gone
                # Not the method of an SSLSocket, which would go on without encryption.
                socket.socket.shutdown(connection, socket.SHUT_RD)
    except RecursionError:  # close to the limit of the stack; the master asks again
        pass


def _idle_connections(main: FrameType | None) -> Iterator[Any]:
    """Yield the connections of the handlers that are between two requests, in any thread."""
    serving = sys.modules.get("http.server")
    if serving is None:
        return
    handle_one_request = serving.BaseHTTPRequestHandler.handle_one_request.__code__
    frames = {**sys._current_frames(), threading.get_ident(): main}  # noqa: SLF001 - the documented name
    for frame in frames.values():
        caller = _caller_of_read(frame)
        if caller is not None and caller.f_code is handle_one_request:
            handler = caller.f_locals["self"]
            if "raw_requestline" in vars(handler) and _was_answered(handler.connection):
                yield handler.connection


def _caller_of_read(frame: FrameType | None) -> FrameType | None:
    """Return the frame that reads from a file of a socket, if the read is what its thread does now."""
    reads = False
    while frame is not None and frame.f_globals.get("__name__") in ("socket", "ssl"):
        reads = frame.f_code is _READ
        frame = frame.f_back
    return frame if reads else None


def _was_answered(connection: Any) -> bool:
    """Return whether something was sent on a connection since its last byte came in."""
    if connection.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _AGES.size)
    sent, received = _AGES.unpack(info)
    # Both are milliseconds ago, by the clock of the kernel's timer. An answer within the same tick
    # as its request is the usual case.
    return bool(sent <= received)
