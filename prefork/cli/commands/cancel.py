"""``prefork cancel SLOT``: ask the request that a worker has in hand to end."""

from __future__ import annotations

import signal
import time
from typing import Final

import click

from prefork.cli import messages
from prefork.cli.commands.exit_code import ExitCode
from prefork.cli.commands.options import timeout_option, which_pool
from prefork.cli.commands.waiting import excuse, wait_until
from prefork.inspect.find import find_pool
from prefork.inspect.running_pool import RunningPool
from prefork.workers.scoreboard import SlotField, Snapshot

END_TIME: Final = 5.0
"""Seconds that a request gets to end by default."""


@click.command("cancel", short_help="Ask the request of a worker to end.")
@click.argument("slot", type=click.IntRange(min=0))
@which_pool
@timeout_option(f"{END_TIME:g}s")
def command(slot: int, pool: str | None, name: str | None, timeout: float | None) -> int:
    """Ask the request that the worker in SLOT has in hand to end. The worker goes on with the next one.

    RequestCancelled is raised in the handler. 'prefork status' shows the slots. A request that does not
    end, because it is inside of C code or in a thread, ends at request_timeout with its worker.

    The exit code is 0 if the request has ended, and 1 if it has not or if there is none.
    """
    with find_pool(pool, name) as found:
        return _cancel(found, slot, END_TIME if timeout is None else timeout)


def _cancel(pool: RunningPool, slot: int, timeout: float) -> int:
    before = pool.snapshot()
    if slot >= len(before.slots):
        messages.error(f"{pool} has no slot {slot}; its slots are 0 to {len(before.slots) - 1}")
        return ExitCode.FAILED
    request = before.slots[slot][SlotField.REQUEST_NS]
    if request <= 0:
        messages.error(
            f"slot {slot} of {pool} has no request in hand; prefork status shows which have"
        )
        return ExitCode.FAILED
    pool.name_request(request)
    pool.send(signal.SIGURG)
    age = max(0.0, (time.monotonic_ns() - request) / 1e9)
    told = f"waiting for the request in slot {slot}"
    if not wait_until(lambda: _has_ended(pool.snapshot(), slot, request), lambda: told, timeout):
        messages.error(
            f"the request in slot {slot} goes on after {timeout:g} s{excuse(pool)}; "
            f"prefork dump shows where it is"
        )
        return ExitCode.FAILED
    after = pool.snapshot().slots[slot]
    how = "was ended" if after.cancelled > before.slots[slot].cancelled else "has ended"
    click.echo(f"the request in slot {slot} {how}, {age:.1f} s after its beginning")
    return ExitCode.OK


def _has_ended(snapshot: Snapshot, slot: int, request: int) -> bool:
    return snapshot.slots[slot][SlotField.REQUEST_NS] != request
