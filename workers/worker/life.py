"""From fork to the first request, and from the last request to the end (worker).

Nothing here prints, imports or takes a lock that another thread of the master may have held at
the fork: 60 of 60 children hung on one. The steps stand in ``run_worker`` in their order.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import gc
import logging
import operator
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import msgspec
import setproctitle

from prefork.workers import log, system
from prefork.workers.credentials import Credentials
from prefork.workers.identity import DUMP_AT_ONCE, SHUTDOWN, WAKE, WorkerInfo, WorkerPipes
from prefork.workers.listener import Listener
from prefork.workers.reports import REPORT_BYTES
from prefork.workers.scoreboard import Scoreboard, SlotField, SlotWriter
from prefork.workers.settings import LONGEST, Settings
from prefork.workers.states import ExitCause, ExitKind, WorkerState
from prefork.workers.waits import sample_every
from prefork.workers.worker.loop import Loop
from prefork.workers.worker.recycling import limits_for
from prefork.workers.worker.source import Source
from prefork.workers.worker.witness import witness_for

BOOT_FAILED = 3
"""Exit status of a worker that could not boot."""

# Plain numbers: see system.set_handlers().
_IGNORED = tuple(
    int(number)
    for number in (
        signal.SIGINT,  # Ctrl-C reaches the whole group; the master decides
        signal.SIGQUIT,
        signal.SIGHUP,
        signal.SIGUSR2,
        signal.SIGTTIN,
        signal.SIGTTOU,
    )
)
_CHLD, _TERM, _USR1 = int(signal.SIGCHLD), int(signal.SIGTERM), int(signal.SIGUSR1)
_DEFAULT = int(signal.SIG_DFL)


class WorkerSide:
    """What a server object knows of the worker it is in; ``server.worker`` and ``server.stopping`` ask it."""

    def __init__(self, info: ThisWorker, loop: Loop, wake: int) -> None:
        self.info = info
        self._loop = loop
        self._wake = wake

    @property
    def stopping(self) -> bool:
        """Whether this worker has been asked to leave."""
        return self._loop.is_asked_to_leave()

    def add_chore(self, chore: Callable[[], None]) -> None:
        """Have something done between requests."""
        self._loop.chores.append(chore)

    def ask_shutdown(self) -> None:
        """Ask the master for a ``shutdown()`` of the pool."""
        with contextlib.suppress(
            OSError
        ):  # the master is gone, or has a full pipe of reasons to look
            os.write(self._wake, SHUTDOWN)


class ThisWorker(WorkerInfo, frozen=True):
    """The worker that one is in: what ``server.worker`` is, and what the hooks in a worker are given."""

    _writer: SlotWriter

    def __repr__(self) -> str:
        return f"ThisWorker(slot={self.slot}, generation={self.generation}, pid={self.pid})"

    def extend_deadline(self, seconds: float) -> None:
        """Give the request in hand so many seconds more than ``request_timeout`` (worker, any thread).

        Several times add up. Without a request in hand, or without ``request_timeout``, it does
        nothing. A worker with threads is killed for its oldest request, so that is the one which
        gets more time. Raises ValueError for less than 0 and more than 7 days.
        """
        if not 0 <= seconds <= LONGEST:
            raise ValueError(f"cannot extend a deadline by {seconds!r}: 0 to {LONGEST:.0f} seconds")
        words = self._writer.words
        request = words[SlotField.REQUEST_NS]
        if not request:
            return
        same = words[SlotField.EXTENDED_FOR_NS] == request
        sum_so_far = words[SlotField.EXTENSION_NS] if same else 0
        # The length first: the master reads it only when the other word names the request in hand.
        words[SlotField.EXTENSION_NS] = min(sum_so_far + int(seconds * 1e9), int(LONGEST * 1e9))
        words[SlotField.EXTENDED_FOR_NS] = request
        self._writer.round_over = True  # or it would be for the next datagrams of the round, too


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


class PreparedWorker:
    """What a worker takes with it through the fork, made by the master just before.

    What a worker executes and makes for itself costs it copied pages: its sources 150 KiB.
    """

    def __init__(self, spec: WorkerSpec, slot: int, pipes: WorkerPipes) -> None:
        self.slot = slot
        self.pipes = pipes
        self.writer = SlotWriter(spec.board, slot)
        self.sources: list[Source] = []
        # Where a server's own code raises, the worker will meet it, too, and report it.
        with contextlib.suppress(Exception):
            self.sources = sources_of(spec, self.writer)


def sources_of(spec: WorkerSpec, writer: SlotWriter) -> list[Source]:
    """Return where a worker's requests come from."""
    return [
        Source(
            listener,
            writer,
            client_timeout=spec.settings.client_timeout,
            sample_every=sample_every(spec.settings),
        )
        for listener in spec.listeners
    ]


