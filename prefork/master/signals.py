"""The signals of the master: which ones there are, and how they reach its loop (master).

The handler of a signal does two things, both in C: it notes the signal's number, and it writes the
number into a pipe (wakeup.py), which wakes the master's loop. Everything else happens in the loop. A handler
that took a lock, logged or decided would run between two bytecodes of the loop, perhaps while the
loop holds that same lock. gunicorn had deadlocks of this kind for five years.

What a signal means in which phase of the pool is decided in ``lifecycle.py``.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

from prefork.host.process import process
from prefork.host.stopping import STOPS, default_for_none, unattended
from prefork.master.lifecycle import MasterOrder
from prefork.master.wakeup import Wakeup
from prefork.workers import forks, log, system

TABLE: dict[signal.Signals, tuple[str, str]] = {
    signal.SIGTERM: (
        "Stop gracefully; a second one stops at once",
        "Finish the request in hand, then leave",
    ),
    signal.SIGINT: (
        "As TERM; then `serve_forever()` raises `KeyboardInterrupt`",
        "Ignored: Ctrl-C reaches the whole group, and the master decides",
    ),
    signal.SIGQUIT: ("Log the stacks of every worker, then stop at once", "Ignored"),
    signal.SIGTTIN: ("Keep one more worker, up to `max_children`", "Ignored"),
    signal.SIGTTOU: ("Keep one worker fewer, down to 1", "Ignored"),
    signal.SIGUSR1: ("Log the state of the pool and the stacks of every worker", "Dump the stacks"),
    signal.SIGHUP: (
        "Reload: try the new code, exec in place, replace the workers step by step",
        "Ignored",
    ),
    signal.SIGUSR2: ("Upgrade: as HUP, for a new interpreter or a new prefork", "Ignored"),
    signal.SIGURG: (
        "Ask the requests to end that `prefork cancel` has named; without the command it does nothing",
        "Nothing, or what `UrgentMixIn` does",
    ),
    signal.SIGWINCH: ("Ignored: terminals send it when they are resized", "Ignored"),
}
"""What each signal means to the master and to a worker. docs/SIGNALS.md prints this table."""

RESIZES = (signal.SIGTTIN, signal.SIGTTOU)
"""The signals that change the number of workers. Each one that comes counts."""


class SignalCounts:
    """The signals that have arrived and that the loop has not taken yet.

    The pipe says how often each signal came: the interpreter writes one byte for each. In a storm the
    pipe can be full, and bytes are lost. Then the handlers' own notes say which signals came, and
    only their number is unknown.
    """

    def __init__(self) -> None:
        self._arrived: dict[int, object] = {}
        self._early: list[int] = []
        self._before: dict[signal.Signals, Any] = {}
        self._before_in_c: dict[signal.Signals, bytes] = {}
        """The dispositions among them that C code has installed: Python neither knows them nor restores them."""
        self._stopped_by: list[signal.Signals] = []
        self._pipe_bytes = 0

    def take(self, wakeup_bytes: bytes) -> Counter[signal.Signals]:
        """Return how often each handled signal came since the last call, in the order of ``TABLE``.

        wakeup_bytes: what ``Wakeup.drain()`` has just returned.
        """
        counts = Counter({number: wakeup_bytes.count(number) for number in self._before})
        noted, self._early = self._early, []
        if len(wakeup_bytes) >= self._pipe_bytes:
            noted = [*noted, *self._arrived]
        self._arrived.clear()
        for number in self._before:
            if number in noted and not counts[number]:
                counts[number] = 1
        if not self._stopped_by:
            self._stopped_by = [number for number in STOPS if counts[number]]
        return +counts

    @contextlib.contextmanager
    def open(self, wakeup: Wakeup) -> Iterator[None]:
        """Handle the signals of ``TABLE`` in this context, and restore the program's handlers after it.

        What was noted before this context began is taken first (prefork/host/stopping.py). Only the
        main thread may do this; Python raises ValueError in any other.

        No signal falls between two dispositions. At the beginning the wake-up descriptor is set
        before the first handler, so that each signal which a handler notes also wakes the master.
        At the end TERM, INT and QUIT that came too late for the loop are sent once more, now to the
        program's own handler. The signal that has ended the serving is sent once more, too, if the program
        has a handler of its own for it: that handler may clean up, and choose the exit status.
        """
        self._pipe_bytes = wakeup.capacity
        system.enlarge_signal_stack()
        # Each callback of the stack is called, also when a handler of the program raises in another.
        with contextlib.ExitStack() as undo:
            before = signal.set_wakeup_fd(wakeup.write_fd, warn_on_full_buffer=False)
            undo.callback(self._hand_on, wakeup)
            undo.callback(signal.set_wakeup_fd, before)
            _log_ignored()
            self._handle(undo)
            self._early = _orders_before_serving()
            on_list = forks.add(self._restore_in_child)
            undo.callback(forks.remove, on_list)
            yield

    def _handle(self, undo: contextlib.ExitStack) -> None:
        # The handler is a method of dict, which is C code: it adds the signal's number as a key. The
        # next signal would interrupt a Python function, so that a storm of signals would nest calls
        # until RecursionError.
        note = self._arrived.setdefault
        for number in TABLE:
            # WINCH has no effect by default. A signal that was ignored when the program started
            # stays ignored: INT and QUIT of a job in the background of a script, HUP under nohup.
            if number is signal.SIGWINCH or signal.getsignal(number) is signal.SIG_IGN:
                continue
            undo.callback(self._restore, number)
            disposition = system.disposition_of(number)
            self._before[number] = signal.signal(number, note)
            if system.is_of_c(disposition, number):
                self._before_in_c[number] = disposition

    def _restore(self, number: signal.Signals) -> None:
        if number not in self._before:
            return
        before = self._before[number]
        handler = unattended.after_serving(number, before)
        in_c = self._before_in_c.get(number) if handler is before else None
        # Without the mask, the signal could meet Python's default between the two steps.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
        try:
            signal.signal(number, default_for_none(handler))
            if in_c is not None:
                system.put_back(in_c, number)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _restore_in_child(self) -> None:
        """Give a child that the program forks the handlers that it would have without a pool."""
        handlers = {
            int(number): default_for_none(unattended.before(number, handler))
            for number, handler in self._before.items()
        }
        with contextlib.suppress(ValueError):  # raised in a child that a thread has forked (3.13.0)
            system.set_handlers(handlers)
        for number, disposition in self._before_in_c.items():
            system.put_back(disposition, number)
        self._before.clear()
        self._before_in_c.clear()

    def _hand_on(self, wakeup: Wakeup) -> None:
        if not self._before:
            return  # this is a child
        if self._stopped_by:
            sent = [number for number in self._stopped_by if self.is_programs_own(number)]
        else:
            late = {*self._arrived, *self._early, *wakeup.drain()}
            sent = [number for number in STOPS if number in late]
        for number in sent:
            system.send_to_self(number)

    def is_programs_own(self, number: signal.Signals) -> bool:
        """Return whether the program had a handler of its own for this signal when it began to serve."""
        handler = self._before.get(number)
        is_default = handler is signal.default_int_handler or unattended.is_ours(handler)
        return callable(handler) and not is_default and not isinstance(handler, signal.Handlers)


def _log_ignored() -> None:
    """Log the control signals that were ignored before the master took them, and so have no effect."""
    ignored = [number for number in TABLE if signal.getsignal(number) is signal.SIG_IGN]
    names = " ".join(number.name for number in ignored if number is not signal.SIGWINCH)
    if names:
        what = "ignores signals, as it did at its start"
        log.event(logging.INFO, "master", what, signals=names)


def _orders_before_serving() -> list[int]:
    """Return the signals that were noted before the master took them, and that it has to obey.

    A note does not say how often a signal came. So before a pool has a size, TTIN and TTOU do not
    change it: the settings are all that counts.
    """
    noted = unattended.take()
    if process.handover is not None:
        return noted
    for number in RESIZES:
        if number in noted:
            order = MasterOrder(number.name)
            log.event(logging.INFO, "master", "order has no effect", order=order, phase="starting")
    return [number for number in noted if number not in RESIZES]


def handled(signals: SignalCounts, wakeup: Wakeup) -> contextlib.AbstractContextManager[None]:
    """Return a context in which signals are handled, in the main thread; elsewhere an empty one."""
    is_main = threading.current_thread() is threading.main_thread()
    return signals.open(wakeup) if is_main else contextlib.nullcontext()


def orders_of(arrived: Counter[signal.Signals]) -> Iterator[tuple[MasterOrder, int]]:
    """Yield what these signals order, each order with the change of the number of workers.

    A signal that came several times is one order. TTIN and TTOU together are one order, for their
    difference. The orders keep the sequence of ``TABLE``, whatever the signals' own was, so that TERM
    and QUIT come before the orders that have no effect on a pool that stops.
    """
    change = arrived[signal.SIGTTIN] - arrived[signal.SIGTTOU]
    for number in arrived:
        if number not in RESIZES:
            yield MasterOrder(number.name), 0
    if change:
        yield MasterOrder.TTIN if change > 0 else MasterOrder.TTOU, change
