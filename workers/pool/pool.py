"""The pool: what is done to its workers (master)."""

from __future__ import annotations

import functools
import logging
import os
import signal
import time

from prefork.workers import log, system
from prefork.workers.identity import WorkerInfo
from prefork.workers.machine import Memory
from prefork.workers.pool.cancels import Cancels
from prefork.workers.pool.deaths import Deaths
from prefork.workers.pool.descriptors import Descriptors
from prefork.workers.pool.dumps import Dumps
from prefork.workers.pool.failures import Failures
from prefork.workers.pool.handle import Handle
from prefork.workers.pool.hang_ups import HangUps
from prefork.workers.pool.oom import OomAttribution
from prefork.workers.pool.table import PoolState, Table
from prefork.workers.pool.views import Kill, Plan, Retirement, WorkerView
from prefork.workers.pool.wakeups import Wakeups
from prefork.workers.scoreboard import LAYOUT, PoolField, SlotField
from prefork.workers.spec import PoolLink, WorkerSpec
from prefork.workers.states import ExitCause, ExitKind, StartReason
from prefork.workers.system import Child, System
from prefork.workers.worker.life import run_worker
from prefork.workers.worker.prepared import PreparedWorker


class Pool:
    """The workers of one scoreboard: spawns, retires and kills them as the policy's plan says.

    Every method runs in the master, in the thread that serves. What the pool knows stands in
    ``table`` (who is in which slot), ``failures`` (what went wrong lately) and ``board`` (what
    other processes may read). ``dumps``, ``wakeups`` and ``deaths`` do their part of the work.

    spec: what each worker is made from. previous: the pool of an earlier image to go on with.
    system: what forks, signals and collects.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        *,
        previous: PoolState | None = None,
        system: System = system,
    ) -> None:
        slots = spec.settings.max_children
        self.spec = spec
        self._system = system
        self._descriptors = Descriptors(slots, spec.wake, previous)
        self.board = self._descriptors.board
        self.link = PoolLink(
            self.board, self._descriptors.life_read, os.getpid(), self._descriptors.shed
        )
        self.generation = 0
        self.failures = Failures()
        self.table = Table(slots)
        if previous is not None:
            self._take_over(previous)
        self.dumps = Dumps(self.table, self.board, system)
        self.cancels = Cancels(self.table, self.board, system)
        self.hang_ups = HangUps(self.table, system)
        self.wakeups = Wakeups(self.table, self.board, system)
        self.deaths = Deaths(
            self.table,
            self._descriptors,
            self.failures,
            OomAttribution(Memory()),
            call_hook=self.call_hook,
            system=system,
        )
        self._truncated_seen = 0

    def _take_over(self, previous: PoolState) -> None:
        """Go on with the workers of an earlier image; those of a new generation follow them."""
        self.table = Table(self.table.size, previous.workers, previous.lost)
        for handle in previous.workers:
            self._system.adopt(handle.child)
        self.generation = previous.generation + 1
        # Before the reload is said to roll: a reader that counts its new workers must not count the
        # old.
        self.board.set_pool(PoolField.GENERATION, self.generation)
        # So a first worker that fails ends the reload, not the pool.
        self.failures.ever_ready = True

    def handover_state(self) -> PoolState:
        """Return what the next image needs to go on with these workers."""
        return PoolState(
            board=self.board.fd,
            proof=self._descriptors.proof,
            slots=self.board.slots,
            layout=LAYOUT,
            life=self._descriptors.life,
            generation=self.generation,
            lost=self.table.lost,
            workers=tuple(self.table),
            counters=self.board.ledger.content(),
        )

    def counts(self) -> dict[str, int]:
        """Return how many live workers are in each state, by the name of the state."""
        states = [self.board.state(slot).name.lower() for slot in self.table.slots]
        return {state: states.count(state) for state in dict.fromkeys(states)}

    def fileno(self) -> int:
        """Return a descriptor that is readable when a worker has ended."""
        return self._descriptors.exits.fileno()

    def close(self) -> None:
        """Give everything back; no worker is left by now."""
        self._descriptors.close()

    def views(self, now: float) -> tuple[WorkerView, ...]:
        """Return the workers as the policy sees them."""
        now_ns = time.monotonic_ns()
        serves_once = self.spec.settings.max_requests == 1
        measure = self.spec.settings.cpu_timeout is not None
        for handle in self.table:
            # A slot without a pid counts as free. Another worker may have written over the word.
            self.board.words[self.board.slot_at(handle.slot) + SlotField.PID] = handle.info.pid
            handle.look(self.board, now, now_ns)
            if measure:
                self.cancels.measure(handle)
        return tuple(handle.view(self.board, now, serves_once=serves_once) for handle in self.table)

    def call_hook(self, name: str, *arguments: object) -> None:
        """Call a hook of the first server; one that raises is logged and counted.

        That holds for ``sys.exit()`` and KeyboardInterrupt, too: nothing that a hook raises stops
        the supervision. Ctrl-C itself raises nothing in a hook, because its signal is handled by the
        master's loop. A child that the hook has forked ends by its exception, as any child does.
        """
        try:
            self.spec.hooks(name, *arguments)
        except BaseException as error:
            if not self.link.is_in_master:
                raise
            self.board.count_pool(PoolField.HOOK_FAILURES)
            log.failure(logging.ERROR, "master", f"{name}() raised", error)

    # --- carrying out a plan

    def apply(self, plan: Plan, now: float) -> None:
        """Do what the policy decided."""
        for kill in plan.kill:
            self._kill(kill)
        for slot in plan.dump:
            self.dumps.ask_before_kill(self.table[slot], now)
        for slot in plan.slow:
            self.dumps.ask_slow(self.table[slot], now)
        for cancel in plan.cancel:
            self.cancels.ask(cancel, now)
        for slot in plan.poke:
            self.wakeups.wake(self.table[slot], now)
        for retirement in plan.retire:
            self._retire(retirement)
        if plan.starts:
            self._spawn(plan.starts, now)
        self.deaths.oom_killed = 0
        self.table.settle_lost(plan.spares.size)

    def _retire(self, retirement: Retirement) -> None:
        handle = self.table[retirement.slot]
        handle.ask_to_leave(retirement.cause, retirement.leave_by)
        # The pipe first: a worker that sees the word alone takes it for a stray write.
        handle.pipes.order(retirement.order)
        self.board.give_order(handle.slot, retirement.order)
        log.event(logging.DEBUG, str(handle), "asked to leave", cause=retirement.cause)

    def _kill(self, kill: Kill) -> None:
        handle = self.table[kill.slot]
        self.dumps.show(handle)
        handle.note_kill(kill.cause)
        self._system.send(handle.child, signal.SIGKILL)
        log.event(logging.WARNING, str(handle), "killed", cause=handle.killed_for)

    def kill_all(self, now: float) -> None:
        """Kill every worker, wait for its end and collect it: for a master that fails."""
        for handle in self.table:
            handle.note_kill(handle.asked_for or ExitCause(ExitKind.RETIRED))
            self._system.send(handle.child, signal.SIGKILL)
        for handle in self.table:
            self._system.wait_for_end(handle.child)
        self.deaths.reap(now)

    # --- forking

    def _spawn(self, starts: tuple[StartReason, ...], now: float) -> None:
        """Fork one worker for each reason, as far as slots and the kernel allow."""
        slots = self.table.free_slots(len(starts))
        for slot in slots:
            self.board.prepare_slot(slot, self.generation, time.monotonic_ns())
            self.call_hook("pre_fork", WorkerInfo(slot, self.generation, 0))
        # Before the fork: afterwards the new workers may have served some.
        requests = {slot: self.board.requests(slot) for slot in slots}
        children, failure = self._fork(slots)
        # Not strict: there may be fewer free slots than starts, and never a worker beyond the last
        # slot.
        for slot, child, reason in zip(slots, children, starts, strict=False):
            if child is None:
                self._descriptors.close_pipes(slot)
            else:
                self._adopt(slot, child, reason, requests[slot], now)
        self._note_forks(failure, now)

    def _fork(self, slots: list[int]) -> tuple[list[Child | None], OSError | None]:
        try:
            self._descriptors.open_pipes(slots)
        except OSError as error:
            return [None] * len(slots), error
        prepared = [
            PreparedWorker(
                self.spec, self.link, slot, self.generation, self._descriptors.pipes[slot]
            )
            for slot in slots
        ]
        return self._system.fork_children([functools.partial(run_worker, one) for one in prepared])

    def _adopt(
        self, slot: int, child: Child, reason: StartReason, requests: int, now: float
    ) -> None:
        handle = Handle(
            WorkerInfo(slot, self.generation, child.pid),
            child,
            self._descriptors.pipes[slot],
            spawned_at=now,
            seen_at=now,
            spread=os.urandom(1)[0] / 255,
            requests_before=requests,
        )
        self.table.add(handle, reason)
        self.failures.respawned(reason is StartReason.RESPAWNED)
        self._descriptors.watch(child)
        self.board.occupy_slot(slot, child.pid, reason)
        log.event(logging.DEBUG, str(handle), "spawned", reason=reason)

    def _note_forks(self, failure: OSError | None, now: float) -> None:
        """Log the first of a row of failures, and the fork that ends the row."""
        failures = self.failures
        if failure is None:
            if failures.forks:
                log.event(
                    logging.WARNING, "master", "fork succeeded again", failures=failures.forks
                )
                failures.forked()
            return
        failures.fork_failed(now)
        self.board.count_pool(PoolField.SPAWN_FAILURES)
        if failures.forks == 1:
            log.event(
                logging.ERROR,
                "master",
                "fork failed, retrying",
                error=failure,
                workers=len(self.table),
            )

    # --- watching

    def note_ready(self, now: float) -> None:
        """Find workers that have become ready since the last tick, and those that proved sound."""
        for handle in self.table:
            if handle.proven:
                continue  # nearly all of them, at nearly every tick
            if handle.note_ready(self.board, now):
                boot = max(0.0, now - handle.spawned_at)
                self.board.note_ready(handle.slot, time.monotonic_ns(), int(boot * 1e9))
                log.event(logging.INFO, str(handle), "ready", boot=boot)
                self.failures.became_ready()
                self.call_hook("worker_ready", handle.info)
            elif handle.note_proven(now):
                self.failures.proved()

    def note_truncated(self) -> None:
        """Log the first datagram that was cut at ``max_packet_size``; workers count all of them."""
        if not self._truncated_seen:
            self._truncated_seen = self.board.total(SlotField.TRUNCATED)
            if self._truncated_seen:
                log.event(
                    logging.WARNING,
                    "master",
                    "a datagram was longer than max_packet_size and was cut; "
                    "further ones are only counted",
                )
