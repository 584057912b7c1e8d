"""``prefork dump``: what every worker is doing right now, by its stacks."""

from __future__ import annotations

import signal
from typing import Final

import click

from prefork import logs
from prefork.commands.options import timeout_option, which_pool
from prefork.commands.outcome import FAILED, OK
from prefork.commands.waiting import Looks, excuse, wait_until
from prefork.find import RunningPool, find_pool
from prefork.workers.scoreboard import SlotField, Snapshot
from prefork.workers.states import WorkerState

ANSWER_TIME: Final = 1.0
"""Seconds that workers have for their answer; 1 ms does, on a machine with something to spare."""

_MASTERS_FRAMES: Final = " in run_worker"
"""Where the frames of a worker end and those of the program that forked it begin."""

_WRITER: Final = " in write_stacks"
"""The frame of what has written the dump."""


@click.command("dump", short_help="Print the stacks of every worker.")
@which_pool
@timeout_option("5s")
def command(pool: str | None, name: str | None, timeout: float | None) -> int:
    """Print the stacks of every worker, and have the master log them and its status.

    The exit code is 0, or 1 if the master does not take the order or a worker does not answer.
    """
    with find_pool(pool, name) as found:
        return _dump(found, 5.0 if timeout is None else timeout)


def _dump(pool: RunningPool, timeout: float) -> int:
    looks = Looks(pool)
    pool.send(signal.SIGUSR1)
    if not wait_until(looks.enough, lambda: "waits for the master", timeout):
        logs.say(f"prefork: error: the master does not answer{excuse(pool)}")
        return FAILED
    answered = wait_until(
        lambda: not _silent(pool, pool.snapshot()),
        lambda: f"waits for {len(_silent(pool, pool.snapshot()))} workers",
        min(timeout, ANSWER_TIME),
    )
    snapshot = pool.snapshot()
    for slot in _asked(snapshot):
        click.echo(_told(pool, snapshot, slot))
    return OK if answered else FAILED


def _asked(snapshot: Snapshot) -> list[int]:
    """Return the slots whose worker takes the signal: while it boots it does not yet."""
    quiet = (WorkerState.GONE, WorkerState.STARTING)
    return [one.slot for one in snapshot.slots if one.state not in quiet]


def _silent(pool: RunningPool, snapshot: Snapshot) -> list[int]:
    return [slot for slot in _asked(snapshot) if not pool.board.report(slot)]


def _told(pool: RunningPool, snapshot: Snapshot, slot: int) -> str:
    one = snapshot.slots[slot]
    generation, pid = one[SlotField.GENERATION], one[SlotField.PID]
    head = f"worker slot={slot} gen={generation} pid={pid} {one.state.name.lower()}"
    return "\n".join([head, *readable(pool.board.report(slot) or "(no answer)"), ""])


def readable(report: str) -> list[str]:
    """Return the lines of a stack dump, indented, without the master's frames, fit for a terminal (pure)."""
    lines: list[str] = []
    is_below = False
    for line in report.splitlines():
        if not line.startswith("  "):  # the next thread
            is_below = False
        if not is_below and not line.endswith(_WRITER):
            lines.append("    " + "".join(c if c.isprintable() else "\ufffd" for c in line))
        is_below = is_below or line.endswith(_MASTERS_FRAMES)
    return lines
