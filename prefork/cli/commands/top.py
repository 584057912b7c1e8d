"""``prefork top``: a running pool, live."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from prefork.cli.commands.exit_code import ExitCode
from prefork.cli.commands.options import which_pool
from prefork.host.stopping import term_unwinds
from prefork.inspect.columns import COLUMNS
from prefork.inspect.find import find_pool

MISSING = "prefork top needs the package rich: pip install 'prefork[top]'"


@click.command("top", short_help="Watch a running pool live (needs rich).")
@which_pool
@click.option(
    "--sort",
    type=click.Choice([column.key for column in COLUMNS]),
    default="slot",
    show_default=True,
    help="The column by which slots are sorted at first.",
)
@click.option(
    "-d",
    "--delay",
    type=click.FloatRange(0.1, 60),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Seconds between two looks.",
)
def command(pool: str | None, name: str | None, sort: str, delay: float) -> int:
    """Watch a running pool: what its workers do, how busy they are, what waits.

    Each slot has a letter: _ idle, B busy, S starting, R retiring, a dot without a worker.

    Keys: s and S sort by the next or previous column, r reverses, q or Ctrl-C quits.
    """
    top = _drawing()
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError("top needs a terminal; 'prefork status' prints the same once")
    with find_pool(pool, name) as found, term_unwinds():
        click.echo(top.watch(found, sort=sort, delay=delay), nl=False)
    return ExitCode.OK


def _drawing() -> Any:
    try:  # an extra: whoever does not want it does not pay for it, and a server has no use for it
        return importlib.import_module("prefork.inspect.screen")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "rich":
            raise
        raise click.UsageError(MISSING) from None
