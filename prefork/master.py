"""The master: one thread, one wait, one tick. It serves no request and waits for no worker.

A tick takes the signals, lets ``service_actions()`` collect the dead, looks at the pool, has the
policy decide, does what it says, and waits for the next event or instant.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from prefork.signals import Inbox, Wakeup
from prefork.workers import log, system
from prefork.workers.bootstrap import SHUTDOWN, WorkerSide, frozen_heap
from prefork.workers.errors import BootError
from prefork.workers.listener import Listener
from prefork.workers.policy import PoolView, decide
from prefork.workers.pool import Pool
from prefork.workers.scoreboard import PoolField
from prefork.workers.settings import Settings
from prefork.workers.states import Phase

BOOT_TRIES = 3
"""Workers of the first generation that may die before any was ready; a boot error ends it at once."""

LOOK_INTERVAL = 0.4
"""Seconds between two looks at the listeners at most.

No client waits more than 0.5 s while a worker is idle, even when the kernel's wake-up was lost.
"""

DUMP_DELAY = 0.1
"""Seconds after which the stack dumps asked for by USR1 are read."""

FAILURE_PAUSE = 0.02
"""Seconds between two tries of a loop that fails; at the end of ``graceful_timeout`` workers are killed."""

SAME_ORDER = 0.05
"""Seconds within which a second TERM or INT is the first once more: ``timeout(1)`` sends it to a
child and then to its group, a terminal's wrapper may do alike. People take longer."""

LATE = 1.0
"""Seconds by which a wait may overrun before the master takes it that it did not run (suspend, SIGSTOP)."""

ORPHAN_AGE = 0.5
"""Seconds an unknown ended child is left to whoever in this program may be waiting for it."""


