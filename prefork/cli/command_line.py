"""The command line: which commands there are, and how each ends. The only place that ends the process.

==== =============================================================
exit meaning
==== =============================================================
0    clean; what was asked for is so
1    failed while running; what was asked for is not so
2    wrong usage, settings or target
3    the application cannot boot
4    an address cannot be bound
5    crash loop: new workers died again and again
130  interrupted before it served or was checked
==== =============================================================
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final, NoReturn

import click

from prefork._version import __version__
from prefork.cli import messages
from prefork.cli.commands import check, config, dump, reload, run, scale, status, stop, top
from prefork.cli.commands.exit_code import ExitCode
from prefork.host.stopping import StoppedEarly
from prefork.inspect.find import SeveralPoolsError
from prefork.workers.errors import (
    BindError,
    BootError,
    CrashLoopError,
    PreforkError,
    SettingsError,
    TargetError,
)
from prefork.workers.layers import nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_CODES: Final = {
    SettingsError: ExitCode.USAGE,
    TargetError: ExitCode.USAGE,
    BootError: ExitCode.BOOT_FAILED,
    BindError: ExitCode.BIND_FAILED,
    CrashLoopError: ExitCode.CRASH_LOOP,
    SeveralPoolsError: ExitCode.USAGE,
}
"""The exit codes of the exceptions that end a command; FAILED for everything else that prefork raises."""


def main() -> NoReturn:
    """Run the command of ``sys.argv`` and exit with its code."""
    _fill_standard_streams()
    sys.exit(run_command(sys.argv[1:]))


def main_of_trial() -> NoReturn:
    """Do as ``main``, and end at once: threads that the application has started would keep the interpreter."""
    _fill_standard_streams()
    code = run_command(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)


def run_command(arguments: Sequence[str]) -> int:
    """Run one command and give its exit code; whatever goes wrong is told on standard error."""
    try:
        given = list(arguments) or ["--help"]
        code = commands.main(given, prog_name="prefork", standalone_mode=False)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "prefork"
        messages.error(f"{error.format_message()}\nTry '{path} --help'.")
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


def _say_error(error: PreforkError) -> None:
    report = error.report.rstrip() if isinstance(error, BootError) else ""
    messages.say("\n".join(part for part in (f"prefork: error: {error}", report) if part))


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


class Commands(click.Group):
    """The group, in which ``prefork TARGET`` and ``prefork -w 4 TARGET`` stand for ``prefork run``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put ``run`` in front where no command is named."""
        return super().parse_args(ctx, ["run", *args] if self.means_run(args) else args)

    def means_run(self, args: list[str]) -> bool:
        """Tell whether these arguments begin with a target, or with flags of ``run``."""
        if not args or args[0] in {*self.commands, "-h", "--help", "-V", "--version"}:
            return False
        if args[0].startswith("-") or ":" in args[0]:
            return True
        # What reads like a mistyped command is left to click, which says so.
        return nearest(args[0], list(self.commands)) is None

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """Name the commands in the order in which people need them, not of the alphabet."""
        return list(self.commands)


@click.group(
    cls=Commands,
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


for module in (run, check, config, status, top, scale, reload, stop, dump):
    commands.add_command(module.command)
commands.add_command(reload.upgrade)
