"""``prefork top``: watch a running pool, or several by their URLs, on a terminal."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

import click

from prefork.cli.commands.exit_code import ExitCode
from prefork.cli.commands.options import urls_in, which_pools
from prefork.host.stopping import stops_unwind
from prefork.inspect.columns import COLUMNS
from prefork.inspect.find import find_pool

MISSING = "prefork top needs the package rich: pip install 'prefork[top]'"


@click.command("top", short_help="Watch a running pool live.")
@which_pools
@click.option(
    "--sort",
    type=click.Choice([column.key for column in COLUMNS]),
    default="slot",
    show_default=True,
    help="Sort slots by this column at first.",
)
@click.option(
    "-d",
    "--delay",
    type=click.FloatRange(0.1, 60),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Seconds between two updates.",
)
def command(pools: Sequence[str], name: str | None, sort: str, delay: float) -> int:
    """Watch a running pool: what its workers do, how busy they are, how many clients wait.

    With URLs of metrics processes, such as http://web1:9100, watch these pools together: a row for each,
    those first that need attention. A host that does not answer is a row that says so.

    Each slot is a letter: _ is an idle worker, B a busy one, S a starting one, R a retiring one,
    and a dot is a slot without a worker.

    Keys: s and S sort by the next or previous column, r reverses the order, q and Ctrl-C quit.

    Needs the package rich: pip install 'prefork[top]'.
    """
    top = _drawing()
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError(
            "prefork top needs a terminal; 'prefork status' prints the same once"
        )
    if urls := urls_in(pools, name):
        with stops_unwind():
            top.watch_several(urls, delay=delay)
        return ExitCode.OK
    with find_pool(pools[0] if pools else None, name) as found, stops_unwind():
        click.echo(top.watch(found, sort=sort, delay=delay), nl=False)
    return ExitCode.OK


def _drawing() -> Any:
    try:  # rich is an optional extra, and slow to import
        return importlib.import_module("prefork.inspect.screen")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "rich":
            raise
        raise click.UsageError(MISSING) from None
