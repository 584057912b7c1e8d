"""What is done to the pool. The method of a fault has the name of its kind in ``schedule.KINDS``.

Each fault notes what it excuses: the harm to a worker, which explains the loss of the request that this
worker has, or a while in which a promise is suspended. What it does not note, it does not excuse.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from prefork.workers.scoreboard import PoolField
from tests.chaos.invariants import Promise
from tests.chaos.observe import sample
from tests.chaos.pool import BROKEN, FAILS_THE_SECOND_TIME
from tests.chaos.service import TIMEOUT
from tests.support.board import board_of
from tests.support.processes import fds_of, is_alive, live_children_of
from tests.support.tracing import FORKS, injected, why_no_strace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from random import Random

    from tests.chaos.clients import Book
    from tests.chaos.pool import Pool
    from tests.chaos.schedule import Event
    from tests.chaos.verdict import Ledger
    from tests.support.groups import Group

LETHAL: Final = (
    *(signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL),
    *(signal.SIGALRM, signal.SIGVTALRM, signal.SIGTRAP, signal.SIGSYS),
)
"""Signals that end a process that does not handle them."""

JUNK: Final = (
    *(signal.SIGINT, signal.SIGQUIT, signal.SIGTTIN, signal.SIGTTOU, signal.SIGHUP),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGCHLD, signal.SIGURG),
    *(signal.SIGCONT, signal.SIGPIPE),
)
"""Signals that a worker ignores, or that do it no harm."""

RELOADED_IN: Final = 45.0
"""Seconds after which a reload is no longer waited for: two in a row on a machine with other work, where an
interpreter starts in seconds, and the trial of the second one hangs until ``boot_timeout``.
"""


class CannotArrangeError(Exception):
    """This machine does not let the harness do this."""


class Faults:
    """Does faults to a pool.

    processes, freezer: control groups with the switches for "no more processes" and "freeze", where this
    machine has them. disk: the small file system that has the pool's standard output, if there is one.
    """

    def __init__(
        self,
        pool: Pool,
        ledger: Ledger,
        book: Book,
        *,
        processes: Group | None,
        freezer: Group | None,
        disk: Path | None,
    ) -> None:
        self.workers_are_spared = threading.Event()
        """Set while no fault may be done to a worker."""
        self._pool = pool
        self._ledger = ledger
        self._book = book
        self._processes = processes
        self._freezer = freezer
        self._disk = disk

    def do(self, event: Event, dice: Random) -> None:
        """Do one fault; a process that is gone already cannot be harmed."""
        begun = time.monotonic()
        try:
            getattr(self, event.kind)(dice)
        except CannotArrangeError:
            self._ledger.could_not(event.kind)
        except (ProcessLookupError, IndexError):
            pass
        else:
            self._ledger.did(event.kind, begun)

    # Tools

    def _worker(self, dice: Random) -> int:
        return dice.choice(self._pool.workers())

    def _kill(self, pid: int, number: int, what: str) -> None:
        os.kill(pid, number)
        self._ledger.harm(pid, what)

    def _kill_some(self, dice: Random, most: int = 3) -> None:
        workers = self._pool.workers()
        for pid in dice.sample(workers, min(len(workers), dice.randint(1, most))):
            with contextlib.suppress(ProcessLookupError):
                self._kill(pid, signal.SIGKILL, "killed")

    def _all_of_it(self) -> list[int]:
        return [self._pool.pid, *live_children_of(self._pool.pid)]

    @contextmanager
    def _limited(self, pid: int, what: int, soft: int) -> Iterator[None]:
        """Lower a limit of a process. Afterwards all children have theirs raised, too: they may have inherited it."""
        before, hard = resource.prlimit(pid, what)
        resource.prlimit(pid, what, (soft, hard))
        try:
            yield
        finally:
            for one in {pid, *self._all_of_it()}:
                with contextlib.suppress(ProcessLookupError):
                    resource.prlimit(one, what, (before, hard))

    @contextmanager
    def _traced(self, pid: int, *faults: str) -> Iterator[None]:
        """Have strace fail or delay system calls of a process."""
        if why_no_strace():
            raise CannotArrangeError
        log = self._pool.folder / "strace"
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(injected(pid, *faults, log=log))
            except (AssertionError, OSError) as error:  # it has just ended, or is traced
                raise CannotArrangeError from error
            yield

    @contextmanager
    def _stopped(self, pid: int) -> Iterator[None]:
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    @contextmanager
    def _switched_on(self, group: Group | None) -> Iterator[None]:
        if group is None:
            raise CannotArrangeError
        group.turn_on()
        try:
            yield
        finally:
            group.turn_off()

    # Workers

    def worker_killed(self, dice: Random) -> None:
        """Kill a worker with -9."""
        self._kill(self._worker(dice), signal.SIGKILL, "killed")

    def worker_crashed(self, dice: Random) -> None:
        """End a worker by another signal."""
        number = dice.choice(LETHAL)
        self._kill(self._worker(dice), number, "crashed")

    def worker_asked_to_leave(self, dice: Random) -> None:
        """Ask a worker to leave, behind the master's back. It finishes its request: this excuses nothing."""
        pid = self._worker(dice)
        os.kill(pid, signal.SIGTERM)
        self._ledger.let_go.add(pid)

    def worker_stopped_for_a_moment(self, dice: Random) -> None:
        """Stop a worker, for less than a request may take: this excuses nothing."""
        with self._stopped(self._worker(dice)):
            time.sleep(dice.uniform(0.05, 0.8))

    def worker_stopped_for_long(self, dice: Random) -> None:
        """Stop a worker; if it has a request, the master kills it at the deadline."""
        pid = self._worker(dice)
        self._ledger.harm(pid, "stopped until its deadline", TIMEOUT + 3)
        with self._stopped(pid):
            end = time.monotonic() + TIMEOUT + 2
            while time.monotonic() < end and is_alive(pid):
                time.sleep(0.1)

    def worker_gets_junk_signals(self, dice: Random) -> None:
        """Send a worker signals that are none of its business."""
        pid = self._worker(dice)
        for _ in range(dice.randint(1, 30)):
            os.kill(pid, dice.choice(JUNK))

    def newborn_gets_a_signal(self, dice: Random) -> None:
        """Send a signal to a worker as soon as it is there."""
        known = live_children_of(self._pool.pid)
        self._kill(self._worker(dice), signal.SIGKILL, "killed")
        number = dice.choice([signal.SIGTERM, signal.SIGTERM, signal.SIGKILL, *JUNK])
        end = time.monotonic() + 1
        while time.monotonic() < end:
            if new := live_children_of(self._pool.pid) - known:
                pid = new.pop()
                time.sleep(dice.choice([0, 0, 0.001, 0.005]))
                os.kill(pid, number)
                if number == signal.SIGKILL:
                    self._ledger.harm(pid, "killed when newborn")
                elif number == signal.SIGTERM:
                    self._ledger.let_go.add(pid)
                return
            time.sleep(0.0005)

    def worker_without_descriptors(self, dice: Random) -> None:
        """Let a worker have no further descriptor for a moment."""
        with self._limited(self._worker(dice), resource.RLIMIT_NOFILE, 3):
            time.sleep(dice.uniform(0.1, 1))

    def accept_fails(self, dice: Random) -> None:
        """Have ``accept()`` of a worker fail."""
        error = dice.choice(["ENFILE", "ENOBUFS", "ECONNABORTED", "EPROTO", "EINTR", "EMFILE"])
        with self._traced(self._worker(dice), f"accept4:error={error}"):
            time.sleep(dice.uniform(0.1, 0.6))

    def worker_is_slowed(self, dice: Random) -> None:
        """Have a system call of a worker take a tenth of a second: each race becomes wide."""
        call = dice.choice(["accept4", "epoll_wait", "epoll_ctl", "close", "shutdown", "recvfrom"])
        edge = dice.choice(["enter", "exit"])
        with self._traced(self._worker(dice), f"{call}:delay_{edge}=100000"):
            time.sleep(dice.uniform(0.2, 0.8))

    def all_workers_killed(self, _dice: Random) -> None:
        """Kill all workers at once."""
        for pid in self._pool.workers():
            with contextlib.suppress(ProcessLookupError):
                self._kill(pid, signal.SIGKILL, "killed with all")

    # The master

    def master_stopped(self, dice: Random) -> None:
        """Stop the master for a while. The workers serve on."""
        promises = Promise.SIZE, Promise.REAP, Promise.TICK
        with (
            self._ledger.excuse("master stopped", *promises, grace=1),
            self._stopped(self._pool.pid),
        ):
            time.sleep(dice.uniform(0.1, 1.5))

    def everything_frozen(self, dice: Random) -> None:
        """Freeze the container."""
        if self._freezer is not None:
            self._freezer.put(self._all_of_it())
        promises = (
            *(Promise.SIZE, Promise.REAP, Promise.TICK),
            *(Promise.ANSWER, Promise.SCRAPE),
        )
        with (
            self._ledger.excuse("frozen", *promises, grace=1.5),
            self._switched_on(self._freezer),
        ):
            time.sleep(dice.uniform(0.2, 1.2))

    def resizing_storm(self, dice: Random) -> None:
        """Ask for workers more and less."""
        for _ in range(dice.randint(3, 40)):
            self._pool.signal(dice.choice([signal.SIGTTIN, signal.SIGTTOU]))
            time.sleep(dice.choice([0, 0, 0.02]))

    def dump_storm(self, dice: Random) -> None:
        """Ask for all stacks, again and again."""
        for _ in range(dice.randint(1, 20)):
            self._pool.signal(signal.SIGUSR1)
            time.sleep(dice.choice([0, 0.01, 0.1]))

    def boot_fails_for_a_while(self, dice: Random) -> None:
        """Have new workers fail while some have to be replaced."""
        with self._boot_trouble(dice.choice(["raise", "exit", "crash"])):
            time.sleep(dice.uniform(0, 0.5))
            self._kill_some(dice)
            time.sleep(dice.uniform(0.3, 1.5))

    def killed_all_while_boot_fails(self, dice: Random) -> None:
        """Have new workers fail while all have to be replaced."""
        with self._boot_trouble(dice.choice(["raise", "exit"])):
            self.all_workers_killed(dice)
            time.sleep(dice.uniform(0.3, 1.5))

    @contextmanager
    def _boot_trouble(self, kind: str) -> Iterator[None]:
        with self._ledger.excuse("boots fail", Promise.SIZE, Promise.ANSWER, grace=1.5):
            self._pool.trouble_boots(kind)
            try:
                yield
            finally:
                self._pool.trouble_boots("")

    def master_without_descriptors(self, dice: Random) -> None:
        """Let the master have no further descriptor while it has to replace workers.

        Not while an interpreter starts in its place: it would end there, as docs/FAULTS.md says.
        """
        self._await_loaded()
        with self._shortage(), self._limited(self._pool.pid, resource.RLIMIT_NOFILE, 3):
            self._kill_some(dice)
            time.sleep(dice.uniform(0.3, 1.5))

    def no_more_processes(self, dice: Random) -> None:
        """Let the container have no further process while workers have to be replaced."""
        if self._processes is not None:
            self._processes.put(self._all_of_it())
        with self._shortage(), self._switched_on(self._processes):
            self._kill_some(dice)
            time.sleep(dice.uniform(0.3, 1.5))

    def fork_fails(self, dice: Random) -> None:
        """Have ``fork()`` of the master fail."""
        error = dice.choice(["EAGAIN", "ENOMEM"])
        with self._shortage(), self._traced(self._pool.pid, f"{FORKS}:error={error}"):
            self._kill_some(dice)
            time.sleep(dice.uniform(0.3, 1.2))

    def master_calls_fail(self, dice: Random) -> None:
        """Have a call fail that the master needs for a new worker."""
        call = dice.choice(
            ["pidfd_open:error=EMFILE", "memfd_create:error=ENOMEM", "pipe2:error=EMFILE"]
        )
        with self._shortage(), self._traced(self._pool.pid, call):
            self._kill_some(dice)
            time.sleep(dice.uniform(0.3, 1.2))

    def _await_loaded(self) -> None:
        """Wait until the master's code is loaded, where it is in an exec."""
        end = time.monotonic() + RELOADED_IN
        while sample(self._pool.pid).is_away:
            if time.monotonic() > end or not self._pool.is_alive:
                raise CannotArrangeError
            time.sleep(0.02)

    @contextmanager
    def _shortage(self, *more: Promise, grace: float = 2.5) -> Iterator[None]:
        with self._ledger.excuse("shortage", Promise.SIZE, *more, grace=grace):
            yield

    # Reloads

    def _reload(self, number: int = signal.SIGHUP, until: Callable[[], bool] | None = None) -> None:
        """Ask for a reload and wait until it has succeeded or failed."""
        with self._reloads_awaited(1, until):
            self._pool.signal(number)

    @contextmanager
    def _reloads_awaited(
        self, count: int, until: Callable[[], bool] | None = None
    ) -> Iterator[None]:
        """Wait afterwards until this many reloads have ended, so that nobody writes other code between trial and exec."""
        before = self._reloads()
        yield
        end = time.monotonic() + RELOADED_IN
        while time.monotonic() < end and self._pool.is_alive:
            time.sleep(0.1)
            now = self._reloads()
            is_known = before is not None and now is not None
            if until() if until else is_known and now >= before + count:
                return

    def _reloads(self) -> int | None:
        """Return how many reloads have ended, None if that cannot be read; from the scoreboard.

        Another fault may just have killed the metrics process.
        """
        try:
            with board_of(self._pool.pid) as board:
                return board.pool(PoolField.RELOADS) + board.pool(PoolField.RELOADS_FAILED)
        except (OSError, ValueError, AssertionError):
            return None

    def reload_good(self, _dice: Random) -> None:
        """Reload: this excuses nothing."""
        self._pool.write_good_code()
        self._reload()

    def upgrade_good(self, _dice: Random) -> None:
        """Upgrade: this excuses nothing."""
        self._pool.write_good_code()
        self._reload(signal.SIGUSR2)

    def reload_twice(self, dice: Random) -> None:
        """Ask for a reload during a reload."""
        with self._reloads_awaited(2):
            self._pool.write_good_code()
            self._pool.signal(signal.SIGHUP)
            time.sleep(dice.uniform(0.02, 0.4))
            self._pool.write_good_code()
            self._pool.signal(signal.SIGHUP)

    def reload_with_kills(self, dice: Random) -> None:
        """Kill workers during a reload."""
        self._pool.write_good_code()
        with self._reloads_awaited(1):
            self._pool.signal(signal.SIGHUP)
            for _ in range(dice.randint(2, 8)):
                time.sleep(dice.uniform(0, 0.15))
                self._kill_some(dice, 1)

    def reload_broken(self, dice: Random) -> None:
        """Reload code whose trial fails: everything goes on as before, and this excuses nothing."""
        self._pool.write_code(BROKEN[dice.choice(sorted(BROKEN))])
        self._reload()
        self._pool.write_good_code()

    def reload_fails_behind_exec(self, dice: Random) -> None:
        """Reload code that fails only when the master runs it; then mend the code and reload."""
        with self._behind_exec():
            time.sleep(dice.uniform(0.1, 0.8))

    def stopped_behind_failed_exec(self, dice: Random) -> None:
        """Stop the master for a while when its code has failed behind the exec."""
        with self._behind_exec():
            time.sleep(dice.uniform(0, 0.3))
            with self._stopped(self._pool.pid):
                time.sleep(dice.uniform(0.1, 0.8))
            time.sleep(0.2)

    @contextmanager
    def _behind_exec(self) -> Iterator[None]:
        """Have the code fail behind the exec, and mend it afterwards. No worker is replaced meanwhile."""
        promises = Promise.SIZE, Promise.REAP, Promise.TICK, Promise.ANSWER, Promise.SCRAPE
        loads = self._pool.folder / "loads"
        self.workers_are_spared.set()
        self._book.is_gentle.set()
        try:
            with self._ledger.excuse("failed behind the exec", *promises, grace=2.5):
                time.sleep(0.3)  # requests that end their worker
                self._pool.write_code(FAILS_THE_SECOND_TIME)
                self._reload(until=lambda: loads.exists() and loads.stat().st_size > 1)
                yield
                self._pool.write_good_code()
                self._reload()
        finally:
            self._book.is_gentle.clear()
            self.workers_are_spared.clear()

    def reload_cannot_boot(self, dice: Random) -> None:
        """Reload code whose workers do not boot, until they do."""
        self._pool.write_good_code()
        with self._boot_trouble(dice.choice(["raise", "exit", "crash", "hang"])):
            self._reload()
            time.sleep(dice.uniform(0, 0.5))
        if dice.random() < 0.5:
            self._reload()

    # Shortages in the middle of a reload: the old workers serve, and it comes to an end by itself.

    def reload_without_descriptors(self, dice: Random) -> None:
        """Reload with few descriptors left, or with none."""
        self._pool.write_good_code()
        limit = max(fds_of(self._pool.pid)) + dice.randint(-20, 12)
        with (
            self._shortage(Promise.TICK, Promise.SCRAPE, Promise.REAP, grace=4),
            self._reloads_awaited(1),
            self._limited(self._pool.pid, resource.RLIMIT_NOFILE, max(3, limit)),
        ):
            self._pool.signal(signal.SIGHUP)
            time.sleep(dice.uniform(0.3, 2))

    def reload_without_processes(self, dice: Random) -> None:
        """Reload when the container may have no further process, from a moment of the reload on."""
        self._pool.write_good_code()
        if self._processes is not None:
            self._processes.put(self._all_of_it())
        with (
            self._shortage(Promise.SCRAPE, Promise.REAP, grace=4),
            self._reloads_awaited(1),
        ):
            self._pool.signal(signal.SIGHUP)
            time.sleep(dice.uniform(0, 0.5))
            with self._switched_on(self._processes):
                time.sleep(dice.uniform(0.3, 2))

    def reload_with_failing_calls(self, dice: Random) -> None:
        """Reload while a call fails that the exec, or what comes behind it, needs."""
        self._pool.write_good_code()
        calls = [
            "execve:error=ENOMEM:when=1",
            "execve:delay_enter=300000",
            "memfd_create:error=ENOMEM",
            "pidfd_open:error=EMFILE",
            "pipe2:error=EMFILE",
            "epoll_create1:error=EMFILE",
            f"{FORKS}:error=EAGAIN",
        ]
        with (
            self._shortage(Promise.TICK, Promise.SCRAPE, Promise.REAP, grace=4),
            self._reloads_awaited(1),
            self._traced(self._pool.pid, dice.choice(calls)),
        ):
            self._pool.signal(signal.SIGHUP)
            time.sleep(dice.uniform(0.5, 2))

    def reload_with_files_cut_short(self, dice: Random) -> None:
        """Reload while no file may be longer than a few hundred bytes."""
        self._pool.write_good_code()
        with (
            self._shortage(Promise.TICK, Promise.SCRAPE, Promise.REAP, grace=4),
            self._reloads_awaited(1),
            self._limited(self._pool.pid, resource.RLIMIT_FSIZE, dice.choice([0, 200, 1000])),
        ):
            self._pool.signal(signal.SIGHUP)
            time.sleep(dice.uniform(0.5, 1.5))

    def reload_while_stopped(self, dice: Random) -> None:
        """Stop the master at a random moment of a reload."""
        self._pool.write_good_code()
        promises = Promise.SIZE, Promise.REAP, Promise.TICK, Promise.SCRAPE
        with (
            self._ledger.excuse("master stopped in a reload", *promises, grace=3),
            self._reloads_awaited(1),
        ):
            self._pool.signal(signal.SIGHUP)
            time.sleep(dice.uniform(0, 0.5))
            with self._stopped(self._pool.pid):
                time.sleep(dice.uniform(0.1, 1.2))

    # Around the pool

    def metrics_process_killed(self, dice: Random) -> None:
        """End the metrics process."""
        number = dice.choice([signal.SIGKILL, signal.SIGTERM, *LETHAL])
        with self._ledger.excuse("metrics process killed", Promise.SCRAPE, grace=2.5):
            os.kill(dice.choice(self._pool.metrics_processes()), number)

    def metrics_process_stopped(self, dice: Random) -> None:
        """Stop the metrics process: it hangs, and is replaced."""
        pid = dice.choice(self._pool.metrics_processes())
        with (
            self._ledger.excuse("metrics process stopped", Promise.SCRAPE, grace=2.5),
            self._stopped(pid),
        ):
            time.sleep(dice.uniform(0.5, 4))

    def metrics_under_attack(self, dice: Random) -> None:
        """Have many clients of the metrics process say too little, or too much. This excuses nothing."""
        openings = [b"", b"GET /met", b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000, os.urandom(500)]
        with contextlib.ExitStack() as stack:
            for _ in range(dice.randint(5, 60)):
                with contextlib.suppress(OSError):
                    client = stack.enter_context(socket.create_connection(self._pool.metrics, 1))
                    client.send(dice.choice(openings))
            time.sleep(dice.uniform(0.1, 1))

    def log_unread(self, dice: Random) -> None:
        """Leave the log unread until its pipe is full, or nearly so."""
        self._pool.log.pause()
        try:
            time.sleep(dice.uniform(0.3, 3))
        finally:
            self._pool.log.resume()

    def disk_full(self, dice: Random) -> None:
        """Fill the file system that has the standard output of the pool."""
        if self._disk is None:
            raise CannotArrangeError
        filler = self._disk / "filler"
        try:
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
            time.sleep(dice.uniform(0.3, 2))
        finally:
            filler.unlink()
