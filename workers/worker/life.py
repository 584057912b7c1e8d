"""From fork to the first request, and from the last request to the end (worker).

Nothing here prints, imports or takes a lock that another thread of the master may have held at
the fork: 60 of 60 children hung on one. The steps stand in ``run_worker`` in their order.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import logging
import operator
import os
import signal
import traceback
from collections.abc import Callable
from typing import NoReturn

import setproctitle

from prefork.workers import forks, log, system
from prefork.workers.identity import DUMP_AT_ONCE, WAKE, WorkerInfo
from prefork.workers.reports import REPORT_BYTES
from prefork.workers.scoreboard import SlotWriter
from prefork.workers.spec import WorkerSpec
from prefork.workers.states import ExitCause, ExitKind, WorkerState
from prefork.workers.worker.access import access_log_for
from prefork.workers.worker.accounting import account_for, busy_call
from prefork.workers.worker.loop import Control, Loop
from prefork.workers.worker.prepared import PreparedWorker
from prefork.workers.worker.recycling import limits_for
from prefork.workers.worker.side import ThisWorker, WorkerSide
from prefork.workers.worker.turn import Turn

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


def run_worker(prepared: PreparedWorker, mask: set[int]) -> NoReturn:
    """Live a worker's whole life; called in the child with all signals blocked."""
    spec, link = prepared.spec, prepared.link
    slot, pipes, writer = prepared.slot, prepared.pipes, prepared.writer
    turn = Turn()
    info = ThisWorker(slot, prepared.generation, os.getpid(), writer, turn)
    call_master = functools.partial(_call_master, spec.wake)
    try:
        wakeup_read, wakeup_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(-1)  # the program's own, when the pool is served in a thread
        link.shed(slot)
        os.close(pipes.wake_write)
        sources = prepared.sources or prepared.make_sources()
        loop = Loop(
            sources,
            writer,
            str(info),
            Control(link.master_pid, link.life, pipes.wake_read, wakeup_read),
            turn=turn,
            account=account_for(
                sources,
                writer,
                busy_call(spec.settings, link.board, call_master),
                access_log_for(spec.settings, slot, info.generation),
            ),
            checks=limits_for(spec.settings, writer, call_master),
        )
        _set_dispositions(loop, pipes.report)
        signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
        system.set_mask(mask)
        spec.drop_privileges()
        _set_title(f"{spec.title[0]}{slot}{spec.title[1]}")
        spec.enter(WorkerSide(info, loop.is_asked_to_leave, loop.chores, spec.wake))
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


def _mark_forks(loop: Loop, writer: SlotWriter) -> None:
    """Make a process that a handler forks end after its request, and keep its pen off the slot."""

    def enter_fork() -> None:
        loop.leave(ExitKind.RETIRED)
        writer.detach()
        with contextlib.suppress(ValueError):  # not the main thread: it has no wake-up fd to lose
            signal.set_wakeup_fd(-1)

    forks.add(enter_fork)


def _leave_last_words(report: int, error: BaseException) -> None:
    words = "".join(traceback.format_exception(error)).encode("utf-8", "backslashreplace")
    with contextlib.suppress(OSError):  # the zero ends them, whatever a dump has left behind it
        os.pwrite(report, words[1 - REPORT_BYTES :] + b"\0", 0)


def _status_of(stop: SystemExit) -> int:
    if stop.code is None:
        return 0
    return stop.code & 0xFF if isinstance(stop.code, int) else 1
