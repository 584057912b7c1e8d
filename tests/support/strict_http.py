"""A strict client of HTTP/1.1: h11 refuses whatever an answer has that RFC 9112 does not allow."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, NamedTuple

import h11

from tests.support.waiting import CEILING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Strict(NamedTuple):
    """One answer. interim: the statuses of the answers before it, such as 100."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes
    interim: tuple[int, ...] = ()


class StrictClient:
    """A connection that stays open. ceiling: seconds of a wait, at most."""

    def __init__(self, address: tuple[str, int], ceiling: float = CEILING) -> None:
        self._socket = socket.create_connection(address, ceiling)
        self._host = "{}:{}".format(*address)
        self._connection = h11.Connection(h11.CLIENT)

    def ask(
        self,
        method: str,
        target: str,
        headers: Sequence[tuple[str, str]] = (),
        body: Iterable[bytes] = (),
    ) -> Strict:
        """Send a request and return its answer. The body is sent after an interim answer, if headers ask for one."""
        connection = self._connection
        head = h11.Request(method=method, target=target, headers=[("Host", self._host), *headers])
        self._socket.sendall(connection.send(head) or b"")
        interim: list[int] = []
        if connection.client_is_waiting_for_100_continue:
            event = self._next()
            assert isinstance(event, h11.InformationalResponse)
            interim.append(event.status_code)
        for piece in body:
            self._socket.sendall(connection.send(h11.Data(data=piece)) or b"")
        self._socket.sendall(connection.send(h11.EndOfMessage()) or b"")
        answer = self._next()
        assert isinstance(answer, h11.Response)
        received = b""
        while isinstance(event := self._next(), h11.Data):
            received += event.data
        assert isinstance(event, h11.EndOfMessage)
        if connection.our_state is h11.DONE and connection.their_state is h11.DONE:
            connection.start_next_cycle()
        return Strict(answer.status_code, dict(answer.headers), received, tuple(interim))

    @property
    def can_go_on(self) -> bool:
        """Whether the next request can follow on this connection."""
        return self._connection.our_state is h11.IDLE

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _next(self) -> object:
        while (event := self._connection.next_event()) is h11.NEED_DATA:
            self._connection.receive_data(self._socket.recv(65536))
        return event
