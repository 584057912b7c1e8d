"""What the kernel says of a client, and what check_client makes of it."""

from __future__ import annotations

import socket
from contextlib import closing

from prefork.workers.worker.client_check import ClientCheck
from tests.support.clients import reset_on_close

CHECKS = [ClientCheck(when_closed=True), ClientCheck(when_closed=False)]
"""Those of ``closed`` and of ``reset``."""


def seen(request: socket.socket) -> list[bool]:
    """Return whether each of the two takes the client for gone."""
    return [one.is_gone(request) for one in CHECKS]


def test_half_closed_client_of_a_unix_socket_is_there() -> None:
    """A client of a Unix socket that has closed its sending side is never gone; one that has closed is, for both words."""
    client, request = socket.socketpair(socket.AF_UNIX)
    with closing(request), closing(client):
        assert seen(request) == [False, False]
        client.shutdown(socket.SHUT_WR)
        assert seen(request) == [False, False]
        client.close()
        assert seen(request) == [True, True]


def test_half_closed_client_of_a_tcp_socket_is_gone_for_closed_only() -> None:
    """A TCP client that has closed, wholly or half, is gone for ``closed``; one that has reset its connection is for both."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        request, _ = listener.accept()
        with closing(request), closing(client):
            assert seen(request) == [False, False]
            client.shutdown(socket.SHUT_WR)
            assert seen(request) == [True, False]
            reset_on_close(client)
            client.close()
            assert seen(request) == [True, True]


def test_request_that_is_no_socket_has_no_client_that_could_go() -> None:
    """A datagram, and a socket that the handler has closed, count as requests whose clients are there."""
    client, request = socket.socketpair()
    client.close()
    request.close()
    assert seen(request) == [False, False]
    assert not CHECKS[0].is_gone((b"datagram", request))
