"""``prefork scale``: another number of workers, by TTIN and TTOU, seen to the end."""

from __future__ import annotations

import re
import signal
import time
from typing import TYPE_CHECKING, Final

import click

from prefork.cli import messages
from prefork.cli.commands.exit_code import ExitCode
from prefork.cli.commands.options import timeout_option, which_pool
from prefork.cli.commands.waiting import (
    LOOK_EVERY,
    SPARE_TIME,
    ProgressLine,
    bar,
    excuse,
    seconds_of,
    wait_until,
)
from prefork.inspect.find import find_pool
from prefork.inspect.running_pool import RunningPool
from prefork.workers.scoreboard import PoolField, Snapshot
from prefork.workers.states import READY, Phase, WorkerState

if TYPE_CHECKING:
    from collections.abc import Callable

AGAIN: Final = 1.0
"""Seconds after which a signal without effect is sent again: one that was pending already is no second one."""


class _CommandWithNegativeNumbers(click.Command):
    """A command whose ``-2`` is a number, no flag."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [re.sub(r"^-(?=\d+$)", " -", arg) for arg in args])


@click.command(
    "scale",
    cls=_CommandWithNegativeNumbers,
    short_help="Change the number of workers, and wait for them.",
)
@click.argument("size", metavar="N|+N|-N")
@which_pool
@timeout_option("the longer of the pool's boot_timeout and graceful_timeout, and 5s")
def command(size: str, pool: str | None, name: str | None, timeout: float | None) -> int:
    """Change the number of workers to keep: to N, by +N more or by -N fewer.

    Returns when the new workers are ready, or the superfluous ones gone. The exit code is 0 then,
    and 1 if that is not so within the timeout.
    """
    with find_pool(pool, name) as found:
        if _is_stopping(found.snapshot()):
            messages.error(f"the pool is stopping: {found}")
            return ExitCode.FAILED
        if timeout is None:
            longest = max(seconds_of(found, key) for key in ("boot_timeout", "graceful_timeout"))
            timeout = longest + SPARE_TIME
        return _scale(found, size, time.monotonic() + timeout)


def wanted_size(size: str, floor: int, most: int) -> int:
    """Read what was asked for; click's BadParameter for what cannot be (pure)."""
    match = re.fullmatch(r"\s*([+-]?)(\d{1,9})", size, re.ASCII)
    if match is None:
        raise click.BadParameter(f"{size!r} is not N, +N or -N", param_hint="size")
    number = int(match[2])
    wanted = {"": number, "+": floor + number, "-": floor - number}[match[1]]
    if not 1 <= wanted <= most:
        raise click.BadParameter(
            f"{wanted} workers cannot be: the pool has {floor} and keeps from 1 to max_children = {most}",
            param_hint="size",
        )
    return wanted


def floor_of(snapshot: Snapshot) -> int:
    """Return the number of workers to keep, as TTIN and TTOU have moved it."""
    return snapshot[PoolField.FLOOR]


def _scale(pool: RunningPool, size: str, end: float) -> int:
    # Of several operators who correct each other's signals nobody would arrive: one at a time.
    if not wait_until(
        pool.take_turn, lambda: "another command scales this pool", _seconds_left(end)
    ):
        messages.error("another command scales this pool all the time")
        return ExitCode.FAILED
    before = floor_of(pool.snapshot())
    wanted = wanted_size(size, before, pool.board.slots)
    is_asked_for = _move_floor(pool, wanted, end)
    pool.end_turn()
    if not is_asked_for:
        return _say_refused(pool, wanted)
    in_time = wait_until(
        lambda: pool.has_stopped() or _is_over(pool.snapshot(), wanted),
        lambda: progress(pool.snapshot(), wanted),
        _seconds_left(end),
    )
    after = pool.snapshot()
    if floor_of(after) != wanted:
        return _say_refused(pool, wanted)
    if not in_time or pool.has_stopped():
        messages.error(f"not yet: {progress(after, wanted)}{excuse(pool)}")
        return ExitCode.FAILED
    click.echo(f"{wanted} workers (before: {before}), {after.count(*READY)} ready")
    return ExitCode.OK


def _say_refused(pool: RunningPool, wanted: int) -> int:
    snapshot = pool.snapshot()
    why = excuse(pool) or ("; the pool is stopping" if _is_stopping(snapshot) else "")
    messages.error(f"the master keeps {floor_of(snapshot)} workers, not {wanted}{why}")
    return ExitCode.FAILED


def _is_stopping(snapshot: Snapshot) -> bool:
    return snapshot.phase is not Phase.SERVING


def _is_over(snapshot: Snapshot, wanted: int) -> bool:
    return floor_of(snapshot) != wanted or is_settled(snapshot, wanted)


def _seconds_left(end: float) -> float:
    return max(0.0, end - time.monotonic())


def _move_floor(pool: RunningPool, wanted: int, end: float) -> bool:
    """Send TTIN or TTOU until the scoreboard shows the number, one at a time.

    To the kernel several pending signals of a kind are one. So each has to show its effect before
    the next one is sent. Return False if that takes too long, or if the pool stops: a pool that
    stops does not change its size.
    """
    with ProgressLine() as progress:
        while (floor := floor_of(snapshot := pool.snapshot())) != wanted:
            if not _seconds_left(end) or pool.has_stopped() or _is_stopping(snapshot):
                return False
            progress.show(f"{bar(floor, wanted)} workers asked for")
            pool.send(signal.SIGTTIN if floor < wanted else signal.SIGTTOU)
            _wait_for_effect(lambda at=floor: floor_of(pool.snapshot()) != at, end)  # type: ignore[misc]
    return True


def _wait_for_effect(fact: Callable[[], bool], end: float) -> None:
    end = min(end, time.monotonic() + AGAIN)
    pause = LOOK_EVERY / 10
    while not fact() and time.monotonic() < end:
        time.sleep(pause)
        pause = min(2 * pause, LOOK_EVERY)


def is_settled(snapshot: Snapshot, wanted: int) -> bool:
    """Tell whether so many are ready and none is superfluous; load may keep more than the floor (pure)."""
    most = max(wanted, snapshot[PoolField.TARGET])
    return snapshot.count(*READY) >= wanted and _live(snapshot) <= most


def progress(snapshot: Snapshot, wanted: int) -> str:
    """Say how far it has come (pure)."""
    ready, live = snapshot.count(*READY), _live(snapshot)
    if ready >= wanted < live:
        return f"{live - wanted} workers finish their requests before they leave"
    return f"{bar(ready, wanted)} workers ready"


def _live(snapshot: Snapshot) -> int:
    return len(snapshot.slots) - snapshot.count(WorkerState.GONE)
