"""Urgent data: the byte that a client sends past everything that is queued (worker, main thread).

TCP and Unix streams can mark one byte as urgent (``MSG_OOB``). The kernel then sends SIGURG to the owner
of the socket, which ``setup()`` of a handler with ``UrgentMixIn`` has made this process
(``F_SETOWN``). Python calls the signal handler in the main thread, between two bytecodes of the request's handler. It
reads the byte and calls ``handle_urgent()``. So a handler that computes, or waits in Python, learns
of the byte at once.

The same places as for a cancelled request are excepted (cancelling.py): ``finish()``, prefork's own code,
``__del__()``, and a block that is shielded. There the signal handler sets a timer, and tries again. So it
does where Python has swallowed what ``handle_urgent()`` has raised (swallowed.py).
"""

from __future__ import annotations

import fcntl
import functools
import os
import signal
import socket
import threading
from types import FrameType
from typing import Any, Final

from prefork.workers import system
from prefork.workers.cancel import RequestCancelled
from prefork.workers.worker import cancelling
from prefork.workers.worker.swallowed import if_swallowed

RETRY: Final = 0.02
"""Seconds until the next try, where the moment did not fit or the byte had not arrived."""


class Urgent:
    """The urgent data of the request in hand of this process."""

    def __init__(self) -> None:
        self._handler: Any = None
        self._lost = b""
        """The byte for which the exception of ``handle_urgent()`` has got lost."""
        self._timer: system.Timer | None = None
        self._pid = 0

    def watch(self, handler: Any) -> None:
        """Have ``handler.handle_urgent()`` called for urgent data of ``handler.request``.

        Without effect for a request that is no plain socket, and outside of the main thread.
        """
        request = handler.request
        is_main = threading.current_thread() is threading.main_thread()
        if not is_main or not _is_plain(request):
            return
        if self._pid != os.getpid():
            self._pid, self._timer = os.getpid(), None
            signal.signal(signal.SIGURG, self.interrupt)
        self._handler, self._lost = handler, b""
        fcntl.fcntl(request, fcntl.F_SETOWN, self._pid)

    def forget(self) -> None:
        """Call nothing any more: the request is over."""
        self._handler = None

    def interrupt(self, _number: int, frame: FrameType | None) -> None:
        """Call ``handle_urgent()`` with the byte that has come (signal handler)."""
        handler = self._handler
        if handler is None or frame is None:
            return
        request: socket.socket = handler.request
        caller = None if cancelling.is_shielded() else cancelling.caller_of_handler(frame)
        if caller is None:
            self._try_later()
            return
        if caller.f_locals.get("request") is not request:
            self.forget()  # of a request that has ended without finish()
            return
        byte, self._lost = self._lost or system.receive_urgent(request.fileno()), b""
        if byte is None:
            self._try_later()
        elif byte:
            self._call(handler, byte, frame)

    def _call(self, handler: Any, byte: bytes, frame: FrameType) -> None:
        try:
            handler.handle_urgent(byte)
        except BaseException as error:
            if isinstance(error, RequestCancelled):
                error.place = error.place or cancelling.place_of(frame)
            if_swallowed(error, functools.partial(self._call_again, handler, byte))
            raise

    def _call_again(self, handler: Any, byte: bytes) -> None:
        if handler is self._handler:
            self._lost = byte
            self._try_later()

    def _try_later(self) -> None:
        if self._timer is None:
            self._timer = system.Timer(signal.SIGURG)
        self._timer.set(RETRY)


def _is_plain(request: Any) -> bool:
    """Return whether a request is a socket whose bytes are those of the connection, which they are not with TLS."""
    return isinstance(request, socket.socket) and type(request).recv is socket.socket.recv


urgent: Final = Urgent()
"""That of this process."""
