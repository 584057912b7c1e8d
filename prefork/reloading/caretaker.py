"""What keeps the workers of before serving when the new code fails after the exec."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import time
from typing import Final

import msgspec

from prefork.host.handover import MasterState
from prefork.host.notify import Notifier
from prefork.host.process import process
from prefork.reloading.exec import CONTROL_SIGNALS, hand_over
from prefork.workers import log, reports, system
from prefork.workers.scoreboard import PoolField, Scoreboard
from prefork.workers.states import ExitKind, Phase, ReloadState

STOP_TIME: Final = 25.0
"""Seconds that workers have to finish when a master without an application is stopped."""

RETRY_LOOK: Final = 0.5
"""Seconds between two looks at the workers while there is no application."""


def stand_by() -> None:
    """Take care of the workers of before if this image ends before it has adopted them."""
    if process.handover is not None:
        atexit.register(take_care)


def take_care() -> None:
    """Keep the workers of before serving although the new code has ended before it adopted them.

    Runs at the interpreter's end. There is no application to fork workers from, so the dead are
    not replaced; HUP or USR2 tries the code once more, TERM, INT or QUIT ends everything.
    """
    state = process.handover
    if state is None:
        return
    process.restore_kept()
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
            process.end_handover()
            return


def _publish_failure(board: Scoreboard) -> None:
    board.set_pool(PoolField.RELOAD_STATE, ReloadState.FAILED)
    board.count_pool(PoolField.RELOADS_FAILED)
    board.reload_report.write("the new code ended before it served, although its trial was good")


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
