"""Exec in place: the same process, workers, sockets and scoreboard go on under new code.

The old image writes what it knows into a memfd that only it has, blocks the control signals, lets
the descriptors of an explicit list survive, and calls exec. The new image finds the memfd through
an environment variable, runs the program from its beginning, and adopts.

Whether the new code is any good was tried before, in a child (prefork/reloading/trial.py). If it fails
all the same after the exec, the workers of before go on serving: see prefork/reloading/caretaker.py.
"""

from __future__ import annotations

import os
import signal
from typing import Final

import msgspec

from prefork.host.handover import MEMFD_NAME, STATE_VARIABLE, MasterState
from prefork.host.process import process
from prefork.workers import system

CONTROL_SIGNALS: Final = frozenset(
    {
        *(signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP),
        *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU),
    }
)
"""Blocked from before the exec until the new master's handlers stand: 15 of 15 reloads were killed without."""


def hand_over(state: MasterState) -> None:
    """Become the new image of this program; returns only by raising OSError, and then as if never called."""
    if process.watcher is not None:
        state = msgspec.structs.replace(state, watcher=process.watcher)
    memory = os.memfd_create(MEMFD_NAME, os.MFD_CLOEXEC)
    try:
        state.write(memory)
        environment = {**process.program.environment, STATE_VARIABLE: str(memory)}
        system.become(
            process.program.command,
            environment,
            process.program.folder or "/",
            keep=[memory, *state.fds],
            blocked=CONTROL_SIGNALS,
        )
    finally:
        os.close(memory)
