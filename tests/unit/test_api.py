"""The reference of the API: docs/API.md has every public name, and docs/VERSIONS.md what holds for all of them."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import socketserver
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.package import SOURCES, nodes_of

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.once  # documents, and the source

HOME = Path(__file__).parents[2]
API = (HOME / "docs" / "API.md").read_text(encoding="utf-8")
VERSIONS = (HOME / "docs" / "VERSIONS.md").read_text(encoding="utf-8")

DESCRIBED = re.compile(
    r"^(?:\.\. (?:auto(?:class|exception|function|module)|py:data)::| {12}) +(prefork[\w.]*)",
    re.MULTILINE,
)
"""A name that a directive of Sphinx describes; of several names in one directive, each one."""


def public_modules() -> list[str]:
    """Return the modules that say what of them is public."""
    return [
        name
        for name, tree in SOURCES.items()
        if any(isinstance(node, ast.Name) and node.id == "__all__" for node in nodes_of(tree))
    ]


def public_names() -> Iterator[tuple[str, str]]:
    """Yield module and name of everything that is public, but for the names of ``socketserver``."""
    for module in public_modules():
        for name in importlib.import_module(module).__all__:
            if module != "prefork" or name not in socketserver.__all__:
                yield module, name


def thing(dotted: str) -> Any:
    """Return what a dotted name of the page stands for."""
    module, _, name = dotted.rpartition(".")
    found = importlib.import_module(module)
    return getattr(found, name)


def test_every_public_name_is_described_and_no_other() -> None:
    """docs/API.md describes each name of each ``__all__`` once, under a name that can be imported, and nothing else."""
    described = DESCRIBED.findall(API)
    public = {id(getattr(importlib.import_module(module), name)) for module, name in public_names()}

    assert sorted(described) == sorted(set(described))
    missing = [
        f"{module}.{name}"
        for module, name in public_names()
        if all(
            thing(one) is not getattr(importlib.import_module(module), name) for one in described
        )
    ]
    assert missing == []
    assert [one for one in described if id(thing(one)) not in public] == []


def test_every_public_name_has_a_contract() -> None:
    """Each public class, exception and function has a docstring of its own, and so has each public method."""
    silent = []
    for module, name in public_names():
        found = getattr(importlib.import_module(module), name)
        methods = vars(found) if inspect.isclass(found) else {}
        for dotted, one in {name: found, **methods}.items():
            if not dotted.startswith("_") and inspect.isroutine(one) | inspect.isclass(one):
                silent += [] if one.__doc__ else [f"{module}.{name}: {dotted}"]
    assert silent == []


def test_versions_of_python_are_those_of_the_package() -> None:
    """docs/VERSIONS.md names the versions of CPython that the classifiers of the package have."""
    with (HOME / "pyproject.toml").open("rb") as file:
        classifiers = tomllib.load(file)["project"]["classifiers"]
    versions = re.findall(r"Python :: (3\.\d+)$", "\n".join(classifiers), re.MULTILINE)

    assert f"| CPython | {', '.join(versions)} |" in VERSIONS


def test_every_deprecation_is_announced() -> None:
    """docs/VERSIONS.md says that nothing is deprecated exactly when no module raises a DeprecationWarning."""
    warns = [
        name
        for name, tree in SOURCES.items()
        for node in nodes_of(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in {"warn", "warnings.warn"}
        and "DeprecationWarning" in ast.unparse(node)
    ]
    assert ("Nothing is deprecated." in VERSIONS) == (warns == [])
