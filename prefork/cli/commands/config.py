"""``prefork config``: print every setting with its value and the origin of the value."""

from __future__ import annotations

import contextlib
import json
import sys
import textwrap
from collections.abc import Mapping
from typing import Final

import click
import msgspec

from prefork.cli import messages
from prefork.cli.commands.exit_code import ExitCode
from prefork.cli.commands.loading import (
    ignored_sources,
    load_and_plan,
    read_settings,
    resolved_with,
    spare_the_metrics_directory,
)
from prefork.cli.commands.options import SAME_FLAGS, SECTIONS, factory_option, setting_options
from prefork.cli.gunicorn import mapped
from prefork.cli.gunicorn_file import read_gunicorn
from prefork.cli.sources import File
from prefork.workers.layers import Resolved
from prefork.workers.settings import AUTO, ROWS, Row
from prefork.workers.text import printable


@click.command(
    "config", short_help="Print every setting and where its value comes from.", epilog=SAME_FLAGS
)
@click.argument("target", required=False)
@factory_option
@click.option("--example", is_flag=True, help="Print a prefork.toml with every setting, commented.")
@click.option(
    "--from-gunicorn",
    "gunicorn",
    metavar="FILE",
    help="Print a prefork.toml with the settings of this gunicorn.conf.py. Its code is run.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of TOML.")
@setting_options(hidden=True)
def command(
    target: str | None,
    config: str | None,
    *,
    factory: bool,
    as_json: bool,
    example: bool,
    gunicorn: str | None,
    **flags: object,
) -> int:
    """Print every setting as TOML, with a comment that says where its value comes from.

    With TARGET the application is imported, and its own class attributes count, too. The output can
    be saved as prefork.toml.
    """
    if example:
        click.echo(_example())
        return ExitCode.OK
    if gunicorn is not None:
        click.echo(_from_gunicorn(gunicorn))
        return ExitCode.OK
    given = read_settings(flags, config)
    for text in ignored_sources(config):
        messages.warning(text)
    if target is None:
        resolved = resolved_with([], given.layers)
    else:
        spare_the_metrics_directory()
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for the TOML
            resolved, _ = load_and_plan(target, given, factory=factory)
    served = (
        Served(target, factory, "argument TARGET") if target is not None else _of_file(given.file)
    )
    click.echo(
        _as_json(resolved, given.file) if as_json else _as_toml(resolved, given.file, served)
    )
    return ExitCode.OK


class Served(msgspec.Struct, frozen=True):
    """What is served. target: None where nothing names it. origin: where it is named."""

    target: str | None
    factory: bool
    origin: str


def _of_file(file: File) -> Served:
    return Served(file.target, file.factory, str(file.name))


def _example() -> str:
    """Return a file in which each setting stands as a comment, with its sentence and its default."""
    lines = [
        "# prefork.toml: remove the first # of a line to set something. A line shows the default, or an example",
        *("# where a setting is off by default.", ""),
        "# What is served: module:attribute or file.py:attribute. With factory = true it is a function that",
        *("# returns what is served.", '#target = "app:Handler"', "#factory = false", ""),
    ]
    for title, keys in SECTIONS.items():
        lines += [f"# --- {title}", ""]
        for row in (ROWS[key] for key in keys):
            lines += [f"# {line}" for line in textwrap.wrap(f"{row.about.help}", 98)]
            off = "" if row.default is not None else " (an example; off by default)"
            lines += [f"# Allowed: {row.about.allowed}{off}"]
            lines += [f"#{row.key} = {_shown_in_example(row)}", ""]
    lines += [
        "# --- Listeners with settings of their own",
        "",
        "# In place of bind: each table has a bind, and any settings of the sections on who may connect and",
        *("# on encryption.", "# [[listener]]", '# bind = "127.0.0.1:8000"', ""),
    ]
    return "\n".join(lines)


