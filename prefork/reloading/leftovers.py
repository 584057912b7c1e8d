"""What the program has started and an exec would leave behind: its processes and temporary folders.

At the end of a Python process ``multiprocessing`` ends its processes and ``tempfile`` removes its
folders, because objects in memory know them. An exec destroys the objects. And a program starts its
manager process, its helper, its folder anew in each image, so that each reload would leave one more.

The old image cannot end them itself. Its workers still serve, and their handlers talk to the
manager and write into the folder. So it writes down which they are (``with_leftovers()``), and the
new image ends them when the last worker of the old code has left (``Leftovers``):

- Children are asked by TERM, and killed when ``graceful_timeout`` is over. They stay children of this
  process over the exec, so that they can be waited for, and are collected.
- The resource tracker and the fork server of ``multiprocessing`` end by themselves, when the last
  process that uses them has ended. The tracker removes shared memory and semaphores then.
- Temporary folders of ``tempfile.TemporaryDirectory`` and of ``multiprocessing`` are removed by a
  program of their own: the master would wait for the disk.

If the roll fails, the old workers stay, and with them all of this until a later reload succeeds. At
the end of the process nothing stays.

Functions that the program has registered with ``atexit`` are not called before an exec. They may
close the server's socket, or remove what the workers still use. A program whose ``atexit`` function
ends a helper needs nothing else, because the helper is ended here. The log names what is left of it.
"""

# ruff: noqa: SLF001 - CPython has no public names for what is registered

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import weakref
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from prefork.host.handover import Leftover, MasterState
from prefork.host.process import process
from prefork.reloading.exec import hand_over
from prefork.workers import log, system
from prefork.workers.files import Identity, identity_of, is_still
from prefork.workers.programs import ProgramChild, start_program
from prefork.workers.text import escaped

_LONGEST_NAME: Final = 60

_KILL_TIME: Final = 1.0
"""Seconds that killed processes have for ending."""

_REMOVE: Final = (
    "import shutil, sys; [shutil.rmtree(one, ignore_errors=True) for one in sys.argv[1:]]"
)


# --- the old image


def hand_over_with_leftovers(state: MasterState) -> None:
    """Become the new image of this program, which finds the state and what the program has started.

    Does not return. Raises as ``hand_over()``; everything is as before then.
    """
    whole = with_leftovers(state)
    try:
        hand_over(whole)
    finally:
        for one in whole.leftovers[len(state.leftovers) :]:
            system.release(one.child)


def with_leftovers(state: MasterState) -> MasterState:
    """Return the state with what the program of this image has started."""
    known = {*state.pids, *(() if process.watcher is None else (process.watcher,))}
    folders = [(os.fsencode(path), identity) for path, identity in _temporary_folders()]
    return msgspec.structs.replace(
        state,
        leftovers=(*state.leftovers, *_children(known)),
        folders=tuple(dict.fromkeys([*state.folders, *folders])),
    )


def _children(known: set[int]) -> Iterator[Leftover]:
    of_multiprocessing, by_themselves = processes_of_multiprocessing()
    started = [pid for pid in system.children() if process.is_of_program(pid)]
    for pid in dict.fromkeys([*started, *of_multiprocessing, *by_themselves]):
        if pid in known:
            continue
        with contextlib.suppress(OSError):  # it has ended and was collected
            child = system.Child(pid, system.hold_process(pid))
            system.adopt(child)
            name = of_multiprocessing.get(pid) or _title(pid)
            yield Leftover(child, escaped(name[:_LONGEST_NAME]), pid in by_themselves)


def processes_of_multiprocessing() -> tuple[dict[int, str], set[int]]:
    """Return the names of the processes of ``multiprocessing`` by pid, and the pids of those that end by themselves."""
    modules: dict[str, Any] = dict(sys.modules)
    processes, helpers = {}, set()
    with contextlib.suppress(KeyError, AttributeError):
        for one in [*modules["multiprocessing.process"]._children]:
            processes[one.pid] = one.name
    with contextlib.suppress(KeyError, AttributeError):
        helpers.add(modules["multiprocessing.resource_tracker"]._resource_tracker._pid)
    with contextlib.suppress(KeyError, AttributeError):
        helpers.add(modules["multiprocessing.forkserver"]._forkserver._forkserver_pid)
    return processes, {pid for pid in helpers if pid is not None}


