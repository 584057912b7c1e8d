"""What the master makes its workers from (both)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from prefork.workers.credentials import Credentials
from prefork.workers.listener import Listener
from prefork.workers.scoreboard import Scoreboard
from prefork.workers.settings import Settings
from prefork.workers.worker.side import WorkerSide


class WorkerSpec(msgspec.Struct, frozen=True):
    """What every worker of a pool is made from; the same for all of them.

    title: what stands before and after the slot in the process title.
    hooks: the leading server's, called as ``hooks(name, *arguments)``; returns whether the hook is
    the program's own. enter: tells the server
    objects that they are in a worker now. shed: called with the slot, closes what belongs to
    other workers and to other pools of the process.
    """

    settings: Settings
    board: Scoreboard
    listeners: list[Listener]
    life: int
    wake: int
    master_pid: int
    credentials: Credentials | None
    umask: int | None
    title: tuple[str, str]
    hooks: Callable[..., Any]
    enter: Callable[[WorkerSide], None]
    shed: Callable[[int], None]
