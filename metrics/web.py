"""HTTP of the metrics process: the head of a request in, the bytes of an answer out.

A request is a head of at most 8 KiB, without a body. A connection has one request. ``metrics/server.py``
has the bounds on what a client can hold or delay.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from email.utils import formatdate
from http import HTTPStatus
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

from prefork.metrics.server import Responder

LONGEST_HEAD = 8192
"""Bytes of a request line and its headers together."""

MOST_QUERY_FIELDS = 100

TEXT = "text/plain; charset=utf-8"

_ALWAYS = (
    "Connection: close",
    "Cache-Control: no-store",
    "X-Content-Type-Options: nosniff",
    "Referrer-Policy: no-referrer",
)
_NOTHING_ALLOWED = "default-src 'none'; frame-ancestors 'none'"

_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
_REQUEST_LINE = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([!-~]+) HTTP/1\.[0-9]")
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t -~\x80-\xff]*?)[ \t]*")


class RefusedError(Exception):
    """A request that is answered with an error, whatever it asks for."""

    def __init__(self, status: HTTPStatus, **headers: str) -> None:
        super().__init__(status.phrase)
        self.response = failure(status, **headers)


class Request(msgspec.Struct, frozen=True):
    """What a client asks for. Path and query are decoded, the names of headers in lower case."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]


class Response(msgspec.Struct, frozen=True):
    """An answer. headers: further headers, by name. policy: the Content-Security-Policy."""

    body: bytes
    content_type: str = TEXT
    status: HTTPStatus = HTTPStatus.OK
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)
    policy: str = _NOTHING_ALLOWED


def failure(status: HTTPStatus, **headers: str) -> Response:
    """Return an answer that says only which error it is."""
    return Response(f"{status.phrase.lower()}\n".encode(), status=status, headers=headers)


def head_of(received: bytes) -> bytes | None:
    """Return the head of a request, None while it is incomplete; RefusedError if it is none."""
    end = _END_OF_HEAD.search(received[: LONGEST_HEAD + 4])
    if end is not None and end.start() <= LONGEST_HEAD:
        return received[: end.start()]
    if received and not received[:1].isalpha():  # such as TLS: more bytes would not make it a head
        raise RefusedError(HTTPStatus.BAD_REQUEST)
    if len(received) > LONGEST_HEAD:
        raise RefusedError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
    return None


def parse(head: bytes) -> Request:
    """Read the head of a request; RefusedError for a malformed one, or for another method."""
    first, *lines = (line.removesuffix("\r") for line in head.decode("latin-1").split("\n"))
    request_line = _REQUEST_LINE.fullmatch(first)
    if request_line is None:
        raise RefusedError(HTTPStatus.BAD_REQUEST)
    headers: dict[str, str] = {}
    for line in lines:
        header = _HEADER.fullmatch(line)
        if header is None:
            raise RefusedError(HTTPStatus.BAD_REQUEST)
        name, value = header[1].lower(), header[2]
        headers[name] = f"{headers[name]},{value}" if name in headers else value
    method, target = request_line.groups()
    if method not in ("GET", "HEAD"):
        raise RefusedError(HTTPStatus.METHOD_NOT_ALLOWED, Allow="GET, HEAD")
    try:
        parts = urlsplit(target)
        query = parse_qs(parts.query, max_num_fields=MOST_QUERY_FIELDS)
    except ValueError:
        raise RefusedError(HTTPStatus.BAD_REQUEST) from None
    return Request(method, unquote(parts.path), query, headers)


def rendered(response: Response, *, body: bool = True) -> bytes:
    """Return the bytes of an answer. body: whether to send the body, which HEAD does not want."""
    lines = [
        f"HTTP/1.1 {response.status.value} {response.status.phrase}",
        f"Date: {formatdate(usegmt=True)}",
        f"Content-Type: {response.content_type}",
        f"Content-Length: {len(response.body)}",
        f"Content-Security-Policy: {response.policy}",
        *_ALWAYS,
        *(f"{name}: {value}" for name, value in response.headers.items()),
    ]
    head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
    return head + response.body if body else head


def responder(
    respond: Callable[[Request], Response], complain: Callable[[BaseException], None]
) -> Responder:
    """Return the responder of HTTP.

    respond: computes an answer. complain: called with what ``respond`` raises; the client gets a 500.
    """

    def respond_to(received: bytes) -> bytes | None:
        try:
            head = head_of(received)
            if head is None:
                return None
            request = parse(head)
        except RefusedError as refused:
            return rendered(refused.response)
        try:
            response = respond(request)
        except Exception as error:  # noqa: BLE001 - the next request may ask for something else
            complain(error)
            response = failure(HTTPStatus.INTERNAL_SERVER_ERROR)
        return rendered(response, body=request.method == "GET")

    return respond_to
