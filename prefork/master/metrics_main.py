"""The life of the metrics process, from its fork to its end (metrics process).

The process is forked like a worker, and boots with the same care and in the same order; the reasons
stand in workers/worker/life.py. It keeps the scoreboard, mapped for reading only, the socket that
it answers on, an eventfd for its signs of life, and the read end of the life pipe. It serves no
request of the program and runs no code of it.

Two things are answered, each on a socket of its own: HTTP (``metrics/exporter.py``) in the only thread that
waits for signals, and HAProxy's agent check (``metrics/agent.py``). Where both are wanted the agent has a
second thread. Where the agent is alone, the libraries that a scrape needs are not even loaded.
"""

from __future__ import annotations

import contextlib
import logging
import operator
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import Final, NoReturn

import msgspec
import setproctitle

from prefork.host.handover import MetricsOrders
from prefork.metrics.agent import Agent, Mode, answering_in_thread
from prefork.metrics.server import Responder, Server
from prefork.workers import forks, log, system
from prefork.workers.scoreboard import Scoreboard
from prefork.workers.spec import NO_SLOT, PoolLink, WorkerSpec

LEAVE = signal.SIGRTMIN
"""The signal that ends the metrics process.

TERM does not end it. At a stop TERM may be sent to the whole process group, and the metrics process
has to answer until the last worker has left.
"""

# Plain numbers: see system.set_handlers(). A handler that does nothing is enough for LEAVE as well,
# because its number arrives through the wake-up descriptor.
_NOTED = tuple(
    int(number)
    for number in (
        *(signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, LEAVE),
        *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU),
    )
)
SWITCH_INTERVAL: Final = 0.001
"""Seconds after which a scrape lets the agent's thread run, if that waits for the interpreter."""

_CHLD, _DEFAULT = int(signal.SIGCHLD), int(signal.SIG_DFL)


class MetricsSpec(msgspec.Struct, frozen=True):
    """What the metrics process is made from.

    listeners: the listening sockets, by setting. beat: the eventfd for signs of life. title: the
    title of the process.
    """

    worker_spec: WorkerSpec
    link: PoolLink
    listeners: dict[str, int]
    beat: int
    title: str


def live(spec: MetricsSpec, mask: set[int]) -> NoReturn:
    """Live the whole life of the metrics process. Called in the child, with all signals blocked.

    mask: the signal mask to set once the handlers are installed.
    """
    name = f"metrics pid={os.getpid()}"
    try:
        _prepare_and_serve(spec, mask, name)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it ends this process and no other
        log.failure(logging.ERROR, name, "ended by an exception", error)
        system.exit_now(1)
    system.exit_now(0)


def _prepare_and_serve(spec: MetricsSpec, mask: set[int], name: str) -> None:
    worker_spec, link = spec.worker_spec, spec.link
    wakeup_read, wakeup_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(-1)  # or our signals would be written into the master's pipe
    link.shed(NO_SLOT)
    os.close(worker_spec.wake)
    forks.let_go_of_others(())
    board = _read_only(link.board)
    # operator.is_ does nothing; workers/worker/life.py has the reasons.
    system.set_handlers({**dict.fromkeys(_NOTED, operator.is_), _CHLD: _DEFAULT})
    signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
    system.set_mask(mask)
    # Before the privileges are dropped, because only root may be able to read the interpreter's folders.
    _load(spec.listeners)
    worker_spec.drop_privileges()
    with contextlib.suppress(Exception):  # a title is a nicety
        setproctitle.setproctitle(spec.title)
    _Answers(name, board, worker_spec.metrics_dir, worker_spec.settings.agent_mode).give(
        spec.listeners,
        heed=_heed(link.life, wakeup_read),
        beat=lambda: _beat(spec.beat, link.master_pid),
    )


def run_as_program() -> NoReturn:
    """Live the same life in an interpreter of its own, which the caretaker has started.

    The caretaker cannot fork: its interpreter is ending, and Python refuses that from 3.12 on. It
    does not wait for signs of life either.
    """
    name = f"metrics pid={os.getpid()}"
    try:
        _serve_as_program(msgspec.json.decode(sys.argv[1], type=MetricsOrders), name)
    except BaseException as error:  # noqa: BLE001 - as in live()
        log.failure(logging.ERROR, name, "ended by an exception", error)
        system.exit_now(1)
    system.exit_now(0)


