"""What this process is: how it was started, and what an earlier image of it has left."""

from __future__ import annotations

import contextlib
import logging
import os
import sys

import msgspec

from prefork.host.handover import FORMAT, VARIABLE, MasterState
from prefork.workers import log


class Program(msgspec.Struct, frozen=True):
    """How this program was started, so that it can be started again: noted when prefork is imported."""

    arguments: tuple[str, ...]
    folder: str | None
    environment: dict[str, str]

    @classmethod
    def of_this_process(cls) -> Program:
        """Read it; an application may change its folder and its environment later on."""
        folder = None
        with contextlib.suppress(OSError):  # it has been removed
            folder = os.getcwd()
        environment = {key: value for key, value in os.environ.items() if key != VARIABLE}
        return cls(tuple(sys.orig_argv[1:]), folder, environment)

    @property
    def command(self) -> list[str]:
        """The interpreter and its arguments."""
        return [sys.executable, *self.arguments]

    def why_not_again(self) -> str:
        """Why it cannot be started again; "" when it can."""
        if self.folder is None or not os.path.isdir(self.folder):
            return "the folder that it was started in is gone"
        if not sys.executable:
            return "the interpreter is unknown"
        if not self.arguments or self.arguments[0] == "-":
            return "the program was read from standard input"
        return ""


program = Program.of_this_process()


class _Here:
    """What this process has to do with handing over. state: of the image before, until it is adopted."""

    state: MasterState | None = None
    pidfile: int | None = None
    watcher: int | None = None


def pending() -> MasterState | None:
    """Return the state that waits to be adopted; None in a process that was started afresh."""
    return _Here.state


def adopted() -> None:
    """Note that a master has everything in hand; a pid file that the new settings do not name goes."""
    state, _Here.state = _Here.state, None
    if state is not None and state.pidfile is not None and state.pidfile != _Here.pidfile:
        _remove_pidfile(state.pidfile)


def keep_pidfile(fd: int | None) -> None:
    """Note the descriptor that holds the pid file's lock, which has to be held through an exec."""
    _Here.pidfile = fd


def kept_pidfile() -> int | None:
    """Return it; None where there is no pid file."""
    return _Here.pidfile


def _remove_pidfile(fd: int) -> None:
    with contextlib.suppress(OSError):  # it was removed, or may not be
        path = os.readlink(f"/proc/self/fd/{fd}")
        if os.path.samestat(os.lstat(path), os.fstat(fd)):
            os.unlink(path)
    os.close(fd)


def keep_watcher(pid: int) -> None:
    """Note the child that watches the source files, which lives through an exec."""
    _Here.watcher = pid


def kept_watcher() -> int | None:
    """Return its pid; None where there is none."""
    return _Here.watcher


def receive_state() -> None:
    """Read what the image before has left, once, when prefork is imported.

    A variable that means nothing (inherited by mistake, or made up) is passed over with a word.
    """
    text = os.environ.pop(VARIABLE, None)
    if text is None:
        return
    state = _read(text)
    if state is None:
        log.event(logging.WARNING, "master", f"{VARIABLE} means nothing here and is ignored")
        return
    # Programs that the application starts while it is loaded must not get them.
    for fd in state.fds:
        os.set_inheritable(fd, False)
    _Here.state = state


def _read(text: str) -> MasterState | None:
    with contextlib.suppress(ValueError, OSError, msgspec.MsgspecError):
        memory = int(text)
        if not os.readlink(f"/proc/self/fd/{memory}").startswith("/memfd:prefork-handover"):
            return None
        content = os.pread(memory, os.fstat(memory).st_size, 0)
        os.close(memory)
        state = msgspec.json.decode(content, type=MasterState)
        if state.pid == os.getpid() and state.format == FORMAT:
            return state
    return None
