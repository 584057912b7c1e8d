"""Datagrams as one worker receives them, without blocking (made by the master, used by the worker).

For servers that receive as ``UDPServer`` does. Others are asked by ``get_request()``.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from socketserver import UDPServer
from typing import Any

from prefork.workers.scoreboard import SlotField
from prefork.workers.slot_writer import SlotWriter
from prefork.workers.waits import STAMP_BYTES, QueueWaits, wait_of_datagram

ROUND = range(16)
"""Room for the datagrams of one round: what is done once for all of them costs each next to nothing."""

MSG_DONTWAIT = int(socket.MSG_DONTWAIT)

Receive = Callable[[int, int], tuple[bytes, Any]]
"""Receives a datagram and its sender's address, as ``socket.recvfrom()`` does: at most this many bytes, these flags."""


class Datagrams:
    """The socket of a server, as its worker receives from it.

    The socket stays blocking, because handlers reply through it, and a send has to be able to wait.
    MSG_DONTWAIT keeps each receive from waiting.

    size: bytes of the longest datagram. most: bytes to receive; the one more shows that a datagram was cut.
    """

    def __init__(self, server: UDPServer, writer: SlotWriter) -> None:
        self.socket = server.socket
        self.size = server.max_packet_size
        self.most = self.size + 1
        self._writer = writer
        self._receive = self.socket.recvfrom

    def take(self) -> tuple[Any, Any]:
        """Do what ``get_request()`` does. Raises BlockingIOError when another worker was faster."""
        # As in next_round(), written out: for a lone datagram another call, 0.1 µs, shows.
        if self.socket.gettimeout():
            self.socket.settimeout(None)
        data, address = self._receive(self.most, MSG_DONTWAIT)
        return (data if len(data) <= self.size else self.cut(data), self.socket), address

    def next_round(self) -> tuple[Receive, range]:
        """Return what to receive with, and a range as long as it may be used. Call ``count()`` afterwards."""
        # A handler may have set a timeout on its worker's socket object: each receive would wait for it.
        if self.socket.gettimeout():
            self.socket.settimeout(None)
        return self._receive, ROUND

    def count(self, received: int) -> None:
        """Note how many datagrams the round has received, takes in vain not counted."""

    def cut(self, data: bytes) -> bytes:
        """Return a datagram that is too long without the rest, and count it."""
        self._writer.count(SlotField.TRUNCATED)
        return data[: self.size]


class MeasuredDatagrams(Datagrams):
    """The same, and the queue wait of the first datagram and then of one in ``every`` is published.

    A measured receive costs 2 to 3 µs more, so that most datagrams are received without. The measured
    one has a round of its own, since what a round receives with is decided before it begins.
    """

    def __init__(
        self, server: UDPServer, writer: SlotWriter, waits: QueueWaits, every: int
    ) -> None:
        super().__init__(server, writer)
        self._waits = waits
        self._every = every
        self._left = 0
        """How many are received before one has to be measured."""

    def take(self) -> tuple[Any, Any]:
        """Do what ``get_request()`` does. Raises BlockingIOError when another worker was faster."""
        receive, _ = self.next_round()
        data, address = receive(self.most, MSG_DONTWAIT)
        self.count(1)
        return (data if len(data) <= self.size else self.cut(data), self.socket), address

    def next_round(self) -> tuple[Receive, range]:
        """Do as ``Datagrams.next_round()`` does."""
        receive, room = super().next_round()
        if self._left:
            return receive, room[: self._left]
        return self._receive_measured, room[:1]

    def count(self, received: int) -> None:
        """Count down to the next one that has to be measured."""
        self._left -= received

    def _receive_measured(self, most: int, flags: int) -> tuple[bytes, Any]:
        data, ancillary, _, address = self.socket.recvmsg(most, STAMP_BYTES, flags)
        self._waits.note(wait_of_datagram(ancillary))
        self._left = self._every
        return data, address
