"""``prefork scale``: change the number of workers by TTIN and TTOU, and wait for the effect."""

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
"""Seconds after which a signal that had no effect is sent again.

The kernel merges a signal with one of the same number that is still pending, so one of two can be
lost.
"""


class _CommandWithNegativeNumbers(click.Command):
    """A command for which ``-2`` is a number and not a flag."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [re.sub(r"^-(?=\d+$)", " -", arg) for arg in args])


@click.command(
    "scale",
    cls=_CommandWithNegativeNumbers,
    short_help="Change the number of workers.",
)
@click.argument("size", metavar="N|+N|-N")
@which_pool
@timeout_option("the longer one of the pool's boot_timeout and graceful_timeout, plus 5s")
def command(size: str, pool: str | None, name: str | None, timeout: float | None) -> int:
    """Change the number of workers that a running pool keeps: to N, by +N or by -N.

    The command waits until the new workers are ready or the surplus ones are gone. The exit code is
    0 then, and 1 if that takes longer than the timeout.
    """
    if pool is not None and re.fullmatch(r"[+-]\d+", pool.strip()):
        hint = f"the number of workers comes first: prefork scale {pool.strip()} {size.strip()}"
        raise click.UsageError(hint)
    with find_pool(pool, name) as found:
        if _is_stopping(found.snapshot()):
            messages.error(f"the pool {found} is stopping and cannot be scaled")
            return ExitCode.FAILED
        if timeout is None:
            longest = max(seconds_of(found, key) for key in ("boot_timeout", "graceful_timeout"))
            timeout = longest + SPARE_TIME
        return _scale(found, size, time.monotonic() + timeout)


def wanted_size(size: str, floor: int, most: int) -> int:
    """Return the number of workers that N, +N or -N means (pure).

    floor: the number to keep now. most: ``max_children``. click.BadParameter: not a number, or out
    of bounds.
    """
    match = re.fullmatch(r"\s*([+-]?)(\d{1,9})", size, re.ASCII)
    if match is None:
        raise click.BadParameter(f"{size!r} is not N, +N or -N", param_hint="the number of workers")
    number = int(match[2])
    wanted = {"": number, "+": floor + number, "-": floor - number}[match[1]]
    if not 1 <= wanted <= most:
        raise click.BadParameter(
            f"{size.strip()} means {wanted} workers, which is out of bounds: the pool keeps {floor} now, "
            f"and can keep 1 to {most} (max_children)",
            param_hint="the number of workers",
        )
    return wanted


def floor_of(snapshot: Snapshot) -> int:
    """Return the number of workers to keep, which TTIN and TTOU change."""
    return snapshot[PoolField.FLOOR]


def _scale(pool: RunningPool, size: str, end: float) -> int:
    # Two commands that scale one pool at the same time would undo each other's signals without end.
    if not wait_until(
        pool.take_turn, lambda: "waiting for another prefork scale", _seconds_left(end)
    ):
        messages.error(
            f"another prefork scale is changing the pool {pool}; try again when it has ended"
        )
        return ExitCode.FAILED
    snapshot = pool.snapshot()
    before = floor_of(snapshot)
    wanted = wanted_size(size, before, snapshot[PoolField.CEILING] or pool.board.slots)
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
        messages.error(
            f"not finished in time: {progress(after, wanted)}{excuse(pool)}; --timeout waits longer"
        )
        return ExitCode.FAILED
    click.echo(
        f"workers to keep: {wanted} (before: {before}); workers ready: {after.count(*READY)}"
    )
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
    """Send TTIN or TTOU until the scoreboard shows the wanted number; return whether it does.

    The kernel merges signals of one number that are pending at the same time. So each signal has to
    show its effect on the scoreboard before the next one is sent. False: the time is up, or the
    pool is stopping, and a pool that stops does not change its size.
    """
    with ProgressLine() as line:
        while (floor := floor_of(snapshot := pool.snapshot())) != wanted:
            if not _seconds_left(end) or pool.has_stopped() or _is_stopping(snapshot):
                return False
            line.show(f"{bar(floor, wanted)} workers requested")
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
    """Return whether the wanted workers are ready and no surplus one is left (pure).

    A pool that follows load may keep more workers than the floor.
    """
    most = max(wanted, snapshot[PoolField.TARGET])
    return snapshot.count(*READY) >= wanted and _live(snapshot) <= most


def progress(snapshot: Snapshot, wanted: int) -> str:
    """Return how far the change has come, in a line (pure)."""
    ready, live = snapshot.count(*READY), _live(snapshot)
    if ready >= wanted < live:
        return f"workers that finish their requests before they leave: {live - wanted}"
    return f"{bar(ready, wanted)} workers ready"


def _live(snapshot: Snapshot) -> int:
    return len(snapshot.slots) - snapshot.count(WorkerState.GONE)
