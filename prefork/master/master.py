"""The master: one thread that keeps a pool. It serves no request and waits for no worker.

The master repeats a *tick*: it takes the orders, lets ``service_actions()`` collect the workers that
have ended, looks at the pool, has the policy decide, and carries the plan out. Then it waits for the
next event, or for the next instant at which there is something to decide. That poll is the only wait.

``_tick()`` is the table of contents. What each order does in each phase stands in ``lifecycle.py``.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable

import msgspec

from prefork.host.clock import Clock
from prefork.host.description import describe, shown
from prefork.host.handover import FORMAT, HandoverError, MasterState
from prefork.host.notify import Notifier, status_line
from prefork.host.process import process
from prefork.master.announcements import Announcements
from prefork.master.intakes import Intakes
from prefork.master.lifecycle import (
    Effect,
    Life,
    MasterOrder,
    advance,
    effect_of,
    has_stopped,
    next_instant,
    obey,
    reason_to_advance,
)
from prefork.master.lot_process import Links, LotProcess
from prefork.master.metrics_process import MetricsProcess
from prefork.master.orphans import Orphans
from prefork.master.pool_size import PoolSize, first_size
from prefork.master.saturation import Saturation, clients_waiting, publish_saturation
from prefork.master.signals import SignalCounts, orders_of
from prefork.master.wakeup import Wakeup
from prefork.reloading.reload import Reload
from prefork.workers import forks, log, system
from prefork.workers.errors import BootError, CrashLoopError
from prefork.workers.pool.before_fork import frozen_heap, refuse_threads
from prefork.workers.pool.policy import decide
from prefork.workers.pool.pool import Pool
from prefork.workers.pool.views import PoolView
from prefork.workers.scoreboard import PoolField
from prefork.workers.spec import WorkerSpec
from prefork.workers.states import Phase
from prefork.workers.system import System
from prefork.workers.text import escaped

BOOT_TRIES = 3
"""Workers of the first generation that may die before any was ready. A boot error ends the pool at once."""

LOOK_INTERVAL = 0.4
"""Most seconds between two looks at the listeners.

