"""The table of slots and handles; the hands that carry out a plan (master)."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import itertools
import logging
import mmap
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator

from prefork.workers import log, reports, system
from prefork.workers.identity import DUMP_AT_ONCE, WorkerInfo, WorkerPipes
from prefork.workers.machine import Memory
from prefork.workers.pool.deadlines import DUMP_TIME, INSIST_TIME
from prefork.workers.pool.failures import PROVEN, Failures, is_crash
from prefork.workers.pool.handle import Handle
from prefork.workers.pool.oom import OomAttribution
from prefork.workers.pool.state import PoolState
from prefork.workers.pool.views import Kill, Plan, Retirement, WorkerView
from prefork.workers.scoreboard import PoolField, Scoreboard, SlotField
from prefork.workers.spec import PoolLink, WorkerSpec
from prefork.workers.states import (
    ExitCause,
    ExitKind,
    ExitStatus,
    Order,
    Phase,
    StartReason,
    WorkerState,
    cause_of_exit,
)
from prefork.workers.worker.life import run_worker
from prefork.workers.worker.prepared import PreparedWorker

_pools_here: list[Pool] = []
"""Every running pool of this process, so that a worker of one closes what is the others'."""

changing_pools = threading.RLock()
"""Held while a pool is made or a worker is forked: a worker must not be forked from half a pool."""


def _close_masters_fds_in_child() -> None:
    # In every child of this process, also one that the program forked for itself: it would keep
    # the life pipe open and hide the master's death from the workers.
    global changing_pools  # noqa: PLW0603 - held, perhaps by a thread that does not exist here
    changing_pools = threading.RLock()
    for pool in _pools_here:
        pool._close_masters_fds()  # noqa: SLF001 - it is of this module


os.register_at_fork(after_in_child=_close_masters_fds_in_child)


