"""``prefork check``: find everything that ``run`` would refuse, without binding anything."""

from __future__ import annotations

import os

import click

from prefork.cli import check_child, logs, messages
from prefork.cli.commands.exit_code import ExitCode
from prefork.cli.commands.loading import (
    ignored_sources,
    load_and_plan,
    read_settings,
    refuse_before_binding,
    refuse_before_loading,
    spare_the_metrics_directory,
)
from prefork.cli.commands.options import (
    SAME_FLAGS,
    factory_option,
    setting_options,
    watch_option,
)
from prefork.host.stopping import StoppedEarly, stops_unwind
from prefork.workers.kernel import refuse_without_calls


@click.command("check", short_help="Check settings and TARGET without serving.", epilog=SAME_FLAGS)
@click.argument("target", required=False)
@factory_option
@watch_option
@click.option("--verdict-to", type=int, hidden=True, help="Load here and write the verdict there.")
@setting_options(hidden=True)
@click.pass_context
def command(
    ctx: click.Context,
    /,
    target: str | None,
    config: str | None,
    verdict_to: int | None,
    *,
    factory: bool,
    watch: bool,
    **flags: object,
) -> int:
    """Check settings and TARGET as 'prefork run' would, without binding an address.

    The application is imported in a child process, which then ends. A factory is not called.

    The exit code is 0 if TARGET can be served, 2 if settings or TARGET are wrong, and 3 if the
    application cannot be loaded.
    """
    given = read_settings(flags, config)
    target, factory = given.what_to_serve(target, factory=factory)
    refuse_before_loading(given)
    if verdict_to is None:
        for text in ignored_sources(config):
            messages.warning(text)
        return _check_in_child(_arguments_of(ctx), given.value("boot_timeout"))
    if (path := given.value("log_config")) is not None:
        logs.set_up_from(path, given.origins["log_config"])
    spare_the_metrics_directory()
    resolved, planned = load_and_plan(target, given, factory=factory)
    refuse_before_binding(resolved, planned, watch=watch)
    settings = resolved.settings
    text = f"{planned.text}, workers={settings.workers} max_children={settings.max_children}"
    os.write(verdict_to, text.encode("utf-8", "replace")[:4000])
    return ExitCode.OK


def _check_in_child(arguments: list[str], limit: float) -> int:
    try:
        with stops_unwind():  # so that the child is ended, too
            refuse_without_calls()  # to start the child takes the same ones
            status, verdict = check_child.run(["check", *arguments], limit)
    except StoppedEarly:
        return ExitCode.INTERRUPTED
    if status == ExitCode.OK:
        click.echo(f"OK: {verdict}")
    return status


def _arguments_of(ctx: click.Context) -> list[str]:
    """Return the arguments of the running command as a list that click reads in the same way."""
    again: list[str] = []
    for parameter in ctx.command.params:
        given = ctx.params.get(parameter.name or "")
        if isinstance(parameter, click.Argument) or given in (None, False, ()):
            continue
        for value in given if isinstance(given, tuple) else [given]:
            again += [parameter.opts[-1]] if value is True else [parameter.opts[-1], str(value)]
    target = ctx.params["target"]
    return again if target is None else [*again, "--", str(target)]
