"""The hand-written loop that also writes a worker's scoreboard.

It stands by itself because it uses what is not public: a server of another checkout, where that has
other names, does not load it.
"""

from __future__ import annotations

import socket
import time
from typing import Any

from prefork.workers.scoreboard import Scoreboard
from prefork.workers.slot_writer import REQUEST_NS, Outcome, SlotWriter


class Accounted:
    """The same loop, which also writes a worker's scoreboard; the difference is the cost of the scoreboard."""

    def serve_forever(self: Any) -> None:
        """Serve until killed."""
        self.writer = SlotWriter(Scoreboard.create(1), 0)
        super().serve_forever()

    def answer_connections(self: Any) -> None:
        """Accept, serve, close, account."""
        handler, listener, writer = self.RequestHandlerClass, self.socket, self.writer
        now = time.monotonic_ns()
        while True:
            request, client_address = listener.accept()
            writer.words[REQUEST_NS] = now
            handler(request, client_address, self)
            request.shutdown(socket.SHUT_WR)
            request.close()
            since, now = now, time.monotonic_ns()
            writer.account(Outcome.OK, now - since)

    def answer_datagrams(self: Any) -> None:
        """Receive, serve, account."""
        handler, listener, writer = self.RequestHandlerClass, self.socket, self.writer
        size, now = self.max_packet_size, time.monotonic_ns()
        while True:
            data, client_address = listener.recvfrom(size)
            writer.words[REQUEST_NS] = now
            handler((data, listener), client_address, self)
            since, now = now, time.monotonic_ns()
            writer.account(Outcome.OK, now - since)
