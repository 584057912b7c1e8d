"""What wakes the master's loop: a pipe of its own, and a pipe that its workers write to (master).

The two pipes differ in who can write to them, and therefore in what the master believes of their
content:

The master's own pipe
    No other process has it. Python writes the number of each signal to it, and ``wake()`` writes
    WAKE. What the kernel has delivered to this process is an order, so the content is believed.
The workers' pipe
    Each worker has its write end. A worker runs the application, perhaps as another user, and
    can write any bytes at any rate. The master reads from this pipe that it was woken, and whether
    a handler has called ``shutdown()``, which is the one order that a program can give from a
    worker. A byte that looks like the number of a signal means nothing here.

A worker can do more than write: it can make its descriptor blocking and keep the pipe full. O_NONBLOCK
is a flag of the open file description, so each worker opens the write end anew as it begins, and no
sibling waits. Where that is impossible, a worker shares the master's description. So the master never
writes to this pipe, and whatever the flag is, the master never waits here. The read end has a description of its own, which no worker
has. The master keeps a write end itself, so workers that close theirs cause no end of file.

A worker can also keep the pipe full. Each wake-up is a tick of the master, and ticks without a pause
would occupy a processor. So after one wake-up by workers, the next one takes effect ``PAUSE`` later.
Signals, and the ends of workers, are never delayed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import time

from prefork.workers import forks
from prefork.workers.identity import SHUTDOWN, WAKE

PAUSE = 0.005
"""Seconds between two wake-ups by workers at the least: 200 ticks a second take 4 % of a processor."""

_MOST_BYTES = 65536
"""The most bytes that one read takes. A worker can enlarge its pipe to more."""

Fds = tuple[int, int, int, int]
"""The descriptors of a ``Wakeup``: read and write end of its own pipe, then those of the workers'."""


class Wakeup:
    """The two pipes that wake the master.

    fds: the descriptors that an earlier image of the master has made, for this one to use.
    """

    def __init__(self, fds: Fds | None = None) -> None:
        with forks.lock:
            self._own_read, self.write_fd, self._workers_read, self.workers_fd = fds or _open()
            self._on_list = forks.add(self._let_go_in_child)
        self._heard_at = float("-inf")

    @property
    def fds(self) -> Fds:
        """All four descriptors, for the next image of the master."""
        return self._own_read, self.write_fd, self._workers_read, self.workers_fd

    @property
    def capacity(self) -> int:
        """Bytes that the master's own pipe holds: fewer than usual where its user has many pipes."""
        return fcntl.fcntl(self.write_fd, fcntl.F_GETPIPE_SZ)

    def _let_go_in_child(self) -> None:
        # The child closes the descriptor, and another file soon gets its number. The child's signals
        # must not be written there. A wake-up descriptor of the program itself stays: it is in use
        # when the pool is served in a thread.
        self._take_from_signals()
        forks.close((self._own_read, self.write_fd, self._workers_read))

    def _take_from_signals(self) -> None:
        """Have Python write no signal to the pipe any more."""
        before = signal.set_wakeup_fd(-1)
        if before != self.write_fd:
            signal.set_wakeup_fd(before)

    def close(self) -> None:
        """Close all descriptors."""
        # The handlers of the program are back by now. One of them that raises between two steps of the
        # master's end may have left the pipe with Python, which would then complain of each signal.
        with contextlib.suppress(ValueError):  # not the main thread: the pipe was never there
            self._take_from_signals()
        with forks.lock:
            forks.remove(self._on_list)
            for fd in self.fds:
                os.close(fd)

    # --- waiting

    def register(self, poll: select.epoll) -> None:
        """Have the master's poll report both pipes."""
        for fd in (self._own_read, self._workers_read):
            poll.register(fd, select.EPOLLIN)

    def wait(self, poll: select.epoll, seconds: float) -> bool:
        """Wait in the master's poll, for this long at most; return whether workers have woken it."""
        ready = {fd for fd, _ in poll.poll(seconds)}
        if self._workers_read not in ready:
            return False
        left = self._heard_at + PAUSE - time.monotonic()
        if left > 0 and len(ready) == 1:
            poll.unregister(self._workers_read)
            poll.poll(left)
            poll.register(self._workers_read, select.EPOLLIN)
        self._heard_at = time.monotonic()
        return True

    # --- the master's own pipe

    def wake(self) -> None:
        """Wake the master (any thread of its process)."""
        # A full pipe wakes the master as well. Without any wake-up it looks a moment later.
        with contextlib.suppress(OSError):
            os.write(self.write_fd, WAKE)

    def drain(self) -> bytes:
        """Empty the master's own pipe; return its content: numbers of signals, and WAKE."""
        return _read(self._own_read)

    # --- the workers' pipe

    def shutdown_asked(self) -> bool:
        """Empty the workers' pipe; return whether a handler has called ``shutdown()``."""
        return SHUTDOWN in _read(self._workers_read)


def _read(fd: int) -> bytes:
    # One read empties a whole pipe. A loop would go on for as long as there is a writer.
    with contextlib.suppress(BlockingIOError):
        return os.read(fd, _MOST_BYTES)
    return b""


def _open() -> Fds:
    own = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return *own, *os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        forks.close(own)
        raise
