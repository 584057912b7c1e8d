"""The command line: arguments to settings to servers. The only place that ends the process.

==== =============================================================
exit meaning
==== =============================================================
0    clean
1    failed while running
2    wrong usage, settings or target
3    the application cannot boot
4    an address cannot be bound
130  interrupted before it served or was checked
==== =============================================================
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
from socketserver import BaseServer
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click
import setproctitle

from prefork import logs, sources, trial
from prefork._version import __version__
from prefork.addresses import Address
from prefork.mixin import serve
from prefork.pidfile import PidFile
from prefork.target import Plan, Wishes, application_report, load, plan
from prefork.workers.errors import (
    BindError,
    BootError,
    PreforkError,
    SettingsError,
    TargetError,
)
from prefork.workers.log import event
from prefork.workers.settings import (
    AUTO,
    DEFAULT,
    ROWS,
    Layer,
    Resolved,
    Row,
    attributes_layer,
    merge,
    nearest,
    resolve,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
BOOT_FAILED: Final = 3
BIND_FAILED: Final = 4
INTERRUPTED: Final = 130

_EXIT_CODES: Final = {
    SettingsError: USAGE,
    TargetError: USAGE,
    BootError: BOOT_FAILED,
    BindError: BIND_FAILED,
}


class _StoppedEarly(BaseException):
    """TERM came while the master did not yet, or does no longer, take signals itself."""


# --- main ----------------------------------------------------------------------------------------


def main() -> NoReturn:
    """Run the command of ``sys.argv`` and exit with its code."""
    _fill_standard_streams()
    sys.exit(run_command(sys.argv[1:]))


def run_command(arguments: Sequence[str]) -> int:
    """Run one command and give its exit code; whatever goes wrong is told on standard error."""
    try:
        given = list(arguments) or ["--help"]
        status = commands.main(given, prog_name="prefork", standalone_mode=False)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "prefork"
        logs.say(f"prefork: error: {error.format_message()}\nTry '{path} --help'.")
        return USAGE
    except PreforkError as error:
        _tell(error)
        return next((code for kind, code in _EXIT_CODES.items() if isinstance(error, kind)), FAILED)
    except _StoppedEarly:
        return OK
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    return int(status or OK) if arguments else USAGE


def _tell(error: PreforkError) -> None:
    report = error.report.rstrip() if isinstance(error, BootError) else ""
    logs.say("\n".join(part for part in (f"prefork: error: {error}", report) if part))


def _fill_standard_streams() -> None:
    """Open /dev/null for standard descriptors that are closed, before anything else is opened.

    Otherwise a listener would get number 2, and the next traceback would go to a client.
    """
    fd = os.open(os.devnull, os.O_RDWR)
    while fd <= 2:
        os.set_inheritable(fd, True)
        fd = os.open(os.devnull, os.O_RDWR)
    os.close(fd)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # Python found the descriptor closed at its start
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - for good


# --- the commands --------------------------------------------------------------------------------


class _Commands(click.Group):
    """The group, in which ``prefork TARGET`` and ``prefork -w 4 TARGET`` stand for ``prefork run``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, ["run", *args] if self._means_run(args) else args)

    def _means_run(self, args: list[str]) -> bool:
        if not args or args[0] in {*self.commands, "-h", "--help", "-V", "--version"}:
            return False
        if args[0].startswith("-") or ":" in args[0]:
            return True
        # What reads like a mistyped command is left to click, which says so.
        return nearest(args[0], list(self.commands)) is None


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="'prefork TARGET' is short for 'prefork run TARGET'.",
)
@click.version_option(
    __version__,
    "-V",
    "--version",
    message=f"prefork %(version)s (Python {'.'.join(map(str, sys.version_info[:3]))})",
)
def commands() -> None:
    """Serve socketserver handlers with a bounded pool of pre-forked workers."""


def _setting_options(command: Callable[..., int]) -> Callable[..., int]:
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


_factory_option = click.option(
    "--factory", is_flag=True, help="TARGET is a function that returns what is to be served."
)


