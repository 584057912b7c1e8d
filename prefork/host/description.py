"""The master's description of its pool, for the readers of its scoreboard."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Literal

from prefork._version import __version__
from prefork.edge.edge import edge_of
from prefork.metrics.description import CertificateDescription, ListenerDescription, PoolDescription
from prefork.workers.listener import Kind, Listener
from prefork.workers.settings import ROWS, Settings
from prefork.workers.text import printable

_KINDS: dict[Kind, Literal["stream", "datagram", "other"]] = {
    Kind.STREAM: "stream",
    Kind.DATAGRAM: "datagram",
    Kind.OTHER: "other",
    Kind.POLLED: "other",
}
_FAMILIES: dict[int, Literal["inet", "inet6", "unix"]] = {
    socket.AF_INET: "inet",
    socket.AF_INET6: "inet6",
    socket.AF_UNIX: "unix",
}


def describe(
    settings: Settings, listeners: Sequence[Listener], endpoints: Mapping[str, str]
) -> PoolDescription:
    """Describe a pool (master). endpoints: where the metrics process listens, by setting, with real ports."""
    return PoolDescription(
        name=settings.name,
        version=__version__,
        python=sys.version.split(" ")[0],
        listeners=tuple(describe_listener(listener) for listener in listeners),
        settings=shown(settings),
        metrics=endpoints.get("metrics"),
        agent=endpoints.get("agent"),
        certificates=_certificates(listeners),
    )


def _certificates(listeners: Sequence[Listener]) -> tuple[CertificateDescription, ...]:
    """Describe the certificates of all servers, each file once."""
    edges = [edge_of(listener.server) for listener in listeners]
    found = {one.file: one.ends for edge in edges if edge is not None for one in edge.certificates}
    return tuple(CertificateDescription(file, ends) for file, ends in found.items())


def describe_listener(listener: Listener) -> ListenerDescription:
    """Describe a listener so that readers of the kernel's tables find it (master)."""
    return ListenerDescription(
        name=listener.name,
        kind=_KINDS[listener.kind],
        family=_FAMILIES.get(listener.family, "other"),
        inode=0 if listener.kind is Kind.POLLED else os.fstat(listener.fd).st_ino,
        server=type(listener.server).__name__,
    )


def shown(settings: Settings) -> dict[str, str]:
    """Return the settings as a user would write them, printable.

    A setting that only the command line has is left out at its default: a server made in code does
    not listen on the command line's default address.
    """
    return {
        key: printable(row.shown(getattr(settings, key)))
        for key, row in ROWS.items()
        if row.attribute is not None or getattr(settings, key) != row.default
    }
