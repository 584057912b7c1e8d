"""The end of a trial: what the new code has started or made in it ends with it (trial).

A trial ends where the program calls ``serve_forever()``, and must not return into the program. So it
ends by ``os._exit()``, and Python's own end of a process does not happen. ``end_in_order()`` does what
matters of it: the processes of ``multiprocessing`` are terminated, functions registered with
``atexit`` are called, temporary folders are removed. Otherwise each reload would leave one more of
them.

The resource tracker of ``multiprocessing`` removes shared memory when the last process that uses the
tracker has ended. The master kills what is left of the trial's process group as soon as the trial has
ended. So the trial waits for its tracker, also where the program ends by itself (``stand_by()``).

Threads are not waited for: those that the program has started serve for ever.

A master that is killed cannot end its trial. The kernel does so then: code that hangs while it is
loaded would be left for good. What the trial itself has started is left in that case.
"""

# ruff: noqa: SLF001 - CPython has no public names for most of this

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
from typing import Any, Final

from prefork.host.process import process
from prefork.reloading.leftovers import processes_of_multiprocessing
from prefork.workers import system

KILL_TIME: Final = 1.0
"""Seconds that killed processes have for ending."""

END_TIME: Final = 3.0
"""Seconds that a trial has for ending in order. Its report is written before."""


def stand_by() -> None:
    """Have a trial wait for its tracker at its end, and end with its master; do nothing in other processes."""
    if process.trial is not None:
        system.end_with_parent(process.trial.master_pid)
        atexit.register(_end_tracker, os.getpid())


def end_in_order() -> None:
    """End what this trial has started; the caller exits. The process exits by itself if that hangs."""
    system.exit_after(END_TIME, 0)
    for step in (_end_processes, atexit._run_exitfuncs):
        with contextlib.suppress(BaseException):
            step()


def _end_processes() -> None:
    # Managers are shut down, so that they remove their sockets. The others are terminated: at its
    # exit multiprocessing would wait for those that are not daemons, and they may serve for ever.
    util: Any = sys.modules.get("multiprocessing.util")
    if util is not None:
        util._run_finalizers(0)
        for one in sys.modules["multiprocessing.process"].active_children():
            one.terminate()
        util._exit_function()


def _kill_children() -> None:
    # The master kills the process group of the trial. A helper in a session of its own is in none
    # of the trial's groups.
    _, by_themselves = processes_of_multiprocessing()
    children = []
    for pid in {*system.children()} - by_themselves:
        with contextlib.suppress(OSError):  # it has ended, and the program has collected it
            children.append(system.Child(pid, system.hold_process(pid)))
    for child in children:
        system.send(child, signal.SIGKILL)
    system.wait_for_all(children, KILL_TIME)
    for child in children:
        system.collect(child)


def _end_tracker(pid: int) -> None:
    # Called after the other functions, except for multiprocessing's own one, if that was imported
    # before prefork. The tracker ends when no process has its pipe any more.
    if pid != os.getpid():  # the copy in a child that the trial has forked
        return
    system.exit_after(END_TIME, 1)
    tracker: Any = sys.modules.get("multiprocessing.resource_tracker")
    with contextlib.suppress(Exception):
        _end_processes()
        _kill_children()
        if tracker is not None:
            tracker._resource_tracker._stop()
