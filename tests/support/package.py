"""The source of the package, parsed: for the tests that hold rules over every module."""

from __future__ import annotations

import ast
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import prefork

if TYPE_CHECKING:
    from collections.abc import Iterator


def _parsed() -> dict[str, ast.Module]:
    """Parse every module of the package, wherever it is installed, by its import name.

    The files count, and not what the import system lists: that leaves out a folder without an
    ``__init__.py``, whose modules can be imported all the same.
    """
    return {_name_of(file): ast.parse(file.read_text("utf-8")) for file in sorted(_files())}


def _files() -> Iterator[Path]:
    for folder, _, names in os.walk(
        _HOME, followlinks=True
    ):  # prefork/workers is a link in a checkout
        yield from (Path(folder, name) for name in names if name.endswith(".py"))


def _name_of(file: Path) -> str:
    parts = ("prefork", *file.relative_to(_HOME).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


_HOME: Final = Path(prefork.__path__[0])

SOURCES: Final = _parsed()
"""Every module's syntax tree by its import name. Reading them takes half a second, once."""
