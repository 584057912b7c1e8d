"""The head of a request, from bytes to facts (pure).

``httptools`` does the parsing. It refuses what RFC 9112 forbids: bare line feeds, folded lines, space
before a colon, control characters, a Content-Length that is given twice or beside Transfer-Encoding.
This module adds what such a parser leaves to its user, and is strict as well: whatever could be read
in two ways is refused, because a proxy in front may have read it the other way.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

try:
    import httptools
except ModuleNotFoundError as error:
    from prefork.workers.errors import MissingPackageError

    raise MissingPackageError("prefork.wsgi", "httptools", "http") from error

END: Final = b"\r\n\r\n"
"""What ends a head."""


class RefusedRequest(Exception):  # noqa: N818 - no error of the program
    """A request is answered without its application. status: the code of the answer. Its text says why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class Head(msgspec.Struct, frozen=True):
    """What the head of a request says.

    target: as the client wrote it. path: what of it is the path, still quoted. query: what follows the
    question mark. is_newest: HTTP/1.1, not 1.0. fields: name in lower case and value of each field, in
    their order. length: bytes of the body, 0 without one. is_chunked: the body is sent in chunks, and
    its length is not known. keeps_alive: the client wants to go on with the connection.
    expects_continue: the client sends the body only after an interim answer.
    """

    method: str
    target: str
    path: str
    query: str
    is_newest: bool
    fields: list[tuple[bytes, bytes]]
    length: int
    is_chunked: bool
    keeps_alive: bool
    expects_continue: bool


class _Found:
    """What the parser finds in a head; it calls the methods that begin with ``on_``."""

    def __init__(self, most_fields: int) -> None:
        self.target = b""
        self.fields: list[tuple[bytes, bytes]] = []
        self.hosts = self.length = 0
        self.codings: list[bytes] = []
        self.expects_continue = self.keeps_alive = False
        self.parser: httptools.HttpRequestParser
        self._most_fields = most_fields

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        self.fields.append((name, value))
        if name in _SPECIAL:
            self._note(name, value)

    def _note(self, name: bytes, value: bytes) -> None:
        if name == b"host":
            self.hosts += 1
            if value not in _good_hosts:
                _check_host(value)
        elif name == b"content-length":
            self.length = int(value)  # the parser refuses everything but digits
        elif name == b"transfer-encoding":
            self.codings.append(value.strip().lower())
        elif value.lower() == b"100-continue":
            self.expects_continue = True
        else:
            raise RefusedRequest(417, "an expectation other than 100-continue")

    def on_headers_complete(self) -> None:
        if len(self.fields) > self._most_fields:
            raise RefusedRequest(431, f"more than {self._most_fields} fields")
        # Asked here, because the parser forgets the answer with the end of the message.
        self.keeps_alive = self.parser.should_keep_alive()


_HOST: Final = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")
_good_hosts: set[bytes] = set()
_MOST_HOSTS: Final = 1000
"""Hosts that are kept as good. A client can invent names, but not fill the memory with them."""


def _check_host(host: bytes) -> None:
    """Refuse what is no host, with or without a port: other readers may find another host in it."""
    if not _HOST.fullmatch(host):
        raise RefusedRequest(400, "the host is malformed")
    if len(_good_hosts) < _MOST_HOSTS:
        _good_hosts.add(host)


_SPECIAL: Final = frozenset({b"host", b"content-length", b"transfer-encoding", b"expect"})


def parse_head(data: bytes, *, most_fields: int, most_body: int | None = None) -> Head:
    """Return what a whole head says, from its first byte to the empty line. RefusedRequest: it is refused.

    most_body: bytes that the body may have, as far as the head says how many it has.
    """
    found = _Found(most_fields)
    parser = found.parser = httptools.HttpRequestParser(found)
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        pass  # a server may ignore the wish for another protocol, and answers in this one
    except httptools.HttpParserInvalidMethodError:
        raise RefusedRequest(501, "the method is unknown") from None
    except httptools.HttpParserCallbackError as error:
        if isinstance(error.__context__, RefusedRequest):
            raise error.__context__ from None
        raise
    except httptools.HttpParserError as error:
        raise RefusedRequest(400, str(error)) from None
    finally:
        del found.parser  # the two know each other
    if most_body is not None and found.length > most_body:
        raise RefusedRequest(413, f"the body is longer than {most_body} bytes")
    method, version = parser.get_method(), parser.get_http_version()
    head = _checked(found, method.decode("ascii"), version)
    # The parser takes several spaces for one, and knows RTSP and ICE, too.
    if not data.startswith(method + b" " + found.target + _ENDS[head.is_newest]):
        raise RefusedRequest(400, "the request line is malformed")
    return head


_ENDS: Final = (b" HTTP/1.0\r\n", b" HTTP/1.1\r\n")
"""The ends of a request line: of HTTP/1.0, and of the newest version."""


def _checked(found: _Found, method: str, version: str) -> Head:
    is_newest = version == "1.1"
    if not is_newest and version != "1.0":
        raise RefusedRequest(505, f"HTTP/{version} is not served")
    if found.hosts > 1 or (is_newest and not found.hosts):
        raise RefusedRequest(400, f"{found.hosts} fields Host")
    if found.codings:
        _refuse_codings(found.codings, is_newest=is_newest)
    if method == "CONNECT":
        raise RefusedRequest(501, "this server is no proxy")
    path, query = _split(method, found)
    return Head(
        method,
        found.target.decode("latin-1"),
        path,
        query,
        is_newest,
        found.fields,
        found.length,
        bool(found.codings),
        found.keeps_alive,
        is_newest and found.expects_continue,
    )


def _refuse_codings(codings: list[bytes], *, is_newest: bool) -> None:
    if not is_newest:
        raise RefusedRequest(400, "Transfer-Encoding in HTTP/1.0")
    if codings != [b"chunked"]:
        raise RefusedRequest(501, "the body has a coding other than chunked")


def _split(method: str, found: _Found) -> tuple[str, str]:
    """Return path and query of a target: of a path, of a whole URL (as proxies are sent), or of ``*``.

    The host of a whole URL takes the place of the field Host, as RFC 9112 asks: a proxy in front has chosen this
    server by the one or the other, and the application has to see the same.
    """
    target = found.target
    if not target.startswith(b"/"):
        if target == b"*" and method == "OPTIONS":
            return "", ""  # PEP 3333 asks for a path that is empty or begins with a slash
        host, target = _host_and_path(target)
        found.fields = [one for one in found.fields if one[0] != b"host"]
        found.fields.append((b"host", host))
    if b"#" in target:
        raise RefusedRequest(400, "the target has a fragment")
    path, _, query = target.decode("latin-1").partition("?")
    return path, query


def _host_and_path(target: bytes) -> tuple[bytes, bytes]:
    """Return the host of a whole URL, with its port, and what follows it."""
    scheme, _, rest = target.partition(b"://")
    if scheme.lower() not in {b"http", b"https"}:
        raise RefusedRequest(400, "the target is neither a path nor a URL of HTTP")
    ends = [at for at in (rest.find(b"/"), rest.find(b"?")) if at >= 0]
    end = min(ends, default=len(rest))
    host, path = rest[:end], rest[end:]
    _check_host(host)
    if not host.partition(b":")[0]:
        raise RefusedRequest(400, "the target names no host")
    return host, path if path.startswith(b"/") else b"/" + path
