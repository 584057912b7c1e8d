"""The signals of the master: which ones, and how they reach its loop. No policy.

A handler only notes the signal and, through the wake-up fd, wakes the loop: no lock, no log, no
decision inside a handler, where gunicorn's deadlocks of five years came from.
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
    signal.SIGTERM: ("Graceful stop; a second one: stop now", "Finish the request, leave"),
    signal.SIGINT: (
        "As TERM, then `KeyboardInterrupt` (Ctrl-C reaches the whole group)",
        "Ignored, the master decides",
    ),
    signal.SIGQUIT: ("Stop now, with every worker's stack in the log", "Ignored"),
    signal.SIGTTIN: ("One worker more to keep, up to `max_children`", "Ignored"),
    signal.SIGTTOU: ("One worker less to keep, down to 1", "Ignored"),
    signal.SIGUSR1: ("Status and every worker's stack into the log", "Dump the stacks"),
    signal.SIGHUP: (
        "Reload: try the new code, exec in place, replace the workers one by one",
        "Ignored",
    ),
    signal.SIGUSR2: ("Upgrade: the same, for a new interpreter or a new prefork", "Ignored"),
    signal.SIGWINCH: ("Ignored (terminals send it)", "Ignored"),
}
"""What each signal means to the master and to a worker; the docs' table is made from it."""


PIPE_BYTES = 65536
"""What a pipe holds on Linux."""


class Wakeup:
    """The pipe that wakes the master: written by signals, by workers and by ``shutdown()``.

    fds: those of an earlier image of the master, which its workers write to.
    workers_fd: what the workers write to, with an open file description of its own: a worker that
    set the master's blocking would have its signal handler wait in a full pipe for itself.
    """

    def __init__(self, fds: tuple[int, int, int] | None = None) -> None:
        with forks.lock:
            self.read_fd, self.write_fd, self.workers_fd = fds or _pipe_with_two_entrances()
            self._on_list = forks.add(self._let_go_in_child)

    @property
    def fds(self) -> tuple[int, int, int]:
        """All descriptors."""
        return self.read_fd, self.write_fd, self.workers_fd

    def _let_go_in_child(self) -> None:
        # Signals of the child would be written into the number, which is soon another file's.
        before = signal.set_wakeup_fd(-1)
        if before != self.write_fd:  # the program's own, when the pool is served in a thread
            signal.set_wakeup_fd(before)
        forks.close((self.read_fd, self.write_fd))

    def fileno(self) -> int:
        """Return the end that the master waits on."""
        return self.read_fd

    def wake(self) -> None:
        """Wake the master (any thread of its process)."""
        with contextlib.suppress(BlockingIOError):  # a full pipe wakes as well
            os.write(self.write_fd, WAKE)

    def drain(self) -> bytes:
        """Empty the pipe and return what was in it: signal numbers, WAKE and SHUTDOWN."""
        # One read that holds more than a tick can bring: a loop would go on as long as a storm does.
        with contextlib.suppress(BlockingIOError):
            return os.read(self.read_fd, PIPE_BYTES)
        return b""

    def close(self) -> None:
        """Close all ends."""
        with forks.lock:
            forks.remove(self._on_list)
            for fd in self.fds:
                os.close(fd)


def _pipe_with_two_entrances() -> tuple[int, int, int]:
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return read_fd, write_fd, _another_entrance(write_fd)
    except OSError:
        os.close(read_fd)
        os.close(write_fd)
        raise


def _another_entrance(write_fd: int) -> int:
    try:
        flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK
        return os.open(f"/proc/self/fd/{write_fd}", flags)
    except (FileNotFoundError, PermissionError):  # no /proc, as after a chroot(): the same, then
        return os.dup(write_fd)


class SignalCounts:
    """The signals that have arrived and were not yet taken."""

    def __init__(self) -> None:
        self._arrived: dict[int, object] = {}
        self._handled: list[signal.Signals] = []

    def take(self, wakeup_bytes: bytes) -> Counter[signal.Signals]:
        """Return how often each signal of the table came since the last time.

        The wake-up pipe tells all, unless it was full in a storm; then the handlers tell which.
        """
        counts = Counter({number: wakeup_bytes.count(number) for number in self._handled})
        noted = [signal.Signals(number) for number in list(self._arrived)]
        self._arrived.clear()
        if len(wakeup_bytes) >= PIPE_BYTES:
            counts.update(number for number in noted if not counts[number])
        return +counts

    @contextlib.contextmanager
    def open(self, wakeup: Wakeup) -> Iterator[None]:
        """Handle the table's signals within; put back afterwards what was there (main thread only)."""
        system.enlarge_signal_stack()
        # A handler of C that notes its first argument: a Python function would be interrupted by
        # the next signal, and under a storm nest until RecursionError.
        note = self._arrived.setdefault
        # WINCH does nothing anyway. What the program's starter has set to be ignored stays so:
        # INT of a job in the background, HUP under nohup.
        ignored = {number for number in TABLE if signal.getsignal(number) is signal.SIG_IGN}
        self._handled = [n for n in TABLE if n is not signal.SIGWINCH and n not in ignored]
        before = {number: signal.signal(number, note) for number in self._handled}
        wakeup_before = signal.set_wakeup_fd(wakeup.write_fd, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup_before)
            for number, handler in before.items():
                # None: installed by C code, which Python cannot put back.
                signal.signal(number, signal.SIG_DFL if handler is None else handler)


def orders_of(arrived: Counter[signal.Signals]) -> Iterator[tuple[MasterOrder, int]]:
    """Yield the orders that some signals are, each with the change of the number of workers it asks for.

    The order is that of ``TABLE``, so an order to stop comes before those that mean nothing to a pool
    that stops. A signal that came several times is one order. TTIN and TTOU are one order together:
    their difference.
    """
    change = arrived[signal.SIGTTIN] - arrived[signal.SIGTTOU]
    for number in arrived:
        if number not in (signal.SIGTTIN, signal.SIGTTOU):
            yield MasterOrder(number.name), 0
    if change:
        yield MasterOrder.TTIN if change > 0 else MasterOrder.TTOU, change
