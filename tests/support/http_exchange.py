"""Bytes through a WSGI handler and back, without a pool: a pair of sockets in one process."""

from __future__ import annotations

import contextlib
import http.client
import io
import socket
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from prefork.wsgi import handler_for
from tests.support.clients import TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def exchange(application: Any, *pieces: bytes, **server: object) -> bytes:
    """Return what the client gets for these bytes, after which it sends no more.

    server: attributes of the server object, such as ``limit_body``. An exception of the handler is raised
    here, once the client has got everything.
    """
    ours, theirs = socket.socketpair()
    failures: list[BaseException] = []

    def serve() -> None:
        with theirs:
            try:
                handler_for(application)(theirs, ("192.0.2.7", 4711), _server(server))
            except BaseException as error:  # noqa: BLE001 - raised in the test
                failures.append(error)

    with ours:
        ours.settimeout(TIMEOUT)
        thread = threading.Thread(target=serve)
        thread.start()
        received = bytearray()
        try:
            for piece in pieces:
                ours.sendall(piece)
            ours.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the handler has closed before it has read everything
        # A handler that closes while bytes of the client are unread resets the connection.
        with contextlib.suppress(ConnectionResetError):
            while piece := ours.recv(65536):
                received += piece
        thread.join()
    if failures:
        failures[0].add_note(f"received: {bytes(received)!r}")
        raise failures[0]
    return bytes(received)


@contextlib.contextmanager
def connected(application: Any, **server: object) -> Iterator[socket.socket]:
    """Yield a connection by TCP to a handler, whose end is waited for while the connection is still open.

    server: as with ``exchange()``.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname(), TIMEOUT)
        theirs, address = listener.accept()

    def serve() -> None:
        with theirs:
            handler_for(application)(theirs, address, _server(server))

    thread = threading.Thread(target=serve)
    with client:
        thread.start()
        yield client
        thread.join(TIMEOUT)
        assert not thread.is_alive()


def _server(attributes: dict[str, object]) -> Any:
    return SimpleNamespace(**{"server_address": ("127.0.0.1", 8000), **attributes})


def answers(received: bytes, methods: Iterable[str] = ()) -> list[tuple[int, bytes]]:
    """Return status and body of all answers in these bytes, read by the standard library's client.

    methods: of the requests, where one of them is not GET.
    """
    found = []
    stream = io.BytesIO(received)
    wanted = iter(methods)
    while stream.tell() < len(received):
        source: Any = SimpleNamespace(makefile=lambda _mode: stream)
        answer = http.client.HTTPResponse(source, method=next(wanted, "GET"))
        answer._close_conn = lambda: None  # type: ignore[attr-defined]  # it would close the stream
        answer.begin()
        found.append((answer.status, answer.read()))
    return found
