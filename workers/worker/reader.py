"""A handler's ``rfile`` as parking sees it: what was read ahead, and the read that waits (worker).

Of a buffered file, Python can return what it has read ahead only together with a further read of the
raw file. So for one call the raw file gets another ``readinto()``, as an attribute that hides its own
method: one that has nothing, or one that has the bytes to give back.

In the same way a client that asks again at once costs no more than with a handler that loops until
the end. Once its bytes are there, they are read into the file's buffer, where ``handle()`` finds them.
That is the read which ``handle()`` would have made, without the two checks and two frames of
``SocketIO.readinto()``; these pay for the wait before it. This works only for a handler that reads its
requests through the file, and not from the socket itself. Therefore the first request that the worker
waits for is left in the socket, and noted if it is read from there through the file (``note_use()``). A handler
that reads by itself says how this is done (``OwnReader``).
"""

from __future__ import annotations

import io
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from prefork.workers.parking import MOST_READ_AHEAD

READ_NOTHING: Final[Callable[[object], None]] = deque[object](maxlen=0).append
"""A ``readinto()`` that has nothing, as that of a socket which is non-blocking: a function of C that
returns None and keeps nothing.
"""


class Reader:
    """What one handler reads its requests through: a file, or what the handler has in place of it.

    request: the socket. announces_end: the handler's method. read_ahead: returns what was read and belongs to the next request. peek: the
    file's method. raw: the raw file below it; None for a file that cannot be looked into.
    receive: reads into a buffer from the socket. is_in_use: whether the handler is known to read its
    requests through the file. ahead: what ``read_ahead()`` has returned after the last request.
    until_ns: when the worker is to look at everything else; 0 before the first request has ended.
    began_ns: since when the request in hand counts, after the first one.
    """

    __slots__ = (
        *(
            "ahead",
            "announces_end",
            "began_ns",
            "is_in_use",
            "peek",
            "raw",
            "read_ahead",
            "receive",
            "request",
        ),
        "until_ns",
    )

    def __init__(
        self,
        rfile: Any,
        request: Any,
        read_ahead: Callable[[], bytes],
        announces_end: Callable[[], bool],
    ) -> None:
        self.raw = _raw_of(rfile)
        self.request = request
        self.read_ahead = read_ahead
        self.announces_end = announces_end
        self.is_in_use = False
        self.ahead = b""
        self.until_ns = self.began_ns = 0
        if self.raw is not None:
            self.peek = rfile.peek
            self.receive = request.recv_into

    def note_use(self) -> None:
        """Find out whether the next request is read through the file."""
        if self.raw is not None:
            self.raw.readinto = self._note_use

    def calls(self) -> tuple[Callable[[], object], Callable[[], object]]:
        """Return two functions for a conversation: one that looks, and one that reads what has arrived.

        The first returns what is true if bytes of the next request have been read already, and reads
        nothing. The second is called once the client has spoken.
        """
        raw, peek, receive = self.raw, self.peek, self.receive

        def look() -> bool:
            raw.readinto = READ_NOTHING
            if not peek(1):
                return False  # fetch() or end() removes the attribute
            del raw.readinto
            return True

        def fetch() -> None:
            raw.readinto = receive
            peek(1)
            del raw.readinto

        return look, fetch

    def _note_use(self, buffer: memoryview) -> int | None:
        raw = self.raw
        del raw.readinto
        self.is_in_use = True
        count: int | None = raw.readinto(buffer)
        return count

    def end(self) -> None:
        """Leave the file as it was: otherwise the file and this object would keep each other alive."""
        if self.raw is not None:
            self.raw.__dict__.pop("readinto", None)


class OwnReader(Reader):
    """The same for a handler that reads its connection by itself.

    fetch: the handler's method, which reads what has arrived.
    """

    __slots__ = ("_fetch",)

    def __init__(
        self,
        request: Any,
        read_ahead: Callable[[], bytes],
        announces_end: Callable[[], bool],
        fetch: Callable[[], None],
    ) -> None:
        super().__init__(None, request, read_ahead, announces_end)
        self._fetch = fetch

    def note_use(self) -> None:
        """Note that the next request is read so: all of this handler's are."""
        self.is_in_use = True

    def calls(self) -> tuple[Callable[[], object], Callable[[], object]]:
        """Do as ``Reader.calls()`` says."""
        return self.read_ahead, self._fetch


def read_ahead_of(rfile: Any) -> bytes:
    """Return what a handler's file has read and not handed out; b"" if that is nothing, or unknown.

    Raises ValueError for more than can be parked.
    """
    raw = _raw_of(rfile)
    if raw is None or rfile.closed:
        return b""
    given_back = raw.__dict__.get("readinto")
    if isinstance(given_back, GivenBack):
        ahead: bytes = rfile.peek() + given_back.left
    else:
        raw.readinto = READ_NOTHING
        try:
            ahead = rfile.peek()
        finally:
            del raw.readinto
    if len(ahead) > MOST_READ_AHEAD:
        raise ValueError(
            f"{len(ahead)} bytes were read ahead, and at most {MOST_READ_AHEAD} can be parked"
        )
    return ahead


def _raw_of(rfile: Any) -> Any:
    """Return the raw file below a buffered one of a socket; None for any other file."""
    if not isinstance(rfile, io.BufferedReader):
        return None
    raw = rfile.raw
    return raw if isinstance(raw, socket.SocketIO) else None


class GivenBack:
    """The ``readinto()`` of a raw file that has bytes to give back, before what its socket has."""

    def __init__(self, raw: Any, ahead: bytes) -> None:
        self._raw = raw
        self.left = ahead

    def __call__(self, buffer: memoryview) -> int:
        """Do as ``RawIOBase.readinto()``."""
        count = min(len(buffer), len(self.left))
        buffer[:count] = self.left[:count]
        self.left = self.left[count:]
        if not self.left:
            del self._raw.readinto
        return count


def give_back(rfile: Any, ahead: bytes) -> None:
    """Have a handler's new file begin with these bytes. Raises TypeError for a file that cannot."""
    raw: Any = rfile.raw if isinstance(rfile, io.BufferedReader) else rfile
    if not isinstance(raw, socket.SocketIO):
        raise TypeError(f"what was read ahead cannot be given back to {type(rfile).__name__}")
    raw.readinto = GivenBack(raw, ahead)  # type: ignore[assignment]
