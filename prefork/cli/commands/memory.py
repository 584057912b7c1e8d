"""``prefork memory``: what the memory of each worker is made of, and what one more worker would cost."""

from __future__ import annotations

import json

import click
import msgspec

from prefork.cli import messages
from prefork.cli.commands.exit_code import ExitCode
from prefork.cli.commands.options import which_pool
from prefork.inspect import humanize, memory
from prefork.inspect.find import find_pool
from prefork.inspect.memory import Use
from prefork.inspect.proc import owner_of
from prefork.inspect.running_pool import PoolEndedError, RunningPool
from prefork.workers.scoreboard import SlotField
from prefork.workers.text import escaped

HEADINGS = ("slot", "pid", "shared", "private", "copied", "allocated", "mapped", "kept", "modules")
MOST_FILES = 8


@click.command("memory", short_help="Print what the memory of each worker is made of.")
@which_pool
@click.option("--json", "as_json", is_flag=True, help="Print bytes, as JSON.")
def command(pool: str | None, name: str | None, *, as_json: bool) -> int:
    """Print how much of each worker's memory is shared, and why the rest is its own.

    copied: pages from before the fork that the worker has written to. allocated: memory taken since the fork.
    mapped: files mapped since the fork, mostly modules imported late. Of these bytes malloc() keeps some
    although they are free (kept). modules: how many modules were imported since the fork. Import them before
    the fork, and the workers share them. Both numbers are as of the last time at which the worker had nothing
    to do.
    """
    with find_pool(pool, name) as found:
        try:
            uses = _uses(found)
        except PermissionError:
            messages.error(
                f"this user may not read the memory of the processes of {found}; run the command as "
                f"{owner_of(found.pid)} or root"
            )
            return ExitCode.FAILED
    if as_json:
        documents = [{**msgspec.to_builtins(one), "private": one.private} for one in uses]
        more = memory.cost_of_one_more(uses)
        click.echo(json.dumps({"workers": documents, "one_more": more}, indent=2))
    else:
        click.echo("\n".join(_lines(uses)))
    return ExitCode.OK


def _uses(pool: RunningPool) -> list[Use]:
    try:
        master, children = memory.read(pool.pid), memory.children_of(pool.pid)
    except (FileNotFoundError, ProcessLookupError):
        raise PoolEndedError(f"the pool {pool} has ended") from None
    uses = []
    for one in pool.snapshot().slots:
        pid = children.get(one[SlotField.PID])
        if pid is not None:
            try:
                use = memory.use_of(one.slot, pid, memory.read(pid), master)
                uses.append(use.as_said(one[SlotField.HEAP_KEPT], one[SlotField.MODULES]))
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has ended meanwhile
    return uses


def _lines(uses: list[Use]) -> list[str]:
    rows = [HEADINGS, *(_row(one) for one in uses)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    files = sorted({name for one in uses for name in one.late})
    if files:
        more = f" and {len(files) - MOST_FILES} more" if len(files) > MOST_FILES else ""
        lines.append(f"mapped since the fork: {escaped(' '.join(files[:MOST_FILES]))}{more}")
    lines.append(f"one more worker would cost about {humanize.size(memory.cost_of_one_more(uses))}")
    return lines


def _row(one: Use) -> tuple[str, ...]:
    sizes = (one.shared, one.private, one.copied, one.allocated, one.mapped, one.kept)
    return (str(one.slot), str(one.pid), *map(humanize.size, sizes), humanize.count(one.modules))
