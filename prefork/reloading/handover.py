"""Exec in place: the same process, workers, sockets and scoreboard go on under new code.

The old image writes what it knows into a memfd that only it has, blocks the control signals, lets
the descriptors of an explicit list survive, and calls exec. The new image finds the memfd through
an environment variable, runs the program from its beginning, and adopts.

Whether the new code is any good was tried before, in a child (prefork/reloading/trial.py). If it fails
all the same after the exec, the workers of before go on serving: see ``take_care``.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import sys
import time
from typing import Final

import msgspec

from prefork.host.notify import Notifier
from prefork.workers import log, reports, system
from prefork.workers.errors import PreforkError
from prefork.workers.pool.table import PoolState
from prefork.workers.scoreboard import PoolField, Scoreboard
from prefork.workers.states import ExitKind, Phase, ReloadState

FORMAT: Final = 4
"""Of the memfd's content; a new image that reads another one is refused before the exec."""

VARIABLE: Final = "PREFORK_HANDOVER"
"""Names the descriptor of the memfd to the new image."""

CONTROL_SIGNALS: Final = frozenset(
    {
        *(signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP),
        *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU),
    }
)
"""Blocked from before the exec until the new master's handlers stand: 15 of 15 reloads were killed without."""

STOP_TIME: Final = 25.0
"""Seconds that workers have to finish when a master without an application is stopped."""

RETRY_LOOK: Final = 0.5
"""Seconds between two looks at the workers while there is no application."""


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


def hand_over(state: MasterState) -> None:
    """Become the new image of this program; returns only by raising OSError, and then as if never called."""
    if _Here.watcher is not None:
        state = msgspec.structs.replace(state, watcher=_Here.watcher)
    memory = os.memfd_create("prefork-handover", os.MFD_CLOEXEC)
    try:
        os.write(memory, msgspec.json.encode(state))
        environment = {**program.environment, VARIABLE: str(memory)}
        system.become(
            program.command,
            environment,
            program.folder or "/",
            keep=[memory, *state.fds],
            blocked=CONTROL_SIGNALS,
        )
    finally:
        os.close(memory)


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
    atexit.register(take_care)


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


# --- when the new code fails after the exec -------------------------------------------------------


def take_care() -> None:
    """Keep the workers of before serving although the new code has ended before it adopted them.

    Runs at the interpreter's end. There is no application to fork workers from, so the dead are
    not replaced; HUP or USR2 tries the code once more, TERM, INT or QUIT ends everything.
    """
    state = pending()
    if state is None:
        return
    board = Scoreboard.attach(os.dup(state.pool.board), writable=True)
    _publish_failure(board)  # first: whoever reads the line finds it there
    log.event(
        logging.CRITICAL,
        "master",
        "the new code has ended before it served; the workers of before go on, without replacement: "
        "mend the code and send HUP, or TERM to stop",
    )
    notifier = Notifier()
    words = "the new code has ended; the workers of before go on, without replacement"
    notifier.ready(words)
    # The signals are blocked since before the exec: they are waited for. While they are, the kernel
    # shows them as not blocked; a handler that never runs shows `prefork reload` that they are taken.
    system.set_handlers(dict.fromkeys(CONTROL_SIGNALS, lambda _number, _frame: None))
    orders = {*CONTROL_SIGNALS} - {signal.SIGTTIN, signal.SIGTTOU}
    while True:
        # A watchdog that starts the service anew would end the workers, too, and run the same code.
        notifier.tick(Phase.SERVING, lambda: words)
        board.set_pool(PoolField.TICK_NS, time.monotonic_ns())
        state = _without_the_dead(state, board)
        order = signal.sigtimedwait(orders, RETRY_LOOK)
        if order is not None and order.si_signo in (signal.SIGHUP, signal.SIGUSR2):
            notifier.reloading()
            with contextlib.suppress(OSError):
                hand_over(state)
            notifier.ready(words)
        elif order is not None and order.si_signo == signal.SIGUSR1:
            _ask_dumps(state)
        elif order is not None:
            notifier.stopping()
            _stop_all(state, at_once=order.si_signo == signal.SIGQUIT)
            return


def _publish_failure(board: Scoreboard) -> None:
    board.set_pool(PoolField.RELOAD_STATE, ReloadState.FAILED)
    board.count_pool(PoolField.RELOADS_FAILED)
    board.set_reload_report("the new code ended before it served, although its trial was good")


def _without_the_dead(state: MasterState, board: Scoreboard) -> MasterState:
    """Collect the workers that have ended, so that readers do not take them for alive."""
    alive = []
    for handle in state.pool.workers:
        status = system.collect(handle.child)
        if status is None:
            alive.append(handle)
            continue
        kind = ExitKind.EXITED if status.signal is None else ExitKind.KILLED
        board.vacate_slot(handle.info.slot, kind, time.monotonic_ns())
        for fd in (handle.child.pidfd, *handle.pipes.fds):
            os.close(fd)
    if len(alive) == len(state.pool.workers):
        return state
    lost = state.pool.lost + len(state.pool.workers) - len(alive)
    pool = msgspec.structs.replace(state.pool, workers=tuple(alive), lost=lost)
    return msgspec.structs.replace(state, pool=pool)


def _ask_dumps(state: MasterState) -> None:
    """Have the workers write their stacks, for `prefork dump`: without the master's part they are not logged."""
    for handle in state.pool.workers:
        reports.clear(handle.pipes.report)
        system.send(handle.child, signal.SIGUSR1)


def _stop_all(state: MasterState, *, at_once: bool) -> None:
    """End the workers; a second order to stop does not wait for their requests."""
    children = [one.child for one in state.pool.workers]
    for child in children:
        system.send(child, signal.SIGTERM)
    end = time.monotonic() + (0.0 if at_once else STOP_TIME)
    while time.monotonic() < end and not system.wait_for_all(children, RETRY_LOOK):
        if signal.sigtimedwait({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}, 0) is not None:
            break
    for child in children:
        system.send(child, signal.SIGKILL)


class VersionError(PreforkError):
    """The new code cannot go on with what this one has: it takes a restart."""


def refuse_other_format(
    their_format: int, their_layout: tuple[int, ...], our_layout: tuple[int, ...]
) -> None:
    """Compare what a trial says of its formats with ours; VersionError where the new code could not go on."""
    theirs, ours = (their_format, *their_layout), (FORMAT, *our_layout)
    if theirs != ours:
        raise VersionError(
            f"this version of prefork keeps its state differently ({theirs}, here {ours}): restart"
        )
