"""The signals of the master: which ones there are, and how they reach its loop (master).

The handler of a signal does two things, both in C: it notes the signal's number, and it writes the
number into a pipe, which wakes the master's loop. Everything else happens in the loop. A handler
that took a lock, logged or decided would run between two bytecodes of the loop, perhaps while the
loop holds that same lock. gunicorn had deadlocks of this kind for five years.

What a signal means in which phase of the pool is decided in ``lifecycle.py``.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections import Counter
from collections.abc import Iterator

from prefork.master.lifecycle import MasterOrder
from prefork.workers import forks, system
from prefork.workers.identity import WAKE

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

PIPE_BYTES = 65536
"""Bytes that a pipe holds on Linux."""


class Wakeup:
    """The pipe that wakes the master. Signals, workers and ``shutdown()`` write to it.

    fds: the descriptors of a pipe that an earlier image of the master has made, for this one to use.

    The write end is open twice. ``write_fd`` is for the master's signals, ``workers_fd`` for the
    workers. The flag O_NONBLOCK belongs to an open file description, so a worker that sets its
    descriptor blocking would set the master's blocking if they shared a description. In a full pipe
    the master's signal handler would then wait for the master itself.
    """

    def __init__(self, fds: tuple[int, int, int] | None = None) -> None:
        with forks.lock:
            self.read_fd, self.write_fd, self.workers_fd = fds or _open_pipe()
            self._on_list = forks.add(self._let_go_in_child)

    @property
    def fds(self) -> tuple[int, int, int]:
        """The read end, the write end and the workers' write end."""
        return self.read_fd, self.write_fd, self.workers_fd

    def _let_go_in_child(self) -> None:
        # The child closes the descriptor, and another file soon gets its number. The child's signals
        # must not be written there. A wake-up descriptor of the program itself stays: it is in use
        # when the pool is served in a thread.
        before = signal.set_wakeup_fd(-1)
        if before != self.write_fd:
            signal.set_wakeup_fd(before)
        forks.close((self.read_fd, self.write_fd))

    def fileno(self) -> int:
        """Return the end that the master waits on."""
        return self.read_fd

    def wake(self) -> None:
        """Wake the master (any thread of its process)."""
        with contextlib.suppress(BlockingIOError):  # a full pipe wakes the master, too
            os.write(self.write_fd, WAKE)

    def drain(self) -> bytes:
        """Empty the pipe and return its content: bytes that are signal numbers, WAKE or SHUTDOWN."""
        # One read empties a whole pipe. A loop would go on for as long as a storm of signals does.
        with contextlib.suppress(BlockingIOError):
            return os.read(self.read_fd, PIPE_BYTES)
        return b""

    def close(self) -> None:
        """Close all three descriptors."""
        with forks.lock:
            forks.remove(self._on_list)
            for fd in self.fds:
                os.close(fd)


def _open_pipe() -> tuple[int, int, int]:
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return read_fd, write_fd, _open_again(write_fd)
    except OSError:
        os.close(read_fd)
        os.close(write_fd)
        raise


def _open_again(write_fd: int) -> int:
    try:
        flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK
        return os.open(f"/proc/self/fd/{write_fd}", flags)
    except (FileNotFoundError, PermissionError):
        # There is no /proc, for example after a chroot(). The two then share one description.
        return os.dup(write_fd)


class SignalCounts:
    """The signals that have arrived and that the loop has not taken yet.

    The pipe says how often each signal came: the interpreter writes one byte for each. In a storm the
    pipe can be full, and bytes are lost. Then the handlers' own notes say which signals came, and
    only their number is unknown.
    """

    def __init__(self) -> None:
        self._arrived: dict[int, object] = {}
        self._handled: list[signal.Signals] = []

    def take(self, wakeup_bytes: bytes) -> Counter[signal.Signals]:
        """Return how often each handled signal came since the last call, in the order of ``TABLE``.

        wakeup_bytes: what ``Wakeup.drain()`` has just returned.
        """
        counts = Counter({number: wakeup_bytes.count(number) for number in self._handled})
        noted = [signal.Signals(number) for number in list(self._arrived)]
        self._arrived.clear()
        if len(wakeup_bytes) >= PIPE_BYTES:
            counts.update(number for number in noted if not counts[number])
        return +counts

    @contextlib.contextmanager
    def open(self, wakeup: Wakeup) -> Iterator[None]:
        """Handle the signals of ``TABLE`` in this context, and restore the program's handlers after it.

        Only the main thread may do this; Python raises ValueError in any other.
        """
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