def _serve_as_program(orders: MetricsOrders, name: str) -> None:
    metrics = orders.metrics
    listeners = {setting: one.fd for setting, one in metrics.endpoints.items()}
    _load(listeners)
    wakeup_read, wakeup_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    system.set_handlers(dict.fromkeys(_NOTED, operator.is_))
    signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
    system.set_mask(set())
    board = _read_only(Scoreboard(orders.board, orders.slots))
    if metrics.umask is not None:
        os.umask(metrics.umask)
    if metrics.credentials is not None:
        metrics.credentials.assume()
    with contextlib.suppress(Exception):
        setproctitle.setproctitle(metrics.title)
    folder = None if metrics.metrics_dir is None else os.fsdecode(metrics.metrics_dir)
    _Answers(name, board, folder, metrics.agent_mode).give(
        listeners,
        heed=_heed(orders.life, wakeup_read),
        beat=lambda: os.getppid() != orders.master_pid,
    )


def _load(listeners: Mapping[str, int]) -> None:
    """Import what a scrape needs.

    This is the only place, so that the master has neither prometheus_client nor psutil in its memory.
    """
    if "metrics" in listeners:
        import prefork.metrics.exporter  # noqa: F401, PLC0415


class _Answers:
    """Answers on the sockets of this process. name: its name in the log. folder: the setting ``metrics_dir``."""

    def __init__(self, name: str, board: Scoreboard, folder: str | None, mode: Mode) -> None:
        self._name = name
        self._board = board
        self._folder = folder
        self._mode = mode
        self._complain = _Complaints(name)

    def give(
        self,
        listeners: Mapping[str, int],
        *,
        heed: Mapping[int, Callable[[], bool]],
        beat: Callable[[], bool],
    ) -> None:
        """Answer until ``heed`` or ``beat`` return True, as ``Server`` does. listeners: by setting."""
        sockets = {setting: socket.socket(fileno=fd) for setting, fd in listeners.items()}
        if "metrics" not in sockets:
            Server(sockets["agent"], self._agent(), heed=heed, beat=beat).run()
            return
        with contextlib.ExitStack() as both:
            if "agent" in sockets:
                # The agent does not wait long for the interpreter while a scrape is computed.
                sys.setswitchinterval(SWITCH_INTERVAL)
                agent = answering_in_thread(sockets["agent"], self._agent(), self._die)
                both.enter_context(agent)
            self._export(sockets["metrics"], heed, beat)

    def _export(
        self,
        listener: socket.socket,
        heed: Mapping[int, Callable[[], bool]],
        beat: Callable[[], bool],
    ) -> None:
        from prefork.metrics import exporter  # noqa: PLC0415 - as in _load()

        routes = exporter.Routes(self._board, self._folder, self._complain)
        exporter.run(listener, routes, complain=self._complain, heed=heed, beat=beat)

    def _agent(self) -> Responder:
        return Agent(self._board, self._mode, self._complain).respond

    def _die(self, error: BaseException) -> NoReturn:
        log.failure(logging.ERROR, self._name, "ended by an exception in the agent's thread", error)
        system.exit_now(1)


def _heed(life: int, wakeup_read: int) -> dict[int, Callable[[], bool]]:
    """Return what ends the answering, by the descriptor that becomes readable then."""
    return {
        life: lambda: True,  # readable only at the master's end
        wakeup_read: lambda: LEAVE in os.read(wakeup_read, 4096),
    }


def _beat(beat: int, master_pid: int) -> bool:
    """Give the master a sign of life; return whether the master has ended."""
    with contextlib.suppress(BlockingIOError):  # a stopped master has enough of them to read
        os.eventfd_write(beat, 1)
    # The life pipe shows the master's end as well, unless another process holds its write end.
    return os.getppid() != master_pid


def _read_only(board: Scoreboard) -> Scoreboard:
    """Map the scoreboard again, for reading only, and give up the writable mapping.

    How many slots there are comes from the master, not from the memory.
    """
    fd = os.open(f"/proc/self/fd/{board.fd}", os.O_RDONLY | os.O_CLOEXEC)
    readable = Scoreboard(fd, board.slots, writable=False)
    board.close()
    return readable


class _Complaints:
    """Logs errors of answering, one in INTERVAL at most, because clients ask again and again."""

    INTERVAL = 60.0

    def __init__(self, subject: str) -> None:
        self._subject = subject
        self._next_at = float("-inf")

    def __call__(self, error: BaseException) -> None:
        """Log an error, unless another one was logged less than INTERVAL ago."""
        now = time.monotonic()
        if now >= self._next_at:
            self._next_at = now + self.INTERVAL
            log.failure(logging.ERROR, self._subject, "cannot answer in full", error)
