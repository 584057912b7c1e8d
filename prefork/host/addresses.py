"""Addresses to listen on, as text and as values. Nothing is bound or resolved here.

====================  =========================================================================
``host:port``         TCP, short for ``tcp://host:port``; port 0 lets the kernel choose
``:port``             TCP on all IPv4 addresses; ``[::]:port`` on all IPv6 addresses
``tcp://host:port``   TCP
``udp://host:port``   UDP
``unix:/path``        Unix stream socket; ``unix:@name`` in the abstract namespace
``unixgram:/path``    Unix datagram socket; ``unixgram:@name`` in the abstract namespace
``fd://N``            a socket that this process inherited as descriptor N
``systemd:NAME``      the sockets that systemd has bound and named so (FileDescriptorName=)
====================  =========================================================================
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from typing import Final, Literal

import msgspec

from prefork.workers.errors import SettingsError
from prefork.workers.hosts import (
    LONGEST_LABEL,
    LONGEST_NAME,
    has_form_of_name,
    is_host_name,
    is_ipv4,
    with_port,
)
from prefork.workers.settings import ROWS
from prefork.workers.text import escaped, printable

Scheme = Literal["tcp", "udp", "unix", "unixgram", "fd", "systemd"]

LONGEST_PATH: Final = 107
"""Bytes of a socket's path or abstract name. ``sun_path`` has one more, for the zero byte."""

_NO_UTF8 = re.compile("[\udc80-\udcff]")
"""A byte of a path that is no UTF-8, as ``os.fsdecode()`` returns it. Paths are bytes to the kernel."""

_ALL_IPV4 = "0.0.0.0"
_HOST_AND_PORT = re.compile(
    r"(?:\[(?P<v6>[^][]*)\]|(?P<host>[^][:/@\s]*)):(?P<port>\d{1,5})", re.ASCII
)
_SCHEME_OF = {
    (socket.AF_INET, socket.SOCK_STREAM): "tcp",
    (socket.AF_INET6, socket.SOCK_STREAM): "tcp",
    (socket.AF_INET, socket.SOCK_DGRAM): "udp",
    (socket.AF_INET6, socket.SOCK_DGRAM): "udp",
    (socket.AF_UNIX, socket.SOCK_STREAM): "unix",
    (socket.AF_UNIX, socket.SOCK_DGRAM): "unixgram",
}


class Address(msgspec.Struct, frozen=True):
    """Where a server listens. ``str()`` returns the canonical text, which parses to an equal value.

    The path of a Unix socket is bytes to the kernel. Here it is text as ``os.fsdecode()`` returns it.
    What is not printable of it is escaped in ``str()``; such a text is for showing only.

    host, port: for tcp and udp; IPv6 without brackets. path: for unix and unixgram; an abstract
    name starts with a zero byte, as in ``socket.bind()``. fd: for fd. name: for systemd.
    """

    scheme: Scheme
    host: str = ""
    port: int = 0
    path: str = ""
    fd: int = -1
    name: str = ""

    @classmethod
    def parse(cls, text: str, source: str = "address", *, allowed: str = "") -> Address:
        """Read one address; raises SettingsError.

        source: where the text came from, for errors. allowed: the forms that the setting may have,
        in words; "" for those of ``bind``.
        """
        scheme, colon, rest = text.partition(":")
        try:
            if colon and scheme in ("unix", "unixgram"):
                return cls(scheme, path=_path(rest))  # type: ignore[arg-type]  # narrowed by "in"
            if colon and scheme == "systemd":
                return cls("systemd", name=_name(rest))
            if text.startswith("fd://"):
                return cls("fd", fd=_descriptor(rest.removeprefix("//")))
            if text.startswith(("tcp://", "udp://")):
                host, port = _host_and_port(rest.removeprefix("//"))
                return cls(scheme, host, port)  # type: ignore[arg-type]  # narrowed by startswith
            return cls("tcp", *_host_and_port(text))
        except ValueError as error:
            reason = str(error) or allowed or f"it must be {ROWS['bind'].about.allowed}"
            raise SettingsError("bind", text, source, reason) from None

    @classmethod
    def of_socket(cls, sock: socket.socket) -> Address:
        """Return the address of a bound socket, with the real port.

        A socket of another family, or without a name, is addressed by its descriptor.
        """
        scheme, name = _SCHEME_OF.get((sock.family, sock.type)), sock.getsockname()
        if scheme in ("tcp", "udp"):
            return cls(scheme, name[0], name[1])  # type: ignore[arg-type]  # a value of the table
        path = os.fsdecode(name) if scheme is not None else ""
        if not path:
            return cls("fd", fd=sock.fileno())
        return cls(scheme, path=path)  # type: ignore[arg-type]  # a value of the table

    @property
    def is_bound(self) -> bool:
        """Whether another process has bound the socket and hands it over."""
        return self.scheme in ("fd", "systemd")

    @property
    def sockaddr(self) -> tuple[str, int] | str:
        """The argument of ``socket.bind()``; ValueError for a socket that is bound already."""
        if self.is_bound:
            raise ValueError(f"{self} is bound already")
        return (self.host, self.port) if self.scheme in ("tcp", "udp") else self.path

    @property
    def family(self) -> socket.AddressFamily | None:
        """The address family; None for host names and for a socket that is bound already."""
        if self.scheme in ("unix", "unixgram"):
            return socket.AF_UNIX
        if self.is_bound:
            return None
        if ":" in self.host:
            return socket.AF_INET6
        return socket.AF_INET if is_ipv4(self.host) else None

    def __str__(self) -> str:
        if self.scheme == "fd":
            return f"fd://{self.fd}"
        if self.scheme == "systemd":
            return f"systemd:{self.name}"
        if self.scheme in ("tcp", "udp"):
            return f"{self.scheme}://{with_port(self.host, self.port)}"
        # Another process may have chosen the name of the socket, and it goes into log lines.
        path = "@" + self.path[1:] if self.path.startswith("\0") else self.path
        return f"{self.scheme}:{printable(path)}"


