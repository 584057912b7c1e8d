"""What waits in the kernel's queues of the listeners (any process).

The processes that read a pool have none of its listeners open: an open descriptor would keep a
listener from being closed, and would take part in its wake-ups. So they ask the kernel over a
netlink socket (NETLINK_SOCK_DIAG), as ``ss`` does. A socket is found by its inode, which stands in
the description of the pool. No privilege is needed.

A question about TCP or UDP cannot name an inode. The kernel lists all listening TCP sockets of a
family, or all UDP sockets, and the ones that were asked about are picked out. A question about a
Unix socket names its inode and has one answer.

The alternatives: ``TCP_INFO`` and ``SO_MEMINFO`` need the descriptor and say nothing about Unix
sockets. ``/proc/net`` is text about every socket of the machine, and lacks the queue of a Unix
listener.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Self

import msgspec

from prefork.metrics.description import MOST_LISTENERS, ListenerDescription

LONGEST: Final = 0.05
"""Seconds that all questions together may take. A queue that was not answered by then is not known.

The kernel lists a thousand UDP sockets of other programs in a few milliseconds.
"""


class Queue(msgspec.Struct, frozen=True):
    """The queue of one listener; None for a number that the kernel does not report.

    depth, limit: how many connections wait to be accepted, and how many may (the backlog). bytes:
    what waits in a datagram socket, with the kernel's overhead; for a Unix socket the length of the
    first datagram alone. drops: how many datagrams the kernel has dropped since the UDP socket was
    made. A Unix socket drops none: the sender waits when ten datagrams are queued (by default).
    """

    depth: int | None = None
    limit: int | None = None
    bytes: int | None = None
    drops: int | None = None


def queues(listeners: Sequence[ListenerDescription]) -> dict[int, Queue]:
    """Return the queues of these listeners by inode, MOST_LISTENERS of them at most. Never raises.

    A queue that is not known is left out. The call takes a tenth of a millisecond for one or two
    listeners, and LONGEST at most. It sees the sockets of this process' network namespace.
    """
    asked = {
        one.inode: (one.family, one.kind)
        for one in listeners[:MOST_LISTENERS]
        if one.family != "other" and one.kind != "other" and 0 < one.inode < 2**32
    }
    found: dict[int, Queue] = {}
    if not asked:
        return found
    with contextlib.suppress(OSError, struct.error), _Diag(time.monotonic() + LONGEST) as diag:
        for family, kind in sorted({place for place in asked.values() if place[0] != "unix"}):
            found.update(_inet(diag, family, kind, asked))
        for inode, (family, kind) in asked.items():
            if family == "unix":
                found.update(_unix(diag, inode, kind))
    return found


# --- questions and answers: linux/inet_diag.h, linux/unix_diag.h

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_INET_REQUEST = struct.Struct("=BBBxI48s")  # family, protocol, what else, states, socket id
_INET_ANSWER = struct.Struct("=BBBB48sIIIII")  # ... expires, rqueue, wqueue, uid, inode
_UNIX_REQUEST = struct.Struct("=BBHIIIQ")  # family, protocol, -, states, inode, what, cookie
_UNIX_ANSWER = struct.Struct("=BBBBIQ")
_ATTRIBUTE = struct.Struct("=HH")  # length, type

_SOCK_DIAG = 4
_BY_FAMILY = 20
_ERROR, _DONE = 2, 3
_REQUEST, _DUMP = 1, 0x300
_LISTENING = 1 << 10
_ANY_STATE = 0xFFFF_FFFF
_ANY_COOKIE = 0xFFFF_FFFF_FFFF_FFFF
_MEMORY = 7  # INET_DIAG_SKMEMINFO, asked for as a bit
_DROPS_AT = 8 * 4  # SK_MEMINFO_DROPS
_SHOW_LENGTHS = 0x10  # UDIAG_SHOW_RQLEN
_LENGTHS = 4  # UNIX_DIAG_RQLEN


def _inet(
    diag: _Diag, family: str, kind: str, asked: Mapping[int, tuple[str, str]]
) -> Iterator[tuple[int, Queue]]:
    """Yield the queues of the listeners of one family: of TCP (stream) or of UDP (datagram)."""
    stream = kind == "stream"
    request = _INET_REQUEST.pack(
        socket.AF_INET if family == "inet" else socket.AF_INET6,
        socket.IPPROTO_TCP if stream else socket.IPPROTO_UDP,
        0 if stream else 1 << (_MEMORY - 1),
        _LISTENING if stream else _ANY_STATE,
        bytes(48),
    )
    for body in diag.ask(request, _DUMP):
        *_, rqueue, wqueue, _, inode = _INET_ANSWER.unpack_from(body)
        if asked.get(inode) != (family, kind):
            continue
        if stream:
            yield inode, Queue(depth=rqueue, limit=wqueue)
        else:
            memory = _attributes(body[_INET_ANSWER.size :]).get(_MEMORY, b"")
            yield inode, Queue(bytes=rqueue, drops=_word(memory, _DROPS_AT))


def _unix(diag: _Diag, inode: int, kind: str) -> Iterator[tuple[int, Queue]]:
    request = _UNIX_REQUEST.pack(
        socket.AF_UNIX, 0, 0, _ANY_STATE, inode, _SHOW_LENGTHS, _ANY_COOKIE
    )
    for body in diag.ask(request, 0):
        lengths = _attributes(body[_UNIX_ANSWER.size :]).get(_LENGTHS, b"")
        waiting, limit = _word(lengths, 0), _word(lengths, 4)
        if kind == "stream":
            yield inode, Queue(depth=waiting, limit=limit)
        else:
            yield inode, Queue(bytes=waiting)


def _word(block: bytes, at: int) -> int | None:
    """Return the 32-bit number at an offset; None where an older kernel gives a shorter block."""
    return int.from_bytes(block[at : at + 4], sys.byteorder) if len(block) >= at + 4 else None


def _attributes(block: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while at + _ATTRIBUTE.size <= len(block):
        length, number = _ATTRIBUTE.unpack_from(block, at)
        if length < _ATTRIBUTE.size:
            break
        found[number] = block[at + _ATTRIBUTE.size : at + length]
        at += -(-length // 4) * 4
    return found


class _Diag:
    """A netlink socket for questions about sockets. deadline: seconds of the monotonic clock."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._sequence = 0
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, request: bytes, flags: int) -> list[bytes]:
        """Return the bodies of the answers; none for a question that the kernel refuses.

        It refuses a question about a socket that is gone. Raises OSError, and TimeoutError at the
        deadline.
        """
        self._sequence += 1
        size = _HEADER.size + len(request)
        header = _HEADER.pack(size, _BY_FAMILY, _REQUEST | flags, self._sequence, 0)
        self._socket.sendto(header + request, (0, 0))
        bodies: list[bytes] = []
        over = False
        while not over:
            over = self._receive(bodies) or not flags
        return bodies

    def _receive(self, bodies: list[bytes]) -> bool:
        """Receive one block of messages; return whether it is the last one."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)
        block = self._socket.recv(65536)
        at = 0
        while at + _HEADER.size <= len(block):
            length, kind, _, sequence, _ = _HEADER.unpack_from(block, at)
            if length < _HEADER.size or kind in (_ERROR, _DONE):
                return True
            if sequence == self._sequence and kind == _BY_FAMILY:
                bodies.append(block[at + _HEADER.size : at + length])
            at += -(-length // 4) * 4
        return False
