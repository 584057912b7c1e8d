"""The trial loads the new code in a child, before the master gives up the old code.

An exec cannot be undone. So a reload first proves that the new code gets as far as serving: syntax,
imports, settings, addresses, everything that happens before ``serve_forever()``. The proof is the
program itself. A child runs the same command, in the same folder and environment; an environment
variable makes the child a trial (``process.is_trial``). Where the program calls
``serve_forever()``, the trial reports and ends. The program notices no difference, except that
serving never begins.

A trial is a fresh process in a session of its own, not a fork: a fork would have the old modules.
It must harm nothing that the master has. It gets the ``Inventory``, which names the master's
sockets, pid file and metrics address, and leaves those alone: its servers get stand-ins
(prefork/reloading/sockets.py). An address that is not in the inventory it binds in earnest, so that
a port which is in use is found out. It has no way to the service manager.

The master does not wait for a trial. ``Trial.verdict()`` looks at it in each tick. The report is
more than an exit status, because a program that calls ``os._exit(0)`` has not shown that it serves.
The report also says which formats of state and scoreboard the new code has, for the new image must
be able to read what the old one writes.
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
from prefork.reloading.end_of_trial import end_in_order
from prefork.workers import system
from prefork.workers.errors import PreforkError
from prefork.workers.programs import Memory, start_program
from prefork.workers.scoreboard import LAYOUT
from prefork.workers.settings import Settings
from prefork.workers.states import ExitStatus, signal_name

NOT_FOR_A_TRIAL: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
"""Variables by which a trial could speak to the service manager in the master's name."""

LONGEST_REPORT: Final = 60_000
"""Bytes that are read of a trial's output, the last ones."""


class Report(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a trial that has reached ``serve_forever()`` reports of the new code.

    format: of ``MasterState``. scoreboard: its layout. version: of prefork. settings: as a user
    would write them.
    """

    format: int
    scoreboard: tuple[int, ...]
    version: str
    settings: dict[str, str]
    is_of_child: bool = False
    """Whether the pool would serve in a child of the program, where no reload could reach it."""


class TrialError(PreforkError):
    """The new code cannot serve. report: the end of the trial's output, usually a traceback."""

    def __init__(self, message: str, report: str = "") -> None:
        super().__init__(message)
        self.report = report


class Trial:
    """One trial, from its start to its verdict (master).

    Raises OSError when the child cannot be started. now: an instant of the master's clock. timeout:
    seconds until the trial has failed.
    """

    def __init__(self, program: Program, inventory: Inventory, now: float, timeout: float) -> None:
        self._give_up_at = now + timeout
        self._timeout = timeout
        environment = {k: v for k, v in program.environment.items() if k not in NOT_FOR_A_TRIAL}
        with contextlib.ExitStack() as memories:
            self._output = memories.enter_context(Memory("prefork-trial"))
            self._report = memories.enter_context(Memory("prefork-trial-report"))
            orders = msgspec.json.encode(
                TrialOrders(os.getpid(), self._report.fd, inventory)
            ).decode()
            self._child = start_program(
                program.command,
                folder=program.folder,
                environment={**environment, TRIAL_VARIABLE: orders},
                output=self._output,
                keep=[self._report.fd, *inventory.kept],
            )
            self._memories = memories.pop_all()

    def verdict(self, now: float) -> Report | None:
        """Return the report of a good trial, None while it runs. Raise TrialError if it failed."""
        if not self._child.has_ended():
            if now < self._give_up_at:
                return None
            self.end()
            raise TrialError(f"the new code was not loaded within {self._timeout:g} s")
        report, output = (one.last(LONGEST_REPORT) for one in (self._report, self._output))
        status = self.end()
        if status.code in (0, None) and status.signal is None and report:
            with contextlib.suppress(msgspec.MsgspecError):
                return _of_program(msgspec.json.decode(report, type=Report))
        raise TrialError(_reason(status), output.decode("utf-8", "replace"))

    def end(self) -> ExitStatus:
        """Kill the trial and what it has started, and collect it; may be called again."""
        status = self._child.end()
        self._memories.close()
        return status


def end_of_trial(settings: Settings) -> None:
    """Report that the program has reached serving, and end. Do nothing outside a trial."""
    if process.trial is None:
        return
    report = Report(FORMAT, LAYOUT, __version__, shown(settings), process.is_child_of_program)
    os.write(process.trial.report_to, msgspec.json.encode(report))
    end_in_order()
    system.exit_now(0)


def _of_program(report: Report) -> Report:
    if report.is_of_child:
        raise TrialError(
            "the new code serves in a child that it makes of itself, so the pool could not stay in "
            "this process; restart the program to change over to it"
        )
    return report


def _reason(status: ExitStatus) -> str:
    if status.signal is not None:
        return f"the new code died of {signal_name(status.signal)} while it was loaded"
    if status.code:
        return f"the new code could not be loaded (exit status {status.code})"
    return "the new code ended without serving"