So no client waits longer than 0.5 s while a worker is idle, even when the kernel's wake-up was lost.
"""

FAILURE_PAUSE = 0.02
"""Seconds between two ticks when the first one has failed, so that a loop that keeps failing is no busy loop."""

TRIAL_LOOK = 0.05
"""Seconds between two looks at a reload that is under way."""


def _no_reload(_now: float) -> str:
    """Say that the servers want no reload."""
    return ""


class Caller(msgspec.Struct, frozen=True):
    """The calls that the master makes in its loop for the servers.

    service_actions: called in every tick. publish_pids: called in every tick with the pids of the
    live workers. poll_interval: most seconds between two ticks. wants_reload: called in every tick while
    the pool serves; returns why it should be reloaded, "" for no reason. announcements: what makes the
    servers known to others.
    """

    service_actions: Callable[[], None]
    publish_pids: Callable[[set[int]], None]
    poll_interval: float
    wants_reload: Callable[[float], str] = _no_reload
    announcements: Announcements = Announcements()


class Master:
    """Keeps one pool. Made and run by ``serve_forever()``, in the calling thread.

    previous: what an earlier image of this process has left; None in the first one.
    signals: those that the caller handles; None where it handles none, as in a thread.
    links: to the lot; none where no server parks.
    system: what forks, signals and collects. clock: None for the real one. Tests pass others.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        wakeup: Wakeup,
        caller: Caller,
        previous: MasterState | None = None,
        *,
        signals: SignalCounts | None = None,
        links: Links | None = None,
        system: System = system,
        clock: Clock | None = None,
    ) -> None:
        settings = self._settings = spec.settings
        self._listeners = spec.listeners
        links = links or Links(())
        self._sources = [*spec.listeners, *links.queues]
        """What brings requests: the listeners, and the links by which parked connections come back."""
        self._is_successor = previous is not None
        self._wakeup = wakeup
        self._caller = caller
        self._signals = signals or SignalCounts()
        self._shutdown_asked = False
        self._ready_announced = False
        self._clock = clock or Clock(0.0 if previous is None else previous.lost_time)
        self._now = self._clock.now
        self._life = Life(since=self._now())
        self._orphans = Orphans(system)
        self._intakes = Intakes(())
        self._thread = threading.get_ident()
        # Not a poll(): that fails where more descriptors are waited for than RLIMIT_NOFILE allows, and
        # the limit can be lowered from outside at any time.
        self._poll = select.epoll()
        self._on_list = forks.add(self._poll.close)
        try:
            self.metrics = MetricsProcess(
                spec,
                self._poll,
                previous=None if previous is None else previous.metrics,
                system=system,
            )
            try:
                self.pool = Pool(
                    spec,
                    previous=None if previous is None else previous.pool,
                    system=system,
                )
            except BaseException:
                if previous is None:  # or the next attempt needs its socket
                    self.metrics.close()
                raise
        except BaseException:
            _close(self._poll, self._on_list)
            raise
        self.lot = LotProcess(
            spec,
            links,
            self._poll,
            previous=None if previous is None else previous.lot,
            system=system,
        )
        self._size = PoolSize(self.pool, first_size(settings, previous))
        self._saturation = Saturation(
            self._listeners,
            functools.partial(publish_saturation, self.pool.board),
            functools.partial(clients_waiting, self.pool.board, links.queues),
            parks=len(links.queues) == len(spec.listeners),
        )
        self._notifier = Notifier(was_ready=previous is not None)
        self._reload = Reload(
            spec,
            self.pool,
            self._notifier,
            previous=previous,
            endpoints=self.metrics.endpoints,
            state_to_hand_over=self._state_to_hand_over,
        )
        wakeup.register(self._poll)
        self._poll.register(self.pool, select.EPOLLIN)

    # --- from other threads

    def ask_shutdown(self) -> None:
        """Have the pool finish the requests in hand and stop (any thread). What is queued stays queued."""
        self._shutdown_asked = True
        self._wakeup.wake()

    # --- the life of a pool

    def run(self) -> None:
        """Keep the pool until it has stopped.

        Raises KeyboardInterrupt if INT was among the orders, BootError if no worker becomes ready,
        CrashLoopError (``crash_loop = exit``), and whatever ``service_actions()`` raises. No worker is
        left in any case.
        """
        with frozen_heap():
            self._check_threads()
            self._reload.adopt(self._now())
            self.metrics.replace_previous(self._now())
            self.lot.adopt(self._now())
            self._announce_start()
            try:
                for listener in self._listeners:
                    listener.prepare(self._settings)
                self._intakes = Intakes(self._listeners)
                self._run_until_stopped()
            finally:
                if self.pool.link.is_in_master:
                    self._reload.end()
                    self._caller.announcements.end()
                    for listener in self._listeners:
                        listener.restore()
                    self.metrics.stop()
                    self.lot.stop()
                    log.event(logging.INFO, "master", "stopped", pid=os.getpid())
                    self.pool.call_hook("on_exit")
        if self._life.interrupted and not self._signals.is_programs_own(signal.SIGINT):
            raise KeyboardInterrupt

    def close(self) -> None:
        """Give back descriptors, shared memory and the address of the metrics process."""
        self._notifier.close()
        self.metrics.close()
        self.lot.close()
        self.pool.close()
        _close(self._poll, self._on_list)

    def _announce_start(self) -> None:
        board = self.pool.board
        board.set_pool(PoolField.MASTER_PID, os.getpid())
        if not self._is_successor:
            board.set_pool(PoolField.STARTED_NS, time.monotonic_ns())
        description = describe(self._settings, self._listeners, self.metrics.addresses)
        board.description.write(description.to_text())
        log.event(
            logging.INFO,
            f"master pid={os.getpid()}",
            "continues with new code" if self._is_successor else "started",
            listeners=" ".join(map(str, self._listeners)),
            workers=self._size.floor,
            max_children=self._settings.max_children,
        )

    def _check_threads(self) -> None:
        """Say in plain words what a master with threads means for its workers, or refuse it."""
        if threads := refuse_threads(self._settings):
            log.event(
                logging.WARNING,
                "master",
                "has other threads; they do not exist in the workers, and a lock that one of them holds "
                "at a fork stays locked there: start threads in worker_init()",
                threads=", ".join(threads),
            )

    def _run_until_stopped(self) -> None:
        # An exception in a tick, usually one of the program's service_actions(), has to leave
        # serve_forever(). But first the workers have to leave. So the exception is kept, the pool gets
        # the order FAILURE, and the loop goes on without service_actions() until no worker is left.
        # If the loop itself is what fails, its ticks may never make the workers leave. Therefore it
        # ends at stop_by at the latest, and what is left is killed.
        service_actions = self._caller.service_actions
        failure: BaseException | None = None
        while failure is None or self._now() < self._life.stop_by:
            try:
                wake = self._tick(service_actions)
                if self._has_stopped():
                    break
                self._wait(wake)
            except BaseException as error:
                if not self.pool.link.is_in_master:
                    raise
                failure = failure or error
                service_actions = self.collect
                self._leave_after(failure)
                select.select([], [], [], FAILURE_PAUSE)
        if failure is not None:
            self.pool.kill_all(self._now())
            raise failure

    def _leave_after(self, failure: BaseException) -> None:
        # The life changes before its log line is written. So a log handler that raises, which may be
        # what has failed in the first place, does not keep the loop from collecting the workers.
        life = obey(self._life, MasterOrder.FAILURE, self._settings, self._now())
        with contextlib.suppress(Exception):
            self._change_life(life, why=type(failure).__name__)

    def _has_stopped(self) -> bool:
        workers = len(self.pool.table)
        waiting = not workers and self._work_waiting()
        return has_stopped(self._life, self._now(), workers=workers, work_waiting=waiting)

    def _tick(self, service_actions: Callable[[], None]) -> float | None:
        self._take_orders()
        service_actions()
        now = self._now()
        # An override of service_actions() may have forgotten to call super(), which reaps.
        self.pool.deaths.reap(now)
        self.pool.note_ready(now)
        self._check_boots()
        self._announce_ready()
        closed = self._intakes.check(now, serving=self._life.phase.keeps_size)
        self.pool.board.set_pool(PoolField.LISTENERS_CLOSED, closed)
        self._step_reload(now)
        self.pool.wakeups.look(now)
        self.pool.dumps.insist(now)
        self.pool.hang_ups.look(now)
        self._change_life(advance(self._life, now), why=reason_to_advance(self._life))
        self._size.look_at_box(
            now, serving=self._life.phase.keeps_size and not self._reload.under_way
        )
        view = self._size.look_at_memory(self._view(now))
        self._saturation.look(view, self.pool.table.pids, now)
        plan = decide(view, self._size.settings, now)
        self._size.follow(plan.spares)
        self.pool.apply(plan, now)
        self._publish()
        announced = self._caller.announcements.tick(
            now, ready=self._ready_announced, phase=self._life.phase
        )
        self.metrics.tick(self.pool, now)
        self.lot.tick(self.pool, now, draining=self._life.phase is Phase.DRAINING)
        self.pool.dumps.show_due(now)
        self.pool.note_truncated()
        self._orphans.collect(self.pool.table.pids, now)
        self._notifier.tick(self._life.phase, functools.partial(self._status_line, view))
        trial = now + TRIAL_LOOK if self._reload.under_way else None
        load = self._size.watch(now, serving=self._life.phase.keeps_size)
        return _earliest(
            plan.wake, self.pool.dumps.next_at, load, trial, announced, next_instant(self._life)
        )

    def runs_here(self) -> bool:
        """Return whether the calling thread is the one that runs the master."""
        return threading.get_ident() == self._thread

    def collect(self) -> None:
        """Collect the workers that have ended. ``service_actions()`` does this by default.

        In another thread than the master's it does nothing: the next tick collects them.
        """
        if self.runs_here():
            self.pool.deaths.reap(self._now())

    def _wait(self, wake: float | None) -> None:
        now = self._now()
        length = min(self._caller.poll_interval, LOOK_INTERVAL)
        if wake is not None:
            length = min(length, max(0.0, wake - now))
        if self._wakeup.wait(self._poll, length):
            self._size.was_woken(self._now())
        self._clock.waited(length)

    # --- orders

    def _take_orders(self) -> None:
        if self._wakeup.shutdown_asked():
            log.event(logging.INFO, "master", "asked by a worker's handler to shut down")
            self._shutdown_asked = True
        if self._shutdown_asked:
            self._shutdown_asked = False
            self._obey(MasterOrder.SHUTDOWN)
        for order, change in orders_of(self._signals.take(self._wakeup.drain())):
            self._obey(order, change)

    def _obey(self, order: MasterOrder, change: int = 0) -> None:
        """Do what an order does in this phase. change: of the number of workers to keep (TTIN, TTOU)."""
        now = self._now()
        effect = effect_of(self._life, order, now)
        self._change_life(obey(self._life, order, self._settings, now), why=order.value)
        match effect:
            case Effect.RELOAD:
                self._reload.ask(order.value)
            case Effect.RESIZE:
                self._size.move_floor(change, order.value)
            case Effect.REPORT:
                self._report_status()
            case Effect.CANCEL:
                self.pool.cancels.note_named(now)
            case Effect.NONE:
                phase = self._life.phase.name.lower()
                log.event(logging.INFO, "master", "order has no effect", order=order, phase=phase)

    def _change_life(self, life: Life, *, why: str) -> None:
        """Take over a new state of the pool's life. No other method changes the life.

        why: the order, the setting or the exception, for the log.
        """
        before, self._life = self._life, life
        if life.phase is before.phase:
            return
        if life.phase is Phase.DRAINING:
            for source in self._sources:
                source.close_intake()
        level = logging.WARNING if life.phase is Phase.STOPPING_NOW else logging.INFO
        old, new = before.phase.name.lower(), life.phase.name.lower()
        log.event(level, "master", "phase changed", old=old, new=new, why=why)

    def _report_status(self) -> None:
        log.event(
            logging.INFO,
            "master",
            "status",
            phase=self._life.phase.name.lower(),
            target=self._size.spares.size,
            workers=len(self.pool.table),
            states=" ".join(f"{state}={n}" for state, n in self.pool.counts().items()),
        )
        self.pool.dumps.ask_all(self._now())

    # --- reload

    def _step_reload(self, now: float) -> None:
        if self._life.phase is not Phase.SERVING:
            self._reload.cancel()
            return
        if self._reload.new_code_serves:
            self._size.follow_settings()
        if reason := self._caller.wants_reload(now):
            self._reload.ask(reason)
        self._reload.step(now)

    def _state_to_hand_over(self) -> MasterState:
        """Return what the next image of this master needs to go on.

        Raises HandoverError if ``on_reload()`` has called ``shutdown()``: the next image would not know.
        """
        if self._shutdown_asked:
            raise HandoverError("shutdown() was called meanwhile")
        self._notifier.feed()  # the next sign of life is given when the new code is loaded
        quiet_ns = int(self._settings.boot_timeout * 1e9)
        self.pool.board.set_pool(PoolField.QUIET_UNTIL_NS, time.monotonic_ns() + quiet_ns)
        holdings = self._reload.holdings
        return MasterState(
            format=FORMAT,
            pid=os.getpid(),
            pool=self.pool.handover_state(),
            listeners=holdings.adoptable,
            kept=holdings.kept,
            others=holdings.others,
            socket_files=holdings.socket_files(),
            metrics_dir=holdings.metrics_dir,
            wakeup=self._wakeup.fds,
            lost_time=self._clock.lost,
            floor=self._size.floor,
            floor_set=self._size.floor_set,
            size=self._size.spares.size,
            settings=shown(self._settings),
            load_timeout=self._settings.boot_timeout,
            graceful_timeout=self._settings.graceful_timeout,
            again=self._reload.wanted_by,
            metrics=self.metrics.handover_state(),
            pidfile=process.pidfile,
            lot=self.lot.handover_state(),
        )

    # --- looking

    def _view(self, now: float) -> PoolView:
        pool = self.pool
        return PoolView(
            phase=self._life.phase,
            floor=self._size.floor,
            workers=pool.views(now),
            spares=self._size.spares,
            oom_killed=pool.deaths.oom_killed,
            oldest_generation=self._reload.oldest_generation(now),
            lost=pool.table.lost,
            lost_after_serving=pool.table.lost_after_serving,
            fork_at=pool.failures.fork_at,
            try_at=pool.failures.try_at,
            probing=pool.failures.probing,
            respawns_left=pool.failures.respawns_left(self._size.spares.size, now),
            stop_by=self._life.stop_by,
            dump_first=self._life.dump_first,
            work_waiting=self._work_waiting(),
        )

    def _work_waiting(self) -> bool:
        if self._life.phase is Phase.DRAINING:
            return any(source.needs_draining() for source in self._sources)
        return any(source.has_work() for source in self._sources)

    def _check_boots(self) -> None:
        """Raise BootError if the first workers cannot boot, CrashLoopError in a crash loop if so set."""
        failures = self.pool.failures
        if not self._life.phase.keeps_size:
            return
        first = not failures.ever_ready and failures.boots > 0
        if first and (failures.own_fault or failures.died_booting >= BOOT_TRIES):
            raise boot_error(failures.last_report)
        if failures.is_crash_loop and self._settings.crash_loop == "exit":
            raise CrashLoopError(
                "new workers die again and again (crash_loop = exit)", failures.last_report
            )

    def _announce_ready(self) -> None:
        # Only workers of this image's code count, so that after a reload the hook of the new program
        # is called when its own workers are ready.
        floor, ready = self._size.floor, self.pool.table.count_ready(self.pool.generation)
        if not self._ready_announced and ready >= floor:
            self._ready_announced = True
            log.event(logging.INFO, f"master pid={os.getpid()}", "ready", workers=floor)
            # The service manager hears of a reload when the roll ends (reload.py).
            if not self._is_successor:
                self._notifier.ready(f"{floor} workers ready")
            self.pool.call_hook("when_ready")

    def _publish(self) -> None:
        board = self.pool.board
        board.write_header()
        board.set_pool(PoolField.MASTER_PID, os.getpid())
        board.set_pool(PoolField.TICK_NS, time.monotonic_ns())
        board.set_pool(PoolField.QUIET_UNTIL_NS, 0)
        board.set_pool(PoolField.PHASE, self._life.phase)
        board.set_pool(PoolField.GENERATION, self.pool.generation)
        self._size.publish(were_ready=self._ready_announced or self._is_successor)
        self._caller.publish_pids(self.pool.table.pids)

    def _status_line(self, view: PoolView) -> str:
        return status_line(
            view,
            self._listeners,
            reloading=self._reload.under_way,
            failure=self.pool.board.reload_report.read(),
        )


def boot_error(report: str) -> BootError:
    """Return the error for first workers that cannot boot. report: of the last one; its last line is the cause."""
    lines = report.splitlines() or [""]
    cause = f": {escaped(lines[-1].strip())}" if lines[-1] else ""
    return BootError(f"the application cannot boot: no worker became ready{cause}", report)


def _earliest(*instants: float | None) -> float | None:
    return min((instant for instant in instants if instant is not None), default=None)


def _close(epoll: select.epoll, on_list: forks.Entry) -> None:
    with forks.lock:
        forks.remove(on_list)
        epoll.close()
