"""Exec in place: the process becomes the new image of its program (master).

exec replaces the memory of a process: all objects, threads and signal handlers of the old image are
gone. It keeps what the kernel has noted for the process, and that is what makes a reload without
loss possible:

- the pid, so that a service manager, a pid file and ``prefork status`` notice nothing;
- the children. They stay children of this process, can be waited for, and do not notice either;
- the descriptors that are not close-on-exec, with the numbers that they have. A listening socket
  stays open, with its queue; the life pipe stays open, so that no worker believes that its master
  has died;
- the signals that are blocked, and those that are pending.

Every descriptor of prefork is close-on-exec at any other time, because the program may start other
programs at any moment. ``system.become()`` clears the flag of those that ``MasterState.fds`` lists,
just before the exec. If the exec is impossible, it sets the flags again, and the old image goes on.

The memory's content goes through a memfd, which the new image finds by an environment variable
(``prefork/host/handover.py``). The environment and the folder are those with which the program was
started, not those that it has made of them since.

exec resets every signal handler to the default action, which for most signals ends the process. So
the control signals are blocked across the exec. One that arrives stays pending, until ``import
prefork`` in the new image has installed handlers that note it (prefork/host/stopping.py), and the
new master obeys it. Without that, a storm of TERM ended 15 of 15 reloads halfway, with exit status
143 in place of a graceful stop.
"""

from __future__ import annotations

import os
from typing import Final

import msgspec

from prefork.host.handover import MEMFD_NAME, STATE_VARIABLE, MasterState
from prefork.host.process import process
from prefork.host.stopping import CONTROL_SIGNALS
from prefork.workers import system

SPARE_DESCRIPTORS: Final = 16
"""Descriptors that have to be free before an exec: an interpreter that finds none cannot start."""

HARD_EXTRA: Final = 60.0
"""Seconds beyond ``load_timeout`` after which SIGALRM ends new code that nothing else could end."""


def hand_over(state: MasterState) -> None:
    """Become the new image of this program, which finds ``state``.

    Does not return. Raises HandoverError if the state cannot be written whole, and OSError or
    ValueError if the exec is impossible. Everything is as before then.
    """
    if process.watcher is not None:
        state = msgspec.structs.replace(state, watcher=process.watcher)
    memory = os.memfd_create(MEMFD_NAME, os.MFD_CLOEXEC)
    try:
        _prove_spare_descriptors(memory)
        environment = {**process.program.environment, STATE_VARIABLE: state.write(memory)}
        system.become(
            process.program.command,
            environment,
            process.program.folder or "/",
            keep=[memory, *state.fds],
            blocked=CONTROL_SIGNALS,
            limit=state.load_timeout + HARD_EXTRA,
        )
    finally:
        os.close(memory)


def _prove_spare_descriptors(fd: int) -> None:
    """Raise OSError if few descriptors are left. After an exec that would end the process."""
    spare = []
    try:
        for _ in range(SPARE_DESCRIPTORS):
            spare.append(os.dup(fd))  # noqa: PERF401 - those that were made have to be closed
    finally:
        for one in spare:
            os.close(one)
