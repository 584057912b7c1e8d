"""The source of the package, parsed: for the tests that hold rules over every module."""

from __future__ import annotations

import ast
import importlib.util
import pkgutil
from pathlib import Path
from typing import Final

import prefork


def _parsed() -> dict[str, ast.Module]:
    """Parse every module of the package, wherever it is installed, by its import name."""
    names = [module.name for module in pkgutil.walk_packages(prefork.__path__, "prefork.")]
    return {name: ast.parse(_file_of(name).read_text("utf-8")) for name in ["prefork", *names]}


def _file_of(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin)


SOURCES: Final = _parsed()
"""Every module's syntax tree by its import name. Reading them takes half a second, once."""