class Master:
    """Keeps one pool. Made and run by ``serve_forever()``, in the calling thread."""

    def __init__(
        self,
        settings: Settings,
        listeners: list[Listener],
        *,
        wakeup: Wakeup,
        hooks: Callable[..., Any],
        enter: Callable[[WorkerSide], None],
        title: tuple[str, str],
        service_actions: Callable[[], None],
        publish_pids: Callable[[set[int]], None],
        poll_interval: float | None,
    ) -> None:
        self._settings = settings
        self._listeners = listeners
        self._wakeup = wakeup
        self._service_actions = service_actions
        self._publish_pids = publish_pids
        self._poll_interval = 0.5 if poll_interval is None else max(0.0, poll_interval)
        self._inbox = Inbox()
        self._shutdown_asked = False
        self._interrupted = False
        self._stop_signalled_at: float | None = None
        self._phase = Phase.SERVING
        self._dump_first = False
        self._target = settings.workers
        self._announced_bound: int | None = None
        self._ready_announced = False
        self._drain_at = 0.0
        self._stop_by = 0.0
        self._show_dumps_at: float | None = None
        self._lost = 0.0
        self._woke_at = self._now()
        self._orphans: dict[int, float] = {}
        self._is_init = system.is_init()
        self._thread = threading.get_ident()
        self._poll = select.poll()
        self.pool = Pool(
            settings,
            listeners,
            hooks=hooks,
            enter=enter,
            title=title,
            wake=wakeup.write_fd,
            private_fds=lambda: [wakeup.read_fd],
        )
        self._poll.register(wakeup, select.POLLIN)
        self._poll.register(self.pool, select.POLLIN)

    # --- from other threads

    def ask_shutdown(self) -> None:
        """Have the pool stop gracefully, leaving what is queued in the kernel (any thread)."""
        self._shutdown_asked = True
        self._wakeup.wake()

    # --- the life of a pool

    def run(self) -> None:
        """Keep the pool until it has stopped. KeyboardInterrupt after INT, BootError when it cannot boot."""
        in_main_thread = threading.current_thread() is threading.main_thread()
        handled = self._inbox.open(self._wakeup) if in_main_thread else contextlib.nullcontext()
        with handled, frozen_heap():
            self._announce_start()
            try:
                for listener in self._listeners:
                    listener.prepare()
                self._run_until_stopped()
            finally:
                for listener in self._listeners:
                    listener.restore()
                log.event(logging.INFO, "master", "stopped", pid=os.getpid())
                self.pool.call_hook("on_exit")
        if self._interrupted:
            raise KeyboardInterrupt

    def close(self) -> None:
        """Give back descriptors and shared memory."""
        self.pool.close()

    def _announce_start(self) -> None:
        board = self.pool.board
        board.set_pool(PoolField.MASTER_PID, os.getpid())
        board.set_pool(PoolField.STARTED_NS, time.monotonic_ns())
        self.pool.note_threads()
        log.event(
            logging.INFO,
            f"master pid={os.getpid()}",
            "started",
            listeners=" ".join(map(str, self._listeners)),
            workers=self._target,
            max_children=self._settings.max_children,
        )

    def _run_until_stopped(self) -> None:
        service_actions = self._service_actions
        failure: BaseException | None = None
        while failure is None or self._now() < self._stop_by:
            try:
                wake = self._tick(service_actions)
                if self._is_stopped():
                    break
                self._wait(wake)
            except BaseException as error:  # noqa: BLE001 - leaves serve_forever(), after the workers
                failure = failure or error
                service_actions = self.collect  # the program's own failed: it is not called again
                self._leave(Phase.LEAVING)
                select.select([], [], [], FAILURE_PAUSE)  # if it is the loop that fails, slowly
        if failure is not None:
            self.pool.kill_all(self._now())
            raise failure

    def _is_stopped(self) -> bool:
        if self._phase in (Phase.SERVING, Phase.NOT_READY) or self.pool.handles:
            return False
        return (
            self._phase is not Phase.DRAINING
            or not self._work_waiting()
            or self._now() >= self._stop_by
        )

    def _tick(self, service_actions: Callable[[], None]) -> float | None:
        self._take_orders()
        service_actions()
        now = self._now()
        self.pool.reap(now)  # for an override of service_actions() that forgets to call super()
        self.pool.note_ready(now)
        self._check_first_boot()
        self._announce_ready()
        for listener in self._listeners:
            listener.assert_nonblocking()
        plan = decide(self._view(), self._settings, now)
        self._enter(plan.phase)
        self.pool.apply(plan, now)
        self._publish()
        self._show_dumps(now)
        self.pool.note_truncated()
        if self._is_init:
            self._collect_orphans(now)
        return plan.wake

    def runs_here(self) -> bool:
        """Tell whether the calling thread is the one that runs the master."""
        return threading.get_ident() == self._thread

    def collect(self) -> None:
        """Collect the workers that have ended; what ``service_actions()`` does by default.

        Only in the master's own thread: from elsewhere there is nothing to do, the next tick does it.
        """
        if self.runs_here():
            self.pool.reap(self._now())

    def _wait(self, wake: float | None) -> None:
        now = self._now()
        length = min(self._poll_interval, LOOK_INTERVAL)
        for instant in (wake, self._show_dumps_at):
            if instant is not None:
                length = min(length, max(0.0, instant - now))
        self._poll.poll(length * 1000)
        # From the end of the last wait: it may have been stopped within the tick, too.
        overrun = self._now() - self._woke_at - length
        if overrun > LATE:
            # It did not run: nobody is late for what the master did not look at.
            self._lost += overrun
            log.event(
                logging.WARNING,
                "master",
                "did not run for a while; deadlines are moved",
                seconds=overrun,
            )
        self._woke_at = self._now()

    def _now(self) -> float:
        """Return the master's clock: monotonic seconds without the time in which it did not run."""
        return time.monotonic() - self._lost

    # --- orders

    def _take_orders(self) -> None:
        wakeup_bytes = self._wakeup.drain()
        if SHUTDOWN in wakeup_bytes:
            log.event(logging.INFO, "master", "asked by a worker's handler to shut down")
            self._shutdown_asked = True
        if self._shutdown_asked and self._phase < Phase.DRAINING:
            self._leave(Phase.LEAVING)
        arrived = self._inbox.take(wakeup_bytes)
        for number in arrived:
            self._obey(number)
        if change := arrived[signal.SIGTTIN] - arrived[signal.SIGTTOU]:
            self._retarget(self._target + change, "SIGTTIN" if change > 0 else "SIGTTOU")

    def _obey(self, number: signal.Signals) -> None:
        """Act on a kind of signal that came since the last tick, however often."""
        match number:
            case signal.SIGTERM | signal.SIGINT:
                self._interrupted = self._interrupted or number is signal.SIGINT
                self._stop_by_signal(number)
            case signal.SIGQUIT:
                self._dump_first = self._phase < Phase.STOPPING_NOW
                log.event(
                    logging.WARNING, "master", "stops now, with stack dumps", signal=number.name
                )
                self._leave(Phase.STOPPING_NOW)
            case signal.SIGTTIN | signal.SIGTTOU:
                pass  # counted together
            case signal.SIGUSR1:
                self._report_status()
            case _:
                log.event(
                    logging.WARNING,
                    "master",
                    "does not do that yet, signal ignored",
                    signal=number.name,
                )

    def _stop_by_signal(self, number: signal.Signals) -> None:
        now = self._now()
        if self._stop_signalled_at is not None:
            if now - self._stop_signalled_at < SAME_ORDER:
                return
            log.event(logging.WARNING, "master", "stops now", signal=number.name)
            self._dump_first = False
            self._leave(Phase.STOPPING_NOW)
            return
        self._stop_signalled_at = now
        if self._phase is not Phase.SERVING:
            return  # shutdown() came first
        log.event(logging.INFO, "master", "stops gracefully", signal=number.name)
        self._drain_at = now + self._settings.drain_delay
        self._stop_by = self._drain_at + self._settings.graceful_timeout
        self._phase = Phase.NOT_READY

    def _leave(self, phase: Phase) -> None:
        """Enter one of the phases of stopping, unless a later one was reached already."""
        if self._phase < phase:
            if self._phase is Phase.SERVING:
                self._stop_by = self._now() + self._settings.graceful_timeout
            self._phase = phase

    def _enter(self, phase: Phase) -> None:
        """Follow the policy into the phase it decided on."""
        if phase is Phase.DRAINING and self._phase is Phase.NOT_READY:
            self._leave(Phase.DRAINING)
            for listener in self._listeners:
                listener.close_intake()

    def _retarget(self, wanted: int, why: str) -> None:
        target = max(1, min(wanted, self._settings.max_children))
        if target not in (wanted, self._announced_bound):
            self._announced_bound = target
            log.event(logging.WARNING, "master", "is at its bound", workers=target, why=why)
        if target == self._target:
            return
        if target == wanted:
            self._announced_bound = None
        old, self._target = self._target, target
        log.event(logging.INFO, "master", "resized", old=old, new=target, why=why)
        self.pool.call_hook("pool_resized", old, target, why)

    def _report_status(self) -> None:
        log.event(
            logging.INFO,
            "master",
            "status",
            phase=self._phase.name.lower(),
            target=self._target,
            pool=self.pool,
        )
        self.pool.ask_dumps()
        self._show_dumps_at = self._now() + DUMP_DELAY

    def _show_dumps(self, now: float) -> None:
        if self._show_dumps_at is not None and now >= self._show_dumps_at:
            self._show_dumps_at = None
            self.pool.show_dumps()

    # --- looking

    def _view(self) -> PoolView:
        pool = self.pool
        return PoolView(
            phase=self._phase,
            target=self._target,
            workers=pool.views(),
            retry_at=pool.retry_at,
            probing=pool.probing,
            drain_at=self._drain_at,
            stop_by=self._stop_by,
            dump_first=self._dump_first,
            work_waiting=self._work_waiting(),
        )

    def _work_waiting(self) -> bool:
        if self._phase is Phase.DRAINING:
            return any(listener.needs_draining() for listener in self._listeners)
        return any(listener.has_work() for listener in self._listeners)

    def _check_first_boot(self) -> None:
        pool = self.pool
        if pool.ever_ready or not pool.boot_failures or self._phase >= Phase.DRAINING:
            return
        if pool.boot_error or pool.boot_failures >= BOOT_TRIES:
            raise BootError("the application cannot boot: no worker became ready", pool.last_report)

    def _announce_ready(self) -> None:
        if not self._ready_announced and self.pool.count_ready() >= self._target:
            self._ready_announced = True
            log.event(logging.INFO, f"master pid={os.getpid()}", "ready", workers=self._target)
            self.pool.call_hook("when_ready")

    def _publish(self) -> None:
        board = self.pool.board
        board.set_pool(PoolField.PHASE, self._phase)
        board.set_pool(PoolField.TARGET, self._target)
        self._publish_pids(self.pool.pids)

    def _collect_orphans(self, now: float) -> None:
        """As PID 1 or subreaper, collect what other processes left behind; the program's own children come first."""
        seen = set(system.zombies_except(self.pool.pids))
        self._orphans = {pid: self._orphans.get(pid, now) for pid in seen}
        for pid, since in self._orphans.items():
            if now - since >= ORPHAN_AGE:
                system.collect_orphan(pid)