class Pool:
    """The workers of one scoreboard. Every method runs in the master, in the thread that serves."""

    def __init__(
        self,
        spec: WorkerSpec,
        *,
        private_fds: Callable[[], list[int]],
        previous: PoolState | None = None,
    ) -> None:
        self.spec = spec
        self.settings = spec.settings
        if previous is None:
            self.board = Scoreboard.create(spec.settings.max_children)
            self._life_read, self._life_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        else:
            self.board = Scoreboard.attach(previous.board, writable=True)
            self._life_read, self._life_write = previous.life
        self.link = PoolLink(self.board, self._life_read, os.getpid(), self._shed_in_worker)
        self.handles: dict[int, Handle] = {}
        self._pipes: dict[int, WorkerPipes] = {}
        self._let_go = False
        """In a child: whether it has closed what is the master's."""
        self.generation = 0
        self.failures = Failures()
        self.lost = 0
        """Workers that died unexpectedly and have not been replaced yet."""
        self.oom_killed = 0
        """Workers that the kernel has killed for want of memory since the last plan."""
        self._oom = OomAttribution(Memory())
        self._truncated_seen = 0
        self._private_fds = private_fds
        self._exits = select.epoll()
        if previous is not None:
            self._take_over(previous)
        _pools_here.append(self)

    def _take_over(self, previous: PoolState) -> None:
        """Go on with the workers of an earlier image; those of a new generation follow them."""
        self.generation, self.lost = previous.generation + 1, previous.lost
        # Before the reload is said to roll: whoever counts its new workers must not count the old.
        self.board.set_pool(PoolField.GENERATION, self.generation)
        self.failures.ever_ready = (
            True  # so a first worker that fails ends the reload, not the pool
        )
        for handle in previous.workers:
            self.handles[handle.info.slot] = handle
            self._pipes[handle.info.slot] = handle.pipes
            self._exits.register(handle.child.pidfd, select.EPOLLIN)

    def handover_state(self) -> PoolState:
        """Return what the next image needs to go on with these workers."""
        return PoolState(
            board=self.board.fd,
            life=(self._life_read, self._life_write),
            generation=self.generation,
            lost=self.lost,
            workers=tuple(self.handles.values()),
        )

    def __repr__(self) -> str:
        states = [self.board.state(slot).name.lower() for slot in sorted(self.handles)]
        counts = {state: states.count(state) for state in dict.fromkeys(states)}
        return f"<Pool {len(self.handles)}/{self.settings.max_children} {counts}>"

    @property
    def pids(self) -> set[int]:
        """The pids of the live workers."""
        return {handle.info.pid for handle in self.handles.values()}

    def fileno(self) -> int:
        """Return a descriptor that is readable when a worker has ended."""
        return self._exits.fileno()

    def close(self) -> None:
        """Give everything back; no worker is left by now."""
        with changing_pools:
            _pools_here.remove(self)
            self._exits.close()
            os.close(self._life_read)
            os.close(self._life_write)
            self.board.close()

    def views(self, now: float) -> tuple[WorkerView, ...]:
        """Return the workers as the policy sees them."""
        now_ns = time.monotonic_ns()
        return tuple(handle.view(self.board, now, now_ns) for handle in self.handles.values())

    def call_hook(self, name: str, *arguments: object) -> None:
        """Call a hook of the leading server; one that raises is logged and counted."""
        try:
            self.spec.hooks(name, *arguments)
        except Exception as error:  # noqa: BLE001 - a hook never stops supervision
            self.board.count_pool(PoolField.HOOK_FAILURES)
            log.failure(logging.ERROR, "master", f"{name}() raised", error)

    # --- carrying out a plan

    def apply(self, plan: Plan, now: float) -> None:
        """Do what the policy decided."""
        for kill in plan.kill:
            self._kill(kill)
        for slot in plan.dump:
            self._dump_before_kill(self.handles[slot], now)
        for slot in plan.slow:
            self._note_slow(self.handles[slot], now)
        for slot in plan.poke:
            self.handles[slot].wake()
        for retirement in plan.retire:
            self._retire(retirement, plan.phase)
        if plan.starts:
            self._spawn(plan.starts, now)
        self.oom_killed = 0
        if len(self.handles) >= plan.spares.size:
            self.lost = 0

    def _spawn(self, starts: tuple[StartReason, ...], now: float) -> None:
        free = (slot for slot in range(self.settings.max_children) if slot not in self.handles)
        slots = list(itertools.islice(free, len(starts)))
        for slot in slots:
            self.board.prepare_slot(slot, self.generation, time.monotonic_ns())
            self.call_hook("pre_fork", WorkerInfo(slot, self.generation, 0))
        with changing_pools:
            children, failure = self._fork(slots)
        for slot, child, reason in zip(slots, children, starts, strict=True):
            if child is not None:
                self._adopt(slot, child, reason, now)
            elif slot in self._pipes:
                self._pipes.pop(slot).close()
        if failure is not None:
            self._note_fork_failure(failure, now)
        elif self.failures.forks:
            log.event(logging.WARNING, "master", "forks again", failures=self.failures.forks)
            self.failures.forked()

    def _fork(self, slots: list[int]) -> tuple[list[system.Child | None], OSError | None]:
        try:
            for slot in slots:
                self._pipes[slot] = self._make_pipes(slot)
        except OSError as error:
            return [None] * len(slots), error
        prepared = [
            PreparedWorker(self.spec, self.link, slot, self.generation, self._pipes[slot])
            for slot in slots
        ]
        return system.fork_children([functools.partial(run_worker, one) for one in prepared])

    def _make_pipes(self, slot: int) -> WorkerPipes:
        wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            # It needs little, and a user's pipes are counted by what they could hold.
            fcntl.fcntl(wake_write, fcntl.F_SETPIPE_SZ, mmap.PAGESIZE)
            return WorkerPipes(
                wake_read, wake_write, reports.create(reports.name_of(self.board.fd, slot))
            )
        except OSError:
            os.close(wake_read)
            os.close(wake_write)
            raise

    def _adopt(self, slot: int, child: system.Child, reason: StartReason, now: float) -> None:
        info = WorkerInfo(slot, self.generation, child.pid)
        handle = Handle(
            info,
            child,
            self._pipes[slot],
            spawned_at=now,
            seen_at=now,
            spread=os.urandom(1)[0] / 255,
        )
        self.handles[slot] = handle
        self._exits.register(child.pidfd, select.EPOLLIN)
        self.board.occupy_slot(slot, child.pid, reason)
        if reason is StartReason.RESPAWNED:
            self.lost -= 1
        log.event(logging.DEBUG, str(handle), "spawned", reason=reason)

    def _note_fork_failure(self, error: OSError, now: float) -> None:
        self.failures.fork_failed(now)
        self.board.count_pool(PoolField.SPAWN_FAILURES)
        if self.failures.forks == 1:
            log.event(
                logging.ERROR,
                "master",
                "cannot fork, goes on trying",
                error=error,
                workers=len(self.handles),
            )

    def _retire(self, retirement: Retirement, phase: Phase) -> None:
        handle = self.handles[retirement.slot]
        handle.asked_for, handle.leave_by = retirement.cause, retirement.leave_by
        self.board.give_order(
            retirement.slot, Order.DRAIN if phase is Phase.DRAINING else Order.RETIRE
        )
        handle.wake()
        log.event(logging.DEBUG, str(handle), "asked to leave", cause=retirement.cause)

    def _kill(self, kill: Kill) -> None:
        handle = self.handles[kill.slot]
        self._show_dump(handle)
        handle.killed_for = kill.cause or handle.asked_for
        system.send(handle.child, signal.SIGKILL)
        log.event(logging.WARNING, str(handle), "killed", cause=handle.killed_for)

    def kill_all(self, now: float) -> None:
        """Kill and collect whatever is left, waiting for it: the last resort of a master that fails."""
        for handle in self.handles.values():
            handle.killed_for = handle.asked_for or ExitCause(ExitKind.RETIRED)
            system.send(handle.child, signal.SIGKILL)
        for handle in self.handles.values():
            system.wait_for_end(handle.child)
        self.reap(now)

    # --- stack dumps

    def ask_dumps(self, now: float) -> None:
        """Have every worker write its stacks; ``show_dumps`` puts them into the log a moment later."""
        for handle in self.handles.values():
            if handle.ready_at is not None and handle.dump_due is None:
                self._ask_dump(handle, now)

    def insist_on_dumps(self, now: float) -> None:
        """Ask those once more that have not answered; before it is decided who is killed."""
        for handle in self.handles.values():
            if handle.insist_at is not None and now >= handle.insist_at:
                handle.insist_at = None
                if not reports.read(handle.pipes.report):
                    self._insist_on_dump(handle, now)

    def show_dumps(self, now: float) -> None:
        """Log the stack dumps that were asked for a moment ago."""
        for handle in self.handles.values():
            if handle.dump_due is not None and now >= handle.dump_due:
                self._show_dump(handle)

    @property
    def dumps_due(self) -> float | None:
        """The next instant at which there are dumps to insist on, or to show."""
        instants = [(one.insist_at, one.dump_due) for one in self.handles.values()]
        return min((at for pair in instants for at in pair if at is not None), default=None)

    def _dump_before_kill(self, handle: Handle, now: float) -> None:
        handle.dumped_at, handle.doomed = now, True
        self._ask_dump(handle, now)

    def _note_slow(self, handle: Handle, now: float) -> None:
        handle.slow_noted = True
        self.board.count_pool(PoolField.SLOW_REQUESTS)
        self.board.count_slot(handle.info.slot, SlotField.SLOW)
        age = now - handle.busy_since if handle.busy_since is not None else 0.0
        log.event(logging.WARNING, str(handle), "has a slow request", request_age=age)
        self._ask_dump(handle, now)

    def _ask_dump(self, handle: Handle, now: float) -> None:
        # One that is on its way is asked for anew: it may be of the moment before the request.
        reports.clear(handle.pipes.report)
        handle.insist_at, handle.dump_due = now + INSIST_TIME, now + DUMP_TIME
        system.send(handle.child, signal.SIGUSR1)

    def _insist_on_dump(self, handle: Handle, now: float) -> None:
        """Have the signal handler itself write the stacks, which kills a worker whose frames change meanwhile.

        Those of one that is to be killed anyway, or whose only thread is in a call of C.
        """
        if handle.doomed:
            handle.dumped_at = now - INSIST_TIME  # the kill waits for it, too
        elif not system.has_received_alone(handle.child, signal.SIGUSR1):
            return
        handle.dump_due = now + DUMP_TIME - INSIST_TIME
        system.send(handle.child, DUMP_AT_ONCE)

    def _show_dump(self, handle: Handle) -> None:
        if handle.dump_due is None:
            return
        handle.insist_at = handle.dump_due = None
        handle.doomed = False
        state = self.board.state(handle.info.slot).name.lower()
        stacks = reports.shown(reports.read(handle.pipes.report))
        log.event(
            logging.WARNING, str(handle), "stacks", state=state, report=stacks or "(no answer)"
        )

    # --- watching

    def reap(self, now: float) -> None:
        """Collect the workers that have ended, and no other process."""
        ended = {fd for fd, _ in self._exits.poll(0)}
        if not ended:
            return
        # All are taken off the table before the first hook runs, which may call this again.
        for handle, status, last_words in [*self._take_off_the_table(ended)]:
            self._bury(handle, status, self._judge(handle, status, now), last_words, now)

    def _take_off_the_table(self, ended: set[int]) -> Iterator[tuple[Handle, ExitStatus, str]]:
        for slot, handle in list(self.handles.items()):
            pidfd = handle.child.pidfd
            if pidfd in ended and (status := system.collect(handle.child)) is not None:
                self._exits.unregister(pidfd)
                os.close(pidfd)
                last_words = reports.read(handle.pipes.report)
                self._pipes.pop(slot).close()
                del self.handles[slot]
                yield handle, status, last_words

    def _judge(self, handle: Handle, status: ExitStatus, now: float) -> ExitCause:
        killed_by_others = status.signal == signal.SIGKILL and handle.killed_for is None
        return cause_of_exit(
            status,
            asked=handle.asked_for,
            killed_for=handle.killed_for,
            was_ready=self._is_ready(handle, now),
            out_of_memory=killed_by_others and self._oom.accuses(now),
        )

    def _bury(
        self, handle: Handle, status: ExitStatus, cause: ExitCause, last_words: str, now: float
    ) -> None:
        slot, expected = handle.info.slot, handle.asked_for is not None
        report = "" if handle.ready_at is not None else reports.shown(last_words)
        facts = _last_facts(handle, status, self.board, now)
        self._carry_over(slot, status)
        self.board.vacate_slot(slot, cause.kind, time.monotonic_ns())
        level = logging.INFO if expected and cause == handle.asked_for else logging.ERROR
        log.event(level, str(handle), "exited", cause=cause, report=report, **facts)
        if not expected:
            self.lost += 1
            self._note_failure(handle, cause, report, now)
        self.call_hook("worker_died", handle.info, cause)

    def _carry_over(self, slot: int, status: ExitStatus) -> None:
        """Keep what the kernel forgets of a worker: totals of its slot never decrease."""
        usage = status.usage
        for field, amount in (
            (SlotField.CPU_USER_NS, usage.user_ns),
            (SlotField.CPU_SYSTEM_NS, usage.system_ns),
            (SlotField.VOLUNTARY_SWITCHES, usage.voluntary_switches),
            (SlotField.INVOLUNTARY_SWITCHES, usage.involuntary_switches),
        ):
            self.board.count_slot(slot, field, amount)

    def _note_failure(self, handle: Handle, cause: ExitCause, report: str, now: float) -> None:
        words = report or f"{handle} exited: {cause}"
        if handle.ready_at is None:
            own_fault = cause.kind is ExitKind.BOOT_ERROR
            self.failures.boot_failed(words, now, own_fault=own_fault)
        elif cause.kind is ExitKind.OOM_KILLED:
            self.oom_killed += 1
            self.failures.died_early(words, now)
        elif now - handle.ready_at < PROVEN and is_crash(cause):
            self.failures.died_early(words, now)

    def note_ready(self, now: float) -> None:
        """Find the workers that have become ready since the last tick, and those that proved sound."""
        for handle in list(self.handles.values()):
            if handle.ready_at is None and self._is_ready(handle, now):
                boot = max(0.0, now - handle.spawned_at)
                self.board.note_ready(handle.info.slot, time.monotonic_ns(), int(boot * 1e9))
                log.event(logging.INFO, str(handle), "ready", boot=boot)
                self.failures.became_ready()
                self.call_hook("worker_ready", handle.info)
            elif handle.ready_at is not None and not handle.proven:
                handle.proven = now - handle.ready_at >= PROVEN
                if handle.proven:
                    self.failures.proved()

    def _is_ready(self, handle: Handle, now: float) -> bool:
        # The worker's own word, not that of its slot as a whole: one asked to leave early was ready too.
        state = self.board.word(handle.info.slot, SlotField.STATE)
        if handle.ready_at is None and state != WorkerState.STARTING:
            handle.ready_at = now
        return handle.ready_at is not None

    def count_ready(self, generation: int = 0) -> int:
        """Return how many workers are ready and staying, of this generation or a younger one."""
        return sum(
            handle.ready_at is not None
            and handle.leave_by is None
            and handle.info.generation >= generation
            for handle in self.handles.values()
        )

    def has_older_workers(self) -> bool:
        """Tell whether workers of an older generation live."""
        return any(one.info.generation < self.generation for one in self.handles.values())

    def note_truncated(self) -> None:
        """Log the first datagram that was longer than ``max_packet_size``; the counter tells the rest."""
        if not self._truncated_seen:
            self._truncated_seen = self.board.total(SlotField.TRUNCATED)
            if self._truncated_seen:
                log.event(
                    logging.WARNING,
                    "master",
                    "a datagram was longer than max_packet_size and was cut; further ones are only counted",
                )

    # --- in a worker just forked

    def _shed_in_worker(self, slot: int) -> None:
        for other_slot, pipes in self._pipes.items():
            if other_slot != slot:
                pipes.close()
        for pool in _pools_here:
            if pool is not self:
                pool._close_workers_fds()  # noqa: SLF001 - it is of this class
        _pools_here.clear()

    def _close_masters_fds(self) -> None:
        if self._let_go:
            return  # a child's child: the numbers may be other files' by now
        self._let_go = True
        pidfds = [handle.child.pidfd for handle in self.handles.values()]
        self._exits.close()
        for fd in [*pidfds, self._life_write, *self._private_fds()]:
            with contextlib.suppress(OSError):
                os.close(fd)

    def _close_workers_fds(self) -> None:
        for fd in (self._life_read, self.spec.wake):
            os.close(fd)
        for pipes in self._pipes.values():
            pipes.close()
        self.board.close()


def _last_facts(
    handle: Handle, status: ExitStatus, board: Scoreboard, now: float
) -> dict[str, object]:
    """Return what is worth knowing of a worker that has ended."""
    facts: dict[str, object] = {"age": max(0.0, now - handle.spawned_at)}
    if request_ns := board.word(handle.info.slot, SlotField.REQUEST_NS):
        facts["request_age"] = max(0.0, (time.monotonic_ns() - request_ns) / 1e9)
    facts["cpu"] = (status.usage.user_ns + status.usage.system_ns) / 1e9
    facts["peak_memory"] = f"{status.usage.peak_bytes / 2**20:.0f}M"
    return facts
