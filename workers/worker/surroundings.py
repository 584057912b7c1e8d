"""What a request can leave behind in its process, put back before the next one (worker, a setting).

Programs of ``ForkingMixIn`` change their process for one request: they set an alarm, change the working
directory, block a signal. In a worker the next client would meet all of it. With ``restore_process`` a worker
puts back after each request what is the process's own and certain: timers, the signal mask of the thread that
serves, the working directory and the umask, as they were when ``worker_init()`` had returned. A look whether
they have changed costs as much as putting them back, so that is what is done: some 3 µs for each request, which is
why it is a setting. The environment, signal handlers, modules and globals are left alone. A program that
changes those wants ``max_requests = 1``.

Where requests overlap in threads, nothing is put back: what one request has set, another one may be using.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

from prefork.workers import system

Process = Callable[[Any, Any], None]
"""Does what ``process_request()`` does, called with a request and its client's address."""


class Surroundings:
    """The state of this process as it is now. A descriptor stays open for the working directory.

    Raises OSError where there is no descriptor left, or the working directory cannot be opened.
    """

    def __init__(self) -> None:
        self._folder = os.open(".", os.O_PATH | os.O_CLOEXEC)
        self._umask = os.umask(0)
        os.umask(self._umask)
        self._mask = system.mask()
        self._timers = system.idle_timers()  # one that runs already belongs to the program

    def restored_after(self, process: Process) -> Process:
        """Return ``process`` with the state put back after it, whether it raises or not."""

        def process_and_restore(request: Any, address: Any) -> None:
            try:
                process(request, address)
            finally:
                self.restore()

        return process_and_restore

    def restore(self) -> None:
        """Put everything back."""
        system.stop_timers(self._timers)
        system.set_mask(self._mask)
        os.umask(self._umask)
        with contextlib.suppress(OSError):  # the folder may no longer be searched
            os.fchdir(self._folder)
