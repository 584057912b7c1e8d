"""The caretaker keeps the previous workers serving when the new code fails after the exec.

A trial has loaded the new code before the exec, so this is rare: the code behaves differently the
second time, a file has changed since, or the system has run out of something. By then the old code
is gone. But the workers are children of this process and still serve with the old code, and
everything they need from a master is in descriptors: the life pipe, the scoreboard, the sockets.
They leave when the process ends. So it must not end.

``stand_by()`` registers ``run()`` with ``atexit`` as soon as a state is there to adopt. However the
new code ends, by an exception, by ``sys.exit()`` or at the end of its file, the interpreter calls
``run()`` last. If no master has adopted the state by then, ``run()`` stays in a loop in place of
ending:

- It collects workers that have ended. It cannot replace them: there is no code to fork a worker
  with.
- HUP and USR2 exec the program again, with the same state, and without a trial: there is no old
  code that a trial could spare. Corrected code takes over so. Code that fails again leads back
  here.
- USR1 has the workers write their stacks. TERM, INT and QUIT stop the workers, and then the process
  ends.

``run()`` blocks the control signals, and ``sigtimedwait()`` takes them one by one, so that none is
lost and none interrupts. Those that came while the new code was loaded were noted, and come first.
An end that runs no ``atexit`` function, such as a crash or ``os._exit()``, ends the pool.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import threading
import time
from typing import Final

import msgspec

from prefork.host.handover import MasterState
from prefork.host.notify import Notifier
from prefork.host.process import process
from prefork.host.stopping import CONTROL_SIGNALS, STOPS, unattended
from prefork.reloading.exec import hand_over
from prefork.workers import log, reports, system
from prefork.workers.scoreboard import PoolField, Scoreboard
from prefork.workers.states import ExitKind, Phase, ReloadState

STOP_TIME: Final = 25.0
"""Seconds that workers have to finish their requests at a stop, as in ``graceful_timeout``."""

LOOK_INTERVAL: Final = 0.5
"""Most seconds between two looks at the workers."""

STATUS: Final = "the new code ended; the previous workers keep serving and are not replaced"
"""What the service manager shows."""


def stand_by() -> None:
    """Have the caretaker run if this process ends before a master has adopted the state."""
    if process.handover is not None:
        atexit.register(run)
        if threading.current_thread() is threading.main_thread():  # or they stay blocked
            unattended.stand(to_the_end=False)


def run() -> None:
    """Keep the previous workers serving until an order to stop. Return at once without them."""
    state = process.handover
    if state is None:
        return
    system.block(CONTROL_SIGNALS)
    for noted in unattended.take():
        system.send_to_self(noted)
    process.restore_kept()
    board = Scoreboard.adopt(os.dup(state.pool.board), state.pool.slots, state.pool.layout)
    _publish_failure(board)
    log.event(
        logging.CRITICAL,
        "master",
        "the new code ended before it served; the previous workers keep serving and are not "
        "replaced: correct the code and send HUP, or send TERM to stop",
    )
    notifier = Notifier()
    notifier.ready(STATUS)
    # `prefork reload` sends its signal only to a process that blocks it or has a handler. While a
    # blocked signal is waited for, the kernel shows it as not blocked. So there are handlers,
    # although they never run.
    system.set_handlers(dict.fromkeys(CONTROL_SIGNALS, lambda _number, _frame: None))
    number = None
    while number not in STOPS:
        # A watchdog that restarts the service would end these workers as well.
        notifier.tick(Phase.SERVING, lambda: STATUS)
        board.set_pool(PoolField.TICK_NS, time.monotonic_ns())
        state = _without_ended(state, board)
        number = _next_order()
        if number in (signal.SIGHUP, signal.SIGUSR2):
            notifier.reloading()
            with contextlib.suppress(OSError):
                hand_over(state)
            notifier.ready(STATUS)
        elif number == signal.SIGUSR1:
            _ask_dumps(state)
    notifier.stopping()
    _stop(state, at_once=number == signal.SIGQUIT)
    process.end_handover()


def _next_order() -> int | None:
    """Wait for a signal, at most LOOK_INTERVAL. TTIN and TTOU mean nothing here."""
    orders = CONTROL_SIGNALS - {signal.SIGTTIN, signal.SIGTTOU}
    arrived = signal.sigtimedwait(orders, LOOK_INTERVAL)
    return None if arrived is None else arrived.si_signo


def _publish_failure(board: Scoreboard) -> None:
    """Write the outcome to the scoreboard, before the log line, whose readers may look at once.

    The counter is the last of the words: `prefork reload --wait` waits for it.
    """
    board.reload_report.write("the new code ended before it served, although its trial was good")
    board.set_pool(PoolField.RELOAD_STATE, ReloadState.FAILED)
    board.count_pool(PoolField.RELOADS_FAILED)


def _without_ended(state: MasterState, board: Scoreboard) -> MasterState:
    """Collect the workers that have ended and free their slots; return the state without them."""
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
    """Have the workers write their stacks, which `prefork dump` reads. No master logs them."""
    for handle in state.pool.workers:
        reports.clear(handle.pipes.report)
        system.send(handle.child, signal.SIGUSR1)


def _stop(state: MasterState, *, at_once: bool) -> None:
    """Have the workers finish their requests and leave, and kill those that do not leave in time.

    A second order to stop, or ``at_once``, leaves them no time.
    """
    children = [one.child for one in state.pool.workers]
    for child in children:
        system.send(child, signal.SIGTERM)
    end = time.monotonic() + (0.0 if at_once else STOP_TIME)
    while time.monotonic() < end and not system.wait_for_all(children, LOOK_INTERVAL):
        if signal.sigtimedwait({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}, 0) is not None:
            break
    for child in children:
        system.send(child, signal.SIGKILL)
