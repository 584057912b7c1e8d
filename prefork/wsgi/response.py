"""The answer of an application, on its way to the client (worker).

**Framing.** The client must know where the body ends, or else the connection cannot go on:

1. an answer that has no body by its nature (HEAD, 204, 304) ends with its head;
2. the application gives Content-Length, or returns all of its body as a list, whose length is known;
3. HTTP/1.1: the body goes in chunks;
4. HTTP/1.0: the body ends with the connection.

The head is sent together with the first bytes of the body, and not before there are some. Until then an
error can still be answered by another head.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable
from email.utils import formatdate
from http import HTTPStatus
from time import time
from typing import Any, Final

from prefork.wsgi.head import Head
from prefork.wsgi.wire import Wire

_STATUS: Final = re.compile(r"[2-9]\d\d [\t\x20-\x7e\xa0-\xff]*")
_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_UNFIT: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]|[^\x00-\xff]")

_FRAMING: Final = frozenset(
    {
        *("content-length", "connection", "keep-alive", "proxy-connection", "te", "trailer"),
        *("transfer-encoding", "upgrade"),
    }
)
"""Fields that say where the body ends, and those that concern the connection, which is the server's business."""

_OURS: Final = frozenset({"date", "server"})
"""Fields that the server adds where the application has not."""

_WITHOUT_BODY: Final = frozenset({"204", "304"})

COPIED: Final = 1 << 16
"""Bytes of a piece of the body up to which the piece is joined with what frames it, to be sent at once."""

Fields = list[tuple[str, str]]


class FileWrapper:
    """``wsgi.file_wrapper``: a file that the server sends, by the kernel where that is possible."""

    def __init__(self, filelike: Any, block_size: int = 8192) -> None:
        self.filelike = filelike
        self.block_size = block_size
        if hasattr(filelike, "close"):
            self.close = filelike.close

    def __iter__(self) -> FileWrapper:
        return self

    def __next__(self) -> bytes:
        data: bytes = self.filelike.read(self.block_size)
        if not data:
            raise StopIteration
        return data


