"""``prefork status``: what a running pool looks like now, once, as text or JSON."""

from __future__ import annotations

import json
import shutil

import click

from prefork.cli.commands.exit_code import ExitCode
from prefork.cli.commands.options import which_pool
from prefork.inspect import humanize
from prefork.inspect.find import find_pool
from prefork.inspect.status_text import as_lines


@click.command("status", short_help="Show a running pool, as text or JSON.")
@which_pool
@click.option(
    "--json", "as_json", is_flag=True, help="Print what /status of the metrics process says."
)
def command(pool: str | None, name: str | None, *, as_json: bool) -> int:
    """Show a running pool of this user, found by name or pid; a lone one needs neither.

    The exit code is 0 if the pool is ready, and 1 if it is not, if its master hangs, or if there is
    none.
    """
    with find_pool(pool, name) as found:
        status = found.status()
    if as_json:
        click.echo(json.dumps(status, indent=2))
    else:
        width = max(60, shutil.get_terminal_size((100, 24)).columns)
        click.echo("\n".join(as_lines(status, width)))
    return ExitCode.OK if status["ready"] and not humanize.is_hung(status) else ExitCode.FAILED