def _title(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as title:
            return (
                title.read(4 * _LONGEST_NAME)
                .replace(b"\0", b" ")
                .decode("utf-8", "replace")
                .strip()
            )
    except OSError:
        return "?"


def _temporary_folders() -> Iterator[tuple[str, Identity]]:
    paths: list[str] = []
    modules: dict[str, Any] = dict(sys.modules)
    with contextlib.suppress(KeyError, AttributeError):
        cleanup = modules["tempfile"].TemporaryDirectory._cleanup.__func__
        finalize: Any = weakref.finalize
        infos = [*finalize._registry.values()]
        paths += [one.args[0] for one in infos if _is_folder(one, cleanup)]
    with contextlib.suppress(KeyError, AttributeError):
        config = modules["multiprocessing.process"]._current_process._config
        if (path := config.get("tempdir")) is not None:
            paths.append(path)
    for path in (*paths, *_folders_of_managers(modules)):
        with contextlib.suppress(OSError):
            yield os.path.abspath(path), identity_of(path)


def _folders_of_managers(modules: dict[str, Any]) -> Iterator[str]:
    # A manager has its socket in a folder of its own. It removes the folder when it is shut down by
    # a message, for which the new image would have to load multiprocessing. TERM ends it, too.
    with contextlib.suppress(KeyError, AttributeError):
        for one in [*modules["multiprocessing.util"]._finalizer_registry.values()]:
            if one._callback.__name__ == "_finalize_manager":
                folder = os.path.dirname(os.fsdecode(one._args[1]))
                if os.path.basename(folder).startswith("pymp-"):
                    yield folder


def _is_folder(info: Any, cleanup: Any) -> bool:
    is_cleanup = getattr(info.func, "__func__", None) is cleanup
    return is_cleanup and bool((info.kwargs or {}).get("delete", True))


# --- the new image


class Leftovers:
    """What earlier images of this process have left. seconds: how long a process may take to end."""

    def __init__(self, state: MasterState | None, seconds: float) -> None:
        self._children = [] if state is None else list(state.leftovers)
        self._folders = [] if state is None else list(state.folders)
        self._seconds = seconds
        self._kill_at: float | None = None
        self._remover: ProgramChild | None = None
        for one in self._children:
            system.adopt(one.child)

    def added_to(self, state: MasterState) -> MasterState:
        """Return the state with all that is still left: another reload comes before it has ended."""
        return msgspec.structs.replace(
            state, leftovers=tuple(self._children), folders=tuple(self._folders)
        )

    def step(self, now: float) -> None:
        """Continue to end what is left (in every tick, when no worker needs it any more)."""
        if self._remover is not None and self._remover.has_ended():
            self._remover.end()
            self._remover = None
        if self._children:
            self._end_children(now)
        elif self._folders:
            self._remover = start_program(
                [sys.executable, "-I", "-S", "-c", _REMOVE, *self._paths()]
            )
            self._folders = []

    def _end_children(self, now: float) -> None:
        self._collect()
        if self._kill_at is None:
            self._kill_at = now + self._seconds
            self._send(signal.SIGTERM, "ends what the previous code has started", logging.INFO)
        elif now >= self._kill_at:
            self._kill_at = now + self._seconds
            self._send(signal.SIGKILL, "kills what the previous code has started", logging.WARNING)

    def _send(self, number: signal.Signals, what: str, level: int) -> None:
        asked = [one for one in self._children if not one.ends_by_itself]
        for one in asked:
            with contextlib.suppress(PermissionError):
                system.send(one.child, number)
        if asked:
            names = ", ".join(f"{one.child.pid} {one.name}" for one in asked)
            log.event(level, "master", what, processes=names)

    def _collect(self) -> None:
        for one in [*self._children]:
            # Those that the fork server has started are no children of this process.
            if system.wait_for_all([one.child], 0):
                system.collect(one.child)
                system.release(one.child)
                self._children.remove(one)

    def _paths(self) -> list[str]:
        found = ((os.fsdecode(path), identity) for path, identity in self._folders)
        return [path for path, identity in found if is_still(path, identity)]

    def end(self) -> None:
        """End all that is left, and wait for it: the process does not go on."""
        if self._remover is not None:
            self._remover.wait(self._seconds)
            self._remover.end()
        for number, seconds in ((signal.SIGTERM, self._seconds), (signal.SIGKILL, _KILL_TIME)):
            self._collect()
            asked = [one.child for one in self._children if not one.ends_by_itself]
            for child in asked:
                with contextlib.suppress(PermissionError):
                    system.send(child, number)
            if asked:
                system.wait_for_all(asked, seconds)
        self._collect()
        if self._folders:
            import shutil  # noqa: PLC0415 - loads the compressors, into every worker otherwise

            for path in self._paths():
                shutil.rmtree(path, ignore_errors=True)
        self._folders = []
