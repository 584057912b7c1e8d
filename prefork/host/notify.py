"""What the service manager is told: ``sd_notify`` by hand, a datagram for each thing that changes (master).

``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID`` are out of the environment as long as a
pool runs: a worker, or a program that a handler starts, must not speak for the service. The next
image of a reload gets the environment that the program was started with, so it finds them again.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from prefork.host.description import describe_listener
from prefork.metrics.kernel import queues
from prefork.workers import log
from prefork.workers.listener import Listener
from prefork.workers.pool.views import PoolView
from prefork.workers.states import Phase
from prefork.workers.text import escaped

SOCKET: Final = "NOTIFY_SOCKET"
WATCHDOG: Final = "WATCHDOG_USEC"
WATCHDOG_PID: Final = "WATCHDOG_PID"

STATUS_INTERVAL: Final = 5.0
"""Seconds between two status lines at least; every one of them is work for the service manager."""

FEEDS: Final = 3
"""Signs of life in the time of the watchdog: one may be lost and the next one late."""

_MOST_OWED: Final = 8

# Not LEAVING: after shutdown() the program goes on and may serve again, and systemd kills whom
# it takes to be stopping. A program that ends afterwards tells it by its end.
_ENDING: Final = (Phase.NOT_READY, Phase.DRAINING, Phase.STOPPING_NOW)


class Notifier:
    """Speaks for one pool from when it is made until ``close()``; mute where nobody listens.

    Never blocks and never raises. What systemd waits for (ready, reloading, stopping) is owed
    until it could be sent, tried again at each tick; status and signs of life are sent or dropped.

    was_ready: whether an earlier image of the master has told that the pool is ready.
    """

    def __init__(self, *, was_ready: bool = False) -> None:
        names = (SOCKET, WATCHDOG, WATCHDOG_PID)
        self._taken = {name: os.environ.pop(name) for name in names if name in os.environ}
        self._address = address_of(self._taken)
        self._feed_every = feed_interval(self._taken, os.getpid())
        self._feed_at = self._status_at = 0.0
        self._status = ""
        self._was_ready = was_ready
        self._stopping = False
        self._failed = False
        self._owed: deque[str] = deque(maxlen=_MOST_OWED)

    def close(self) -> None:
        """Put the variables back: the program may serve once more, or become another one."""
        os.environ.update(self._taken)
        self._taken = {}
        self._address = None

    def ready(self, status: str) -> None:
        """Tell that the pool serves: at first, or when all workers are new after a reload."""
        self._was_ready = True
        self._tell("READY=1", status)

    def ready_as_before(self, status: str) -> None:
        """Tell that a reload has failed: the pool is what it was, which at its start is not ready yet."""
        if self._was_ready:
            self.ready(status)

    def reloading(self) -> None:
        """Tell that a reload begins; without the clock ``Type=notify-reload`` does not believe it."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}", "reloading")

    def tick(self, phase: Phase, look: Callable[[], str]) -> None:
        """Do what is due; called at the end of a tick that went well, and only then.

        look: gives the status line; called only when one is due.
        """
        if self._address is None:
            return
        if phase in _ENDING:
            self.stopping()
        self._pay()
        now = time.monotonic()  # not the master's clock: the watchdog's does not stand still
        if self._feed_every is not None and now >= self._feed_at:
            self.feed()
        if now >= self._status_at and (status := look()) != self._status:
            self._remember(status)
            self._send(f"STATUS={status}")

    def stopping(self) -> None:
        """Tell that the pool stops and the program will end; once."""
        if not self._stopping:
            self._stopping = True
            self._tell("STOPPING=1", "stopping")

    def feed(self) -> None:
        """Give a sign of life, where systemd wants any."""
        if self._feed_every is not None and self._send("WATCHDOG=1"):
            self._feed_at = time.monotonic() + self._feed_every

    def _tell(self, what: str, status: str) -> None:
        if self._address is None:
            return
        shown = escaped(status)
        self._remember(shown)
        self._owed.append(f"{what}\nSTATUS={shown}")
        self._pay()

    def _remember(self, status: str) -> None:
        self._status, self._status_at = status, time.monotonic() + STATUS_INTERVAL

    def _pay(self) -> None:
        while self._owed and self._send(self._owed[0]):
            self._owed.popleft()

    def _send(self, text: str) -> bool:
        # A socket for each message: none is open in the workers, and none has to outlive an exec.
        if self._address is None:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.sendto(text.encode("utf-8", "replace"), self._address)
        except OSError as error:
            if not self._failed:
                log.event(logging.WARNING, "master", "cannot tell the service manager", error=error)
            self._failed = True
            return False
        self._failed = False
        return True


def address_of(environ: Mapping[str, str]) -> str | None:
    """Return where to send; None where nobody asked for it, or by a socket of another kind than Unix."""
    path = environ.get(SOCKET, "")
    if path.startswith("@"):
        return "\0" + path[1:]
    return path if path.startswith("/") else None


def feed_interval(environ: Mapping[str, str], pid: int) -> float | None:
    """Return the seconds between two signs of life; None where none are wanted of this process."""
    span, whose = environ.get(WATCHDOG, ""), environ.get(WATCHDOG_PID, "")
    if not span.isdecimal() or len(span) > 18 or whose not in ("", str(pid)):
        return None
    return int(span) / 1e6 / FEEDS or None


def status_line(
    view: PoolView, listeners: Sequence[Listener], *, reloading: bool, failure: str
) -> str:
    """Return the pool in a line, such as ``3/4 workers busy, 2 clients waiting``.

    failure: the report of the last reload, if that failed.
    """
    ready = [one for one in view.workers if one.ready]
    parts = [f"{sum(not one.idle for one in ready)}/{len(ready)} workers busy"]
    found = queues([describe_listener(one) for one in listeners]).values()
    depths = [one.depth for one in found if one.depth is not None]
    if depths:
        parts.append(f"{sum(depths)} clients waiting")
    if reloading:
        parts.append("reloading")
    elif failure:
        parts.append(f"the last reload failed: {failure.partition(chr(10))[0]}")
    return escaped(", ".join(parts))
