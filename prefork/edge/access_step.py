"""Holding a client to the address rules (worker)."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import Any

from prefork.edge.access import Credentials, Rules, verdicts
from prefork.edge.passage import Passage, Refused
from prefork.workers.states import Rejection

_CREDENTIALS = struct.Struct("@iII")


def credentials_of(request: Any) -> Credentials | None:
    """Return who has connected to a Unix socket, as the kernel noted at the connect; None for others.

    A datagram has no such note.
    """
    if getattr(request, "family", None) != socket.AF_UNIX:
        return None
    content = request.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(content)
    return None if pid == 0 and uid == 2**32 - 1 else Credentials(pid, uid, gid)


def credentials_of_client(passage: Passage) -> Credentials | None:
    """Return the credentials of the client, None where they are not known.

    Behind a proxy those of the connection are the proxy's. This also holds where the header has no address, and
    the client goes by that of the proxy.
    """
    return credentials_of(passage.request) if passage.proxy is None else None


def access_step(rules: Rules) -> Callable[[Passage], None]:
    """Return the step that refuses clients which the rules exclude."""
    permits = verdicts(rules)

    def check(passage: Passage) -> None:
        if passage.is_trusted:
            return  # the proxy itself, as in a health check
        if not permits(passage.client, lambda: credentials_of_client(passage)):
            raise Refused(Rejection.ADDRESS, "allow and deny exclude this client")

    return check
