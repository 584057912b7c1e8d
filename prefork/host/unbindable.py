"""Addresses that cannot be bound, as far as that shows without binding them (run and check; changes nothing).

``prefork check`` binds nothing, because the server that it checks may be running at the same time. What only
a bind shows is found at the start: an address that is in use or that the machine does not have, a port that
this user may not have. Neither does this module ask for sockets that a supervisor hands over (``fd://``,
``systemd:``): the process that checks need not be the one that gets them.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Mapping, Sequence

from prefork.host.addresses import Address
from prefork.host.bind_errors import OVERLAP, bind_reason
from prefork.workers.errors import BindError

_ANY = ("0.0.0.0", "::")


def refuse_unbindable(addresses: Sequence[Address], endpoints: Mapping[str, Address]) -> None:
    """Raise BindError for the first address that certainly cannot be bound.

    addresses: of the servers. endpoints: where the metrics process is going to listen, by setting.
    """
    named = [(address, str(address)) for address in addresses]
    named += [(address, f"{address} ({setting})") for setting, address in endpoints.items()]
    for index, (address, name) in enumerate(named):
        reason = _why_not(address)
        if not reason and any(_overlap(address, other) for other, _ in named[:index]):
            reason = OVERLAP
        if reason:
            raise BindError(name, reason)


def _why_not(address: Address) -> str:
    """Return why an address cannot be bound whatever else is bound, "" where nothing says so."""
    try:
        if address.scheme in ("unix", "unixgram"):
            _look_at_path(address.path)
        elif not address.is_bound:
            socket.getaddrinfo(address.host or None, address.port, flags=socket.AI_PASSIVE)
    except OSError as error:
        return bind_reason(error)
    return ""


def _look_at_path(path: str) -> None:
    """Raise OSError where no socket can be made: the folder is missing, or a file of another kind is there."""
    if path.startswith("\0"):
        return
    os.stat(os.path.dirname(path) or ".")
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise FileExistsError(errno.EEXIST, "a file that is no socket is there", path)


def _overlap(one: Address, other: Address) -> bool:
    """Return whether two addresses cannot be bound at the same time. Host names are compared as names."""
    if one.scheme != other.scheme or one.is_bound:
        return False
    if one.scheme in ("unix", "unixgram"):
        return one == other
    if one.port != other.port or one.port == 0:
        return False
    is_any = one.host in _ANY or other.host in _ANY
    return one.host == other.host or (is_any and one.family == other.family)
