"""Requests of HTTP, good ones and those that two readers could understand in two ways, as bytes.

The unit tests send them to a handler, and the live ones through real proxies.
"""

from __future__ import annotations

from typing import Final

HEAD: Final = b"GET / HTTP/1.1\r\nHost: example\r\n"
POST: Final = b"POST /p HTTP/1.1\r\nHost: example\r\n"
CHUNKED: Final = POST + b"Transfer-Encoding: chunked\r\n\r\n"

ACCEPTED: Final = [
    (HEAD + b"\r\n", [b"GET / "]),
    (HEAD + b"\r\n" + HEAD + b"\r\n", [b"GET / ", b"GET / "]),
    (POST + b"Content-Length: 3\r\n\r\nabc", [b"POST /p abc"]),
    (POST + b"Content-Length: 3\r\n\r\nabc" + HEAD + b"\r\n", [b"POST /p abc", b"GET / "]),
    (CHUNKED + b"3\r\nabc\r\n0\r\n\r\n", [b"POST /p abc"]),
    (
        CHUNKED + b"3\r\nab\n\r\n2\r\n\n\n\r\n0\r\n\r\n" + HEAD + b"\r\n",
        [b"POST /p ab\n\n\n", b"GET / "],
    ),
    (
        CHUNKED + b"3;name=value\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n" + HEAD + b"\r\n",
        [b"POST /p abc", b"GET / "],
    ),
    (POST + b"Transfer-Encoding: CHUNKED\r\n\r\n1\r\na\r\n0\r\n\r\n", [b"POST /p a"]),
    (b"\r\n\r\n" + HEAD + b"\r\n", [b"GET / "]),
    (b"GET http://example/way?a=b HTTP/1.1\r\nHost: other\r\n\r\n", [b"GET /way "]),
    (b"GET http://example HTTP/1.1\r\nHost: other\r\n\r\n", [b"GET / "]),
    (b"OPTIONS * HTTP/1.1\r\nHost: example\r\n\r\n", [b"OPTIONS  "]),
    (b"GET /%7Ea%2Fb%20c HTTP/1.1\r\nHost: example\r\n\r\n", [b"GET /~a/b c "]),
    (b"GET /old HTTP/1.0\r\n\r\n", [b"GET /old "]),
    (
        b"GET /old HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + HEAD + b"\r\n",
        [b"GET /old ", b"GET / "],
    ),
    (HEAD + b"Connection: close\r\n\r\n" + HEAD + b"\r\n", [b"GET / "]),
    (
        HEAD + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n" + HEAD + b"\r\n",
        [b"GET / ", b"GET / "],
    ),
    (
        POST
        + b"Connection: Upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"
        + HEAD
        + b"\r\n",
        [b"POST /p a", b"GET / "],
    ),
]
"""The bytes that a client sends, and for each request in them what an application answers that shows the request."""

