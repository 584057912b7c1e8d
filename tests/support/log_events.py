"""The events of the log as the source of the package has them: for the page that lists all of them."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from typing import Final

import msgspec

from tests.support.package import SOURCES, nodes_of

CALLS: Final = {"event": (0, 2), "failure": (0, 2), "write": (None, 1)}
"""The functions that write a line, with the positions of the level and of the event among their arguments.

``write()`` is that of ``LimitedLines``, which writes warnings.
"""

ELSEWHERE: Final = {
    ("prefork.cli.commands.run", "text"): (
        "ignores the environment variable …; did you mean …?",
        "ignores [tool.prefork] of pyproject.toml; prefork.toml is read instead",
    ),
}
"""Events whose words another module makes: the module and the argument, with all that it can be."""

WRITERS: Final = {"prefork.workers.log", "prefork.workers.worker.limited_lines"}
"""The modules with these functions."""

LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


class Site(msgspec.Struct, frozen=True):
    """One call that writes a line. events: what it can say, … for what is known at run time only.

    levels: at which it can say so. facts: the keys that it gives. others: whether it may give more keys.
    report: whether a traceback or a dump of stacks can follow the line.
    """

    module: str
    line: int
    events: tuple[str, ...]
    levels: tuple[str, ...]
    facts: tuple[str, ...]
    others: bool
    report: bool


@functools.cache
def sites() -> tuple[Site, ...]:
    """Return every call of the package that writes an event to the log."""
    return tuple(
        _site(module, tree, _function_of(tree, node), node)
        for module, tree in SOURCES.items()
        if module not in WRITERS
        for node in nodes_of(tree)
        if isinstance(node, ast.Call) and _writes(node)
    )


def _writes(call: ast.Call) -> bool:
    match call.func:
        case (
            ast.Name(id="event") | ast.Attribute(value=ast.Name(id="log"), attr="event" | "failure")
        ):
            return True
        case ast.Attribute(value=ast.Name(id=owner) | ast.Attribute(attr=owner), attr="write"):
            return owner.endswith("lines")
    return False


def _function_of(tree: ast.Module, call: ast.Call) -> ast.FunctionDef:
    """Return the innermost function around a call."""
    around = [
        node
        for node in nodes_of(tree)
        if isinstance(node, ast.FunctionDef)
        and node.lineno <= call.lineno <= (node.end_lineno or node.lineno)
    ]
    return max(around, key=lambda node: node.lineno)


def _site(module: str, tree: ast.Module, function: ast.FunctionDef, call: ast.Call) -> Site:
    name = ast.unparse(call.func).rpartition(".")[2]
    at_level, at_event = CALLS[name]
    keys = [one.arg for one in call.keywords]
    facts = tuple(one for one in keys if one is not None and one != "report")
    if name == "write":
        facts += ("others",)
    what = call.args[at_event]
    words = _Values(tree, function, before=call.lineno)
    found = ELSEWHERE.get((module, ast.unparse(what))) or tuple(words.of(what))
    levels: tuple[str, ...] = ("WARNING",)
    if at_level is not None:
        levels = tuple(_Values(tree, function).of(call.args[at_level]))
    report = name == "failure" or "report" in keys
    return Site(module, call.lineno, found, levels, facts, None in keys, report)


class _Values:
    """What expressions of one function can be, as far as the module says it by constants.

    before: the line of a call that uses a name right after it was assigned: the last assignment above the
    call counts, and otherwise all of them.
    """

    def __init__(
        self, tree: ast.Module, function: ast.FunctionDef, before: int | None = None
    ) -> None:
        self._tree = tree
        self._function = function
        self._before = before

    def of(self, node: ast.expr) -> Iterator[str]:
        """Yield each text or level that an expression can be."""
        match node:
            case ast.Constant(value=str() as text):
                yield text
            case ast.JoinedStr(values=parts):
                yield "".join(
                    str(one.value) if isinstance(one, ast.Constant) else "…" for one in parts
                )
            case ast.IfExp(body=one, orelse=other):
                yield from self.of(one)
                yield from self.of(other)
            case ast.Attribute(attr=level) if level in LEVELS:
                yield level
            case ast.Call(func=ast.Name(id=name)):
                yield from self._returned_by(name)
            case ast.Name(id=name):
                yield from self._named(name)
            case _:
                raise AssertionError(f"cannot tell what {ast.unparse(node)} is")

    def _returned_by(self, name: str) -> Iterator[str]:
        function = next(one for one in nodes_of(self._tree) if _is_function(one, name))
        for node in ast.walk(function):
            if isinstance(node, ast.Return) and node.value is not None:
                yield from _Values(self._tree, self._function).of(node.value)

    def _named(self, name: str) -> Iterator[str]:
        assigned = [
            node.value
            for node in ast.walk(self._function)
            if isinstance(node, ast.Assign)
            and ast.unparse(node.targets[0]) == name
            and (self._before is None or node.lineno < self._before)
        ]
        for value in assigned if self._before is None else assigned[-1:]:
            yield from self.of(value)
        if not assigned:
            yield from self._passed(name)

    def _passed(self, name: str) -> Iterator[str]:
        """Yield what the module passes to this function for one of its parameters."""
        parameters = [one.arg for one in self._function.args.args if one.arg != "self"]
        position = parameters.index(name)
        for caller in nodes_of(self._tree):
            if not isinstance(caller, ast.FunctionDef):
                continue
            for call in ast.walk(caller):
                if isinstance(call, ast.Call) and _calls(call, self._function.name):
                    yield from _Values(self._tree, caller).of(call.args[position])


def _is_function(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.FunctionDef) and node.name == name


def _calls(call: ast.Call, name: str) -> bool:
    return ast.unparse(call.func).rpartition(".")[2] == name
