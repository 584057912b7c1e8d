"""The life of the lot process, from its fork to its end (lot process).

The process is forked like a worker, and boots with the same care and in the same order; the reasons
stand in workers/worker/life.py. It keeps the scoreboard, its ends of the links, its end of the
control socket, and the read end of the life pipe. It runs no code of the program.
"""

from __future__ import annotations

import functools
import logging
import operator
import os
import resource
import signal
import socket
import time
from collections.abc import Callable
from typing import Final, NoReturn

import msgspec
import setproctitle

from prefork.parking.lot import Lot
from prefork.workers import forks, log, system
from prefork.workers.parking import Link, Receiver
from prefork.workers.spec import NO_SLOT, PoolLink, WorkerSpec

LEAVE: Final = signal.SIGRTMIN
"""The signal that ends the lot. TERM does not: it may be sent to the whole process group."""

BEAT_INTERVAL: Final = 1.0
"""Seconds between two signs of life."""

RESERVE: Final = 64
"""Descriptors that the lot needs beside those of the connections."""

# Plain numbers: see system.set_handlers().
_NOTED = tuple(
    int(number)
    for number in (
        *(signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, LEAVE),
        *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU),
    )
)
_CHLD, _DEFAULT = int(signal.SIGCHLD), int(signal.SIG_DFL)


class Limits(msgspec.Struct, frozen=True, array_like=True):
    """What the settings say: connections at a time, and seconds of silence (None for no limit)."""

    most: int
    timeout: float | None


class LotSpec(msgspec.Struct, frozen=True):
    """What the lot process is made from.

    links: one for each server that parks. control: both ends of the socket between master and lot,
    the master's first. keep_links: takes the links off the list of what a process lets go of.
    title: the title of the process.
    """

    worker_spec: WorkerSpec
    link: PoolLink
    links: tuple[Link, ...]
    control: tuple[int, int]
    limits: Limits
    keep_links: Callable[[], None]
    title: str


def descriptors_allowed() -> int:
    """Return how many descriptors a process of this user may have: the hard limit."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def live(spec: LotSpec, mask: set[int]) -> NoReturn:
    """Live the whole life of the lot. Called in the child, with all signals blocked.

    mask: the signal mask to set once the handlers are installed.
    """
    name = f"lot pid={os.getpid()}"
    try:
        _prepare_and_hold(spec, mask)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it ends this process and no other
        log.failure(logging.ERROR, name, "ended by an exception", error)
        system.exit_now(1)
    system.exit_now(0)


def _prepare_and_hold(spec: LotSpec, mask: set[int]) -> None:
    worker_spec, link = spec.worker_spec, spec.link
    wakeup_read, wakeup_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(-1)  # or our signals would be written into the master's pipe
    link.shed(NO_SLOT)
    forks.close((worker_spec.wake, spec.control[0], *(one.workers_end for one in spec.links)))
    spec.keep_links()
    forks.let_go_of_others(())
    # operator.is_ does nothing; workers/worker/life.py has the reasons.
    system.set_handlers({**dict.fromkeys(_NOTED, operator.is_), _CHLD: _DEFAULT})
    signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
    system.set_mask(mask)
    _raise_descriptor_limit()
    worker_spec.drop_privileges()
    setproctitle.setproctitle(spec.title)
    lot = Lot(link.board, most=spec.limits.most, timeout=spec.limits.timeout)
    for one in spec.links:
        lot.add_link(one.lots_end)
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, spec.control[1])
    lot.run(
        heed={
            link.life: lambda: True,  # readable only at the master's end
            wakeup_read: lambda: LEAVE in os.read(wakeup_read, 4096),
            spec.control[1]: functools.partial(_obey, Receiver(control), lot),
        },
        tick=_beat(control, link.master_pid),
    )


def _raise_descriptor_limit() -> None:
    hard = descriptors_allowed()
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _obey(control: Receiver, lot: Lot) -> bool:
    """Do what the next image of the master asks for: other limits, or one more link.

    Return whether the master has ended. An end with signs of life that it has not read looks like a reset.
    """
    try:
        message, fd = control.receive()
    except ConnectionResetError:
        return True
    if fd >= 0:
        lot.add_link(fd)
    elif message:
        limits = msgspec.msgpack.decode(message, type=Limits)
        lot.most = limits.most
        lot.timeout_ns = None if limits.timeout is None else int(limits.timeout * 1e9)
    return not message


def _beat(control: socket.socket, master_pid: int) -> Callable[[], float]:
    """Return what gives a sign of life every BEAT_INTERVAL."""
    next_at = 0.0

    def beat() -> float:
        nonlocal next_at
        now = time.monotonic()
        if now >= next_at:
            next_at = now + BEAT_INTERVAL
            try:
                control.send(b".", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                pass  # the master does not look; the lot goes on
            except OSError:
                return 0.0
            # The life pipe reports the end of the master, unless a process holds its other end.
            if os.getppid() != master_pid:
                raise SystemExit
        return next_at - now

    return beat