REFUSED: Final = {
    # one message, two lengths
    "length and chunks": (
        400,
        POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    "chunks and length": (
        400,
        POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    ),
    "two lengths": (400, POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"),
    "one length twice": (400, POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc"),
    "a list of lengths": (400, POST + b"Content-Length: 3, 3\r\n\r\nabc"),
    # lengths that another reader may understand
    "plus": (400, POST + b"Content-Length: +3\r\n\r\nabc"),
    "minus": (400, POST + b"Content-Length: -3\r\n\r\nabc"),
    "hexadecimal": (400, POST + b"Content-Length: 0x3\r\n\r\nabc"),
    "underscore": (400, POST + b"Content-Length: 1_0\r\n\r\nabc"),
    "two numbers": (400, POST + b"Content-Length: 3 3\r\n\r\nabc"),
    "vertical tab after a length": (400, POST + b"Content-Length: 3\x0b\r\n\r\nabc"),
    "digit of another script": (400, POST + b"Content-Length: \xef\xbc\x93\r\n\r\nabc"),
    "fraction": (400, POST + b"Content-Length: 3.0\r\n\r\nabc"),
    "no length": (400, POST + b"Content-Length:\r\n\r\nabc"),
    "too large for any machine": (400, POST + b"Content-Length: 99999999999999999999999\r\n\r\n"),
    # codings
    "another coding": (501, POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    "chunked is not last": (400, POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n"),
    "chunked twice": (400, POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
    "two codings": (
        400,
        POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    ),
    "identity": (400, POST + b"Transfer-Encoding: identity\r\n\r\n"),
    "almost chunked": (400, POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    "list with nothing before chunked": (
        501,
        POST + b"Transfer-Encoding: ,chunked\r\n\r\n0\r\n\r\n",
    ),
    "list with nothing after chunked": (
        400,
        POST + b"Transfer-Encoding: chunked,\r\n\r\n0\r\n\r\n",
    ),
    "empty coding": (400, POST + b"Transfer-Encoding:\r\n\r\n0\r\n\r\n"),
    "length and identity": (
        400,
        POST + b"Content-Length: 3\r\nTransfer-Encoding: identity\r\n\r\nabc",
    ),
    "quoted": (400, POST + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n'),
    "vertical tab": (400, POST + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n"),
    "chunks in HTTP/1.0": (400, b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    # fields
    "space before a colon": (400, POST + b"Content-Length : 3\r\n\r\nabc"),
    "tab before a colon": (400, POST + b"Transfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n"),
    "folded line": (400, POST + b"X: a\r\n b\r\n\r\n"),
    "folded first line": (400, b"GET / HTTP/1.1\r\n X: a\r\nHost: example\r\n\r\n"),
    "no colon": (400, POST + b"X\r\n\r\n"),
    "no name": (400, POST + b": a\r\n\r\n"),
    "name with a parenthesis": (400, POST + b"X(: a\r\n\r\n"),
    "byte above 127 in a name": (400, POST + b"X\xc3: a\r\n\r\n"),
    "zero byte": (400, POST + b"X: a\x00b\r\n\r\n"),
    "zero byte in a name": (400, POST + b"X\x00: a\r\n\r\n"),
    "bare carriage return": (400, POST + b"X: a\rY: b\r\n\r\n"),
    "bare line feed": (400, POST + b"X: a\nContent-Length: 3\r\n\r\nabc"),
    "control character": (400, POST + b"X: a\x01\r\n\r\n"),
    # request line
    "no host": (400, b"GET / HTTP/1.1\r\n\r\n"),
    "two hosts": (400, HEAD + b"Host: other\r\n\r\n"),
    "host with a space": (400, b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n"),
    "host with a path": (400, b"GET / HTTP/1.1\r\nHost: example/a\r\n\r\n"),
    "host with a user": (400, b"GET / HTTP/1.1\r\nHost: a@example\r\n\r\n"),
    "list of hosts": (400, b"GET / HTTP/1.1\r\nHost: a, b:80:90\r\n\r\n"),
    "host with a byte above 127": (400, b"GET / HTTP/1.1\r\nHost: ex\xc3\xa4mple\r\n\r\n"),
    "target with a user": (400, b"GET http://a@example/ HTTP/1.1\r\nHost: example\r\n\r\n"),
    "target without a host": (400, b"GET http:///a HTTP/1.1\r\nHost: example\r\n\r\n"),
    "target with a port alone": (400, b"GET http://:80/a HTTP/1.1\r\nHost: example\r\n\r\n"),
    "host of a target and a fragment": (400, b"GET http://a#b HTTP/1.1\r\nHost: a\r\n\r\n"),
    "fragment": (400, b"GET /a#b HTTP/1.1\r\nHost: example\r\n\r\n"),
    "two spaces before the target": (400, b"GET  / HTTP/1.1\r\nHost: example\r\n\r\n"),
    "two spaces after the target": (400, b"GET /  HTTP/1.1\r\nHost: example\r\n\r\n"),
    "tab before the target": (501, b"GET\t/ HTTP/1.1\r\nHost: example\r\n\r\n"),
    "space after the version": (400, b"GET / HTTP/1.1 \r\nHost: example\r\n\r\n"),
    "RTSP": (400, b"GET / RTSP/1.0\r\nHost: example\r\n\r\n"),
    "ICE": (400, b"SOURCE / ICE/1.0\r\nHost: example\r\n\r\n"),
    "space in the target": (400, b"GET /a b HTTP/1.1\r\nHost: example\r\n\r\n"),
    "target of another scheme": (400, b"GET ftp://example/ HTTP/1.1\r\nHost: example\r\n\r\n"),
    "target without a slash": (400, b"GET a HTTP/1.1\r\nHost: example\r\n\r\n"),
    "asterisk for GET": (400, b"GET * HTTP/1.1\r\nHost: example\r\n\r\n"),
    "byte above 127": (400, b"GET /\xc3\xa9 HTTP/1.1\r\nHost: example\r\n\r\n"),
    "HTTP/0.9": (505, b"GET /\r\n\r\n"),
    "HTTP/2": (505, b"GET / HTTP/2.0\r\nHost: example\r\n\r\n"),
    "preface of HTTP/2": (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "HTTP/1.2": (400, b"GET / HTTP/1.2\r\nHost: example\r\n\r\n"),
    "lower case": (400, b"GET / http/1.1\r\nHost: example\r\n\r\n"),
    "unknown method": (501, b"FETCH / HTTP/1.1\r\nHost: example\r\n\r\n"),
    "proxy": (501, b"CONNECT example:443 HTTP/1.1\r\nHost: example\r\n\r\n"),
    "TLS": (501, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
    "hidden expectation": (417, POST + b"Expect: y 100-continue\r\nContent-Length: 3\r\n\r\nabc"),
    "two expectations": (417, POST + b"Expect: 100-continue, x\r\nContent-Length: 3\r\n\r\nabc"),
    "expectation": (417, POST + b"Expect: more\r\nContent-Length: 3\r\n\r\nabc"),
    # chunks
    "size with a prefix": (400, CHUNKED + b"0x1\r\na\r\n0\r\n\r\n"),
    "size with a sign": (400, CHUNKED + b"+1\r\na\r\n0\r\n\r\n"),
    "size with an underscore": (400, CHUNKED + b"1_0\r\na\r\n0\r\n\r\n"),
    "no size": (400, CHUNKED + b"\r\na\r\n0\r\n\r\n"),
    "size that is too large": (400, CHUNKED + b"fffffffffffffffff\r\na\r\n0\r\n\r\n"),
    "chunk that is longer than its size": (400, CHUNKED + b"1\r\nab\r\n0\r\n\r\n"),
    "chunk that ends with a line feed": (400, CHUNKED + b"1\r\na\n0\r\n\r\n"),
    "size that ends with a line feed": (400, CHUNKED + b"1\na\r\n0\r\n\r\n"),
    "line feed in an extension": (400, CHUNKED + b"1;a\nb\r\na\r\n0\r\n\r\n"),
    "last chunk that ends with a line feed": (400, CHUNKED + b"0\n\n"),
}
"""By name the status of the answer, and the bytes of one request."""
