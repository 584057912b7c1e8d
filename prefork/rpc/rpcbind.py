"""What rpcbind keeps, and what is to be asked of it (pure).

rpcbind has a list of entries: a program, a version, a transport (*netid*) and an address there. Servers
set and unset entries, and clients ask for the address of a program. Version 3 of its protocol (RFC 1833)
has all of this; an entry for ``tcp`` or ``udp`` is seen by clients of version 2, the port mapper, too.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Collection, Iterable
from typing import Annotated, Any, Final

import msgspec

from prefork.rpc import xdr
from prefork.rpc.codecs import Codec
from prefork.rpc.message import AcceptStatus, call, read_reply
from prefork.rpc.program import Program

PROGRAM: Final = 100000
VERSION: Final = 3
SET: Final = 1
UNSET: Final = 2
DUMP: Final = 4


class Entry(msgspec.Struct, frozen=True):
    """One entry of rpcbind. owner: the user who has set it, which rpcbind itself fills in."""

    program: xdr.uint32
    version: xdr.uint32
    netid: str
    address: str
    owner: str = ""

    @property
    def place(self) -> tuple[int, int, str]:
        """What there is one entry for."""
        return self.program, self.version, self.netid

    def __str__(self) -> str:
        return f"{self.program} v{self.version} {self.netid} {self.address}"


_ENTRY: Final = xdr.codec_of(Entry)
_ENTRIES: Final = xdr.codec_of(Annotated[list[Entry], xdr.Linked()])
_BOOL: Final = xdr.codec_of(bool)


class Changes(msgspec.Struct, frozen=True):
    """What is to be asked of rpcbind: first to unset entries, then to set others."""

    unset: tuple[Entry, ...] = ()
    set: tuple[Entry, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.unset or self.set)


def places_of(sock: socket.socket) -> frozenset[tuple[str, str]]:
    """Return netid and universal address of each way to a socket; none for a Unix socket without a file.

    A socket of IPv6 that takes IPv4 clients as well has both.
    """
    name: Any = sock.getsockname()
    is_stream = sock.type == socket.SOCK_STREAM
    if sock.family == socket.AF_UNIX:
        path = os.fsdecode(name)
        has_file = is_stream and path and not path.startswith("\0")
        return frozenset({("local", os.path.abspath(path))} if has_file else ())
    netid = "tcp" if is_stream else "udp"
    if sock.family == socket.AF_INET:
        return frozenset({(netid, universal(name[0], name[1]))})
    places = {(f"{netid}6", universal(name[0], name[1]))}
    only_ipv6 = sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    if not only_ipv6 and ipaddress.ip_address(name[0].partition("%")[0]).is_unspecified:
        places.add((netid, universal("0.0.0.0", name[1])))
    return frozenset(places)


def universal(host: str, port: int) -> str:
    """Return an address as rpcbind has it: the host, and the two bytes of the port."""
    return f"{host.partition('%')[0]}.{port >> 8}.{port & 255}"


def entries_of(
    programs: Iterable[type[Program]], places: Collection[tuple[str, str]]
) -> frozenset[Entry]:
    """Return the entries of programs that are served at these places."""
    return frozenset(
        Entry(one.number, one.version, netid, address)
        for one in programs
        for netid, address in places
    )


def changes(
    ours: Collection[Entry],
    places: Collection[tuple[str, str]],
    there: Iterable[Entry],
    *,
    taking_over: bool,
) -> Changes:
    """Return what makes the list of rpcbind say the truth about these places.

    ours: what is to be served there; nothing at a stop. there: the entries of rpcbind. An entry for one
    of the places that is not ours is one of an earlier program, whose socket this is now.

    taking_over: whether an entry of ours may take the place of one with another address. A server that
    begins does so, because most such entries were left by servers that have ended without a word. Later
    such an entry is that of a server that has begun since, and stays.
    """
    found = {one.place: one for one in there}
    stale = [
        one
        for one in found.values()
        if (one.netid, one.address) in places and _plain(one) not in ours
    ]
    missing = []
    for one in ours:
        other = found.get(one.place)
        if other is None:
            missing.append(one)
        elif other.address != one.address and taking_over:
            stale.append(other)
            missing.append(one)
    return Changes(tuple(sorted(stale, key=str)), tuple(sorted(missing, key=str)))


def _plain(entry: Entry) -> Entry:
    return msgspec.structs.replace(entry, owner="")


# --- messages


def dump_call(xid: int) -> bytes:
    """Return the call that asks for all entries."""
    return call(xid, PROGRAM, VERSION, DUMP)


def change_calls(plan: Changes) -> list[bytes]:
    """Return the calls that carry out the changes. Their numbers are their positions."""
    asked = [(UNSET, one) for one in plan.unset] + [(SET, one) for one in plan.set]
    calls = []
    for xid, (procedure, entry) in enumerate(asked):
        out: list[bytes] = []
        _ENTRY.write(_plain(entry), out)
        calls.append(call(xid, PROGRAM, VERSION, procedure, b"".join(out)))
    return calls


def entries_in(reply: bytes) -> list[Entry]:
    """Return the entries in the reply to ``dump_call()``. XDRError: the message is not such a reply."""
    entries: list[Entry] = _result(_ENTRIES, reply)
    return entries


def is_done(reply: bytes) -> bool:
    """Return whether rpcbind has done what a call of ``change_calls()`` asked for. XDRError: the message is not such a reply."""
    return bool(_result(_BOOL, reply))


def _result(codec: Codec, reply: bytes) -> Any:
    _, status, data = read_reply(reply)
    if status != AcceptStatus.SUCCESS:
        raise xdr.XDRError(f"rpcbind answers by status {status}")
    value, end = codec.read(data, 0)
    if end != len(data):
        raise xdr.XDRError(f"{len(data) - end} bytes follow")
    return value
