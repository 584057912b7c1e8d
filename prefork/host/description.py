"""What a pool is, in words for the readers of its scoreboard."""

from __future__ import annotations

import os
import socket
import sys

import msgspec

from prefork._version import __version__
from prefork.workers.listener import Listener
from prefork.workers.settings import ROWS, Settings

_FAMILIES: dict[int, str] = {
    socket.AF_INET: "inet",
    socket.AF_INET6: "inet6",
    socket.AF_UNIX: "unix",
}


def about(settings: Settings, listeners: list[Listener], metrics: str | None) -> str:
    """Return it as JSON: name, versions, listeners, settings as a user would write them.

    metrics: where the metrics process listens, with the port that it really has.
    """
    return msgspec.json.encode(
        {
            "name": settings.name,
            "version": __version__,
            "python": sys.version.split(" ")[0],
            "listeners": [described(listener) for listener in listeners],
            "settings": shown(settings),
            "metrics": metrics,
        }
    ).decode()


def shown(settings: Settings) -> dict[str, str]:
    """Return the settings as a user would write them.

    What only the command line has is left out where nobody gave it: a server made in code is
    bound elsewhere than at the command line's default address.
    """
    return {
        key: row.shown(getattr(settings, key))
        for key, row in ROWS.items()
        if row.attribute is not None or getattr(settings, key) != row.default
    }


def described(listener: Listener) -> dict[str, object]:
    """Return what readers of the kernel's tables need to find a listener."""
    return {
        "name": listener.name,
        "kind": listener.kind.name.lower(),
        "family": _FAMILIES.get(listener.family, "other"),
        "inode": os.fstat(listener.fd).st_ino,
        "server": type(listener.server).__name__,
    }
