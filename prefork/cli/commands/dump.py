"""``prefork dump``: print the stacks of every worker, to see what it is doing."""

from __future__ import annotations

import signal
from typing import Final

import click

from prefork.cli import messages
from prefork.cli.commands.exit_code import ExitCode
from prefork.cli.commands.options import timeout_option, which_pool
from prefork.cli.commands.waiting import TickCounter, excuse, wait_until
from prefork.inspect.find import find_pool
from prefork.inspect.running_pool import RunningPool
from prefork.workers.reports import shown
from prefork.workers.scoreboard import SlotField, Snapshot
from prefork.workers.states import WorkerState

ANSWER_TIME: Final = 1.0
"""Seconds that workers get to write their stacks. On a machine that is not busy they need 1 ms."""


@click.command("dump", short_help="Print the stacks of every worker.")
@which_pool
@timeout_option("5s")
def command(pool: str | None, name: str | None, timeout: float | None) -> int:
    """Print the stacks of every worker. The master also logs them, and the status of the pool.

    The exit code is 0 if all workers have answered, and 1 if the master or a worker has not.
    """
    with find_pool(pool, name) as found:
        return _dump(found, 5.0 if timeout is None else timeout)


def _dump(pool: RunningPool, timeout: float) -> int:
    ticks = TickCounter(pool)
    pool.send(signal.SIGUSR1)
    if not wait_until(ticks.enough, lambda: "waiting for the master", timeout):
        messages.error(
            f"the master of {pool} has not answered within {timeout:g} s{excuse(pool)}; --timeout waits longer"
        )
        return ExitCode.FAILED
    answered = wait_until(
        lambda: not _silent_slots(pool),
        lambda: f"workers that have not answered: {len(_silent_slots(pool))}",
        min(timeout, ANSWER_TIME),
    )
    snapshot, reports = pool.snapshot(), pool.reports()
    for slot in _asked_slots(snapshot):
        click.echo(_report_text(snapshot, slot, reports.get(slot, "")))
    return ExitCode.OK if answered else ExitCode.FAILED


def _asked_slots(snapshot: Snapshot) -> list[int]:
    """Return the slots whose workers write their stacks. A worker that still boots does not."""
    quiet = (WorkerState.GONE, WorkerState.STARTING)
    return [one.slot for one in snapshot.slots if one.state not in quiet]


def _silent_slots(pool: RunningPool) -> list[int]:
    reports = pool.reports()
    return [slot for slot in _asked_slots(pool.snapshot()) if not reports.get(slot)]


def _report_text(snapshot: Snapshot, slot: int, report: str) -> str:
    one = snapshot.slots[slot]
    generation, pid = one[SlotField.GENERATION], one[SlotField.PID]
    head = f"worker slot={slot} gen={generation} pid={pid} {one.state.name.lower()}"
    lines = shown(report or "(no answer)").splitlines()
    return "\n".join([head, *("    " + line for line in lines), ""])
