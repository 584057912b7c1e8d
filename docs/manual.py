"""The man page, as roff, from the commands and the table of settings. ``make docs`` writes it, a test compares it."""
# ruff: noqa: INP001 - a folder of documents, not a package

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from typing import Final

import click

from prefork._version import __version__
from prefork.cli import command_line
from prefork.cli.command_line import commands
from prefork.cli.commands.exit_code import ExitCode
from prefork.cli.commands.options import SECTIONS
from prefork.master.signals import TABLE
from prefork.workers.settings import ROWS, Row

TARGET: Final = """\
TARGET is module:attribute or file.py:attribute. The attribute is a handler class, a server class, a
server instance or a WSGI application. With --factory it is a function that returns one of these, or several
instances. Without TARGET the settings file names it."""

DESCRIPTION: Final = (
    """\
prefork serves the handlers of Python's socketserver with a bounded pool of worker processes that share
one listening socket. The master forks the workers, replaces those that end, follows load, and loads new
code without losing a request.""",
    TARGET,
    "'prefork TARGET' is short for 'prefork run TARGET'.",
    """\
The commands for a running pool find it by its shared memory. NAME or PID says which pool; neither is
needed where only one pool of this user runs.""",
)

SETTINGS: Final = (
    """\
Flags of run, check and config. A flag is stronger than the environment variable, and the variable than the
file; the class attribute of a server is weaker than all three. 'prefork config' prints each value and where
it comes from.""",
    "Durations are written as 30s, 500ms or 5m, sizes as 256M or 2G.",
)

ADDRESSES: Final = {
    "HOST:PORT, tcp://HOST:PORT": "TCP. Port 0 takes a free port, and the log says which.",
    ":PORT": "TCP on every IPv4 address of this machine; [::]:PORT takes IPv6 and IPv4.",
    "udp://HOST:PORT": "UDP.",
    "unix:PATH, unix:@NAME": "A Unix stream socket, as a file or with an abstract name.",
    "unixgram:PATH, unixgram:@NAME": "A Unix datagram socket.",
    "fd://N": "A socket that the parent process has bound and passes as descriptor N.",
    "systemd:NAME": "The sockets that systemd passes under this name.",
}

FILES: Final = {
    "prefork.toml": "Settings as top-level keys, in the working directory. prefork config --example prints one.",
    "pyproject.toml": "Settings in the table [tool.prefork], where there is no prefork.toml.",
}

VARIABLES: Final = {
    "PREFORK_CONFIG": "The settings file, as with --config.",
    "WEB_CONCURRENCY": "The number of workers, where neither --workers nor PREFORK_WORKERS is given.",
    "PREFORK_...": "Each setting: PREFORK_ and its key in upper case, such as PREFORK_MAX_CHILDREN.",
}

EXIT_STATUS: Final = {
    ExitCode.OK: "A clean stop. The command did what it was asked for; for status, the pool is ready.",
    ExitCode.FAILED: "A failure while running. The command failed or ran out of time; for status, the pool is "
    "not ready or its master hangs.",
    ExitCode.USAGE: "Wrong usage, settings or TARGET; no running pool matches, or several do.",
    ExitCode.BOOT_FAILED: "The application cannot boot.",
    ExitCode.BIND_FAILED: "An address cannot be bound.",
    ExitCode.CRASH_LOOP: "A crash loop, with --crash-loop exit.",
    ExitCode.INTERRUPTED: "Ctrl-C while the application was still loading, or while a command waited.",
}


def man_page() -> str:
    """Return the page ``prefork(1)``."""
    lines = [
        f'.TH PREFORK 1 "" "prefork {__version__}" "User Commands"',
        ".nh",
        ".ad l",
        ".SH NAME",
        r"prefork \- serve socketserver handlers with a bounded pool of pre-forked workers",
        *_synopsis(),
        ".SH DESCRIPTION",
        *_paragraphs(DESCRIPTION),
        *_commands(),
        *_settings(),
        *_section("ADDRESSES", ADDRESSES.items()),
        *_section("SIGNALS", _signals()),
        *_section("ENVIRONMENT", VARIABLES.items()),
        *_section("FILES", FILES.items()),
        *_section("EXIT STATUS", ((str(int(code)), text) for code, text in EXIT_STATUS.items())),
        *_examples(),
        ".SH SEE ALSO",
        r".BR systemd (1),",
        r".BR signal (7)",
    ]
    return "\n".join(lines) + "\n"


