"""``prefork stop``: stop a running pool, gracefully or at once, and wait for its end."""

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
"""Seconds between two TERM. The master counts two TERM within 0.05 s as one."""

EXIT_TIME: Final = 1.0
"""Seconds to wait for the end of the master's process after its pool has stopped.

A program that has called ``serve_forever()`` itself may go on for as long as it likes.
"""


@click.command("stop", short_help="Stop a running pool, gracefully or at once.")
@which_pool
@click.option("--now", is_flag=True, help="Kill the workers at once; requests in hand are lost.")
@timeout_option("the pool's drain_delay plus its graceful_timeout, plus 5s")
def command(pool: str | None, name: str | None, *, now: bool, timeout: float | None) -> int:
    """Stop a running pool gracefully: clients that are connected are served, and no request is lost.

    The command waits until the pool has ended. The exit code is 0 then, and 1 if that takes longer
    than the timeout.
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
        advice = "" if now else "; --now kills the workers"
        messages.error(f"not stopped within {timeout:g} s: {_progress(pool)}{excuse(pool)}{advice}")
        return ExitCode.FAILED
    goes_on = not wait_until(
        pool.has_ended, lambda: "waiting for the end of the process", EXIT_TIME
    )
    click.echo(
        f"stopped: {who}" + (f"; process {pool.pid} itself keeps running" if goes_on else "")
    )
    return ExitCode.OK


class _RepeatedTerm:
    """Repeats TERM until the master stops at once. The first TERM only asks for a graceful stop."""

    def __init__(self, pool: RunningPool) -> None:
        self._pool = pool
        self._at = time.monotonic() + AGAIN

    def press(self) -> None:
        phase = self._pool.snapshot().phase
        if time.monotonic() < self._at or phase is Phase.STOPPING_NOW:
            return
        self._at = time.monotonic() + AGAIN
        with contextlib.suppress(NoSignalsError):  # the master may be about to end
            self._pool.send(signal.SIGTERM)


def _progress(pool: RunningPool) -> str:
    snapshot = pool.snapshot()
    left = len(snapshot.slots) - snapshot.count(WorkerState.GONE)
    phase = snapshot.phase.name.lower().replace("_", " ")
    return f"the pool is {phase}, workers left: {left}"
