"""A reload, from the order to the last worker replaced (master).

HUP and USR2 mean the same: run the program of this process again, with the code and the settings
that are on disk now, and lose no request. A reload takes two images of the master and a child:

    image    step                                                    fails if
    -----    ----                                                    --------
    old      ask()         an order arrives, and is noted
    old      _begin()      a child begins to load the new code       it cannot be started
    (child)                the program runs up to serve_forever()    it raises, ends, is too slow
    old      _look_at()    the trial has reported                    the formats differ
    old      _hand_over()  the state is written, then exec           exec fails
    new                    the program runs once more                it ends (caretaker.py)
    new      adopt()       the master has everything in hand
    new      _roll()       workers of the old code are replaced      the first new one does not boot

Until the exec, a failure costs nothing: the old master goes on with all it had. After the exec the
old code is gone, but its workers still serve. If the new code cannot start a worker, these stay,
and the next reload replaces them. The master has no other code than the new one by then. So a worker
that ends after such a failure is replaced with the new code, and has the generation of the new code.

No step waits. ``step()`` is called in every tick of a master that serves, and looks whether the
trial has ended, or whether the old workers are gone. How workers are replaced is no business of
this module: the policy replaces those of an older generation (workers/pool/policy.py), a few at a
time. ``oldest_generation()`` says which ones.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping

from prefork.host.description import shown
from prefork.host.endpoint import Endpoint
from prefork.host.handover import FORMAT, HandoverError, MasterState
from prefork.host.notify import Notifier
from prefork.host.process import process
from prefork.reloading.holdings import Holdings
from prefork.reloading.leftovers import Leftovers, hand_over_with_leftovers
from prefork.reloading.sockets import unclaimed_listeners
from prefork.reloading.trial import Report, Trial, TrialError
from prefork.workers import log
from prefork.workers.errors import PreforkError
from prefork.workers.pool.pool import Pool
from prefork.workers.scoreboard import LAYOUT, PoolField
from prefork.workers.spec import WorkerSpec
from prefork.workers.states import ReloadState


class Reload:
    """The reloads of one master: the one that ends in this image, and those that begin in it.

    previous: what an earlier image has left; None in the first one. endpoints: where the metrics
    process answers, by setting. state_to_hand_over: returns what this image leaves; called just before the
    exec.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        pool: Pool,
        notifier: Notifier,
        *,
        previous: MasterState | None,
        endpoints: Mapping[str, Endpoint],
        state_to_hand_over: Callable[[], MasterState],
    ) -> None:
        self._spec = spec
        self._pool = pool
        self._notifier = notifier
        self._previous = previous
        self.holdings = Holdings(spec, endpoints)
        self._state_to_hand_over = state_to_hand_over
        self.wanted_by = "" if previous is None else previous.again
        """The signal that has asked for a reload which has not begun; "" for none."""
        self._leftovers = Leftovers(previous, spec.settings.graceful_timeout)
        self._trial: Trial | None = None
        self.rolling = previous is not None
        """Whether a new generation is taking over."""
        self._abandoned = [] if previous is None else unclaimed_listeners()
        self._roll_by = 0.0
        if self.rolling:
            self._publish(ReloadState.ROLLING)

    @property
    def under_way(self) -> bool:
        """Whether new code is being tried, or a new generation takes over."""
        return self.rolling or self._trial is not None

    def ask(self, signal_name: str) -> None:
        """Note an order. During a reload any number of orders mean one more reload afterwards."""
        what = "reload requested, once more" if self.under_way else "reload requested"
        log.event(logging.INFO, "master", what, signal=signal_name)
        self.wanted_by = signal_name

    def step(self, now: float) -> None:
        """Continue a reload that is wanted or under way (in every tick while the pool serves)."""
        if self.rolling:
            self._roll(now)
        elif self._is_ready_for_exec(now):
            self._hand_over()
        if not self._pool.table.has_older(self._pool.generation):
            self._leftovers.step(now)

    def end(self) -> None:
        """Leave nothing of a reload behind: the pool has stopped."""
        self.cancel()
        self._leftovers.end()

    def cancel(self) -> None:
        """Forget a reload that is wanted or tried, because the pool stops."""
        self.wanted_by = ""
        self._end_trial()
        process.end_takeover()

    # --- before the exec

    def _is_ready_for_exec(self, now: float) -> bool:
        try:
            if self._trial is not None:
                return self._look_at(self._trial, now)
            if self.wanted_by:
                self._begin(now)
        except PreforkError as error:
            self._end_trial()
            self._fail(str(error), getattr(error, "report", ""))
        except Exception as error:  # noqa: BLE001 - it ends the reload, not the pool
            self._end_trial()
            self._fail(f"the trial of the new code could not be made: {error}")
        return False

    def _begin(self, now: float) -> None:
        self.wanted_by = ""
        self._notifier.reloading()
        if reason := process.why_not_again():
            raise TrialError(reason)
        timeout = self._spec.settings.boot_timeout
        self._trial = Trial(process.program, self.holdings.inventory(), now, timeout)
        self._publish(ReloadState.TRYING)

    def _look_at(self, trial: Trial, now: float) -> bool:
        report = trial.verdict(now)
        if report is None:
            return False
        self._trial = None
        refuse_other_format(report)
        log.event(logging.INFO, "master", "new code passed its trial", version=report.version)
        return True

    def _end_trial(self) -> None:
        trial, self._trial = self._trial, None
        if trial is not None:
            trial.end()

    def _hand_over(self) -> None:
        """Become the new code. Returns only if that is impossible."""
        self._pool.call_hook("on_reload")
        try:
            log.flush()
            hand_over_with_leftovers(self._leftovers.added_to(self._state_to_hand_over()))
        except HandoverError as error:
            self._fail(str(error))
        except Exception as error:  # noqa: BLE001 - it ends the reload, not the pool
            reason = getattr(error, "strerror", None) or error
            self._fail(f"the program cannot be executed again: {reason}")

    # --- after the exec

    def adopt(self, now: float) -> None:
        """Note that the master has everything in hand that an earlier image has left.

        A socket that no server of the new code has claimed takes no new clients; the old workers
        serve its queue.
        """
        if self._previous is None:
            return
        process.end_handover()
        if (since := self._previous.attempt.failing_since) is not None:
            what = "new code serves after attempts that failed"
            log.event(logging.WARNING, "master", what, seconds=now - since)
        settings = self._spec.settings
        for key, old, new in _changes(self._previous.settings, shown(settings)):
            log.event(logging.INFO, "master", "setting changed", key=key, old=old, new=new)
        for listener in self._abandoned:
            log.event(logging.INFO, f"listener {listener}", "no longer served")
            listener.close_intake()
        self._roll_by = now + settings.graceful_timeout

    @property
    def new_code_serves(self) -> bool:
        """Whether a roll is under way in which a worker of the new code is ready."""
        return self.rolling and self._pool.table.count_ready(self._pool.generation) > 0

    def oldest_generation(self, now: float) -> int:
        """Return the oldest generation whose workers stay; the policy replaces the others.

        0, so that all workers stay, except in a roll: after a roll that has failed, the workers of
        the previous code serve on.
        """
        return self._pool.generation if self.rolling and self._may_replace(now) else 0

    def _may_replace(self, now: float) -> bool:
        """Return whether the roll may replace workers of the old code.

        Only they can serve what is queued on a socket that no new server has claimed. So the roll
        waits until nothing is queued there, at most for ``graceful_timeout``.
        """
        waiting = any(listener.needs_draining() for listener in self._abandoned)
        return not waiting or now >= self._roll_by

    def _roll(self, now: float) -> None:
        pool = self._pool
        if not self.new_code_serves:
            if pool.failures.boots:
                self._fail("the first new worker did not start", pool.failures.last_report)
                self._warn_of_mixed_code()
        elif not pool.table.has_older(pool.generation) and self._may_replace(now):
            self._succeed()
            self._close_abandoned()

    def _warn_of_mixed_code(self) -> None:
        log.event(
            logging.WARNING,
            "master",
            "has only the new code: a worker that ends is replaced with it until the next reload",
            generation=self._pool.generation,
        )

    def _close_abandoned(self) -> None:
        for listener in self._abandoned:
            listener.remove_path()
            os.close(listener.fd)
        self._abandoned = []

    # --- the end
    #
    # The counter is the last of the words that an outcome changes. `prefork reload --wait` waits for
    # the counter, and then reads the state and the report.

    def _succeed(self) -> None:
        """End the reload: all workers are of the new generation."""
        self._end_roll()
        generation, board = self._pool.generation, self._pool.board
        log.event(logging.INFO, "master", "reloaded", generation=generation)
        board.reload_report.write("")
        board.set_pool(PoolField.RELOAD_OK_SECONDS, int(time.time()))
        self._publish(ReloadState.DONE)
        board.count_pool(PoolField.RELOADS)
        self._notifier.ready(f"reloaded, generation {generation}")

    def _fail(self, reason: str, report: str = "") -> None:
        """End the reload: the workers that serve keep serving."""
        self._end_roll()
        board = self._pool.board
        what = "reload failed, still serving the previous code"
        log.event(logging.ERROR, "master", what, reason=reason, report=report)
        board.reload_report.write("\n".join(part for part in (reason, report) if part))
        self._publish(ReloadState.FAILED)
        board.count_pool(PoolField.RELOADS_FAILED)
        self._notifier.ready_as_before(f"the reload failed: {reason}")

    def _end_roll(self) -> None:
        self.rolling = False
        process.end_takeover()

    def _publish(self, state: ReloadState) -> None:
        self._pool.board.set_pool(PoolField.RELOAD_STATE, state)


class VersionError(PreforkError):
    """The new code comes with a prefork that cannot read what this one would leave."""


def refuse_other_format(report: Report) -> None:
    """Raise VersionError if a trial reports other formats than those of this image."""
    theirs, ours = (report.format, *report.scoreboard), (FORMAT, *LAYOUT)
    if theirs != ours:
        raise VersionError(
            f"this version of prefork has another format of its state ({theirs}, here {ours}); "
            "restart the server to change over to it"
        )


def _changes(before: dict[str, str], now: dict[str, str]) -> list[tuple[str, str, str]]:
    """Return each setting whose value has changed, with the old and the new value."""
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return [(key, before.get(key, "-"), now.get(key, "-")) for key in keys]