def run_worker(
    spec: WorkerSpec, generation: int, prepared: PreparedWorker, mask: set[int]
) -> NoReturn:
    """Live a worker's whole life; called in the child with all signals blocked."""
    slot, pipes, writer = prepared.slot, prepared.pipes, prepared.writer
    info = ThisWorker(slot, generation, os.getpid(), writer)
    call_master = functools.partial(_call_master, spec.wake)
    try:
        wakeup_read, wakeup_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(-1)  # the program's own, when the pool is served in a thread
        spec.shed(slot)
        os.close(pipes.wake_write)
        loop = Loop(
            prepared.sources or sources_of(spec, writer),
            writer,
            str(info),
            master_pid=spec.master_pid,
            life=spec.life,
            wake_read=pipes.wake_read,
            wakeup=wakeup_read,
            witness=witness_for(spec.settings, (slot, generation), spec.board, call_master),
            checks=limits_for(spec.settings, writer, call_master),
        )
        _set_dispositions(loop, pipes.report)
        signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
        system.set_mask(mask)
        _drop_privileges(spec)
        _set_title(f"{spec.title[0]}{slot}{spec.title[1]}")
        spec.enter(WorkerSide(info, loop, spec.wake))
        _mark_forks(loop, writer)
        if spec.hooks("worker_init", info):
            loop.settle_steps()
    except BaseException as error:  # noqa: BLE001 - whatever it is, the master has to hear of it
        _leave_last_words(pipes.report, error)
        system.exit_now(BOOT_FAILED)
    writer.become(WorkerState.IDLE)  # before the wake-up: the master looks at once
    call_master()
    _serve_and_leave(spec, info, loop, writer)


def _call_master(wake: int) -> None:
    """Have the master look at the scoreboard."""
    with contextlib.suppress(OSError):  # it is gone, or has a full pipe of reasons to look
        os.write(wake, WAKE)


def _serve_and_leave(
    spec: WorkerSpec, info: WorkerInfo, loop: Loop, writer: SlotWriter
) -> NoReturn:
    status = 0
    try:
        reason = loop.run()
        _leave_as_copy(info, 0)
        loop.wait_finished()
    except SystemExit as stop:
        reason, status = ExitKind.EXITED, _status_of(stop)
        _leave_as_copy(info, status)
        log.event(logging.ERROR, str(info), "handler called sys.exit()", status=status)
    except BaseException as error:  # noqa: BLE001 - KeyboardInterrupt, GeneratorExit, a bug of ours
        reason, status = ExitKind.EXITED, 1
        log.failure(logging.ERROR, str(info), "ended by an exception", error)
        _leave_as_copy(info, status)
    writer.become(WorkerState.RETIRING)
    try:
        spec.hooks(
            "worker_exit", info, ExitCause(reason, status if reason is ExitKind.EXITED else None)
        )
    except BaseException as error:  # noqa: BLE001 - it leaves either way
        log.failure(logging.ERROR, str(info), "worker_exit() raised", error)
    system.exit_now(status)


def _leave_as_copy(info: WorkerInfo, status: int) -> None:
    """End a process that a handler has forked: it is no worker, and its end is no news."""
    if os.getpid() != info.pid:
        system.exit_now(status)


def _set_dispositions(loop: Loop, report: int) -> None:
    # operator.is_: a C function that takes two arguments and does nothing. SIG_IGN would be
    # inherited by programs that handlers start; a Python function would nest under a storm of
    # signals until RecursionError, and on 3.13.0 does not run in a child of a thread.
    system.set_handlers(
        {
            **dict.fromkeys(_IGNORED, operator.is_),
            _TERM: loop.terminated.setdefault,
            _USR1: _stack_writer(report),
            _CHLD: _DEFAULT,
        }
    )
    # Written in C by the signal handler, also while a C call holds the interpreter lock. Where a
    # thread computes, frames change meanwhile: of some hundred such dumps one killed its worker.
    faulthandler.register(DUMP_AT_ONCE, file=report, all_threads=True)
    system.enlarge_signal_stack()


def _stack_writer(report: int) -> Callable[[int, object], None]:
    """Return a handler that writes the stacks of all threads between two bytecodes, when they hold still."""

    def write_stacks(_number: int, _frame: object) -> None:
        try:  # noqa: SIM105 - suppress() needs more frames than what it protects
            faulthandler.dump_traceback(report, all_threads=True)
        except RecursionError:  # handlers nest when more of the signal comes
            pass

    return write_stacks


def _set_title(title: str) -> None:
    with contextlib.suppress(Exception):  # a title is a nicety
        setproctitle.setproctitle(title)


def _drop_privileges(spec: WorkerSpec) -> None:
    if spec.umask is not None:
        os.umask(spec.umask)
    if spec.credentials is not None:
        spec.credentials.assume()


def _mark_forks(loop: Loop, writer: SlotWriter) -> None:
    """Make a process that a handler forks end after its request, and keep its pen off the slot."""

    def enter_fork() -> None:
        loop.leave(ExitKind.RETIRED)
        writer.detach()
        with contextlib.suppress(ValueError):  # not the main thread: it has no wake-up fd to lose
            signal.set_wakeup_fd(-1)

    os.register_at_fork(after_in_child=enter_fork)


def _leave_last_words(report: int, error: BaseException) -> None:
    words = "".join(traceback.format_exception(error)).encode("utf-8", "backslashreplace")
    with contextlib.suppress(OSError):  # the zero ends them, whatever a dump has left behind it
        os.pwrite(report, words[1 - REPORT_BYTES :] + b"\0", 0)


def _status_of(stop: SystemExit) -> int:
    if stop.code is None:
        return 0
    return stop.code & 0xFF if isinstance(stop.code, int) else 1


@contextlib.contextmanager
def frozen_heap() -> Iterator[None]:
    """Keep what exists now out of the collector, so that workers do not copy its pages by collecting."""
    ours = gc.get_freeze_count() == 0
    if ours:
        gc.collect()
        gc.freeze()
    try:
        yield
    finally:
        if ours:
            gc.unfreeze()
