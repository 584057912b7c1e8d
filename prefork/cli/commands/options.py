"""The flags of the commands: those of the settings come from the one table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click
import msgspec

from prefork.workers.settings import ROWS

if TYPE_CHECKING:
    from collections.abc import Callable


def setting_options(command: Callable[..., int]) -> Callable[..., int]:
    """Give a command one flag per setting, read as text: the table checks and converts."""
    for row in reversed(list(ROWS.values())):
        default = "" if row.default is None else f"default: {row.shown(row.default)}; "
        names = [row.flag] if row.about.short is None else [row.about.short, row.flag]
        command = click.option(
            *names,
            row.key,
            metavar=row.about.metavar,
            multiple=row.key == "bind",
            help=f"{row.about.help}  [{default}env: {row.variable}]",
        )(command)
    return click.option(
        "-c",
        "--config",
        metavar="FILE",
        help="A TOML file with settings; without it ./prefork.toml, "
        "or [tool.prefork] in ./pyproject.toml.  [env: PREFORK_CONFIG]",
    )(command)


factory_option = click.option(
    "--factory", is_flag=True, help="TARGET is a function that returns what is to be served."
)


def which_pool(command: Callable[..., int]) -> Callable[..., int]:
    """Give a command the two ways to say which running pool it is about; a lone one needs neither."""
    command = click.option(
        "-n", "--name", metavar="NAME", help="The name of the pool, also if it looks like a pid."
    )(command)
    return click.argument("pool", required=False, metavar="[NAME|PID]")(command)


_TIMEOUT: Final = msgspec.structs.replace(ROWS["graceful_timeout"], key="timeout")


def timeout_option(default: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Give a command ``--timeout``; ``default`` says in words how long it waits without."""
    return click.option(
        "--timeout",
        metavar="DURATION",
        callback=lambda _context, _parameter, raw: _seconds(raw),
        help=f"How long to wait for the effect.  [default: {default}]",
    )


def _seconds(raw: str | None) -> float | None:
    if raw is None:
        return None
    seconds: float = _TIMEOUT.converted(raw, f"flag {_TIMEOUT.flag}", text=True)
    return seconds
