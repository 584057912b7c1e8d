"""``prefork stop``: a graceful stop, or one at once, seen to the end."""

from __future__ import annotations

import contextlib
import signal
import time
from typing import Final

import click

from prefork.cli import messages
from prefork.cli.commands.exit_code import ExitCode
from prefork.cli.commands.options import timeout_option, which_pool
from prefork.cli.commands.waiting import SPARE_TIME, excuse, seconds_of, wait_until
from prefork.inspect.find import find_pool
from prefork.inspect.running_pool import NoSignalsError, RunningPool
from prefork.workers.states import Phase, WorkerState

AGAIN: Final = 0.2
"""Seconds between two TERM: the master takes those within 0.05 s for one."""

EXIT_TIME: Final = 1.0
"""Seconds that the process of a pool that has stopped is given to end; a program of its own may go on."""


@click.command("stop", short_help="Stop a running pool, and wait for its end.")
@which_pool
@click.option("--now", is_flag=True, help="Kill the workers; requests in hand are lost.")
@timeout_option("the pool's drain_delay and graceful_timeout, and 5s")
def command(pool: str | None, name: str | None, *, now: bool, timeout: float | None) -> int:
    """Stop a running pool: requests in hand are finished, nothing is lost.

    Returns when it has ended. The exit code is 0 then, and 1 if it has not within the timeout.
    """
    with find_pool(pool, name) as found:
        if timeout is None:
            waits = () if now else ("drain_delay", "graceful_timeout")
            timeout = sum(seconds_of(found, key) for key in waits) + SPARE_TIME
        return _stop(found, timeout, now=now)


def _stop(pool: RunningPool, timeout: float, *, now: bool) -> int:
    who = str(pool)
    pool.send(signal.SIGTERM)
    hurry = _RepeatedTerm(pool) if now else None

    def is_over() -> bool:
        if hurry is not None:
            hurry.press()
        return pool.has_stopped()

    if not wait_until(is_over, lambda: _progress(pool), timeout):
        advice = "" if now else "; --now kills its workers"
        messages.error(f"not yet: {_progress(pool)}{excuse(pool)}{advice}")
        return ExitCode.FAILED
    goes_on = not wait_until(pool.has_ended, lambda: "the process ends", EXIT_TIME)
    click.echo(f"stopped: {who}" + (f"; process {pool.pid} itself goes on" if goes_on else ""))
    return ExitCode.OK


class _RepeatedTerm:
    """Repeats TERM until the master has understood that it is to stop now."""

    def __init__(self, pool: RunningPool) -> None:
        self._pool = pool
        self._at = time.monotonic() + AGAIN

    def press(self) -> None:
        phase = self._pool.snapshot().phase
        if time.monotonic() < self._at or phase is Phase.STOPPING_NOW:
            return
        self._at = time.monotonic() + AGAIN
        with contextlib.suppress(NoSignalsError):  # it is stopping, and may have come that far
            self._pool.send(signal.SIGTERM)


def _progress(pool: RunningPool) -> str:
    snapshot = pool.snapshot()
    left = len(snapshot.slots) - snapshot.count(WorkerState.GONE)
    phase = "not yet" if snapshot.phase is Phase.SERVING else snapshot.phase.name.lower()
    return f"stopping ({phase.replace('_', ' ')}), {left} workers left"
