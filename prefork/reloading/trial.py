"""The trial of a reload: new code and settings are loaded in a child, while the old ones serve.

The child is the same program, started anew in a session of its own, without the listeners. It runs
up to ``serve_forever()``, reports, and ends. The master never waits for it: ``Trial`` is looked
at from tick to tick.
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

import msgspec

from prefork._version import __version__
from prefork.host.description import shown
from prefork.host.handover import FORMAT, TRIAL_VARIABLE, Inventory, TrialOrders
from prefork.host.process import Program, process
from prefork.workers import system
from prefork.workers.errors import PreforkError
from prefork.workers.programs import Memory, start_program
from prefork.workers.scoreboard import LAYOUT
from prefork.workers.settings import Settings
from prefork.workers.states import ExitStatus, signal_name

NOT_FOR_A_TRIAL: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
"""Variables by which the child would speak for the master."""

LONGEST_REPORT: Final = 60_000


class Report(msgspec.Struct, frozen=True):
    """What a trial that came up to ``serve_forever()`` says of the new code."""

    format: int
    scoreboard: tuple[int, ...]
    version: str
    settings: dict[str, str]


class TrialError(PreforkError):
    """New code was tried and is no good. report: its traceback or last words."""

    def __init__(self, message: str, report: str = "") -> None:
        super().__init__(message)
        self.report = report


class Trial:
    """One trial, from its start to its verdict (master).

    Raises OSError when it cannot be started. timeout: seconds of the master's clock.
    """

    def __init__(self, program: Program, inventory: Inventory, now: float, timeout: float) -> None:
        self._give_up_at = now + timeout
        self._timeout = timeout
        environment = {k: v for k, v in program.environment.items() if k not in NOT_FOR_A_TRIAL}
        with contextlib.ExitStack() as memories:
            self._output = memories.enter_context(Memory("prefork-trial"))
            self._report = memories.enter_context(Memory("prefork-trial-report"))
            orders = msgspec.json.encode(TrialOrders(self._report.fd, inventory)).decode()
            self._child = start_program(
                program.command,
                folder=program.folder,
                environment={**environment, TRIAL_VARIABLE: orders},
                output=self._output,
                keep=[self._report.fd, *inventory.kept],
            )
            self._memories = memories.pop_all()

    def verdict(self, now: float) -> Report | None:
        """Return the report of a good trial, None while it runs; TrialError when the code is no good."""
        if not self._child.has_ended():
            if now < self._give_up_at:
                return None
            self.end()
            raise TrialError(f"the new code was not loaded within {self._timeout:g} s")
        report, output = (one.last(LONGEST_REPORT) for one in (self._report, self._output))
        status = self.end()
        if status.code in (0, None) and status.signal is None and report:
            with contextlib.suppress(msgspec.MsgspecError):
                return msgspec.json.decode(report, type=Report)
        raise TrialError(_reason(status), output.decode("utf-8", "replace"))

    def end(self) -> ExitStatus:
        """Kill the trial and what it has started, and collect it; may be called again."""
        status = self._child.end()
        self._memories.close()
        return status


def end_of_trial(settings: Settings) -> None:
    """Report that the program came up to serving, and end (trial); does nothing in other processes."""
    if process.trial is None:
        return
    report = Report(FORMAT, LAYOUT, __version__, shown(settings))
    os.write(process.trial.report_to, msgspec.json.encode(report))
    system.exit_now(0)


def _reason(status: ExitStatus) -> str:
    if status.signal is not None:
        return f"the new code died of {signal_name(status.signal)} while it was loaded"
    if status.code:
        return f"the new code could not be loaded (exit status {status.code})"
    return "the new code ended without serving"
