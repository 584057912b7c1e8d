"""The generated tables of the documents, as Markdown. ``make docs`` writes them, a test compares them."""
# ruff: noqa: INP001 - a folder of documents, not a package

from __future__ import annotations

import ast
import inspect
import itertools
import re
import textwrap
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final

from docs.manual import EXIT_STATUS
from prefork.cli.command_line import EXIT_CODES
from prefork.cli.commands.exit_code import ExitCode
from prefork.master.lifecycle import ENTERS, TRANSITIONS, Effect, MasterOrder
from prefork.master.signals import TABLE
from prefork.metrics.names import METRICS, Metric
from prefork.workers.settings import ROWS, Row
from prefork.workers.states import ExitKind, Phase

HOME: Final = Path(__file__).parents[1]

MAIN_SETTINGS: Final = (
    *("workers", "max_children", "min_spare", "max_memory"),
    *("request_timeout", "client_timeout", "graceful_timeout", "metrics"),
)
"""The settings that README.md shows; all others are in docs/SETTINGS.md alone."""

ORDERS: Final = {
    MasterOrder.AGAIN: "*again*: a second TERM or INT, or a second QUIT",
    MasterOrder.SHUTDOWN: "`shutdown()`",
    MasterOrder.FAILURE: "an exception in the master's loop",
}
"""What docs/SIGNALS.md calls the orders that are no signals; a signal is called by its name."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table of these cells, one row a line."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def main_settings() -> str:
    """Return the table of the settings that most users need."""
    head = ("class attribute", "flag", "default", "meaning")
    return table(
        head,
        (
            (f"`{row.attribute}`", f"`{row.flag}`", _default(row), row.about.help)
            for row in (ROWS[key] for key in MAIN_SETTINGS)
        ),
    )


def settings() -> str:
    """Return the table of all settings."""
    head = ("setting (TOML)", "flag", "environment", "class attribute", "default", "meaning")
    return table(head, map(_setting, ROWS.values()))


def _setting(row: Row) -> Sequence[str]:
    short = f"`{row.about.short}`, " if row.about.short else ""
    return (
        f"`{row.key}`",
        f"{short}`{row.flag} {row.about.metavar}`",
        f"`{row.variable}`",
        f"`{row.attribute}`" if row.attribute else "-",
        _default(row),
        row.about.help,
    )


def _default(row: Row) -> str:
    return "-" if row.default is None else f"`{row.shown(row.default)}`"


def attributes() -> str:
    """Return the settings as class attributes of ``PreForkingMixIn``, each with its docstring."""
    return "".join(
        f"    {row.attribute}: {row.raw_type} = {_python(row.default)}\n{_docstring(row.about.help)}"
        for row in ROWS.values()
        if row.attribute is not None
    )


def constructor() -> str:
    """Return the constructor of ``Settings`` for type checkers."""
    rows = "".join(
        f"            {row.key}: {row.raw_type} = {_python(row.default)},\n"
        for row in ROWS.values()
    )
    return (
        f"        def __init__(\n            self,\n            *,\n{rows}        ) -> None: ...\n"
    )


def _python(value: object) -> str:
    if isinstance(value, tuple):
        return f"({''.join(f'{_python(one)},' for one in value)})"
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _docstring(text: str) -> str:
    if len(text) <= 90:
        return f'    """{text}"""\n'
    lines = textwrap.wrap(text, 96)
    return f'    """{lines[0]}\n' + "".join(f"    {line}\n" for line in lines[1:]) + '    """\n'


def exit_codes() -> str:
    """Return the table of the exit codes of all commands, with the errors that each one stands for."""
    errors = {
        code: ", ".join(
            f"`{kind.__name__}`" for kind, its_code in EXIT_CODES.items() if its_code is code
        )
        for code in ExitCode
    } | {ExitCode.FAILED: "every other `PreforkError`"}
    rows = (
        (str(int(code)), f"`{code.name}`", EXIT_STATUS[code], errors[code] or "-")
        for code in ExitCode
    )
    return table(("code", "name", "meaning", "errors"), rows)


def causes() -> str:
    """Return the table of the causes for which a worker ends, each with its docstring in the code."""
    return table(
        ("cause", "meaning"), ((f"`{kind}`", text) for kind, text in _documented(ExitKind))
    )


def _documented(kind: type[StrEnum]) -> Iterator[tuple[str, str]]:
    """Yield the value and the docstring of each member of an enumeration."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    nodes = body.body if isinstance(body, ast.ClassDef) else []
    for member, text in itertools.pairwise(nodes):
        if isinstance(member, ast.Assign) and isinstance(text, ast.Expr):
            yield ast.literal_eval(member.value), _in_one_line(ast.literal_eval(text.value))


def _in_one_line(docstring: str) -> str:
    """Return a docstring as a cell of a table."""
    return " ".join(docstring.replace("``", "`").split())


def requirements() -> str:
    """Return the table of the packages that prefork needs, and of those that its extras need."""
    with (HOME / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    extras = {
        f"extra `{name}`": needed for name, needed in project["optional-dependencies"].items()
    }
    rows = [
        (f"`{package}`", least, when)
        for when, needed in {"always": project["dependencies"], **extras}.items()
        for package, _, least in (one.partition(">=") for one in needed)
    ]
    return table(("package", "from version", "needed"), rows)


def metrics() -> str:
    """Return the table of all metrics."""
    return table(("metric", "type", "unit", "labels", "meaning"), map(_metric, METRICS.values()))


def _metric(metric: Metric) -> Sequence[str]:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    asked_for = " Only when asked for by name." if metric.opt_in else ""
    return (
        f"`{metric.name}`",
        metric.type.value,
        metric.unit or "-",
        labels or "-",
        metric.help + asked_for,
    )


def signals() -> str:
    """Return the table of what each signal means to the master and to a worker."""
    rows = ((number.name.removeprefix("SIG"), *meanings) for number, meanings in TABLE.items())
    return table(("signal", "to the master", "to a worker"), rows)


def orders() -> str:
    """Return the table of what each order does in each phase."""
    return table(("order", *map(_phase, Phase)), map(_order, MasterOrder))


def _phase(phase: Phase) -> str:
    return f"`{phase.name.lower()}`"


def _order(order: MasterOrder) -> Sequence[str]:
    cells = (_effect(order, TRANSITIONS[phase][order]) for phase in Phase)
    return (ORDERS.get(order, order.name), *cells)


def _effect(order: MasterOrder, effect: Effect) -> str:
    if effect is Effect.CANNOT_OCCUR and order is not MasterOrder.AGAIN:
        return "see *again*"
    entered = f": {_phase(ENTERS[effect])}" if effect in ENTERS else ""
    return effect.value + entered


_PICTURE: Final = re.compile(r"!\[[^]]*\]\([^):]+\)\n+")
_MARKER: Final = re.compile(r"<!-- .*? -->\n+")
_RELATIVE_LINK: Final = re.compile(r"\[([^]]+)\]\([^):]+\)")


def long_description(readme: str) -> str:
    """Return the README as an index of packages can show it: a relative link is its text, a picture is left out.

    On such a page a relative link leads nowhere, and the project has no public address that an absolute one
    could begin with.
    """
    text = _MARKER.sub("", _PICTURE.sub("", readme))
    return (
        _RELATIVE_LINK.sub(r"\1", text)
        + "\nThe files that this page names are in the source distribution.\n"
    )
