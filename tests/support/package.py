"""The source of the package, parsed: for the tests that hold rules over every module."""

from __future__ import annotations

import ast
import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import prefork
import prefork.metrics
import prefork.workers

if TYPE_CHECKING:
    from collections.abc import Iterator


def _parsed() -> dict[str, ast.Module]:
    """Parse every module of the package, wherever it is installed, by its import name.

    The files count, and not what the import system lists: that leaves out a folder without an
    ``__init__.py``, whose modules can be imported all the same.
    """
    found = {
        _name_of(file, home, package): ast.parse(file.read_text("utf-8"))
        for package, home in _HOMES.items()
        for file in _files(home)
    }
    return dict(sorted(found.items()))


def _files(home: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(home):
        folders[:] = [one for one in folders if Path(folder, one) not in _HOMES.values()]
        yield from (Path(folder, name) for name in names if name.endswith(".py"))


def _name_of(file: Path, home: Path, package: str) -> str:
    parts = (package, *file.relative_to(home).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


_HOMES: Final = {
    one.__name__: Path(one.__path__[0]) for one in (prefork, prefork.workers, prefork.metrics)
}
"""The folders of the three floors. In a wheel they lie within each other, in a checkout they are linked, and in an
unpacked source distribution there are no links.
"""

SOURCES: Final = _parsed()
"""Every module's syntax tree by its import name. Reading them takes half a second, once."""


@functools.cache
def nodes_of(tree: ast.AST) -> tuple[ast.AST, ...]:
    """Return all nodes of a syntax tree. Several rules look at each tree, and walking it takes a while."""
    return tuple(ast.walk(tree))
