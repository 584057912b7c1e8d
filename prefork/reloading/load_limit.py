"""The bound on the time that new code takes after the exec, until it serves (next image).

Code that was loaded in its trial can hang when it is run for good: it waits for a database or for
a lock of a file. The orders to the master are only noted until it serves, so no TERM could end it, and
the workers would have no master for as long as it hangs. Two timers bound that time.

1. After ``load_timeout``, which is the time that the trial had, a signal has the caretaker take
   over (caretaker.py). Its handler runs in the main thread, between two bytecodes, wherever the
   program waits: in an import, in a lock, in ``time.sleep()`` or at its end, for a thread. It never
   returns to the program. The program is run again later, and the workers serve.
2. HARD_EXTRA later SIGALRM ends the process by its default action. That needs nothing of the
   interpreter. It is for code that holds the interpreter's lock inside a C function, and for code
   that hangs before it imports prefork. The timer is set before the exec, which keeps it. The
   workers finish their requests and leave, and a supervisor sees the exit status.

A thread in place of the first timer would be noticed: ``fork_check`` names threads, and Python
itself warns of them when the program forks. A thread could not help where the interpreter's lock is
held, either. A process that watches would, but it would have to be watched, too.

Time in which the process did not run (SIGSTOP, the freezer) does not count: a signal that comes
late sets both timers anew. A process that is stopped for ``load_timeout`` and HARD_EXTRA, just
while it loads new code, is the exception: the second timer ends it when it is continued.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Final

from prefork.host.handover import MasterState
from prefork.host.process import process
from prefork.reloading.exec import HARD_EXTRA
from prefork.workers import log, system

SIGNAL: Final = int(signal.SIGRTMIN) + 3
"""The signal of the first timer. Programs hardly use it."""

LATE: Final = 1.0
"""Seconds by which the signal may be late. More means that the process did not run."""


class LoadLimit:
    """Both timers. Made as soon as prefork is imported; ``lift()`` is called at the adoption.

    take_over: called when the time is over, with the reason; does not return.
    """

    def __init__(self, state: MasterState, take_over: Callable[[str], None]) -> None:
        self._time = state.load_timeout
        self._take_over = take_over
        self._due = time.monotonic() + self._time
        # Python handles signals in the main thread alone. Elsewhere the second timer has to do.
        self._is_handled = threading.current_thread() is threading.main_thread()
        if self._is_handled:
            self._timer = system.Timer(SIGNAL)
            signal.signal(SIGNAL, self._is_over)
            self._timer.set(self._time)

    def lift(self) -> None:
        """Let the program take any time from now on."""
        system.lift_limit()
        if self._is_handled:
            self._timer.set(0.0)
            # A master may run in another thread, where no handler can be removed. There it stays,
            # and does nothing once all is adopted.
            if threading.current_thread() is threading.main_thread():
                signal.signal(SIGNAL, signal.SIG_DFL)

    def _is_over(self, _number: int, frame: FrameType | None) -> None:
        if process.handover is None:
            return
        now = time.monotonic()
        if now > self._due + LATE:
            self._due = now + self._time
            self._timer.set(self._time)
            system.set_limit(self._time + HARD_EXTRA)
            return
        log.event(
            logging.ERROR,
            "master",
            "the new code takes too long",
            seconds=self._time,
            report="".join(traceback.format_stack(frame)),
        )
        self._take_over("did not serve in time")