def _from_gunicorn(path: str) -> str:
    """Return a prefork.toml with the settings of a gunicorn.conf.py. SettingsError: one of them cannot be used."""
    with contextlib.redirect_stdout(sys.stderr):
        found = mapped(read_gunicorn(path))
    lines = [f"# From {path}. Comments say what is to be done by hand."]
    for key, value in found.settings.items():
        row = ROWS.get(key)
        if row is not None:
            value = _toml_value(row, row.converted(value, path))  # noqa: PLW2901
        lines.append(f"{key} = {value if row is not None else json.dumps(value)}")
    lines += [f"# {name}: {remark}" for name, remark in found.remarks.items()]
    return "\n".join(map(printable, lines))


EXAMPLES: Final[Mapping[str, object]] = {
    "backlog": 2048,
    "min_spare": 2,
    "max_spare": 4,
    "request_timeout": "30s",
    "soft_timeout": "25s",
    "cpu_timeout": "10s",
    "slow_request": "5s",
    "client_timeout": "30s",
    "defer_accept": "5s",
    "max_queue_wait": "1s",
    "max_per_client": 4,
    "proxy_from": ["10.0.0.0/8"],
    "allow": ["10.0.0.0/8"],
    "deny": ["10.66.0.0/16"],
    "tls_certificate": ["server.pem"],
    "tls_key": ["server.key"],
    "tls_key_password_file": "server.password",
    "tls_client_ca": "clients.pem",
    "tls_alpn": ["http/1.1"],
    "max_parked": 10000,
    "limit_body": "10M",
    "max_requests": 10000,
    "max_lifetime": "12h",
    "max_memory": "256M",
    "limits": "nofile=1024 core=0",
    "nice": 5,
    "oom_score_adj": 500,
    "log_config": "logging.toml",
    "metrics": "127.0.0.1:9100",
    "metrics_dir": "/run/myserver/metrics",
    "agent": "127.0.0.1:9101",
    "forwarded_from": ["10.0.0.0/8"],
    "name": "myserver",
    "user": "www-data",
    "group": "www-data",
    "umask": "027",
    "pidfile": "/run/myserver/pid",
}
"""A value for each setting that is off by default."""


def _shown_in_example(row: Row) -> str:
    if row.default is not None:
        return _toml_value(row, row.default)
    return json.dumps(EXAMPLES[row.key])


def _as_toml(resolved: Resolved, file: File, served: Served) -> str:
    lines = []
    if served.target is not None:
        lines.append(f"{f'target = {json.dumps(served.target)}':<40}  # {served.origin}")
    if served.factory:
        lines.append(f"{'factory = true':<40}  # {served.origin}")
    for row in ROWS.values():
        value = getattr(resolved.settings, row.key)
        entry = f"# {row.key} =" if value is None else f"{row.key} = {_toml_value(row, value)}"
        if row.key == "bind" and file.listeners:
            entry = f"# {entry}"  # the tables say it
        lines.append(f"{entry:<40}  # {_origin(resolved, row.key)}")
    for table in file.listeners:
        lines += ["", f"{'[[listener]]':<40}  # {table.origin}", f"bind = {json.dumps(table.bind)}"]
        lines += [f"{key} = {json.dumps(raw or [])}" for key, raw in table.values.items()]
    return "\n".join(lines)


def _toml_value(row: Row, value: object) -> str:
    if isinstance(value, tuple):
        return json.dumps(list(value))
    plain = isinstance(value, int) and row.shown(value) == str(value)
    return str(value) if plain else json.dumps(row.shown(value))


def _as_json(resolved: Resolved, file: File) -> str:
    settings: dict[str, object] = {
        key: {"value": getattr(resolved.settings, key), "origin": _origin(resolved, key)}
        for key in ROWS
    }
    if file.listeners:
        settings["listener"] = [
            {"bind": one.bind, **one.values, "origin": one.origin} for one in file.listeners
        ]
    return json.dumps(settings, indent=2)


def _origin(resolved: Resolved, key: str) -> str:
    origin = resolved.origins[key]
    if key == "workers" and resolved.cpus is not None:
        return f"{origin}: {AUTO}, {resolved.cpus.reason}"
    return origin
