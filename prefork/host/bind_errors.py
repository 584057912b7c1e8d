"""Why an address cannot be bound, who has it, and what to do (the process that wanted to bind it).

The kernel says only that an address is in use. ``/proc/net`` lists the sockets of this network namespace
with their inodes and users, and ``/proc/PID/fd`` shows which process has a socket open. A process of
another user can be looked into by root alone; its user is known all the same.

An address can also be in use without a process. The side that closes a TCP connection first keeps it in the state
TIME_WAIT for a minute, and the kernel then refuses to bind its address, unless both the earlier socket and the new one
have ``SO_REUSEADDR`` (``allow_reuse_address`` of the server class).
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import socket
import struct
import sys
import time
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from prefork.workers.text import escaped

LONGEST_COMMAND: Final = 80
"""Characters of a command line that are shown."""

LONGEST_SEARCH: Final = 2.0
"""Seconds that the search through the processes may take."""

_LISTENING: Final = "0A"
_TIME_WAIT: Final = "06"
"""States of a TCP socket, as ``/proc/net/tcp`` writes them."""

_ANY: Final = {"00000000", "0" * 32}
"""The addresses of a socket that is bound to all addresses of the machine."""

OVERLAP: Final = "this process listens there already; leave out one of the addresses that overlap"
"""Why a process cannot bind what it has bound itself."""

_LEFT_OVER: Final = (
    "nothing listens there, but connections that the previous server has closed hold the address for a minute; wait, "
    "and set allow_reuse_address = True in the server class, so that the next start need not wait"
)
"""Why an address cannot be bound that no process has."""

_REMEDIES: Final = {
    errno.EADDRNOTAVAIL: "this machine does not have that address; choose one of its own, or 0.0.0.0 for all",
    errno.EACCES: "permission denied; a port below 1024 needs CAP_NET_BIND_SERVICE, a path a writable folder",
    errno.ENOENT: "no such file or directory; make the folder of the socket first",
}


class Holder(msgspec.Struct, frozen=True):
    """Who has an address. pid: None where this user may not see it. user: a name, or a number as text."""

    pid: int | None
    command: str
    user: str

    def __str__(self) -> str:
        """Return the words of a message: ``process 4711 (python3 -m http.server)``."""
        if self.pid is None:
            return f"a process of {self.user}"
        return f"process {self.pid} ({self.command})" if self.command else f"process {self.pid}"


def bind_reason(error: OSError, sockaddr: Any = None, kind: int = socket.SOCK_STREAM) -> str:
    """Return why an address cannot be bound, with the remedy where there is a usual one.

    sockaddr, kind: as for ``socket.bind()`` and ``socket.socket()``; None where the address is not known.
    """
    # The numbers of gaierror (an unknown host) are none of errno's, so only its text is used.
    if isinstance(error, socket.gaierror):
        return f"{error.strerror}; check the host name".lower()
    if error.errno == errno.EADDRINUSE:
        return _reason_in_use(sockaddr, kind)
    return _REMEDIES.get(error.errno or 0) or (error.strerror or str(error)).lower()


def _reason_in_use(sockaddr: Any, kind: int) -> str:
    """Return who or what has an address; sockaddr: None where it is not known."""
    holder = None if sockaddr is None else holder_of(sockaddr, kind)
    if holder is None:
        if _is_held_by_closed_connections(sockaddr, kind):
            return _LEFT_OVER
        return (
            "the address is in use; stop the program that listens there, or choose another address"
        )
    if holder.pid == os.getpid():
        return OVERLAP
    return f"the address is in use by {holder}; stop it, or choose another address"


def holder_of(sockaddr: Any, kind: int) -> Holder | None:
    """Return who has an address; None where nothing tells. Never raises."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        if isinstance(sockaddr, tuple):
            found = dict(_inet_sockets(sockaddr, kind))
        else:
            found = dict(_unix_sockets(os.fsdecode(sockaddr)))
        if not found:
            return None
        pids = _processes_with({f"socket:[{inode}]" for inode in found})
        if pids:
            pid = _eldest(pids)
            return Holder(pid, _command_of(pid), _user_name(os.stat(f"/proc/{pid}").st_uid))
        uid = next(iter(found.values()))
        return None if uid is None else Holder(None, "", _user_name(uid))
    return None


