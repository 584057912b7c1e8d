"""The operating system as tests pass it to the supervisor: children that are invented, and do what a test says.

tests/unit/test_system.py holds the fake and the real module to one list of promises.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prefork.workers.states import ExitStatus, MainThread, Usage
from prefork.workers.system import Child

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

FIRST_PID = 1001

NO_USAGE = Usage()


@dataclass(eq=False)
class FakeProcess:
    """One invented process.

    received: the signals that it was sent, in order.
    status: how it ended, None while it lives. collected: whether its parent has taken the status.
    has_received_alone: whether it has one thread, which takes signals at once. main_thread: the state
    of its main thread, None for one that cannot be looked up. cpu_seconds: the CPU time it has used. lingers: whether a
    SIGKILL ends it only a while later, when it is waited for. exits_on: the signal on which it
    exits with 0.
    """

    pid: int
    pidfd: int
    received: list[int] = field(default_factory=list)
    status: ExitStatus | None = None
    collected: bool = False
    has_received_alone: bool = False
    main_thread: MainThread | None = None
    cpu_seconds: float | None = 0.0
    lingers: bool = False
    exits_on: int | None = None


class FakeSystem:
    """Forks, signals and collects without a process. What a child was to run is never called.

    A pidfd is an eventfd, which becomes readable when its process ends, as a real one does: what
    waits in a poll or an epoll needs no change. ``close()`` closes those that are left.

    fork_errors: what forks raise, by their number in a batch: ``{2: OSError(...)}`` has the third
    fork of each batch fail, after which the real one does not try the rest. pidfd_errors: the same
    for opening a pidfd, which costs only that child.
    """

    def __init__(self) -> None:
        self.processes: dict[int, FakeProcess] = {}
        self.fork_errors: dict[int, OSError] = {}
        self.pidfd_errors: dict[int, OSError] = {}
        self.batches: list[int] = []
        """How many children each call of ``fork_children()`` was to fork."""
        self.most_alive = 0
        """How many processes lived at the same time, at the most."""
        self.orphans: set[int] = set()
        """Ended children that are no workers; a process that is PID 1 has some."""
        self.becomes_init = False
        self._pids = itertools.count(FIRST_PID)

    # --- what a test does

    def end(
        self,
        pid: int,
        code: int | None = None,
        *,
        by: int | None = None,
        usage: Usage = NO_USAGE,
    ) -> None:
        """Have a process end: with an exit status, by a signal, or (neither) with its status taken by another."""
        process = self.processes[pid]
        assert process.status is None, f"process {pid} has ended already"
        process.status = ExitStatus(code=code, signal=by, usage=usage)
        os.eventfd_write(process.pidfd, 1)

    def received(self, pid: int) -> list[int]:
        """Return the signals that a process was sent since the last call."""
        received, self.processes[pid].received = self.processes[pid].received, []
        return received

    @property
    def alive(self) -> list[int]:
        """The pids of those that have not ended, in the order of their forks."""
        return [pid for pid, one in self.processes.items() if one.status is None]

    @property
    def uncollected(self) -> list[int]:
        """The pids of those that have ended and were not collected."""
        return [p for p, one in self.processes.items() if one.status and not one.collected]

    def refuse_forks(self, after: int = 0, number: int = errno.EAGAIN) -> None:
        """Have the kernel refuse forks, until ``allow_forks()``; the first ones of each batch may succeed."""
        self.fork_errors = {after: OSError(number, os.strerror(number))}

    def allow_forks(self) -> None:
        """Have forks and pidfds succeed again."""
        self.fork_errors, self.pidfd_errors = {}, {}

    def close(self) -> None:
        """Close the pidfds that the supervisor has not closed: of those that were not collected."""
        for process in self.processes.values():
            if not process.collected:
                with contextlib.suppress(OSError):
                    os.close(process.pidfd)

    # --- what the supervisor asks

    def fork_children(
        self, runs: Sequence[Callable[[set[int]], Any]]
    ) -> tuple[list[Child | None], OSError | None]:
        """Invent a child for each, as far as the test lets it."""
        self.batches.append(len(runs))
        children: list[Child | None] = [None] * len(runs)
        failure: OSError | None = None
        for number in range(len(runs)):
            if number in self.fork_errors:
                failure = self.fork_errors[number]
                break
            pid = next(self._pids)
            if number in self.pidfd_errors:
                failure = self.pidfd_errors[number]
                continue  # it was ended at once, and collected
            pidfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self.processes[pid] = FakeProcess(pid, pidfd)
            children[number] = Child(pid, pidfd)
            self.most_alive = max(self.most_alive, len(self.alive))
        return children, failure

    def collect(self, child: Child) -> ExitStatus | None:
        """Return how it ended; a second time there is nothing to be had."""
        process = self.processes[child.pid]
        if process.status is None:
            return None
        status = ExitStatus() if process.collected else process.status
        process.collected = True
        return status

    def adopt(self, child: Child) -> None:
        """Take it as given."""

    def release(self, child: Child) -> None:
        """Close its pidfd."""
        os.close(child.pidfd)

    def wait_for_end(self, child: Child) -> None:
        """Return once it has ended; fail where the real one would wait for ever."""
        process = self.processes[child.pid]
        if process.status is None:
            assert signal.SIGKILL in process.received, f"waits for {child.pid}, which lives"
            self.end(child.pid, by=signal.SIGKILL)

    def wait_for_all(self, children: Sequence[Child], seconds: float) -> bool:
        """Return whether they have ended; as if the time had passed."""
        assert seconds >= 0
        return all(self.processes[child.pid].status is not None for child in children)

    def send(self, child: Child, number: int) -> None:
        """Note the signal; SIGKILL ends the process."""
        process = self.processes[child.pid]
        if process.status is not None:
            return
        process.received.append(number)
        if number == signal.SIGKILL and not process.lingers:
            self.end(child.pid, by=number)
        elif number == process.exits_on:
            self.end(child.pid, 0)

    def has_received_alone(self, child: Child, number: int) -> bool:
        """Return what the test says."""
        del number
        return self.processes[child.pid].has_received_alone

    def main_thread(self, child: Child) -> MainThread | None:
        """Return what the test says."""
        return self.processes[child.pid].main_thread

    def cpu_seconds(self, child: Child) -> float | None:
        """Return what the test says."""
        return self.processes[child.pid].cpu_seconds

    def is_init(self) -> bool:
        """Return what the test says."""
        return self.becomes_init

    def zombies_except(self, pids: Collection[int]) -> Iterator[int]:
        """Yield those that ended, orphans included."""
        yield from sorted(self.orphans.union(self.uncollected) - set(pids))

    def collect_orphan(self, pid: int) -> None:
        """Forget it."""
        self.orphans.discard(pid)
