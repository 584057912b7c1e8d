"""A worker's life: from its fork to the first request, from the last one to its end (worker).

A worker begins as a copy of the master, in the middle of a function of the master, with all signals
blocked. It becomes a worker in steps whose order matters (``_boot``):

1. It takes the master's wake-up descriptor off the signal machinery. Until then a signal that the
   worker gets would be noted in the master's pipe, as if the master had got it.
2. It opens the pipe to the master anew, so that no sibling can make its descriptor blocking, and
   sheds what is not its own: the pipes of its siblings and everything of other pools. The
   master's own descriptors are closed by now (workers/forks.py). No code of the program has run
   yet, so no handler can find them.
3. It installs its signal handlers, and only then unblocks signals. A TERM that was sent since the
   fork has waited in the kernel, and is handled now as any other.
4. It sets the limits of its process, and then drops its privileges, before any code of the program runs.
5. It becomes a Python process of its own (python_process.py): what the master has registered for its
   own end is forgotten, and ``multiprocessing`` does what it does after each fork.
6. The server objects learn that they are in a worker, and the hook ``worker_init()`` runs.
7. It writes that it is ready and wakes the master.

An error in any of these steps is a failed boot: the worker writes the traceback into its report,
where the master finds it, and exits with BOOT_FAILED.

A fork copies one thread. Where another thread of the master held a lock at that moment, the lock
stays locked in the worker for ever. So nothing in this module prints, imports or takes a lock that
a thread of the program can hold: in a test with such a lock, 60 of 60 children hung on it.

At its end a worker finishes its requests, calls ``worker_exit()``, ends what it has registered and
started (python_process.py), flushes its standard streams and calls ``os._exit()``. It never returns into
the master's stack: the ``finally`` blocks there belong to the master.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import logging
import operator
import os
import signal
from collections.abc import Callable
from typing import Any, NoReturn

import setproctitle

from prefork.workers import forks, log, system
from prefork.workers.identity import CANCEL_NUMBER, DUMP_AT_ONCE, HANG_UP_NUMBER
from prefork.workers.reports import REPORT_BYTES
from prefork.workers.slot_writer import SlotWriter
from prefork.workers.states import ExitCause, ExitKind, WorkerState
from prefork.workers.text import fact_value, text_of
from prefork.workers.worker import python_process
from prefork.workers.worker.accounting import Account, Overlapping
from prefork.workers.worker.clients import client_facts
from prefork.workers.worker.hang_up import hang_up
from prefork.workers.worker.lanes import Common
from prefork.workers.worker.loop import Control, Loop
from prefork.workers.worker.prepared import PreparedWorker
from prefork.workers.worker.recycling import limits_for
from prefork.workers.worker.side import ThisWorker, WorkerSide
from prefork.workers.worker.surroundings import Surroundings

BOOT_FAILED = 3
"""Exit status of a worker that could not boot."""

FAILED_BOOT_END = 2.0
"""Seconds for which a worker that could not boot ends what it has started."""

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
    """Live a worker's whole life. Called in the child, with all signals blocked.

    mask: the signal mask to set once the handlers are installed.
    """
    writer = prepared.writer
    info = ThisWorker(prepared.slot, prepared.generation, os.getpid(), writer, prepared.common.turn)
    try:
        loop = _boot(prepared, info, mask)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the master has to learn of it
        _leave_last_words(prepared.pipes.report, error)
        # What worker_init() has started ends, too. The master bounds a boot, but it would take this
        # one for a boot that hangs, and the traceback would be lost.
        system.exit_after(FAILED_BOOT_END, BOOT_FAILED)
        python_process.end(str(info))
        system.exit_now(BOOT_FAILED)
    writer.become(WorkerState.IDLE)  # before the wake-up: the master looks at once
    prepared.call_master()
    cause = _serve(info, loop)
    _leave(prepared, info, loop, cause)


def _boot(prepared: PreparedWorker, info: ThisWorker, mask: set[int]) -> Loop:
    """Become a worker, in the steps that the docstring of this module gives the reasons for."""
    spec, link, pipes = prepared.spec, prepared.link, prepared.pipes
    wakeup_read, wakeup_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(-1)  # the program's own, where the pool is served in a thread
    forks.open_anew(spec.wake, os.O_WRONLY)
    link.shed(prepared.slot)
    os.close(pipes.wake_write)
    control = Control(link.master_pid, link.life, pipes.wake_read, wakeup_read)
    loop = _make_loop(prepared, info, control)
    write_stacks = _stack_writer(pipes.report, prepared.common.account)
    _install_handlers(loop, pipes.report, write_stacks, _canceller(prepared.common))
    signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
    system.set_mask(mask)
    if (limits := spec.settings.process_limits) is not None:
        limits.apply()
    spec.drop_privileges()
    python_process.begin(prepared.slot, link.master_pid, link.life)
    _set_title(f"{spec.title[0]}{prepared.slot}{spec.title[1]}")
    account = prepared.common.account
    spec.enter(WorkerSide(info, loop.is_asked_to_leave, loop.chores, spec.wake, account))
    _mark_forks(loop, prepared.writer)
    may_have_changed = spec.hooks("worker_init", info)
    if spec.settings.restore_process and not isinstance(prepared.common.account, Overlapping):
        prepared.common.surroundings = Surroundings()
        may_have_changed = True
    if may_have_changed:
        loop.settle_steps()
    return loop


def _make_loop(prepared: PreparedWorker, info: ThisWorker, control: Control) -> Loop:
    common = prepared.common
    lanes = prepared.lanes or prepared.make_lanes()
    checks = limits_for(prepared.spec.settings, prepared.writer, prepared.call_master)
    loop = Loop(lanes, common, str(info), control, checks)
    if prepared.spec.settings.max_requests == 1:
        # The master asks the worker to leave when it sees that the request is over.
        checks.append(functools.partial(loop.rest_if_spent, prepared.call_master))
    if isinstance(common.account, Overlapping):
        for listener in prepared.spec.listeners:
            common.account.watch(listener.server)
        forks.add(common.account.enter_fork)
        loop.settle_steps()  # the servers have other methods now
    return loop


def _serve(info: ThisWorker, loop: Loop) -> ExitCause:
    """Serve until there is a reason to leave, and return it; with a status if code of the program ended it."""
    try:
        reason = loop.run()
        _leave_as_copy(info, 0)
    except SystemExit as stop:
        status = _status_of(stop)
        _leave_as_copy(info, status)
        log.event(logging.ERROR, str(info), "handler called sys.exit()", status=status)
    except BaseException as error:  # noqa: BLE001 - KeyboardInterrupt, GeneratorExit, a bug of ours
        status = 1
        log.failure(logging.ERROR, str(info), "ended by an exception", error)
        _leave_as_copy(info, status)
    else:
        return ExitCause(reason)
    return ExitCause(ExitKind.EXITED, status)


def _leave(prepared: PreparedWorker, info: ThisWorker, loop: Loop, cause: ExitCause) -> NoReturn:
    """Finish the requests in hand, call ``worker_exit()``, end what the worker has started, and exit."""
    spec = prepared.spec
    has_master = cause.kind is not ExitKind.ORPHANED
    python_process.bound(spec.settings.graceful_timeout, has_master=has_master)
    prepared.writer.become(WorkerState.RETIRING)
    if cause.kind is ExitKind.EXITED:
        prepared.call_master()  # the master has not asked for this end, and bounds it from now on
    else:
        _finish_requests(info, loop)
    try:
        spec.hooks("worker_exit", info, cause)
    except BaseException as error:  # noqa: BLE001 - the worker leaves either way
        log.failure(logging.ERROR, str(info), "worker_exit() raised", error)
    python_process.end(str(info))
    system.exit_now(cause.status or 0)


def _finish_requests(info: ThisWorker, loop: Loop) -> None:
    try:
        loop.wait_finished()
    except BaseException as error:  # noqa: BLE001 - from a signal handler of the program
        log.failure(logging.ERROR, str(info), "ended by an exception", error)


def _leave_as_copy(info: ThisWorker, status: int) -> None:
    """End this process at once, without a log line, if a request handler has forked it."""
    if os.getpid() != info.pid:
        system.exit_now(status)


def _canceller(common: Common) -> Callable[[int, Any], object]:
    """Return what handles the master's wish to end the request in hand.

    Where requests overlap, the number on the scoreboard is that of the oldest one, which the main thread
    may not have in hand. So nothing is raised there.
    """
    if isinstance(common.account, Overlapping):
        return operator.is_
    return common.cancelling.interrupt


def _install_handlers(
    loop: Loop,
    report: int,
    write_stacks: Callable[[int, object], None],
    canceller: Callable[[int, Any], object],
) -> None:
    # A signal that a worker is to ignore is handled by operator.is_, a C function of two arguments
    # that does nothing. SIG_IGN would be inherited by programs that request handlers start. A
    # Python function would nest under a storm of signals until RecursionError, and does not run at
    # all on 3.13.0 in a child that a thread has forked. TERM is noted by a C function for the same
    # reasons.
    system.set_handlers(
        {
            **dict.fromkeys(_IGNORED, operator.is_),
            _TERM: loop.terminated.setdefault,
            _USR1: write_stacks,
            _CHLD: _DEFAULT,
            CANCEL_NUMBER: canceller,
            HANG_UP_NUMBER: hang_up,
        }
    )
    # The two ways to a stack dump: workers/pool/dumps.py.
    faulthandler.register(DUMP_AT_ONCE, file=report, all_threads=True)
    system.enlarge_signal_stack()


def _stack_writer(report: int, account: Account | None) -> Callable[[int, object], None]:
    """Return a handler that writes the stacks of all threads, between two bytecodes.

    Above the stacks it writes whose requests are in hand, as far as an account knows that.
    """

    def write_stacks(_number: int, _frame: object) -> None:
        try:  # suppress() needs more frames than what it protects
            if account is not None:
                os.write(report, _clients_in_hand(account))
            faulthandler.dump_traceback(report, all_threads=True)
        except RecursionError:  # the handler nests when the signal comes again meanwhile
            pass

    return write_stacks


def _clients_in_hand(account: Account) -> bytes:
    """Return a line for each request in hand whose client is known. Raises nothing but RecursionError."""
    lines = []
    with contextlib.suppress(AttributeError, ValueError, TypeError):  # of a client's odd address
        for address in account.clients():
            facts = client_facts(address)
            lines.append(
                " ".join(f"{key}={fact_value(text_of(value))}" for key, value in facts.items())
            )
    return "".join(f"Request of {line}\n" for line in lines).encode("utf-8", "backslashreplace")


def _set_title(title: str) -> None:
    with contextlib.suppress(Exception):  # a title is a nicety
        setproctitle.setproctitle(title)


def _mark_forks(loop: Loop, writer: SlotWriter) -> None:
    """Have a process that a request handler forks end after its request, and write to no slot."""

    def enter_fork() -> None:
        loop.leave(ExitKind.RETIRED)
        writer.detach()
        python_process.enter_fork()
        with contextlib.suppress(ValueError):  # raised in other threads than the main one
            signal.set_wakeup_fd(-1)

    forks.add(enter_fork)


_OUR_FOLDER = os.path.dirname(os.path.dirname(os.path.dirname(__file__))) + os.sep
"""The folder of the package: this file is workers/worker/life.py in it."""


def _leave_last_words(report: int, error: BaseException) -> None:
    """Write the traceback into the report, from the application's first frame on where it has one."""
    began = error.__traceback__
    while began is not None and began.tb_frame.f_code.co_filename.startswith(_OUR_FOLDER):
        began = began.tb_next
    if began is not None:
        error.__traceback__ = began
    words = log.traceback_of(error).encode("utf-8", "backslashreplace")
    # The zero ends the words: behind it there may be the rest of a longer dump.
    with contextlib.suppress(OSError):
        os.pwrite(report, words[1 - REPORT_BYTES :] + b"\0", 0)


def _status_of(stop: SystemExit) -> int:
    if stop.code is None:
        return 0
    return stop.code & 0xFF if isinstance(stop.code, int) else 1