@commands.command("run", short_help="Serve TARGET until TERM or Ctrl-C.")
@click.argument("target")
@_factory_option
@_setting_options
def run(target: str, config: str | None, *, factory: bool, **flags: object) -> int:
    """Serve TARGET until TERM or Ctrl-C.

    TARGET is module:attribute or file.py:attribute. The attribute is a handler class, a server
    class, a server instance, or with --factory a function that returns one or several.
    """
    layers, values = _read_settings(flags, config)
    log = logs.set_up(
        values.get("log_level", ROWS["log_level"].default),
        values.get("log_format", ROWS["log_format"].default),
    )
    try:
        with _term_unwinds():
            return _run(target, layers, factory=factory)
    finally:
        log.flush()


@commands.command("check", short_help="Check settings and TARGET; nothing is bound or served.")
@click.argument("target")
@_factory_option
@click.option("--verdict-to", type=int, hidden=True, help="Load here and write the verdict there.")
@_setting_options
@click.pass_context
def check(
    ctx: click.Context,
    /,
    target: str,
    config: str | None,
    verdict_to: int | None,
    *,
    factory: bool,
    **flags: object,
) -> int:
    """Check settings and TARGET as 'run' would take them; nothing is bound or served.

    The application is imported in a child process. A factory is not called.
    """
    layers, values = _read_settings(flags, config)
    if verdict_to is None:
        return _check_in_child(_arguments_of(ctx), values)
    resolved, planned = _loaded(target, layers, factory=factory)
    settings = resolved.settings
    text = f"{planned.text}, workers={settings.workers} max_children={settings.max_children}"
    os.write(verdict_to, text.encode("utf-8", "replace")[:4000])
    sys.stdout.flush()
    os._exit(OK)  # threads that the application has started would keep the interpreter alive


@commands.command("config", short_help="Print every setting with its origin.")
@click.argument("target", required=False)
@_factory_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON: key to value and origin.")
@_setting_options
def config_(
    target: str | None, config: str | None, *, factory: bool, as_json: bool, **flags: object
) -> int:
    """Print every setting with its origin, as TOML; with TARGET also what that one says itself."""
    layers, _ = _read_settings(flags, config)
    if target is None:
        resolved = resolve(layers)
    else:
        with contextlib.redirect_stdout(sys.stderr):  # what the application prints is no TOML
            resolved, _ = _loaded(target, layers, factory=factory)
    click.echo(_as_json(resolved) if as_json else _as_toml(resolved))
    return OK


def _check_in_child(arguments: list[str], values: dict[str, Any]) -> int:
    limit = values.get("boot_timeout", ROWS["boot_timeout"].default)
    try:
        with _term_unwinds():  # so that the child is ended, too
            status, verdict = trial.run(["check", *arguments], limit)
    except _StoppedEarly:
        return INTERRUPTED
    if status == OK:
        click.echo(f"OK: {verdict}")
    return status


def _read_settings(
    flags: dict[str, object], config: str | None
) -> tuple[list[Layer], dict[str, Any]]:
    """Collect what was set, and refuse what is wrong before any application is imported."""
    layers = sources.layers(flags, os.environ, config)
    values, origins = merge(layers)
    for text in values.get("bind", ()):
        Address.parse(text, origins["bind"])
    return layers, values


def _arguments_of(ctx: click.Context) -> list[str]:
    """Give the arguments of the running command again, in the order of its parameters."""
    again: list[str] = []
    for parameter in ctx.command.params:
        given = ctx.params.get(parameter.name or "")
        if isinstance(parameter, click.Argument) or given in (None, False, ()):
            continue
        for value in given if isinstance(given, tuple) else [given]:
            again += [parameter.opts[-1]] if value is True else [parameter.opts[-1], str(value)]
    return [*again, "--", str(ctx.params["target"])]


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


# --- running -------------------------------------------------------------------------------------


