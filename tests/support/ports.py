"""Ports for programs that cannot choose one themselves."""

from __future__ import annotations

import random
import socket
from pathlib import Path
from typing import Final

LOWEST: Final = 15_000
"""Below are the ports that services have by habit."""

_given: set[int] = set()


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """Return a port of the loopback interface that nobody has now, and that this function has not returned before.

    The kernel gives the ports of its own range to whoever asks for port 0, and to every client. One of
    them would often be taken again before the program that it is for has bound it: other tests run at the
    same time.
    """
    highest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text("ascii").split()[0]) - 1
    dice = random.SystemRandom()
    while True:
        port = dice.randint(LOWEST, max(highest, LOWEST + 1000))
        if port not in _given and _is_free(port, kind):
            _given.add(port)
            return port


def _is_free(port: int, kind: socket.SocketKind) -> bool:
    with socket.socket(type=kind) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
