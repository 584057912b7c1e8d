"""The life of the metrics process, from its fork to its end; the steps stand in ``live`` in their order.

It is forked like a worker and with the same care (workers/worker/life.py). It keeps what it needs:
the scoreboard, for reading; the socket to answer on; the end of the life pipe.
"""

from __future__ import annotations

import contextlib
import logging
import operator
import os
import signal
import socket
import time
from typing import NoReturn

import msgspec
import setproctitle

from prefork.workers import forks, log, system
from prefork.workers.scoreboard import Scoreboard
from prefork.workers.spec import NO_SLOT, PoolLink, WorkerSpec

LEAVE = signal.SIGRTMIN
"""Asks the metrics process to end. A TERM to the whole group must not: it answers to the end of the drain."""

# Plain numbers: see system.set_handlers(). LEAVE is among them, for the wake-up fd tells it.
_NOTED = tuple(
    int(number)
    for number in (
        *(signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, LEAVE),
        *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU),
    )
)
_CHLD, _DEFAULT = int(signal.SIGCHLD), int(signal.SIG_DFL)


class MetricsSpec(msgspec.Struct, frozen=True):
    """What the metrics process is made from.

    listener: the listening socket. beat: an eventfd for its signs of life. title: of the process.
    """

    worker_spec: WorkerSpec
    link: PoolLink
    listener: int
    beat: int
    title: str


def live(spec: MetricsSpec, mask: set[int]) -> NoReturn:
    """Live its whole life; called in the child with all signals blocked."""
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
    # operator.is_: see workers/worker/life.py.
    system.set_handlers({**dict.fromkeys(_NOTED, operator.is_), _CHLD: _DEFAULT})
    signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
    system.set_mask(mask)
    # Here and nowhere else: the master has neither prometheus_client nor psutil. Before the
    # privileges are dropped: the interpreter's folders may be root's.
    from prefork.metrics import exporter  # noqa: PLC0415

    worker_spec.drop_privileges()
    with contextlib.suppress(Exception):  # a title is a nicety
        setproctitle.setproctitle(spec.title)
    complain = _Complaints(name)
    exporter.run(
        socket.socket(fileno=spec.listener),
        exporter.Routes(board, worker_spec.metrics_dir, complain),
        complain=complain,
        heed={
            link.life: lambda: True,  # its end is all that it ever tells
            wakeup_read: lambda: LEAVE in os.read(wakeup_read, 4096),
        },
        beat=lambda: _beat(spec.beat, link.master_pid),
    )


def _beat(beat: int, master_pid: int) -> bool:
    """Give the master a sign of life; return whether there is no master any more."""
    with contextlib.suppress(BlockingIOError):  # one that does not run has enough of them to read
        os.eventfd_write(beat, 1)
    # The life pipe tells it, too, unless another process holds its other end.
    return os.getppid() != master_pid


def _read_only(board: Scoreboard) -> Scoreboard:
    """Map the scoreboard once more, for reading, and give the writable mapping up."""
    fd = os.open(f"/proc/self/fd/{board.fd}", os.O_RDONLY | os.O_CLOEXEC)
    readable = Scoreboard.attach(fd)
    board.close()
    return readable


class _Complaints:
    """Logs what goes wrong while answering, once a minute at most: clients ask again and again."""

    INTERVAL = 60.0

    def __init__(self, subject: str) -> None:
        self._subject = subject
        self._next_at = float("-inf")

    def __call__(self, error: BaseException) -> None:
        """Log it, unless another was logged just now."""
        now = time.monotonic()
        if now >= self._next_at:
            self._next_at = now + self.INTERVAL
            log.failure(logging.ERROR, self._subject, "cannot answer in full", error)
