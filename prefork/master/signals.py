"""The signals of the master: which ones there are, and how they reach its loop (master).

The handler of a signal does two things, both in C: it notes the signal's number, and it writes the
number into a pipe (wakeup.py), which wakes the master's loop. Everything else happens in the loop. A handler
that took a lock, logged or decided would run between two bytecodes of the loop, perhaps while the
loop holds that same lock. gunicorn had deadlocks of this kind for five years.

What a signal means in which phase of the pool is decided in ``lifecycle.py``.
"""

from __future__ import annotations

import contextlib
import signal
from collections import Counter
from collections.abc import Iterator

from prefork.master.lifecycle import MasterOrder
from prefork.master.wakeup import Wakeup
from prefork.workers import system

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
    signal.SIGWINCH: ("Ignored: terminals send it when they are resized", "Ignored"),
}
"""What each signal means to the master and to a worker. docs/SIGNALS.md prints this table."""


class SignalCounts:
    """The signals that have arrived and that the loop has not taken yet.

    The pipe says how often each signal came: the interpreter writes one byte for each. In a storm the
    pipe can be full, and bytes are lost. Then the handlers' own notes say which signals came, and
    only their number is unknown.
    """

    def __init__(self) -> None:
        self._arrived: dict[int, object] = {}
        self._handled: list[signal.Signals] = []
        self._pipe_bytes = 0

    def take(self, wakeup_bytes: bytes) -> Counter[signal.Signals]:
        """Return how often each handled signal came since the last call, in the order of ``TABLE``.

        wakeup_bytes: what ``Wakeup.drain()`` has just returned.
        """
        counts = Counter({number: wakeup_bytes.count(number) for number in self._handled})
        noted = [signal.Signals(number) for number in list(self._arrived)]
        self._arrived.clear()
        if len(wakeup_bytes) >= self._pipe_bytes:
            counts.update(number for number in noted if not counts[number])
        return +counts

    @contextlib.contextmanager
    def open(self, wakeup: Wakeup) -> Iterator[None]:
        """Handle the signals of ``TABLE`` in this context, and restore the program's handlers after it.

        Only the main thread may do this; Python raises ValueError in any other.
        """
        self._pipe_bytes = wakeup.capacity
        system.enlarge_signal_stack()
        # The handler is a method of dict, which is C code: it adds the signal's number as a key. The
        # next signal would interrupt a Python function, so that a storm of signals would nest calls
        # until RecursionError.
        note = self._arrived.setdefault
        # WINCH has no effect by default. A signal that was ignored when the program started stays
        # ignored: INT of a background job, HUP under nohup.
        ignored = {number for number in TABLE if signal.getsignal(number) is signal.SIG_IGN}
        self._handled = [n for n in TABLE if n is not signal.SIGWINCH and n not in ignored]
        before = {number: signal.signal(number, note) for number in self._handled}
        wakeup_before = signal.set_wakeup_fd(wakeup.write_fd, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup_before)
            for number, handler in before.items():
                # None stands for a handler of C code, which Python cannot restore.
                signal.signal(number, signal.SIG_DFL if handler is None else handler)


def orders_of(arrived: Counter[signal.Signals]) -> Iterator[tuple[MasterOrder, int]]:
    """Yield what these signals order, each order with the change of the number of workers.

    A signal that came several times is one order. TTIN and TTOU together are one order, for their
    difference. The orders keep the sequence of ``TABLE``, whatever the signals' own was, so that TERM
    and QUIT come before the orders that have no effect on a pool that stops.
    """
    change = arrived[signal.SIGTTIN] - arrived[signal.SIGTTOU]
    for number in arrived:
        if number not in (signal.SIGTTIN, signal.SIGTTOU):
            yield MasterOrder(number.name), 0
    if change:
        yield MasterOrder.TTIN if change > 0 else MasterOrder.TTOU, change
