"""What one image of the master leaves to the next one, and what a trial is given: records."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from prefork.workers.files import Identity
from prefork.workers.pool.table import PoolState

FORMAT: Final = 4
"""Of the memfd's content; a new image that reads another one is refused before the exec."""

VARIABLE: Final = "PREFORK_HANDOVER"
"""Names the descriptor of the memfd to the new image."""


class MetricsState(msgspec.Struct, frozen=True):
    """The metrics process: the socket that it shares with the next one, and itself."""

    address: str
    fd: int
    pid: int
    pidfd: int


class MasterState(msgspec.Struct, frozen=True):
    """All that one image of the master leaves to the next."""

    format: int
    pid: int
    pool: PoolState
    listeners: tuple[int, ...]
    """Sockets that the next image's servers take by their address."""
    kept: tuple[int, ...]
    """Sockets that are known by their number, ``fd://N``."""
    wakeup: tuple[int, int, int]
    lost_time: float
    floor: int
    floor_set: int
    """The ``workers`` of the settings, from which TTIN and TTOU may have moved the floor."""
    size: int
    """Workers wanted, with what load has added."""
    settings: dict[str, str]
    """As a user would write them, to tell what has changed."""
    again: str = ""
    """The signal that has asked for one reload more meanwhile."""
    metrics: MetricsState | None = None
    pidfile: int | None = None
    watcher: int | None = None
    """The pid of the child that watches the source files."""

    @property
    def fds(self) -> list[int]:
        """All descriptors that have to outlive the exec."""
        metrics = [] if self.metrics is None else [self.metrics.fd, self.metrics.pidfd]
        pidfile = [] if self.pidfile is None else [self.pidfile]
        return [
            *self.pool.fds,
            *self.listeners,
            *self.kept,
            *self.wakeup,
            *metrics,
            *pidfile,
        ]


class Inventory(msgspec.Struct, frozen=True):
    """What the new code would be handed over, by name: a trial has to do without, and may not take it.

    sockets: family, type and address of each. kept: sockets that the program knows by their number.
    metrics: where the metrics process listens. pidfile: device and inode of the pid file.
    """

    sockets: tuple[tuple[int, int, Any], ...]
    kept: tuple[int, ...] = ()
    metrics: str | None = None
    pidfile: Identity | None = None


class TrialOrders(msgspec.Struct, frozen=True):
    """What a trial is told."""

    report_to: int
    inventory: Inventory