# --- sockets: /proc/net


def _is_held_by_closed_connections(sockaddr: Any, kind: int) -> bool:
    """Return whether closed connections keep an address that no process has from being bound. Never raises."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        if isinstance(sockaddr, tuple) and kind == socket.SOCK_STREAM:
            return any(row[3] == _TIME_WAIT for row in _inet_rows(sockaddr, "tcp"))
    return False


def _inet_sockets(sockaddr: tuple[Any, ...], kind: int) -> Iterator[tuple[int, int | None]]:
    """Yield inode and user of each socket that can keep this address from being bound."""
    protocol = "tcp" if kind == socket.SOCK_STREAM else "udp"
    for row in _inet_rows(sockaddr, protocol):
        if protocol == "udp" or row[3] == _LISTENING:
            yield int(row[9]), int(row[7])


def _inet_rows(sockaddr: tuple[Any, ...], protocol: str) -> Iterator[list[str]]:
    """Yield each row of the kernel's tables whose local address is this one or covers it."""
    host, port = sockaddr[:2]
    wanted = _hex_addresses(host)
    for table in (protocol, f"{protocol}6"):
        for row in _rows(f"/proc/net/{table}"):
            local, local_port = row[1].split(":")
            if int(local_port, 16) == port and (local in wanted or local in _ANY or wanted & _ANY):
                yield row


def _hex_addresses(host: str) -> set[str]:
    """Return the addresses of a host as ``/proc/net`` writes them: words in the byte order of the machine."""
    found = set()
    for family, *_, address in socket.getaddrinfo(host or None, 0, flags=socket.AI_PASSIVE):
        packed = socket.inet_pton(family, str(address[0]).partition("%")[0])
        found.add(_hex(packed))
        if family == socket.AF_INET:  # as an IPv6 socket has it
            found.add(_hex(bytes(10) + b"\xff\xff" + packed))
    return found


def _hex(packed: bytes) -> str:
    words = struct.unpack(f"{'<' if sys.byteorder == 'little' else '>'}{len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in words)


def _unix_sockets(path: str) -> Iterator[tuple[int, int | None]]:
    """Yield the inode of each Unix socket with this name, and its user: None for an abstract name."""
    is_abstract = path.startswith("\0")
    shown = "@" + path[1:] if is_abstract else path
    uid = None if is_abstract else os.stat(path).st_uid
    for row in _rows("/proc/net/unix"):
        if row[7:] == [shown]:
            yield int(row[6]), uid


def _rows(table: str) -> Iterator[list[str]]:
    with open(table, encoding="utf-8", errors="surrogateescape") as lines:
        next(lines, None)  # the headings
        yield from (line.split() for line in lines)


# --- processes: /proc/PID


def _processes_with(links: set[str]) -> set[int]:
    """Return the processes that have one of these sockets open, as far as this user may see them."""
    give_up_at = time.monotonic() + LONGEST_SEARCH
    found = set()
    for name in os.listdir("/proc"):
        if name.isdecimal() and time.monotonic() < give_up_at and _has_open(name, links):
            found.add(int(name))
    return found


def _has_open(pid: str, links: set[str]) -> bool:
    with contextlib.suppress(OSError):
        for number in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):  # closed since the listing
                if os.readlink(f"/proc/{pid}/fd/{number}") in links:
                    return True
    return False


def _eldest(pids: set[int]) -> int:
    """Return the process that has forked the others, such as the master of a pool."""
    return next((pid for pid in sorted(pids) if _parent_of(pid) not in pids), min(pids))


def _parent_of(pid: int) -> int:
    with (
        contextlib.suppress(OSError, ValueError, IndexError),
        open(f"/proc/{pid}/stat", "rb") as file,
    ):
        return int(file.read().rpartition(b")")[2].split()[1])
    return 0


def _command_of(pid: int) -> str:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        words = os.fsdecode(file.read(4096)).replace("\0", " ").strip()
        return escaped(words, LONGEST_COMMAND)
    return ""


def _user_name(uid: int) -> str:
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"uid {uid}"