class Response:
    """The answer to one request. wire: where it goes. keeps: the connection may stay open.

    After the answer, ``keeps`` says whether the connection can go on. ``status`` and ``sent`` (bytes of
    the body) are for logs.
    """

    def __init__(self, wire: Wire, head: Head, *, keeps: bool) -> None:
        self.keeps = keeps
        self.status = ""
        self.sent = 0
        self.is_begun = False
        """Whether the head has been sent, so that nothing else can be answered."""
        self._send = wire.send
        self._wire = wire
        self._head = head
        self._fields: Fields = []
        self._left: int | None = None
        """Bytes of the body that are still to come; None where the length is not known."""
        self._chunks = False
        self._has_body = True
        self.must_end: Callable[[], bool] | None = None
        """Called when the head is made. Returns whether the connection must end with this answer."""

    # --- for the application

    def start_response(
        self, status: str, headers: Fields, exc_info: Any = None
    ) -> Callable[[bytes], None]:
        """Take status and fields, as PEP 3333 says. They are sent with the first bytes of the body."""
        if exc_info is not None:
            try:
                if self.is_begun:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # a traceback that knows its own frame is freed late
        elif self.status:
            raise RuntimeError("start_response() was called twice, without exc_info")
        headers = list(headers)  # the check would use up an iterator
        _check(status, headers)
        self.status, self._fields = status, headers
        return self.write

    def write(self, data: bytes) -> None:
        """Send a piece of the body."""
        if not isinstance(data, bytes):
            raise TypeError(f"the body consists of bytes, not {type(data).__name__}")
        if not self.status:
            raise RuntimeError("the application has a body before start_response()")
        if not data:
            return
        if not self.is_begun:
            self._begin(None, data)
        else:
            self._continue(data)

    # --- for the server

    def send(self, body: Iterable[bytes]) -> None:
        """Send what the application has returned."""
        if isinstance(body, (list, tuple)) and not self.is_begun:
            self._send_whole(body)
        elif not (isinstance(body, FileWrapper) and self._send_file(body)):
            for piece in body:
                self.write(piece)
        self._end()

    def _send_whole(self, pieces: list[bytes] | tuple[bytes, ...]) -> None:
        if not self.status:
            raise RuntimeError("the application has not called start_response()")
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if not isinstance(data, bytes):
            raise TypeError(f"the body consists of bytes, not {type(data).__name__}")
        self._begin(len(data), data, is_whole=True)

    def _begin(self, length: int | None, data: bytes, *, is_whole: bool = False) -> None:
        """Send the head, with the first bytes.

        length: of the whole body, None for unknown. is_whole: these bytes are all of it. RuntimeError: the
        application has given another Content-Length. Nothing is sent then, so that another answer can be.
        """
        if self.must_end is not None and self.must_end():
            self.keeps = False
        head = self._head_of(length)
        if self._has_body and self._left is not None:
            self._check_length(self._left, len(data), is_whole=is_whole)
        self.is_begun = True
        if not self._has_body:
            self._send(head)
        elif len(data) > COPIED:
            self._send(head)
            self._continue(data)
        else:
            self._send(head + self._framed(data), is_last=is_whole and not self.keeps)

    def _check_length(self, said: int, count: int, *, is_whole: bool) -> None:
        """Refuse a body of which the first bytes show that it has another length than its application has said."""
        if count > said or (is_whole and count < said):
            self._left = None  # an application that catches the exception may give another answer
            raise RuntimeError(f"the body has {count} bytes, and its Content-Length is {said}")

    def _continue(self, data: bytes) -> None:
        if not self._has_body:
            return
        if not self._chunks or len(data) <= COPIED:
            self._send(self._framed(data))
            return
        self.sent += len(data)
        self._send(b"%x\r\n" % len(data))
        self._send(data)
        self._send(b"\r\n")

    def _framed(self, data: bytes) -> bytes:
        """Return the bytes that carry a piece of the body, and count the piece as sent."""
        if self._left is not None:
            if len(data) > self._left:
                raise RuntimeError("the body is longer than its Content-Length")
            self._left -= len(data)
        self.sent += len(data)
        if self._chunks:
            return b"%x\r\n%b\r\n" % (len(data), data) if data else b""
        return data

    def _end(self) -> None:
        if not self.is_begun:
            if not self.status:
                raise RuntimeError("the application has not called start_response()")
            self._begin(0, b"", is_whole=True)
        if not self._has_body:
            return
        if self._chunks:
            self._send(b"0\r\n\r\n")
        elif self._left:
            self.keeps = False
            raise RuntimeError(f"the body is {self._left} bytes shorter than its Content-Length")

    def _send_file(self, body: FileWrapper) -> bool:
        """Send a file by ``sendfile()`` as the whole body; return False where that cannot be done.

        The reason is a file that is no regular file, or bytes that the application has sent by ``write()``.
        """
        if self.is_begun:
            return False
        try:
            fd = body.filelike.fileno()
            offset = body.filelike.tell()
            found = os.fstat(fd)
        except (AttributeError, OSError, ValueError):
            return False
        if not stat.S_ISREG(found.st_mode) or not self.status:
            return False
        there = max(0, found.st_size - offset)
        self._begin(there, b"")
        if self._has_body:
            count = there if self._left is None else min(there, self._left)
            sent = self._wire.send_file(body.filelike, offset, count) if count else 0
            self.sent = sent
            if self._left is not None:
                self._left -= sent
        return True

    # --- the head

    def _head_of(self, length: int | None) -> bytes:
        code = self.status[:3]
        self._has_body = self._head.method != "HEAD" and code not in _WITHOUT_BODY
        lines = [f"HTTP/1.1 {self.status}\r\n"]
        ours = _OURS
        for name, value in self._fields:
            lower = _lower_names.get(name) or name.lower()
            if lower in _OURS:
                ours = ours - {lower}
            elif lower in _FRAMING and not self._takes(lower, value, code):
                continue
            lines.append(f"{name}: {value}\r\n")
        if "date" in ours:
            lines.append(_date())
        if "server" in ours:
            lines.append("Server: prefork\r\n")
        if self._has_body and self._left is None:
            lines.append(self._framing_of(length))
        if not self.keeps:
            lines.append("Connection: close\r\n")
        elif not self._head.is_newest:
            lines.append("Connection: keep-alive\r\n")
        lines.append("\r\n")
        return "".join(lines).encode("latin-1")

    def _takes(self, name: str, value: str, code: str) -> bool:
        """Note what a field says of the framing; return whether the field is sent."""
        if name == "content-length":
            if code == "204":
                return False
            self._left = int(value)
            return True
        if name == "connection" and value.lower() == "close":
            self.keeps = False
        return False

    def _framing_of(self, length: int | None) -> str:
        """Choose how the end of the body is told, and return the field that says so."""
        if length is not None:
            self._left = length
            return f"Content-Length: {length}\r\n"
        if self._head.is_newest:
            self._chunks = True
            return "Transfer-Encoding: chunked\r\n"
        self.keeps = False
        return ""


