"""Reporting to the service manager by the protocol of ``sd_notify`` (master).

A master that runs under systemd with ``Type=notify`` reports when it is ready, reloads and stops, a
status line, and signs of life for the watchdog: each a datagram.

While a pool runs, ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID`` are not in the
environment: a worker, or a program that a handler starts, must not report for the service. The next
image of a reload gets the environment with which the program was started, so it has them again.
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
"""Seconds between two status lines at least: each of them is work for the service manager."""

FEEDS: Final = 3
"""Signs of life in the time of the watchdog: one can be lost, and the next one late."""

_MOST_OWED: Final = 8

# Not LEAVING: after shutdown() the program goes on and may serve again, and systemd kills a service
# that is stopping for too long.
_ENDING: Final = (Phase.NOT_READY, Phase.DRAINING, Phase.STOPPING_NOW)


class Notifier:
    """Reports for one pool, until ``close()``.

    Does nothing where no service manager wants reports. Never blocks and never raises. The reports
    for which systemd waits (ready, reloading, stopping) are kept until they could be sent, with a
    try at each tick. A status line or a sign of life is sent or dropped.

    was_ready: whether an earlier image of the master has reported that the pool is ready.
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
        """Put the variables back: the program may serve once more, or run another program."""
        os.environ.update(self._taken)
        self._taken = {}
        self._address = None

    def ready(self, status: str) -> None:
        """Report that the pool serves: at the start, or when all workers are new after a reload."""
        self._was_ready = True
        self._tell("READY=1", status)

    def ready_as_before(self, status: str) -> None:
        """Report, after a reload that failed, that the pool is ready, if it was ready before."""
        if self._was_ready:
            self.ready(status)

    def reloading(self) -> None:
        """Report that a reload begins. ``Type=notify-reload`` requires the clock with it."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}", "reloading")

    def tick(self, phase: Phase, look: Callable[[], str]) -> None:
        """Report what is due; called at the end of each tick that went well, and only then.

        look: returns the status line; called only when one is due.
        """
        if self._address is None:
            return
        if phase in _ENDING:
            self.stopping()
        self._pay()
        # Not the master's clock, which can stand still: the watchdog's does not.
        now = time.monotonic()
        if self._feed_every is not None and now >= self._feed_at:
            self.feed()
        if now >= self._status_at and (status := look()) != self._status:
            self._remember(status)
            self._send(f"STATUS={status}")

    def stopping(self) -> None:
        """Report, once, that the pool stops and the program will end."""
        if not self._stopping:
            self._stopping = True
            self._tell("STOPPING=1", "stopping")

    def feed(self) -> None:
        """Send a sign of life, if systemd wants any."""
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
        # A new socket for each message: none is open in the workers, and none has to survive an
        # exec.
        if self._address is None:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.sendto(text.encode("utf-8", "replace"), self._address)
        except OSError as error:
            if not self._failed:
                log.event(
                    logging.WARNING, "master", "cannot notify the service manager", error=error
                )
            self._failed = True
            return False
        self._failed = False
        return True


def address_of(environ: Mapping[str, str]) -> str | None:
    """Return the address for reports; None where none are wanted, or not over a Unix socket."""
    path = environ.get(SOCKET, "")
    if path.startswith("@"):
        return "\0" + path[1:]
    return path if path.startswith("/") else None


def feed_interval(environ: Mapping[str, str], pid: int) -> float | None:
    """Return the seconds between two signs of life; None where this process need not send any."""
    span, whose = environ.get(WATCHDOG, ""), environ.get(WATCHDOG_PID, "")
    if not span.isdecimal() or len(span) > 18 or whose not in ("", str(pid)):
        return None
    return int(span) / 1e6 / FEEDS or None


def status_line(
    view: PoolView, listeners: Sequence[Listener], *, reloading: bool, failure: str
) -> str:
    """Return a line about the pool, such as ``3/4 workers busy, 2 clients waiting``.

    failure: the report of the last reload, "" if that did not fail.
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
