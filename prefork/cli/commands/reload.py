"""``prefork reload`` and ``prefork upgrade``: give a running pool new code, and wait for the outcome if asked."""

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

_DEFAULT_TIMEOUT: Final = "twice the pool's boot_timeout, plus its graceful_timeout, plus 5s"


def _options(command: Callable[..., int]) -> Callable[..., int]:
    command = timeout_option(_DEFAULT_TIMEOUT)(command)
    command = click.option(
        "--wait",
        is_flag=True,
        help="Wait until the reload is over; the exit code says how it ended.",
    )(command)
    return which_pool(command)


@click.command("reload", short_help="Load new code and settings without losing a request.")
@_options
def command(pool: str | None, name: str | None, *, wait: bool, timeout: float | None) -> int:
    """Make a running pool load its code and settings anew.

    The pool first loads the new code in a child process. If that fails, the previous code keeps
    serving. If it succeeds, the workers are replaced one after the other, and no request is lost.

    With --wait the exit code is 0 if all workers run the new code, and 1 if not.
    """
    return _reload(signal.SIGHUP, pool, name, timeout, wait=wait)


@click.command("upgrade", short_help="Reload with a new version of Python or prefork.")
@_options
def upgrade(pool: str | None, name: str | None, *, wait: bool, timeout: float | None) -> int:
    """Make a running pool run its program again with the Python and the prefork that are installed now.

    Works like 'prefork reload'. A version of prefork that cannot take over the running workers is
    refused, and the pool keeps serving.
    """
    return _reload(signal.SIGUSR2, pool, name, timeout, wait=wait)


def _reload(
    number: signal.Signals, pool: str | None, name: str | None, timeout: float | None, *, wait: bool
) -> int:
    with find_pool(pool, name) as found:
        before = found.snapshot()
        if before.phase is not Phase.SERVING:
            messages.error(f"the pool {found} is stopping and cannot be reloaded")
            return ExitCode.FAILED
        if timeout is None:
            timeout = 2 * seconds_of(found, "boot_timeout")
            timeout += seconds_of(found, "graceful_timeout") + SPARE_TIME
        found.send(number)
        if not wait:
            click.echo(f"asked to reload: {found} (--wait waits for the outcome)")
            return ExitCode.OK
        return _wait(found, before, timeout)


def _wait(pool: RunningPool, before: Snapshot, timeout: float) -> int:
    # A reload that is under way now ends first, and then comes the one that this command has asked
    # for.
    rest = 2 if before[PoolField.RELOAD_STATE] in (ReloadState.TRYING, ReloadState.ROLLING) else 1
    is_over = wait_until(
        lambda: pool.has_stopped() or _ended(pool.snapshot()) >= _ended(before) + rest,
        lambda: progress(pool.snapshot()),
        timeout,
    )
    after = pool.snapshot()
    if not is_over or pool.has_stopped():
        messages.error(f"not finished within {timeout:g} s: {progress(after)}{excuse(pool)}")
        return ExitCode.FAILED
    if after[PoolField.RELOAD_STATE] == ReloadState.FAILED:
        reason = "\n".join(map(escaped, pool.board.reload_report.read().splitlines()))
        messages.error(f"reload failed, still serving the previous code: {reason}")
        return ExitCode.FAILED
    click.echo(f"reloaded: {pool}, generation {after[PoolField.GENERATION]}")
    return ExitCode.OK


def _ended(snapshot: Snapshot) -> int:
    return snapshot[PoolField.RELOADS] + snapshot[PoolField.RELOADS_FAILED]


def progress(snapshot: Snapshot) -> str:
    """Return how far a reload has come, in a line (pure)."""
    if snapshot[PoolField.RELOAD_STATE] == ReloadState.TRYING:
        return "loading the new code"
    generation = snapshot[PoolField.GENERATION]
    new = sum(
        one.state in READY and one[SlotField.GENERATION] == generation for one in snapshot.slots
    )
    return f"{bar(new, snapshot[PoolField.TARGET])} workers replaced"
