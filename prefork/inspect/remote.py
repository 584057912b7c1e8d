"""The status of pools on other machines: fetching their ``/status`` documents over HTTP.

Any program may answer at an address. So everything has a bound: the seconds until the last byte of an
answer, its bytes, and each number and text in it. ``fetch()`` returns a ``Document``, whose texts are
printable, or raises a ``RemoteError``, whose text says what was wrong.

The request is one of HTTP/1.0, because the answer then ends with the connection and needs no other framing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import threading
import time
from collections.abc import Sequence
from typing import Annotated, Final
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from prefork.workers.errors import PreforkError
from prefork.workers.hosts import is_portable_host, with_port
from prefork.workers.text import escaped

ANSWER_TIME: Final = 2.0
"""Seconds for the connection and the whole answer."""

MOST_BYTES: Final = 4 * 1024 * 1024
"""Bytes of an answer. The document of the largest pool, with 4096 slots, has less than 2 MiB."""

MOST_URLS: Final = 200

_LONGEST_TEXT: Final = 80
_PATH: Final = re.compile(r"/[!-~]*")
_USUAL_PATH: Final = "/status"
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] ([0-9]{3})\b")


class RemoteError(PreforkError):
    """A host has not answered with the status of a pool. The text says what happened, in a few words."""


class UrlError(PreforkError):
    """An argument of the command line is no URL of a pool's status."""


class Url(msgspec.Struct, frozen=True):
    """Where a status is. host: a name, or an address without brackets."""

    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, text: str) -> Url:
        """Read ``http://HOST[:PORT][/PATH]``; without a path it is ``/status``."""
        try:
            parts = urlsplit(text)
            host = parts.hostname or ""
            port = 80 if parts.port is None else parts.port
        except ValueError:
            host, port, parts = "", 0, urlsplit("")
        path = _USUAL_PATH if parts.path in ("", "/") else parts.path
        is_good = parts.scheme == "http" and is_portable_host(host) and _PATH.fullmatch(path)
        if (
            not is_good
            or not port
            or parts.query
            or parts.fragment
            or parts.username is not None
            or not text.isprintable()
        ):
            raise UrlError(
                f"{escaped(text)}: it must be the address of a metrics process, such as http://web1:9100"
            )
        return cls(host, port, path)

    @property
    def authority(self) -> str:
        """Host and port, as the header ``Host`` has them."""
        return with_port(self.host, self.port)

    @property
    def where(self) -> str:
        """What tells this URL from others, as a person writes it: host, port, and any path but the usual one."""
        return self.authority if self.path == _USUAL_PATH else f"{self.authority}{self.path}"


# --- the document


_Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
_Seconds = Annotated[float, Meta(ge=0, le=1e10)]
_Buckets = Annotated[list[_Count], Meta(max_length=100)]
_Bounds = Annotated[list[_Seconds], Meta(max_length=100)]
_Text = Annotated[str, Meta(max_length=500)]


class Workers(msgspec.Struct, frozen=True):
    """How many workers there are, by state."""

    idle: _Count
    busy: _Count
    ready: _Count
    target: _Count


class Requests(msgspec.Struct, frozen=True):
    """How many requests there have been, by outcome."""

    total: _Count
    error: _Count
    timeout: _Count
    aborted: _Count


class Durations(msgspec.Struct, frozen=True):
    """The histogram of durations, not cumulative."""

    bounds: _Bounds
    counts: _Buckets


class RemoteListener(msgspec.Struct, frozen=True):
    """The queue of one listener."""

    kind: _Text
    depth: _Count | None = None
    limit: _Count | None = None


class Document(msgspec.Struct, frozen=True):
    """The used part of a status (``prefork.metrics.status``); a document may have more."""

    phase: _Text
    ready: bool
    last_tick: _Seconds
    uptime: _Seconds
    workers: Workers
    requests: Requests
    durations: Durations
    listeners: Annotated[list[RemoteListener], Meta(max_length=1000)]
    reload_state: _Text
    saturation: msgspec.Raw = msgspec.Raw(b"null")
    name: _Text | None = None

    @classmethod
    def from_json(cls, body: bytes) -> Document:
        """Read a document; RemoteError for anything else."""
        try:
            found = msgspec.json.decode(body, type=cls)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            raise RemoteError("the answer is no status of a pool") from None
        if len(found.durations.counts) != len(found.durations.bounds) + 1:
            raise RemoteError("the answer is no status of a pool")
        return msgspec.structs.replace(
            found,
            name=escaped(found.name, _LONGEST_TEXT) if found.name else None,
            phase=escaped(found.phase, _LONGEST_TEXT),
        )

    @property
    def is_saturated(self) -> bool:
        """Whether the pool reports that every worker is busy while clients wait."""
        return bytes(self.saturation) != b"null"


