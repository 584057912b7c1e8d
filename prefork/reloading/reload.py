"""Reload and upgrade as the master goes through them: asked for, tried, handed over, rolled (master).

In the image that was asked, ``Reload`` runs the trial and says when to exec. In the image after
the exec it watches the new generation take over, and ends the reload one way or the other.
"""

from __future__ import annotations

import enum
import logging
import time
from collections.abc import Callable

from prefork.host.handover import FORMAT, Inventory
from prefork.host.notify import Notifier
from prefork.host.process import Program
from prefork.reloading.trial import Report, Trial, TrialError
from prefork.workers import log
from prefork.workers.errors import PreforkError
from prefork.workers.scoreboard import LAYOUT, PoolField, Scoreboard
from prefork.workers.states import ReloadState


class Step(enum.Enum):
    """What the master has to do now."""

    NOTHING = enum.auto()
    HAND_OVER = enum.auto()


class Reload:
    """The reload of one pool. program: how to start this program again; timeout: seconds for a trial."""

    def __init__(
        self,
        board: Scoreboard,
        program: Program,
        timeout: float,
        notifier: Notifier,
        *,
        rolling: bool,
        wanted_by: str = "",
    ) -> None:
        self._board = board
        self._program = program
        self._timeout = timeout
        self._notifier = notifier
        self.wanted_by = wanted_by
        """The signal that has asked for a reload which has not begun; "" for none."""
        self._trial: Trial | None = None
        self.rolling = rolling
        """Whether a new generation is taking over."""
        if rolling:
            self._publish(ReloadState.ROLLING)

    def ask(self, signal_name: str) -> None:
        """Want a reload; during one it means one more afterwards, however often it was asked for."""
        log.event(
            logging.INFO,
            "master",
            "is asked to reload" if not self.under_way else "will reload once more",
            signal=signal_name,
        )
        self.wanted_by = signal_name

    @property
    def under_way(self) -> bool:
        """Whether one is being tried or rolled."""
        return self.rolling or self._trial is not None

    def tick(self, now: float, inventory: Callable[[], Inventory]) -> Step:
        """Go on with it. inventory: returns what would be handed over."""
        try:
            if self._trial is not None:
                return self._look_at_trial(self._trial, now)
            if self.wanted_by and not self.rolling:
                self._begin(now, inventory())
        except PreforkError as error:
            self._end_trial()
            self.fail(str(error), getattr(error, "report", ""))
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends the reload and not the pool
            self._end_trial()
            self.fail(f"the new code cannot be tried: {error}")
        return Step.NOTHING

    def cancel(self) -> None:
        """Forget it: the pool stops."""
        self.wanted_by = ""
        self._end_trial()

    def fail(self, reason: str, report: str = "") -> None:
        """End it; what serves goes on serving."""
        self.rolling = False
        log.event(
            logging.ERROR,
            "master",
            "did not reload, goes on as before",
            reason=reason,
            report=report,
        )
        self._board.reload_report.write("\n".join(part for part in (reason, report) if part))
        self._board.count_pool(PoolField.RELOADS_FAILED)
        self._publish(ReloadState.FAILED)
        self._notifier.ready_as_before(f"the reload failed: {reason}")

    def succeed(self, generation: int) -> None:
        """End it: all workers are of the new generation."""
        self.rolling = False
        log.event(logging.INFO, "master", "reloaded", generation=generation)
        self._board.reload_report.write("")
        self._board.count_pool(PoolField.RELOADS)
        self._board.set_pool(PoolField.RELOAD_OK_SECONDS, int(time.time()))
        self._publish(ReloadState.DONE)
        self._notifier.ready(f"reloaded, generation {generation}")

    def _begin(self, now: float, inventory: Inventory) -> None:
        self.wanted_by = ""
        self._notifier.reloading()
        if reason := self._program.why_not_again():
            raise TrialError(reason)
        self._trial = Trial(self._program, inventory, now, self._timeout)
        self._publish(ReloadState.TRYING)

    def _look_at_trial(self, trial: Trial, now: float) -> Step:
        report = trial.verdict(now)
        if report is None:
            return Step.NOTHING
        self._trial = None
        self._accept(report)
        return Step.HAND_OVER

    def _accept(self, report: Report) -> None:
        refuse_other_format(report.format, report.scoreboard, LAYOUT)
        log.event(logging.INFO, "master", "has tried the new code", version=report.version)

    def _end_trial(self) -> None:
        trial, self._trial = self._trial, None
        if trial is not None:
            trial.end()

    def _publish(self, state: ReloadState) -> None:
        self._board.set_pool(PoolField.RELOAD_STATE, state)


class VersionError(PreforkError):
    """The new code cannot go on with what this one has: it takes a restart."""


def refuse_other_format(
    their_format: int, their_layout: tuple[int, ...], our_layout: tuple[int, ...]
) -> None:
    """Compare what a trial says of its formats with ours; VersionError where the new code could not go on."""
    theirs, ours = (their_format, *their_layout), (FORMAT, *our_layout)
    if theirs != ours:
        raise VersionError(
            f"this version of prefork keeps its state differently ({theirs}, here {ours}): restart"
        )