def _host_and_port(text: str) -> tuple[str, int]:
    match = _HOST_AND_PORT.fullmatch(text)
    if match is None:
        raise ValueError(_what_was_meant(text))
    port = int(match["port"])
    if port > 65_535:
        raise ValueError("a port is a number from 0 to 65535")
    return _host(match["host"], match["v6"]), port


def _what_was_meant(text: str) -> str:
    """Return how a text that is no address is probably meant, "" where nothing says so."""
    scheme, separator, rest = text.partition("://")
    if separator and _HOST_AND_PORT.fullmatch(rest):
        return f"there is no scheme {escaped(scheme, 20)}; write {rest}"
    if text.startswith(("/", "./", "@")):
        return f"a Unix socket has its scheme: unix:{printable(text)}"
    if text.count(":") > 1 and not separator and "[" not in text:
        return f"an IPv6 address is written in brackets, such as [{text.rpartition(':')[0]}]:8000"
    if text.isascii() and text.isdigit():
        return f"a port needs its colon: :{text} for all addresses, or 127.0.0.1:{text}"
    if is_ipv4(text) or is_host_name(text):
        return f"the port is missing: {text}:8000"
    return ""


def _host(host: str | None, v6: str | None) -> str:
    if v6 is not None:
        try:
            return str(ipaddress.IPv6Address(v6))
        except ValueError:
            raise ValueError(f"[{v6}] is no IPv6 address") from None
    if not host:
        return _ALL_IPV4
    if is_ipv4(host) or is_host_name(host):
        return host
    if host.replace(".", "").isdecimal():
        raise ValueError(f"{host} is no IPv4 address")
    if not has_form_of_name(host):
        raise ValueError
    raise ValueError(
        f"{escaped(host, 70)} is no host name: each part has {LONGEST_LABEL} letters at most, "
        f"and the whole name has {LONGEST_NAME}"
    )


def _path(text: str) -> str:
    path = text.removeprefix("//") if text.startswith("///") else text
    if path in ("", "@", "/"):
        raise ValueError("a Unix socket needs a path, or @ and a name")
    if not _NO_UTF8.sub("", path).isprintable():
        raise ValueError("the path of a Unix socket must be printable text")
    name = path.removeprefix("@")
    length = len(os.fsencode(name))
    if length > LONGEST_PATH:
        raise ValueError(
            f"the path has {length} bytes, and the kernel allows {LONGEST_PATH}; "
            "a path relative to the working directory may be shorter"
        )
    return "\0" + name if path.startswith("@") else path


def _name(text: str) -> str:
    # What systemd itself allows as the name of a descriptor.
    if not 0 < len(text) < 256 or not (text.isascii() and text.isprintable()) or ":" in text:
        raise ValueError("a socket of systemd has a name, such as systemd:web")
    return text


def _descriptor(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError("a descriptor is a number, such as fd://3")
    if int(text) < 3:
        # Logs and tracebacks are written to 0, 1 and 2.
        raise ValueError(
            "descriptors 0, 1 and 2 are the standard streams; pass the socket as 3 or above"
        )
    if int(text) >= 2**20:
        raise ValueError("descriptors are numbers below 1048576")
    return int(text)
