"""``prefork status``: print the state of a running pool once, as text or JSON."""

from __future__ import annotations

import json
import shutil

import click

from prefork.cli.commands.exit_code import ExitCode
from prefork.cli.commands.options import which_pool
from prefork.inspect import humanize
from prefork.inspect.find import find_pool
from prefork.inspect.status_text import as_lines


@click.command("status", short_help="Print the state of a running pool.")
@which_pool
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print the JSON that /status of the metrics process returns.",
)
def command(pool: str | None, name: str | None, *, as_json: bool) -> int:
    """Print the state of a running pool.

    NAME or PID says which pool. Neither is needed where only one pool of this user runs.

    The exit code is 0 if the pool is ready for traffic, 1 if the pool is not ready or its master
    hangs, and 2 if no pool or several pools match.
    """
    with find_pool(pool, name) as found:
        status = found.status()
    if as_json:
        click.echo(json.dumps(status, indent=2))
    else:
        width = max(60, shutil.get_terminal_size((100, 24)).columns)
        click.echo("\n".join(as_lines(status, width)))
    return ExitCode.OK if status["ready"] and not humanize.is_hung(status) else ExitCode.FAILED
