"""The caretaker keeps the previous workers serving when the new code fails after the exec.

A trial has loaded the new code before the exec, so this is rare: the code behaves differently the
second time, a file has changed since, or the system has run out of something. By then the old code
is gone. But the workers are children of this process and still serve with the old code, and
everything they need from a master is in descriptors: the life pipe, the scoreboard, the sockets.
They leave when the process ends. So it must not end.

Code that hangs is no better than code that ends: after a time the caretaker takes over from it, too
(prefork/reloading/load_limit.py).

``stand_by()`` registers ``keep_workers_serving()`` with ``atexit`` as soon as a state is there to
adopt. However the new code ends, by an exception, by ``sys.exit()`` or at the end of its file, the
interpreter calls the function last. If no master has adopted the state by then, the function stays
in a loop in place of ending, and the loop is left in one of two ways only:

- The program is run again, by exec, with the same state. It takes over as soon as it is good. This
  happens by itself, after pauses of up to half a minute (prefork/reloading/attempts.py), and at
  once by HUP and USR2. There is no trial: there is no old code that a trial could spare.
- The process ends. TERM, INT and QUIT stop the workers first, and the exit status is 0. When the
  last worker has gone and one more attempt has failed, the exit status is 1, so that whatever
  supervises the process sees it.

Meanwhile the caretaker does for the workers what needs no code of the program. It collects those
that have ended, and says so on the scoreboard: ``/readyz`` answers 503 when too few are left. It
wakes idle workers if a client waits, because the kernel's wake-up can be lost. By USR1 the workers
write their stacks. It starts a metrics process in place of one that has ended, and collects a lot
that has ended. It forks neither a worker nor a lot, since there is no code to fork one with, and
enforces no deadline of a request.

A shortage may be the reason why all this runs, so the loop is written to need no descriptor: it
waits in ``poll()``, and looks for signals. The control signals are blocked, and pending until the
loop takes them one by one; those that came while the new code was loaded were noted, and come
first. They are taken by ``sigtimedwait()`` without a time: with one, CPython returns an
uninitialised record when the wait is over just after the process was stopped and continued.

An end that runs no ``atexit`` function, such as a crash of the interpreter or ``os._exit()``, ends
the process. The workers finish their requests and leave, and the supervisor sees the exit status.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import select
import signal
import threading
import time
from typing import Any, Final

import msgspec

from prefork.host.clock import Clock
from prefork.host.endpoint import Endpoint
from prefork.host.handover import MasterState
from prefork.host.notify import SOCKET, WATCHDOG, WATCHDOG_PID, Notifier
from prefork.host.process import process
from prefork.host.stopping import CONTROL_SIGNALS, STOPS, unattended
from prefork.reloading import live_files
from prefork.reloading.attempts import Act, decide, following, pause
from prefork.reloading.leftovers import Leftovers, hand_over_with_leftovers
from prefork.reloading.load_limit import LoadLimit
from prefork.reloading.metrics_program import start_metrics
from prefork.reloading.sockets import remove_paths
from prefork.workers import log, reports, system
from prefork.workers.pool.handle import Handle
from prefork.workers.scoreboard import PoolField, Scoreboard
from prefork.workers.states import ExitStatus, Phase, ReloadState, cause_of_exit

LOOK_INTERVAL: Final = 0.1
"""Most seconds between two looks at orders and workers."""

POKE_INTERVAL: Final = 0.4
"""Seconds between two looks at the listeners, as in the master."""

METRICS_PAUSE: Final = 5.0
"""Seconds between two starts of a metrics process, at least: each is an interpreter."""

END_BOUND: Final = 1.0
"""Seconds that killed workers have for ending."""

RELOADS: Final = (signal.SIGHUP, signal.SIGUSR2)

STATUS: Final = "the new code ended; the previous workers keep serving and are not replaced"
"""What the service manager shows."""


def stand_by() -> None:
    """Have the caretaker run if this process ends, or hangs, before a master has adopted the state."""
    if process.handover is not None:
        atexit.register(keep_workers_serving)
        if threading.current_thread() is threading.main_thread():  # or they stay blocked
            unattended.stand(to_the_end=False)
        limit = LoadLimit(process.handover, keep_workers_serving)
        process.close_after_handover(limit.lift)
        atexit.register(limit.lift)  # called before the function that was registered earlier


def keep_workers_serving(what: str = "ended before it served") -> None:
    """Take care of the workers of an earlier image. Return at once if there are none to adopt.

    Does not return otherwise: the process becomes the next image, or ends. what: what the new code
    did.
    """
    if process.handover is None:
        return
    status = 1
    try:
        live_files.put_back()
        system.block(CONTROL_SIGNALS)
        for noted in unattended.take():
            system.send_to_self(noted)
        status = Caretaker(process.handover, what).run()
    except BaseException as error:  # noqa: BLE001 - without care there must be no process
        _log_failure("cannot take care of the previous workers, ends", error)
    with contextlib.suppress(Exception):
        logging.shutdown()
    system.exit_now(status)


def _log_failure(what: str, error: BaseException) -> None:
    with contextlib.suppress(Exception):
        log.failure(logging.CRITICAL, "master", what, error)


class Caretaker:
    """Takes care of the workers in a state that no master has adopted.

    state: what the next image gets; it follows what becomes of the workers. what: what the new code
    did, such as "ended before it served".
    """

    def __init__(self, state: MasterState, what: str) -> None:
        system.lift_limit()
        self._state = state
        self._what = what
        self._clock = Clock(state.lost_time)
        self._failed_at = self._clock.now()
        self._board: Scoreboard | None = None
        self._unpublished = ""
        """The reason of a failure that is not on the scoreboard yet."""
        self._is_uncounted = False
        """Whether an attempt that was ordered has failed, and is not counted yet."""
        self._poke_at = self._metrics_at = 0.0
        # The notifier of a master that failed has taken these.
        for name in (SOCKET, WATCHDOG, WATCHDOG_PID):
            if name in process.program.environment:
                os.environ[name] = process.program.environment[name]
        self._notifier = Notifier()

    @property
    def _workers(self) -> tuple[Handle, ...]:
        return self._state.pool.workers

    def run(self) -> int:
        """Keep the workers serving until the end; return the exit status."""
        process.restore_kept()
        self._look_at_board()
        self._announce_failure()
        while True:
            order = _next_order()
            if order in STOPS:
                self._stop(at_once=order == signal.SIGQUIT)
                return 0
            if order == signal.SIGUSR1:
                self._ask_dumps()
            self._look_at_board()
            self._collect_ended()
            self._keep_metrics()
            self._collect_lot()
            self._poke()
            match self._next_act(is_ordered=order in RELOADS):
                case Act.RUN_AGAIN:
                    self._run_again(is_ordered=order in RELOADS)
                case Act.END:
                    self._give_up()
                    return 1
            # A watchdog that restarts the service would end these workers as well.
            self._notifier.tick(Phase.SERVING, lambda: STATUS)
            self._wait()

    def _wait(self) -> None:
        # Without the scoreboard no worker is collected, so one that has ended ends no wait.
        workers = () if self._board is None else self._workers
        system.wait_for_any([one.child for one in workers], LOOK_INTERVAL)
        self._clock.waited(LOOK_INTERVAL)

    # --- attempts

    def _next_act(self, *, is_ordered: bool) -> Act:
        if is_ordered:
            return Act.RUN_AGAIN
        workers = len(self._workers)
        return decide(self._state.attempt, self._failed_at, self._clock.now(), workers=workers)

    def _run_again(self, *, is_ordered: bool) -> None:
        """Become the new code. Returns only if that is impossible, which is one more failure."""
        now = self._clock.now()
        attempt = following(
            self._state.attempt, now, workers=len(self._workers), is_ordered=is_ordered
        )
        self._state = msgspec.structs.replace(
            self._state, attempt=attempt, lost_time=self._clock.lost
        )
        if is_ordered:
            self._notifier.reloading()
        self._notifier.feed()  # the next sign of life is given when the new code is loaded
        if self._board is not None:
            quiet_ns = int(self._state.load_timeout * 1e9)
            self._board.set_pool(PoolField.QUIET_UNTIL_NS, time.monotonic_ns() + quiet_ns)
        try:
            hand_over_with_leftovers(self._state)
        except Exception as error:  # noqa: BLE001 - it is tried again
            self._failed_at = self._clock.now()
            self._publish_failure(f"the program cannot be executed again: {error}")
            log.event(
                logging.ERROR,
                "master",
                "the program cannot be executed again",
                error=error,
                **self._facts(),
            )
            self._end_of_reload()

    def _facts(self) -> dict[str, Any]:
        """Return what a log line says of an attempt that has failed."""
        attempt, workers = self._state.attempt, len(self._workers)
        next_in = {"next_in": pause(attempt)} if workers else {}
        return {"attempt": attempt.number, "workers": workers, **next_in}

    def _announce_failure(self) -> None:
        """Make the outcome of this image known.

        The scoreboard comes before the log line, whose readers may look at once.
        """
        self._publish_failure(
            f"the new code {self._what}, although its trial was good; it is run again"
        )
        log.event(
            logging.CRITICAL,
            "master",
            f"the new code {self._what}; the previous workers keep serving and are not replaced; "
            "it is run again",
            **self._facts(),
        )
        self._end_of_reload()

    def _end_of_reload(self) -> None:
        """Report the end of a reload to the service manager, if one was ordered and reported."""
        if self._state.attempt.is_ordered:
            self._notifier.ready(STATUS)

    def _publish_failure(self, reason: str) -> None:
        """Write the outcome of an attempt to the scoreboard, as soon as it is mapped.

        The counter is the last of the words: `prefork reload --wait` waits for it. What nobody has
        ordered is not counted as a reload.
        """
        self._unpublished = reason
        self._is_uncounted |= self._state.attempt.is_ordered
        if (board := self._board) is None:
            return
        self._unpublished = ""
        board.reload_report.write(reason)
        board.set_pool(PoolField.GENERATION, self._state.pool.generation)
        board.set_pool(PoolField.RELOAD_STATE, ReloadState.FAILED)
        if self._is_uncounted:
            self._is_uncounted = False
            board.count_pool(PoolField.RELOADS_FAILED)

    def _give_up(self) -> None:
        log.event(
            logging.CRITICAL,
            "master",
            "no worker is left and the new code does not serve, ends",
            attempt=self._state.attempt.number,
            status=1,
        )
        self._leave_nothing()

    # --- workers

    def _look_at_board(self) -> None:
        """Map the scoreboard, which takes a descriptor, and say that this process lives."""
        if self._board is None:
            pool = self._state.pool
            with contextlib.suppress(OSError):
                self._board = Scoreboard.adopt(pool.board, pool.slots, pool.layout)
                if self._unpublished:
                    self._publish_failure(self._unpublished)
        if self._board is not None:
            self._board.set_pool(PoolField.TICK_NS, time.monotonic_ns())
            self._board.set_pool(PoolField.QUIET_UNTIL_NS, 0)

    def _collect_ended(self) -> None:
        """Collect the workers that have ended, and free their slots."""
        if self._board is None:
            return
        for handle in self._workers:
            if (status := system.collect(handle.child)) is not None:
                self._bury(self._board, handle, status)

    def _bury(self, board: Scoreboard, handle: Handle, status: ExitStatus) -> None:
        board.carry_over(handle.slot, status.usage)
        cause = cause_of_exit(
            status, asked=handle.asked_for, killed_for=handle.killed_for, was_ready=True
        )
        board.vacate_slot(handle.slot, cause.kind, time.monotonic_ns())
        for fd in (handle.child.pidfd, *handle.pipes.fds):
            os.close(fd)
        pool = self._state.pool
        alive = tuple(one for one in pool.workers if one is not handle)
        lost = pool.lost + (handle.asked_for is None)
        pool = msgspec.structs.replace(pool, workers=alive, lost=lost)
        self._state = msgspec.structs.replace(self._state, pool=pool)
        log.event(logging.ERROR, str(handle), "exited", cause=cause, workers=len(alive))

    def _keep_metrics(self) -> None:
        """Collect a metrics process that has ended, and start another one in its place."""
        metrics, board = self._state.metrics, self._board
        if metrics is None or board is None:
            return
        child = metrics.child
        if child is not None:
            if system.collect(child) is None:
                return
            log.event(logging.ERROR, f"metrics pid={child.pid}", "exited")
            os.close(child.pidfd)
            child = None
        if self._clock.now() >= self._metrics_at:
            self._metrics_at = self._clock.now() + METRICS_PAUSE
            child = start_metrics(self._state)
            board.count_pool(PoolField.METRICS_STARTS, int(child is not None))
        board.set_pool(PoolField.METRICS_PID, 0 if child is None else child.pid)
        metrics = msgspec.structs.replace(metrics, child=child)
        self._state = msgspec.structs.replace(self._state, metrics=metrics)

    def _collect_lot(self) -> None:
        """Collect a lot that has ended. The next image starts another one, since a lot runs code of the program."""
        lot, board = self._state.lot, self._board
        if lot is None or lot.child is None or board is None:
            return
        if (status := system.collect(lot.child)) is None:
            return
        cause = cause_of_exit(status, asked=None, killed_for=None, was_ready=True)
        lost = max(0, board.pool(PoolField.PARKED))
        board.set_pool(PoolField.LOT_PID, 0)
        board.set_pool(PoolField.PARKED, 0)
        board.set_pool(PoolField.RESUMED_WAITING, 0)
        subject = f"lot pid={lot.child.pid}"
        log.event(logging.ERROR, subject, "exited", cause=cause, connections_lost=lost)
        # The other end of the control socket is gone, too. The descriptor ends with the exec.
        os.close(lot.child.pidfd)
        lot = msgspec.structs.replace(lot, child=None, control=None)
        self._state = msgspec.structs.replace(self._state, lot=lot)

    def _poke(self) -> None:
        """Wake the workers if a client waits, as the master does for idle ones."""
        if self._clock.now() < self._poke_at:
            return
        self._poke_at = self._clock.now() + POKE_INTERVAL
        poll = select.poll()
        for fd in (*self._state.listeners, *self._state.kept):
            poll.register(fd, select.POLLIN)
        if any(events & select.POLLIN for _, events in poll.poll(0)):
            for handle in self._workers:
                handle.pipes.wake()

    def _ask_dumps(self) -> None:
        """Have the workers write their stacks, which `prefork dump` reads. No master logs them."""
        for handle in self._workers:
            reports.clear(handle.pipes.report)
            system.send(handle.child, signal.SIGUSR1)

    # --- the end

    def _stop(self, *, at_once: bool) -> None:
        """Have the workers finish their requests and leave; kill those that do not leave in time.

        A second order to stop, or ``at_once``, leaves them no time.
        """
        self._notifier.stopping()
        if self._board is not None:
            self._board.set_pool(PoolField.PHASE, Phase.LEAVING)
        children = [one.child for one in self._workers]
        for child in children:
            system.send(child, signal.SIGTERM)
        end = self._clock.now() + (0.0 if at_once else self._state.graceful_timeout)
        while self._clock.now() < end and not system.wait_for_all(children, LOOK_INTERVAL):
            self._clock.waited(LOOK_INTERVAL)
            if _taken(STOPS) is not None:
                break
        for child in children:
            system.send(child, signal.SIGKILL)
        system.wait_for_all(children, END_BOUND)
        Leftovers(self._state, self._state.graceful_timeout).end()
        self._leave_nothing()

    def _leave_nothing(self) -> None:
        """Remove the files of sockets, and the pid file."""
        remove_paths(self._state)
        with contextlib.suppress(OSError):
            process.end_handover()
        if (metrics := self._state.metrics) is not None:
            # New code with another address has had it closed by now.
            with contextlib.suppress(OSError):
                for setting, one in metrics.endpoints.items():
                    Endpoint(setting, one.address, one.fd).close()


def _next_order() -> signal.Signals | None:
    """Return a signal that was sent, an order to stop first. TTIN and TTOU mean nothing here."""
    return _taken(STOPS) or _taken((*RELOADS, signal.SIGUSR1))


def _taken(numbers: tuple[signal.Signals, ...]) -> signal.Signals | None:
    taken = signal.sigtimedwait(numbers, 0)
    return None if taken is None else signal.Signals(taken.si_signo)
