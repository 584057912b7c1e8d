"""The command line: its commands, and the exit code that each error has.

Only this module ends the process; everything below it raises. docs/COMMANDS.md lists the exit
codes.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Final, NoReturn

import click

from prefork._version import __version__
from prefork.cli import habits, messages
from prefork.cli.commands import (
    cancel,
    check,
    completion,
    config,
    dump,
    haproxy,
    memory,
    reload,
    run,
    scale,
    status,
    stop,
    top,
)
from prefork.cli.commands.exit_code import ExitCode
from prefork.host import stopping
from prefork.host.process import process
from prefork.host.stopping import StoppedEarly, unattended
from prefork.inspect.find import SeveralPoolsError
from prefork.inspect.remote import UrlError
from prefork.inspect.running_pool import NoPoolError
from prefork.workers.errors import (
    BindError,
    BootError,
    CrashLoopError,
    MissingPackageError,
    MisuseError,
    PreforkError,
    SettingsError,
    TargetError,
)
from prefork.workers.log import event
from prefork.workers.text import nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_CODES: Final = {
    SettingsError: ExitCode.USAGE,
    TargetError: ExitCode.USAGE,
    MisuseError: ExitCode.USAGE,
    BootError: ExitCode.BOOT_FAILED,
    BindError: ExitCode.BIND_FAILED,
    CrashLoopError: ExitCode.CRASH_LOOP,
    NoPoolError: ExitCode.USAGE,
    UrlError: ExitCode.USAGE,
    SeveralPoolsError: ExitCode.USAGE,
    MissingPackageError: ExitCode.USAGE,
}
"""The exit codes of the exceptions that end a command; FAILED for everything else that prefork
raises.
"""


def main() -> NoReturn:
    """Run the command of ``sys.argv``, and end the process with its exit code.

    The control signals are blocked when this function is called.
    """
    _fill_standard_streams()
    arguments = sys.argv[1:]
    if not commands.serves(arguments):
        stopping.release()
        sys.exit(run_command(arguments))
    unattended.stand(to_the_end=True)
    status = run_command(arguments)
    unattended.end(status)
    sys.exit(status)


def main_of_trial() -> NoReturn:
    """Do as ``main()``, but end the process without waiting for threads that the application has started."""
    _fill_standard_streams()
    code = run_command(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)


def run_command(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code. Errors are reported on standard error."""
    try:
        given = list(arguments) or ["--help"]
        code = commands.main(given, prog_name="prefork", standalone_mode=False)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "prefork"
        messages.error(f"{_said(error)}\nTry '{path} --help'.")
        return ExitCode.USAGE
    except PreforkError as error:
        _say_error(error)
        return next(
            (code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), ExitCode.FAILED
        )
    except StoppedEarly:
        return ExitCode.OK
    except (KeyboardInterrupt, click.Abort):
        return ExitCode.INTERRUPTED
    return int(code or ExitCode.OK) if arguments else ExitCode.USAGE


def _said(error: click.ClickException) -> str:
    """Return the message of a usage error, in one line. A word of another server is answered with ours."""
    said = " ".join(error.format_message().split())  # click lists choices one below the other
    if isinstance(error, click.NoSuchOption) and (ours := habits.instead_of(error.option_name)):
        return f"No such option '{error.option_name}'; prefork has {ours}."
    return said


def _say_error(error: PreforkError) -> None:
    """Report why the command ends: to the user on standard error, or in the log of a running pool.

    After the exec of a reload there is a running pool: the previous workers serve on, the
    caretaker runs the program again, and what reads the log expects lines of a log.
    """
    report = error.report.rstrip() if isinstance(error, BootError) else ""
    if process.handover is not None:
        event(logging.ERROR, "master", "the program has failed", error=error, report=report)
        return
    messages.say("\n".join(part for part in (f"prefork: error: {error}", report) if part))


def _fill_standard_streams() -> None:
    """Open /dev/null for each standard descriptor that is closed, before anything else is opened.

    Otherwise the next file that is opened would get its number. A listener with number 2, for
    instance, would send tracebacks to a client.
    """
    fd = os.open(os.devnull, os.O_RDWR)
    while fd <= 2:
        os.set_inheritable(fd, True)
        fd = os.open(os.devnull, os.O_RDWR)
    os.close(fd)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # the descriptor was closed when Python started
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - stays open for good


SECTIONS: Final = {
    "Serve": (run.command, check.command, config.command),
    "Look at a running pool": (status.command, top.command, memory.command, dump.command),
    "Change a running pool": (
        *(scale.command, reload.command, reload.upgrade),
        *(cancel.command, stop.command),
    ),
    "Set up": (haproxy.command, completion.command),
}
"""All commands, by the sections of the help."""

EXAMPLES: Final = """\
\b
Examples:
  prefork app:Handler                 serve a handler class on 127.0.0.1:8000
  prefork -w 4 -b :9000 app.py:Echo   serve on port 9000 with four workers
  prefork status                      print the state of the running pool
  prefork reload --wait               load new code, and wait until it serves

'prefork TARGET' is short for 'prefork run TARGET'.
"""


class Commands(click.Group):
    """The group of all commands.

    ``prefork TARGET`` and ``prefork -w 4 TARGET`` stand for ``prefork run``.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put ``run`` in front of the arguments where they name no command."""
        return super().parse_args(ctx, ["run", *args] if self.means_run(args) else args)

    def serves(self, args: list[str]) -> bool:
        """Return whether these arguments have this process serve."""
        return args[:1] == ["run"] or self.means_run(args)

    def means_run(self, args: list[str]) -> bool:
        """Return whether these arguments begin with a target or with flags of ``run``.

        A word that resembles a command is taken as a misspelt command, which click then reports.
        """
        if not args or args[0] in {*self.commands, "-h", "--help", "-V", "--version"}:
            return False
        if args[0].startswith("-") or ":" in args[0]:
            return True
        if args[0] in habits.COMMANDS:
            return False
        return nearest(args[0], list(self.commands)) is None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command. A word of another program is answered with ours, and a misspelt one with the right one."""
        word = args[0]
        if word not in self.commands:
            if ours := habits.instead_of(word):
                ctx.fail(f"No such command '{word}'; prefork has {ours}.")
            if meant := nearest(word, list(self.commands)):
                ctx.fail(
                    f"No such command '{word}'. Did you mean '{meant}'? "
                    f"A module of this name is served by 'prefork run {word}'."
                )
        return super().resolve_command(ctx, args)

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """Return the names of the commands in the order of the help."""
        return list(self.commands)

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands section by section, with their sentences in one column."""
        width = max(map(len, self.commands))
        for title, members in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl(
                    [(str(one.name).ljust(width), one.get_short_help_str(100)) for one in members]
                )


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EXAMPLES,
)
@click.version_option(
    __version__,
    "-V",
    "--version",
    message=f"prefork %(version)s (Python {'.'.join(map(str, sys.version_info[:3]))})",
)
def commands() -> None:
    """Serve socketserver handlers with a bounded pool of pre-forked workers."""


for section in SECTIONS.values():
    for member in section:
        commands.add_command(member)