# --- fetching


def fetch(url: Url, seconds: float = ANSWER_TIME) -> Document:
    """Return the status of a pool; RemoteError for anything else.

    seconds: for all of it, however many addresses the name has. A slow resolver alone can take longer.
    """
    end = time.monotonic() + seconds
    try:
        return Document.from_json(_body(_answer(url, end)))
    except TimeoutError:
        raise RemoteError(f"silent for {seconds:g} s") from None
    except UnicodeError:  # getaddrinfo() encodes a name first: an empty or too long part of it
        raise RemoteError("the name cannot be resolved") from None
    except OSError as error:
        raise RemoteError(_reason(error)) from None


def _answer(url: Url, end: float) -> bytes:
    request = (
        f"GET {url.path} HTTP/1.0\r\nHost: {url.authority}\r\nAccept: application/json\r\n"
        "Connection: close\r\n\r\n"
    )
    received = bytearray()
    with _connected(url, end) as sock:
        sock.settimeout(_left(end))
        sock.sendall(request.encode("ascii"))
        while True:
            sock.settimeout(_left(end))
            part = sock.recv(65536)
            if not part:
                return bytes(received)
            received += part
            if len(received) > MOST_BYTES:
                raise RemoteError(f"the answer has more than {MOST_BYTES >> 20} MiB")


def _connected(url: Url, end: float) -> socket.socket:
    """Return a connection to the first address of a host that takes one; OSError where none does.

    The time that is left is shared by the addresses that are left. So an address that swallows every packet
    leaves time for those behind it. ``socket.create_connection()`` gives each address all of the time.
    """
    found = socket.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
    failed = OSError(errno.EADDRNOTAVAIL, "no address")
    for tried, (family, kind, protocol, _, address) in enumerate(found):
        with contextlib.ExitStack() as unless_connected:
            try:
                sock = unless_connected.enter_context(socket.socket(family, kind, protocol))
                sock.settimeout(_left(end) / (len(found) - tried))
                sock.connect(address)
            except OSError as error:
                failed = error
            else:
                unless_connected.pop_all()
                return sock
    raise failed


def _left(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _body(answer: bytes) -> bytes:
    head, blank, body = answer.partition(b"\r\n\r\n")
    status = _STATUS_LINE.match(head)
    if status is None or not blank:
        raise RemoteError("the answer is no HTTP" if answer else "the connection was closed")
    if status[1] != b"200":
        raise RemoteError(f"the answer is HTTP {status[1].decode()}")
    return body


def _reason(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return "the name cannot be resolved"
    known = {errno.ECONNREFUSED: "connection refused", errno.ECONNRESET: "the connection was reset"}
    code = error.errno or 0
    return known.get(code) or (os.strerror(code).lower() if code else "no connection")


# --- several at once


class Seen(msgspec.Struct, frozen=True):
    """The result of asking a host once. at: monotonic seconds. failure: why there is no document; "" where there is one."""

    at: float
    document: Document | None = None
    failure: str = ""


class Watch:
    """Asks one host again and again, in a thread of its own, so that a host that hangs delays no other.

    The thread is a daemon, so it does not keep the command from ending while it waits for a resolver.

    delay: seconds between an answer and the next request; None to ask once.
    """

    def __init__(self, url: Url, delay: float | None) -> None:
        self.url = url
        self._delay = delay
        self._began = time.monotonic()
        self._seen: tuple[Seen | None, Seen | None] = (None, None)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._live, name=f"ask {url.where}", daemon=True)
        self._thread.start()

    @property
    def seen(self) -> tuple[Seen | None, Seen | None]:
        """The last two results. The second one is the newest, and None before the first answer."""
        return self._seen

    def wait(self, seconds: float) -> None:
        """Wait until the thread has ended, this long at most."""
        self._thread.join(max(0.0, seconds))

    def end(self) -> None:
        """End the thread after the request that it has under way."""
        self._ended.set()

    def _live(self) -> None:
        while not self._ended.is_set():
            try:
                seen = Seen(time.monotonic(), fetch(self.url))
            except RemoteError as error:
                seen = Seen(time.monotonic(), failure=str(error))
            self._seen = (self._seen[1], seen)
            if self._delay is None:
                return
            self._ended.wait(self._delay)


def ask_once(urls: Sequence[Url]) -> list[Watch]:
    """Ask all hosts once, at the same time. Return when all have answered, or half a second after ANSWER_TIME."""
    end = time.monotonic() + ANSWER_TIME + 0.5
    watches = [Watch(url, None) for url in urls]
    with contextlib.suppress(KeyboardInterrupt):
        for one in watches:
            one.wait(end - time.monotonic())
    return watches
