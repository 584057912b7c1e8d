"""``prefork config``: every setting with its value and where that came from."""

from __future__ import annotations

import contextlib
import json
import sys

import click

from prefork.cli import messages
from prefork.cli.commands.exit_code import ExitCode
from prefork.cli.commands.loading import (
    load_and_plan,
    misspelt_variables,
    read_settings,
    resolved_with,
    spare_the_metrics_directory,
)
from prefork.cli.commands.options import factory_option, setting_options
from prefork.workers.layers import Resolved
from prefork.workers.settings import AUTO, ROWS, Row


@click.command("config", short_help="Print every setting with its origin.")
@click.argument("target", required=False)
@factory_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON: key to value and origin.")
@setting_options
def command(
    target: str | None, config: str | None, *, factory: bool, as_json: bool, **flags: object
) -> int:
    """Print every setting with its origin, as TOML; with TARGET also what that one says itself."""
    given = read_settings(flags, config)
    for said in misspelt_variables():
        messages.warning(said)
    if target is None:
        resolved = resolved_with([], given.layers)
    else:
        spare_the_metrics_directory()
        with contextlib.redirect_stdout(sys.stderr):  # what the application prints is no TOML
            resolved, _ = load_and_plan(target, given.layers, factory=factory)
    click.echo(_as_json(resolved) if as_json else _as_toml(resolved))
    return ExitCode.OK


def _as_toml(resolved: Resolved) -> str:
    lines = []
    for row in ROWS.values():
        value = getattr(resolved.settings, row.key)
        said = f"# {row.key} =" if value is None else f"{row.key} = {_toml_value(row, value)}"
        lines.append(f"{said:<40}  # {_origin(resolved, row.key)}")
    return "\n".join(lines)


def _toml_value(row: Row, value: object) -> str:
    if isinstance(value, tuple):
        return json.dumps(list(value))
    plain = isinstance(value, int) and row.shown(value) == str(value)
    return str(value) if plain else json.dumps(row.shown(value))


def _as_json(resolved: Resolved) -> str:
    settings = {
        key: {"value": getattr(resolved.settings, key), "origin": _origin(resolved, key)}
        for key in ROWS
    }
    return json.dumps(settings, indent=2)


def _origin(resolved: Resolved, key: str) -> str:
    origin = resolved.origins[key]
    if key == "workers" and resolved.cpus is not None:
        return f"{origin}: {AUTO}, {resolved.cpus.reason}"
    return origin
