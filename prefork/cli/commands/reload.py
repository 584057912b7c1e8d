"""``prefork reload`` and ``prefork upgrade``: new code in a running pool, seen to its end if wanted."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Final

import click

from prefork.cli import messages
from prefork.cli.commands.exit_code import ExitCode
from prefork.cli.commands.options import timeout_option, which_pool
from prefork.cli.commands.waiting import SPARE_TIME, bar, excuse, seconds_of, wait_until
from prefork.inspect.find import find_pool
from prefork.inspect.running_pool import RunningPool
from prefork.workers.scoreboard import PoolField, SlotField, Snapshot
from prefork.workers.states import READY, Phase, ReloadState
from prefork.workers.text import escaped

if TYPE_CHECKING:
    from collections.abc import Callable

_DEFAULT_TIMEOUT: Final = "the pool's boot_timeout twice, its graceful_timeout, and 5s"


def _options(command: Callable[..., int]) -> Callable[..., int]:
    command = timeout_option(_DEFAULT_TIMEOUT)(command)
    command = click.option(
        "--wait", is_flag=True, help="Return when it is over; the exit code tells the outcome."
    )(command)
    return which_pool(command)


@click.command("reload", short_help="Replace the code of a running pool, losing nothing.")
@_options
def command(pool: str | None, name: str | None, *, wait: bool, timeout: float | None) -> int:
    """Have a running pool try its new code and settings, and take them over.

    The workers are replaced one after the other; if the new code is no good, the old one goes on.
    With --wait the exit code is 0 when all workers are new, and 1 with the reason when not.
    """
    return _reload(signal.SIGHUP, pool, name, timeout, wait=wait)


@click.command("upgrade", short_help="The same for a new interpreter or a new prefork.")
@_options
def upgrade(pool: str | None, name: str | None, *, wait: bool, timeout: float | None) -> int:
    """Have a running pool run its program again with the interpreter and the prefork that are installed now.

    As 'reload', which does it, too; a version of prefork that could not go on is refused by its trial.
    """
    return _reload(signal.SIGUSR2, pool, name, timeout, wait=wait)


def _reload(
    number: signal.Signals, pool: str | None, name: str | None, timeout: float | None, *, wait: bool
) -> int:
    with find_pool(pool, name) as found:
        before = found.snapshot()
        if before.phase is not Phase.SERVING:
            messages.error(f"the pool is stopping: {found}")
            return ExitCode.FAILED
        if timeout is None:
            timeout = 2 * seconds_of(found, "boot_timeout")
            timeout += seconds_of(found, "graceful_timeout") + SPARE_TIME
        found.send(number)
        if not wait:
            click.echo(f"asked to reload: {found}")
            return ExitCode.OK
        return _wait(found, before, timeout)


def _wait(pool: RunningPool, before: Snapshot, timeout: float) -> int:
    # One that is under way already is not ours: ours comes after it.
    rest = 2 if before[PoolField.RELOAD_STATE] in (ReloadState.TRYING, ReloadState.ROLLING) else 1
    is_over = wait_until(
        lambda: pool.has_stopped() or _ended(pool.snapshot()) >= _ended(before) + rest,
        lambda: progress(pool.snapshot()),
        timeout,
    )
    after = pool.snapshot()
    if not is_over or pool.has_stopped():
        messages.error(f"not yet: {progress(after)}{excuse(pool)}")
        return ExitCode.FAILED
    if after[PoolField.RELOAD_STATE] == ReloadState.FAILED:
        reason = "\n".join(map(escaped, pool.board.reload_report().splitlines()))
        messages.error(f"not reloaded, the old workers go on: {reason}")
        return ExitCode.FAILED
    click.echo(f"reloaded: {pool}, generation {after[PoolField.GENERATION]}")
    return ExitCode.OK


def _ended(snapshot: Snapshot) -> int:
    return snapshot[PoolField.RELOADS] + snapshot[PoolField.RELOADS_FAILED]


def progress(snapshot: Snapshot) -> str:
    """Say how far a reload has come (pure)."""
    if snapshot[PoolField.RELOAD_STATE] == ReloadState.TRYING:
        return "the new code is tried"
    generation = snapshot[PoolField.GENERATION]
    new = sum(
        one.state in READY and one[SlotField.GENERATION] == generation for one in snapshot.slots
    )
    return f"{bar(new, snapshot[PoolField.TARGET])} workers replaced"
