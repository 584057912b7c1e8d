"""``prefork status``: print the state of a running pool, or of several by their URLs, once, as text or JSON."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from typing import Any

import click

from prefork.cli.commands.exit_code import ExitCode
from prefork.cli.commands.options import urls_in, which_pools
from prefork.inspect import fleet, humanize, remote
from prefork.inspect.find import find_pool
from prefork.inspect.remote import Seen, Url
from prefork.inspect.status_text import as_lines


@click.command("status", short_help="Print the state of a running pool.")
@which_pools
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print the JSON that /status of the metrics process returns.",
)
def command(pools: Sequence[str], name: str | None, *, as_json: bool) -> int:
    """Print the state of a running pool, or one line for each of several pools.

    NAME or PID says which pool. Neither is needed where only one pool of this user runs. Each URL is that of
    the metrics process of a pool, such as http://web1:9100. The pools that need attention come first,
    and a host that does not answer within 2 seconds is a line that says so.

    The exit code is 0 if the pool is ready for traffic, 1 if the pool is not ready or its master
    hangs, and 2 if no pool or several pools match. With URLs it is 0 if every pool is ready.
    """
    if urls := urls_in(pools, name):
        return _several(urls, as_json=as_json)
    with find_pool(pools[0] if pools else None, name) as found:
        status = found.status()
    if as_json:
        click.echo(json.dumps(status, indent=2))
    else:
        click.echo("\n".join(as_lines(status, _width())))
    return ExitCode.OK if status["ready"] and not humanize.is_hung(status) else ExitCode.FAILED


def _several(urls: Sequence[Url], *, as_json: bool) -> int:
    """Print one row for each pool."""
    watches, now = remote.ask_once(urls), time.monotonic()
    late = f"silent for {remote.ANSWER_TIME:g} s"
    seen = [one.seen[1] or Seen(now, failure=late) for one in watches]
    rows = [
        fleet.row(one.url.where, None, found, now, patience=float("inf"))
        for one, found in zip(watches, seen, strict=True)
    ]
    if as_json:
        click.echo(json.dumps([_document(one) for one in fleet.in_order(rows)], indent=2))
    else:
        width = _width() if sys.stdout.isatty() else None
        click.echo("\n".join(fleet.as_lines(rows, width)))
    return ExitCode.OK if all(one.need.is_ready for one in rows) else ExitCode.FAILED


def _document(one: fleet.Row) -> dict[str, Any]:
    """Return a row as JSON has it: the words and numbers of the table."""
    return {
        "host": one.where,
        "need": one.need.name.lower(),
        "state": one.state,
        "name": None if one.name == humanize.NONE else one.name,
        "busy": one.busy_workers,
        "ready": one.ready_workers,
        "utilization": round(one.utilization, 3),
    }


def _width() -> int:
    return max(60, shutil.get_terminal_size((100, 24)).columns)
