"""Sockets that systemd has bound and hands over (``LISTEN_FDS``, ``LISTEN_PID`` and so on).

They stay systemd's: a pool never unlinks, drains or closes them for other processes. The variables
are read from the environment that the program was started with. So the next image of a reload finds
the sockets as the first one did: it has the same pid, the same environment and the same
descriptors.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

import msgspec

from prefork.host.addresses import Address
from prefork.workers import log
from prefork.workers.files import Identity, identity_of, is_still
from prefork.workers.text import escaped

VARIABLES: Final = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")

FIRST: Final = 3
"""The number of the first descriptor."""

MOST: Final = 1000
"""Descriptors that are looked at, at most: the variable may hold any number."""

UNNAMED: Final = "unknown"
"""How systemd calls a socket without a name."""


class Handed(msgspec.Struct, frozen=True):
    """A descriptor that was handed over.

    identity: of its file, because the number may belong to another file later.
    """

    fd: int
    name: str
    identity: Identity

    @property
    def is_open(self) -> bool:
        """Whether the descriptor is still what was handed over."""
        return is_still(self.fd, self.identity)


def handed_over(environ: Mapping[str, str], pids: Collection[int]) -> tuple[Handed, ...]:
    """Return what systemd has handed over to a process with one of these pids and is open."""
    if _number(environ.get("LISTEN_PID", "")) not in pids:
        return ()
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    return tuple(_handed(min(_number(environ.get("LISTEN_FDS", "")), MOST), names))


def _number(text: str) -> int:
    # int() refuses more than some thousand digits.
    return int(text) if text.isdecimal() and len(text) < 10 else 0


def _handed(count: int, names: Sequence[str]) -> Iterator[Handed]:
    for number in range(count):
        name = names[number] if number < len(names) else ""
        with contextlib.suppress(OSError):  # the program may have closed it
            yield Handed(FIRST + number, name or UNNAMED, identity_of(FIRST + number))


class SystemdSockets:
    """The sockets that systemd has handed over to a process.

    Those of this process are ``process.systemd_sockets`` (prefork/host/process.py).
    """

    def __init__(self, handed: Sequence[Handed]) -> None:
        self._handed = tuple(handed)

    def take(self) -> None:
        """Keep the sockets and their variables from programs that this one starts.

        May be called again.
        """
        if not self._handed:
            return
        for name in VARIABLES:
            os.environ.pop(name, None)
        for fd in self.still_open():
            os.set_inheritable(fd, False)

    def still_open(self) -> list[int]:
        """Return the descriptors that are open.

        Those that no server has are among them, because the next image may want them.
        """
        return [one.fd for one in self._handed if one.is_open]

    def addresses(self, name: str | None = None) -> list[Address]:
        """Return the addresses of the sockets with this name, or of all sockets.

        Several sockets may have the same name.
        """
        return [Address("fd", fd=one.fd) for one in self._handed if name in (None, one.name)]

    def expanded(self, given: Sequence[Address]) -> list[Address]:
        """Replace each name by the sockets that have it. A name that no socket has stays."""
        found: list[Address] = []
        for address in given:
            named = self.addresses(address.name) if address.scheme == "systemd" else []
            found += named or [address]
        return found

    def why_none(self) -> str:
        """Return why there is no socket of a name."""
        if not self._handed:
            return "no socket was handed over to this process (LISTEN_FDS, LISTEN_PID)"
        names = ", ".join(dict.fromkeys(escaped(one.name) for one in self._handed))
        return f"no socket of that name was handed over, only {names}"

    def warn_of_unused(self, used: Collection[int | None]) -> None:
        """Log each socket that no server has: its clients wait for nothing."""
        for one in self._handed:
            if one.fd not in used:
                log.event(
                    logging.WARNING,
                    "master",
                    "no server uses a socket that systemd handed over; its clients wait in vain",
                    name=one.name,
                    fd=one.fd,
                )