def _synopsis() -> Iterator[str]:
    yield ".SH SYNOPSIS"
    yield ".nf"
    for section in command_line.SECTIONS.values():
        for command in section:
            usage = " ".join(command.collect_usage_pieces(_context(command)))
            yield rf"\fBprefork {_escaped(str(command.name))}\fR {_escaped(usage)}"
    yield ".fi"


def _commands() -> Iterator[str]:
    yield ".SH COMMANDS"
    for title, section in command_line.SECTIONS.items():
        yield f'.SS "{_escaped(title)}"'
        for command in section:
            yield ".TP"
            yield rf"\fB{_escaped(str(command.name))}\fR"
            yield from _text_of(command)
            yield ".RS"
            yield from _items(_own_options(command))
            yield ".RE"


def _text_of(command: click.Command) -> Iterator[str]:
    """Yield what the help of a command says, without what other sections of the page say."""
    text = inspect.cleandoc(command.help or "").replace("\b\n", "")
    said = ("TARGET is", "Each setting can also", "Durations are")
    paragraphs = [one for one in text.split("\n\n") if not one.startswith(said)]
    for number, paragraph in enumerate(paragraphs):
        if number:
            yield ".IP"
        yield _escaped(" ".join(paragraph.split()))


def _own_options(command: click.Command) -> Iterator[tuple[str, str]]:
    """Yield the flags of a command that are not those of settings, with their help."""
    context = _context(command)
    for parameter in command.params:
        if parameter.name in ROWS or not isinstance(parameter, click.Option):
            continue
        record = parameter.get_help_record(context)
        if record is not None:
            yield record[0], record[1]


def _context(command: click.Command) -> click.Context:
    """Return a context as the command line has it: click keeps the first names of the help flag that it sees."""
    return click.Context(command, help_option_names=commands.context_settings["help_option_names"])


def _settings() -> Iterator[str]:
    yield ".SH SETTINGS"
    yield from _paragraphs(SETTINGS)
    for title, keys in SECTIONS.items():
        yield f'.SS "{_escaped(title)}"'
        yield from _items(_setting(ROWS[key]) for key in keys)


def _setting(row: Row) -> tuple[str, str]:
    short = f"{row.about.short}, " if row.about.short else ""
    choices = f" One of {', '.join(row.choices)}." if row.choices else ""
    default = "" if row.default is None else f" Default: {row.shown(row.default)}."
    return f"{short}{row.flag} {row.about.metavar}", f"{row.about.help}{choices}{default}"


def _signals() -> Iterator[tuple[str, str]]:
    for number, (to_master, _) in TABLE.items():
        yield number.name.removeprefix("SIG"), f"{to_master}."


def _examples() -> Iterator[str]:
    yield ".SH EXAMPLES"
    yield ".nf"
    text = commands.epilog or ""
    yield from map(_escaped, re.findall(r"^  (prefork .*)$", text, re.MULTILINE))
    yield ".fi"


def _section(title: str, rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    yield f'.SH "{title}"'
    yield from _items(rows)


def _items(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    for term, text in rows:
        yield ".TP"
        breakable = _escaped(term).replace("|", r"|\:")
        yield rf"\fB{breakable}\fR"
        yield _escaped(" ".join(text.replace("`", "").split()))


def _paragraphs(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        yield ".PP"
        yield _escaped(" ".join(text.split()))


def _escaped(text: str) -> str:
    r"""Return text for roff: a hyphen is written ``\-``, so that a flag can be copied from the page."""
    text = text.replace("\\", r"\e").replace("-", r"\-")
    return rf"\&{text}" if text.startswith((".", "'")) else text
