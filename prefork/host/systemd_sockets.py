"""Sockets that systemd has bound and hands over: ``LISTEN_FDS``, ``LISTEN_PID``, ``LISTEN_FDNAMES``.

They stay systemd's: a pool never unlinks, drains or closes them for others. They are read from the
environment that the program was started with, so the next image of a reload, which has the same
pid, the same environment and the same descriptors, finds them as the first one did.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

import msgspec

from prefork.host.addresses import Address
from prefork.host.process import program
from prefork.reloading import trial
from prefork.workers import log
from prefork.workers.files import Identity, identity_of, is_still
from prefork.workers.text import escaped

VARIABLES: Final = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")

FIRST: Final = 3
"""The number of the first descriptor."""

MOST: Final = 1000
"""Descriptors that are looked at: the variable may be anybody's nonsense."""

UNNAMED: Final = "unknown"
"""What systemd calls a socket that it was told no name of."""


class Handed(msgspec.Struct, frozen=True):
    """A descriptor that was handed over. identity: device and inode, for its number may be another's later."""

    fd: int
    name: str
    identity: Identity

    @property
    def is_open(self) -> bool:
        """Whether it is still what was handed over."""
        return is_still(self.fd, self.identity)


def read(environ: Mapping[str, str], pids: Collection[int]) -> tuple[Handed, ...]:
    """Return what was handed over to a process with one of these pids, as far as it is open."""
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


def _pids() -> set[int]:
    """Return the pids for which sockets are ours: a trial has its master's, who is its parent."""
    own = {os.getpid()}
    return own | {os.getppid()} if trial.VARIABLE in program.environment else own


_handed_here: Final = read(program.environment, _pids())
"""Noted when prefork is imported, before the program can have closed one and opened something else."""


def take() -> None:
    """Keep the sockets and their variables from programs that this one starts; may be called again."""
    if not _handed_here:
        return
    for name in VARIABLES:
        os.environ.pop(name, None)
    for fd in still_open():
        os.set_inheritable(fd, False)


def still_open() -> list[int]:
    """Return the descriptors, also those that no server has, for the next image may want them."""
    return [one.fd for one in _handed_here if one.is_open]


def addresses() -> list[Address]:
    """Return all that was handed over, for a program that names no address of its own."""
    return [Address("fd", fd=one.fd) for one in _handed_here]


def expanded(given: Sequence[Address]) -> list[Address]:
    """Put in place of each name the sockets that bear it; a name that none bears stays for ``server_for``."""
    found: list[Address] = []
    for address in given:
        named = addresses_named(address.name) if address.scheme == "systemd" else []
        found += named or [address]
    return found


def addresses_named(name: str) -> list[Address]:
    """Return the sockets of that name; several can have the same one."""
    return [Address("fd", fd=one.fd) for one in _handed_here if one.name == name]


def why_none() -> str:
    """Say why there is no socket of a name."""
    if not _handed_here:
        return "no socket was handed over to this process (LISTEN_FDS, LISTEN_PID)"
    names = ", ".join(dict.fromkeys(escaped(one.name) for one in _handed_here))
    return f"no socket of that name was handed over, only {names}"


def tell_of_unused(used: Collection[int]) -> None:
    """Say of each socket that no server has that its clients wait for nobody."""
    for one in _handed_here:
        if one.fd not in used:
            log.event(
                logging.WARNING,
                "master",
                "does not serve a socket that was handed over; its clients wait in vain",
                name=one.name,
                fd=one.fd,
            )