def _check(status: str, headers: Fields) -> None:
    """Refuse what would not be one answer: TypeError and ValueError."""
    # Most answers consist of what earlier ones had, or of plain text. The patterns are for the others.
    if not isinstance(status, str) or not (status in _PLAIN_STATUS or _STATUS.fullmatch(status)):
        raise ValueError(f"{status!r} is no status of an answer, such as '200 OK'")
    lengths = 0
    for name, value in headers:
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"name and value of a field are str: {name!r}: {value!r}")
        lower = _lower_names.get(name) or _checked_name(name)
        if lower == "content-length" or not (value.isascii() and value.isprintable()):
            _check_value(lower, value)
            lengths += lower == "content-length"
    if lengths > 1:
        raise ValueError(f"Content-Length is given {lengths} times")


def _check_value(name: str, value: str) -> None:
    """Refuse a value that is not that of a field. name: in lower case."""
    if _UNFIT.search(value):
        raise ValueError(f"the field {name} has a value that cannot be sent: {value!r}")
    if name == "content-length" and not (value.isascii() and value.isdigit()):
        raise ValueError(f"Content-Length: {value!r} is no number of bytes")


_PLAIN_STATUS: Final = frozenset(f"{one.value} {one.phrase}" for one in HTTPStatus if one >= 200)

_lower_names: dict[str, str] = {}
"""The names of fields that applications have used, in lower case."""

_MOST_NAMES: Final = 1000
"""Names of fields that are kept, for an application that invents names."""


def _checked_name(name: str) -> str:
    """Return the name of a field in lower case. ValueError: it is none."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a field")
    lower = name.lower()
    if len(_lower_names) < _MOST_NAMES:
        _lower_names[name] = lower
    return lower


_second = 0
_text = ""


def _date() -> str:
    """Return the field Date of this second."""
    global _second, _text
    now = int(time())
    if now != _second:
        _second, _text = now, f"Date: {formatdate(now, usegmt=True)}\r\n"
    return _text


# --- answers without an application


_PHRASES: Final = {
    400: "Bad Request",
    408: "Request Timeout",
    413: "Content Too Large",
    417: "Expectation Failed",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
    504: "Gateway Timeout",
    505: "HTTP Version Not Supported",
}


def plain_answer(status: int, *, with_body: bool = True, **more: str) -> tuple[bytes, int]:
    """Return a whole answer of the server itself, and the bytes of its body. The connection is closed after it.

    more: further fields, with underscores for hyphens.
    """
    phrase = _PHRASES[status]
    body = f"{status} {phrase}\n" if with_body else ""
    fields = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in more.items())
    answer = (
        f"HTTP/1.1 {status} {phrase}\r\n{_date()}Server: prefork\r\n{fields}"
        "Content-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}"
    )
    return answer.encode(), len(body)
