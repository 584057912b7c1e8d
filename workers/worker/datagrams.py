"""Datagrams as one worker receives them from a plain server's socket, without ever blocking in it.

Made by the master just before the fork, used in the worker.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from socketserver import UDPServer
from typing import Any

from prefork.workers.scoreboard import SlotField, SlotWriter
from prefork.workers.waits import STAMP_BYTES, QueueWaits, wait_of_datagram

ROUND = range(16)
"""Room for the datagrams of one round: what is done once a round costs each next to nothing."""

MSG_DONTWAIT = int(socket.MSG_DONTWAIT)

Receive = Callable[[int, int], tuple[bytes, Any]]
"""Receives a datagram and its sender's address, as ``socket.recvfrom()``: of so many bytes, with these flags."""


class Datagrams:
    """The socket of a server that receives as ``UDPServer`` does.

    It is not set non-blocking: handlers reply through it, and those sends have to be able to
    wait.

    size: the longest datagram. most: what is to be received: the byte more tells one that was cut.
    """

    def __init__(self, server: UDPServer, writer: SlotWriter) -> None:
        self.socket = server.socket
        self.size = server.max_packet_size
        self.most = self.size + 1
        self._writer = writer
        self._receive = self.socket.recvfrom

    def take(self) -> tuple[Any, Any]:
        """Do what ``get_request()`` does; BlockingIOError when a sibling was faster."""
        # As in next_round(), written out: for a lone datagram another call shows.
        if self.socket.gettimeout():
            self.socket.settimeout(None)
        data, address = self._receive(self.most, MSG_DONTWAIT)
        return (data if len(data) <= self.size else self.cut(data), self.socket), address

    def next_round(self) -> tuple[Receive, range]:
        """Return what to receive with, and a range as long as it may be used; then ``count()``."""
        # A handler may have set a timeout on its worker's object: receiving would poll for it.
        if self.socket.gettimeout():
            self.socket.settimeout(None)
        return self._receive, ROUND

    def count(self, received: int) -> None:
        """Be told how many have come; a try that found nothing counts for nothing."""

    def cut(self, data: bytes) -> bytes:
        """Cut a datagram that is too long, and count it."""
        self._writer.count(SlotField.TRUNCATED)
        return data[: self.size]


class MeasuredDatagrams(Datagrams):
    """The same, which publishes the queue wait of the first datagram, and then of every so many."""

    def __init__(
        self, server: UDPServer, writer: SlotWriter, waits: QueueWaits, every: int
    ) -> None:
        super().__init__(server, writer)
        self._waits = waits
        self._every = every
        self._left = 0
        """How many may come before one has to be measured."""

    def take(self) -> tuple[Any, Any]:
        """Do what ``get_request()`` does; BlockingIOError when a sibling was faster."""
        receive, _ = self.next_round()
        data, address = receive(self.most, MSG_DONTWAIT)
        self.count(1)
        return (data if len(data) <= self.size else self.cut(data), self.socket), address

    def next_round(self) -> tuple[Receive, range]:
        """Return what to receive with: the measured one comes alone."""
        receive, room = super().next_round()
        if self._left:
            return receive, room[: self._left]
        return self._receive_measured, room[:1]

    def count(self, received: int) -> None:
        """Take off what has come."""
        self._left -= received

    def _receive_measured(self, most: int, flags: int) -> tuple[bytes, Any]:
        data, ancillary, _, address = self.socket.recvmsg(most, STAMP_BYTES, flags)
        self._waits.note(wait_of_datagram(ancillary))
        self._left = self._every
        return data, address