def _run(target: str, layers: list[Layer], *, factory: bool) -> int:
    """Load, bind and serve (master); everything that can be refused is refused in this order."""
    for name, guess in sources.misspelt(os.environ):
        event(logging.WARNING, "master", f"ignores {name}; did you mean {guess}?")
    resolved, planned = _loaded(target, layers, factory=factory)
    settings = resolved.settings
    if settings.umask is not None:
        os.umask(settings.umask)
    with _cleanup() as cleanup:
        with _stops_deferred():
            if settings.pidfile is not None:
                cleanup.enter_context(PidFile(settings.pidfile, resolved.origins["pidfile"]))
            servers: list[Any] = planned.build()
            for server in servers:
                cleanup.callback(server.server_close)
        # A server instance may say more than its class did.
        resolved = resolve([attributes_layer(servers[0]), *layers])
        _refuse_several_without_workers(resolved, len(servers))
        if resolved.cpus is not None:
            reason = resolved.cpus.reason
            event(logging.INFO, "master", "counted cpus", cpus=resolved.cpus.count, reason=reason)
        _set_title(resolved.settings.name, servers)
        return _serve(servers, resolved)


def _loaded(target: str, layers: list[Layer], *, factory: bool) -> tuple[Resolved, Plan]:
    """Import the target, and check it and the settings together."""
    found = load(target)
    resolved = resolve([*_attributes_of(found), *layers])
    settings, origins = resolved.settings, resolved.origins
    wishes = Wishes(
        addresses=[Address.parse(text, origins["bind"]) for text in settings.bind],
        binds_from=_given(origins["bind"]),
        backlog=settings.backlog,
        backlog_from=_given(origins["backlog"]),
    )
    _refuse_several_without_workers(resolved, len(wishes.addresses))
    return resolved, plan(target, found, wishes, factory=factory)


def _attributes_of(found: object) -> list[Layer]:
    """Read settings of a server class or instance; a handler has none, a factory's come later."""
    is_server = isinstance(found, BaseServer) or (
        isinstance(found, type) and issubclass(found, BaseServer)
    )
    return [attributes_layer(found)] if is_server else []


def _given(origin: str) -> str | None:
    return None if origin == DEFAULT else origin


def _refuse_several_without_workers(resolved: Resolved, count: int) -> None:
    if resolved.settings.workers == 0 and count > 1:
        allowed = f"without workers one server can be served, not {count}; give it one address"
        raise SettingsError("workers", 0, resolved.origins["workers"], allowed)


def _serve(servers: list[Any], resolved: Resolved) -> int:
    try:
        serve(*servers, settings=resolved.settings)
    except KeyboardInterrupt:  # Ctrl-C, after a graceful stop
        return OK
    except PreforkError:
        raise
    except Exception as error:  # noqa: BLE001 - the application's service_actions() may raise anything
        event(logging.CRITICAL, "master", "failed", report=application_report(error))
        logs.say(f"prefork: error: serving ended by {type(error).__name__}: {error}")
        return FAILED
    return OK


def _set_title(name: str | None, servers: list[BaseServer]) -> None:
    label = f" [{name}]" if name else ""
    with contextlib.suppress(Exception):  # a title is a nicety
        where = " ".join(_where(server) for server in servers)
        setproctitle.setproctitle(f"prefork: master{label} {where}")


def _where(server: Any) -> str:
    sock = getattr(server, "socket", None)
    return str(Address.of_socket(sock)) if sock is not None else type(server).__name__


@contextlib.contextmanager
def _term_unwinds() -> Iterator[None]:
    """Make TERM clean up like an exception where the master does not handle it: around serving."""
    before = signal.signal(signal.SIGTERM, _unwind)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _stops_deferred() -> Iterator[None]:
    """Keep the first TERM or Ctrl-C until the body is done; a second one does not wait.

    An exception in the middle of a server's constructor would leave a socket file that nobody
    knows of.
    """
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if noted:
            _unwind(number, frame)
        noted.append(number)

    before = {
        number: signal.signal(number, note)
        for number in (signal.SIGTERM, signal.SIGINT)
        if signal.getsignal(number) is not signal.SIG_IGN  # nohup and the like
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if noted:
        _unwind(noted[0], None)


def _unwind(number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt if number == signal.SIGINT else _StoppedEarly


@contextlib.contextmanager
def _cleanup() -> Iterator[contextlib.ExitStack]:
    """Give an ExitStack whose unwinding is not disturbed by TERM or a second Ctrl-C.

    It removes socket files and the pid file.
    """
    before: dict[int, Any] = {}
    try:
        with contextlib.ExitStack() as stack:
            try:
                yield stack
            finally:
                for stop in (signal.SIGTERM, signal.SIGINT):
                    before[stop] = signal.signal(stop, signal.SIG_IGN)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
