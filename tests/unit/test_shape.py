"""The size of classes, constructors and functions: the bounds, and every exception with its reason.

The bounds keep a piece of code readable in one sitting. Code that outgrows one of them usually has
two ideas in it: divide it. An exception needs a lasting reason, which stands beside it; one that is
no longer needed makes a test fail, so that the list cannot go stale.
"""

from __future__ import annotations

import ast
import functools
from typing import TYPE_CHECKING, Final

import msgspec
import pytest

from tests.support.package import SOURCES

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.once  # the source is the same for every interpreter

MOST_METHODS: Final = 25
"""Methods of one class, properties included, inherited ones not."""

MOST_PARAMETERS: Final = 8
"""Parameters of ``__init__()`` or ``__new__()`` besides the first one."""

MOST_BRANCHES: Final = 12
"""Branches of one function; ``branches()`` says what counts as one."""

EXCEPTIONS: Final[dict[str, str]] = {
    "prefork.workers.settings.Settings.__init__": "for type checkers alone; make docs writes it from the table",
}
"""Names of classes, constructors and functions that may pass a bound, each with its reason."""

_FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


class Oversize(msgspec.Struct, frozen=True):
    """Something that passes a bound. name: dotted, from the module on. what: with its figure, for people."""

    name: str
    what: str


def oversizes(module: str, tree: ast.Module) -> Iterator[Oversize]:
    """Yield every class, constructor and function of a module that passes a bound."""
    for name, node in _definitions(tree, module):
        if isinstance(node, ast.ClassDef):
            if (count := methods(node)) > MOST_METHODS:
                yield Oversize(name, f"{count} methods, at most {MOST_METHODS}")
            continue
        if (count := branches(node)) > MOST_BRANCHES:
            yield Oversize(name, f"{count} branches, at most {MOST_BRANCHES}")
        if node.name in ("__init__", "__new__") and (count := parameters(node)) > MOST_PARAMETERS:
            yield Oversize(name, f"{count} parameters, at most {MOST_PARAMETERS}")


def _definitions(
    node: ast.AST, name: str
) -> Iterator[tuple[str, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Yield every class and function, also nested ones, each with its dotted name."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.ClassDef, *_FUNCTION)):
            yield f"{name}.{child.name}", child
            yield from _definitions(child, f"{name}.{child.name}")
        else:
            yield from _definitions(child, name)


def _own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what stands in a class or function itself, not what stands in those that it defines."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, (ast.ClassDef, *_FUNCTION)):
            yield from _own_nodes(child)


def methods(node: ast.ClassDef) -> int:
    """Count the methods of a class. A property with a setter has two."""
    return sum(isinstance(one, _FUNCTION) for one in _own_nodes(node))


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the parameters of a method besides its first one; ``*args`` and ``**kwargs`` are one each."""
    given = node.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    return len(named) + (given.vararg is not None) + (given.kwarg is not None) - 1


def branches(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the branches of a function; a function inside it is counted by itself, a lambda is part of it.

    Each of these is one: ``if`` and ``elif``, ``for``, ``while``, ``except``, ``case``, a
    conditional expression, each operand of ``and`` or ``or`` beyond the first, each ``if`` of a
    comprehension.
    """
    one_each = (
        *(ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While),
        *(ast.ExceptHandler, ast.match_case),
    )
    count = 0
    for one in _own_nodes(node):
        if isinstance(one, ast.BoolOp):
            count += len(one.values) - 1
        elif isinstance(one, ast.comprehension):
            count += len(one.ifs)
        else:
            count += isinstance(one, one_each)
    return count


@functools.cache
def all_oversizes() -> list[Oversize]:
    """Return everything in the package that passes a bound."""
    return [one for module, tree in SOURCES.items() for one in oversizes(module, tree)]


def test_nothing_is_larger_than_its_bound() -> None:
    """Classes, constructors and functions keep to the bounds, but for the exceptions with a reason."""
    assert [one for one in all_oversizes() if one.name not in EXCEPTIONS] == []


def test_every_exception_is_needed() -> None:
    """An exception goes when the code that needed it is gone or has become smaller."""
    assert sorted(set(EXCEPTIONS) - {one.name for one in all_oversizes()}) == []


# --- the counters themselves


def _first(source: str) -> ast.AST:
    return ast.parse(source).body[0]


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ("pass", 0),
        ("if a: pass", 1),
        ("if a: pass\n elif b: pass\n else: pass", 2),
        ("for a in b: pass\n else: pass", 1),
        ("while a: pass", 1),
        ("try: pass\n except A: pass\n except B: pass\n finally: pass", 2),
        ("match a:\n  case 1: pass\n  case _: pass", 2),
        ("return a if b else c", 1),
        ("return a and b and c", 2),
        ("return a and b or c", 2),
        ("return [a for a in b if a if c]", 2),
        ("return [a for a in b]", 0),
        ("with a: pass", 0),
        ("def g():\n  if a: pass", 0),
        ("class C:\n  def g(self):\n   if a: pass", 0),
        ("return lambda: a if b else c", 1),
        ("if a:\n  if b:\n   if c or d: pass", 4),
    ],
)
def test_branches_are_counted(body: str, count: int) -> None:
    """Each kind of branch counts as the rule says, at every depth, and that of an inner function does not."""
    function = _first(f"def f():\n {body}")

    assert isinstance(function, ast.FunctionDef)
    assert branches(function) == count


@pytest.mark.parametrize(
    ("signature", "count"),
    [
        ("self", 0),
        ("self, a, b=1", 2),
        ("self, a, /, b, *, c, d=1", 4),
        ("self, *args, **kwargs", 2),
    ],
)
def test_parameters_are_counted(signature: str, count: int) -> None:
    """Every kind of parameter counts, but not the first one."""
    function = _first(f"def __init__({signature}): pass")

    assert isinstance(function, ast.FunctionDef)
    assert parameters(function) == count


def test_methods_are_counted() -> None:
    """Methods and properties count wherever the class body defines them; those of an inner class do not."""
    found = _first(
        "class C:\n"
        " a = 1\n"
        " def f(self):\n  def inner(): pass\n"
        " @property\n def g(self): pass\n"
        " async def h(self): pass\n"
        " if a:\n  def i(self): pass\n"
        " class D:\n  def j(self): pass\n"
    )

    assert isinstance(found, ast.ClassDef)
    assert methods(found) == 4


def test_each_bound_is_held() -> None:
    """One more than a bound is found, in every nesting, under its whole name; the bound itself is not."""

    def source(more: int) -> ast.Module:
        branching = "\n".join("   if a: pass" for _ in range(MOST_BRANCHES + more))
        arguments = "".join(f", a{n}" for n in range(MOST_PARAMETERS + more))
        many = "\n".join(f" def f{n}(self): pass" for n in range(MOST_METHODS - 1 + more))
        return ast.parse(
            f"class C:\n def __init__(self{arguments}):\n  def inner():\n{branching}\n{many}\n"
        )

    assert list(oversizes("m", source(0))) == []
    assert {one.name for one in oversizes("m", source(1))} == {
        "m.C",
        "m.C.__init__",
        "m.C.__init__.inner",
    }
