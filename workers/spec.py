"""What the children of a master are made from: its workers, and the metrics process (both)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from prefork.workers.credentials import Credentials
from prefork.workers.listener import Listener
from prefork.workers.scoreboard import Scoreboard
from prefork.workers.settings import Settings
from prefork.workers.worker.side import WorkerSide


class WorkerSpec(msgspec.Struct, frozen=True):
    """What every worker of a pool is made from: all that the program decides, the same for each.

    The spec is made once, when serving begins (prefork/serving.py). The master, the pool and the
    metrics process hand it on whole.

    listeners: one for each server, in the order of ``serve()``.
    wake: the descriptor that wakes the master when a worker writes to it.
    credentials: what a worker becomes before it runs code of the program; None to stay as it is.
    title: the text before and after the slot's number in a worker's process title.
    hooks: calls a hook of the first server, as ``hooks(name, *arguments)``; returns whether the
    hook is the program's own.
    enter: called in each worker, to note in the server objects that they are in a worker now.
    metrics_dir: the directory of the program's own metrics; None where it keeps none.
    links: the workers' end of the link to the lot, by the descriptor of the listener. A listener that
    is not in it parks no connections.
    poll_interval: the seconds after which a worker asks a server without a socket again whether there is a request.
    """

    settings: Settings
    listeners: list[Listener]
    wake: int
    credentials: Credentials | None
    title: tuple[str, str]
    hooks: Callable[..., Any]
    enter: Callable[[WorkerSide], None]
    metrics_dir: str | None
    links: Mapping[int, int] = msgspec.field(default_factory=dict)
    poll_interval: float = 0.5

    def drop_privileges(self) -> None:
        """Take on a worker's umask and credentials (child, before code of the program runs)."""
        if self.settings.umask is not None:
            os.umask(self.settings.umask)
        if self.credentials is not None:
            self.credentials.assume()


class PoolLink(msgspec.Struct, frozen=True):
    """What ties each child of a master to its pool; made by the pool, the same for each.

    life: the end of the life pipe that is readable when the master has ended. The master holds the
    other end and writes nothing to it.
    shed: called in the child with its slot (NO_SLOT for a child that is no worker). It closes what
    belongs to other workers of the pool; see workers/forks.py for what belongs to other pools.
    """

    board: Scoreboard
    life: int
    master_pid: int
    shed: Callable[[int], None]

    @property
    def is_in_master(self) -> bool:
        """Whether this process is the master.

        Also a child that the program forks in a hook has the master's objects, and comes back to the
        master's loop if it leaves the hook by an exception, such as that of ``sys.exit()``.
        """
        return os.getpid() == self.master_pid


NO_SLOT = -1
"""The slot of a child that is no worker."""
