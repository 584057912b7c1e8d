"""``prefork run``: load, bind, serve."""

from __future__ import annotations

import contextlib
import logging
import os
from typing import TYPE_CHECKING, Any, Final

import click
import setproctitle

from prefork.cli import logs, messages, sources
from prefork.cli.application_errors import application_report
from prefork.cli.commands.exit_code import ExitCode
from prefork.cli.commands.loading import (
    SettingsSoFar,
    ignored_sources,
    load_and_plan,
    read_settings,
    refuse_before_binding,
    refuse_before_loading,
    refuse_for_servers,
    refuse_several_without_workers,
    resolved_with,
)
from prefork.cli.commands.options import (
    CommandWithSettings,
    factory_option,
    setting_options,
    watch_option,
)
from prefork.cli.edges import configure_all
from prefork.cli.pidfile import PidFile
from prefork.cli.watch import folder_of, watching
from prefork.host.addresses import Address
from prefork.host.process import process
from prefork.host.stopping import stops_deferred, stops_unwind, undisturbed_cleanup
from prefork.metrics import slots
from prefork.mixin import serve
from prefork.usable import kind_of
from prefork.workers.errors import BootError, PreforkError
from prefork.workers.layers import DEFAULT, Resolved, attributes_layer
from prefork.workers.log import event, logger
from prefork.workers.polled import descriptor_of
from prefork.workers.settings import USUAL_CHILDREN

if TYPE_CHECKING:
    from socketserver import BaseServer


EXAMPLES: Final = """\
\b
Examples:
  prefork run app:Handler -b :9000 -w 4 -t 30s
  prefork run app.py:Server --min-spare 2 --metrics 127.0.0.1:9100

The exit status is 0 after a clean stop, 2 for wrong usage, 3 if the application cannot boot, 4 if an
address cannot be bound, 5 for a crash loop, and 1 for any other failure.
"""


@click.command(
    "run",
    cls=CommandWithSettings,
    short_help="Serve TARGET until TERM or Ctrl-C.",
    epilog=EXAMPLES,
)
@click.argument("target", required=False)
@factory_option
@watch_option
@setting_options()
def command(
    target: str | None, config: str | None, *, factory: bool, watch: bool, **flags: object
) -> int:
    """Serve TARGET until TERM or Ctrl-C.

    TARGET is module:attribute or file.py:attribute. The attribute is a handler class, a server
    class, a server instance or a WSGI application. With --factory it is a function that returns
    one of these, or several instances. Without TARGET the settings file names it, as
    target = "app:Handler".

    Each setting can also be given by an environment variable, such as PREFORK_MAX_CHILDREN, by a
    TOML file, or by a class attribute of the server. 'prefork config' prints every value and where
    it comes from.

    Durations are written as 30s, 500ms or 5m, sizes as 256M or 2G.
    """
    given = read_settings(flags, config)
    target, factory = given.what_to_serve(target, factory=factory)
    log = logs.set_up(given.value("log_level"), given.value("log_format"))
    if (path := given.value("log_config")) is not None:
        logs.set_up_from(path, given.origins["log_config"])
    try:
        with stops_unwind():
            for text in ignored_sources(config):
                event(logging.WARNING, "master", text)
            watched = sources.files(config, os.environ) if watch else None
            return _run(target, given, factory=factory, watched=watched)
    finally:
        log.flush()


def _run(target: str, given: SettingsSoFar, *, factory: bool, watched: list[str] | None) -> int:
    """Load, bind and serve (master).

    Everything that can be refused is refused before the next step: settings, target, pid file,
    addresses. watched: the settings files, of which a change reloads like one of a source file;
    None without ``--watch``.
    """
    refuse_before_loading(given)
    process.systemd_sockets.take()  # before the application starts a program that would inherit them
    # Before the application makes its first metric, because a metric chooses its file when it is
    # made.
    slots.enable(given.value("metrics_dir"), source=given.origins.get("metrics_dir", DEFAULT))
    resolved, planned = load_and_plan(target, given, factory=factory)
    refuse_before_binding(resolved, planned, watch=watched is not None)
    settings = resolved.settings
    if settings.umask is not None:
        os.umask(settings.umask)
    with undisturbed_cleanup() as cleanup:
        with stops_deferred():
            if settings.pidfile is not None:
                cleanup.enter_context(PidFile(settings.pidfile, resolved.origins["pidfile"]))
            servers: list[Any] = planned.build()
            logs.enable_ours()
            for server in servers:
                cleanup.callback(server.server_close)
        process.systemd_sockets.warn_of_unused({descriptor_of(server) for server in servers})
        # An instance may have settings that its class does not have.
        resolved = resolved_with([attributes_layer(servers[0])], given.layers)
        refuse_several_without_workers(resolved, len(servers))
        refuse_for_servers(resolved, [kind_of(server) for server in servers])
        configure_all(servers, given.layers)
        if resolved.cpus is not None:
            reason = resolved.cpus.reason
            event(logging.INFO, "master", "counted cpus", cpus=resolved.cpus.count, reason=reason)
        _explain_room(resolved)
        if watched is not None:
            log_as = resolved.settings.log_level, resolved.settings.log_format
            cleanup.enter_context(watching(folder_of(target), watched, log_as))
        _set_title(resolved.settings.name, servers)
        return _serve(servers, resolved)


def _explain_room(resolved: Resolved) -> None:
    """Log that ``max_children`` is larger than usual because of the number of workers that were asked for."""
    settings = resolved.settings
    if resolved.origins["max_children"] == DEFAULT and settings.max_children > USUAL_CHILDREN:
        event(
            logging.INFO,
            "master",
            "max_children rises with workers",
            workers=settings.workers,
            max_children=settings.max_children,
        )


def _serve(servers: list[Any], resolved: Resolved) -> int:
    try:
        serve(*servers, settings=resolved.settings)
    except KeyboardInterrupt:  # Ctrl-C; the stop was graceful
        return ExitCode.OK
    except BootError as error:
        if logger.isEnabledFor(logging.ERROR):
            error.report = ""  # the log has it already, below the line about the worker's exit
        raise
    except PreforkError:
        raise
    except Exception as error:  # noqa: BLE001 - the application's service_actions() may raise anything
        event(logging.CRITICAL, "master", "failed", report=application_report(error))
        messages.error(f"the master ended because of {type(error).__name__}: {error}")
        return ExitCode.FAILED
    return ExitCode.OK


def _set_title(name: str | None, servers: list[BaseServer]) -> None:
    label = f" [{name}]" if name else ""
    with contextlib.suppress(Exception):  # serving does not depend on the title
        where = " ".join(_where(server) for server in servers)
        setproctitle.setproctitle(f"prefork: master{label} {where}")


def _where(server: Any) -> str:
    sock = getattr(server, "socket", None)
    return str(Address.of_socket(sock)) if sock is not None else type(server).__name__
