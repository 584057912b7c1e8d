"""What a wheel and a source distribution have in them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.support.package import SOURCES
from tests.unit.test_architecture import imports_of

pytestmark = pytest.mark.once  # files

HOME = Path(__file__).parents[2]


def project() -> dict[str, Any]:
    """Return the content of pyproject.toml."""
    return tomllib.loads((HOME / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_package_is_in_the_wheel() -> None:
    """pyproject.toml lists each package: one that is left out would be missing where prefork is installed."""
    listed = project()["tool"]["setuptools"]["packages"]
    parents = {name.rpartition(".")[0] for name in SOURCES} - {""}

    assert sorted(listed) == sorted(parents)


def test_package_needs_what_it_imports_and_nothing_else() -> None:
    """Each dependency of users is imported by the package: what the tests or tools need does not become one."""
    listed = {re.split(r"[<>=]", one)[0] for one in project()["project"]["dependencies"]}
    imported = {name.split(".")[0] for tree in SOURCES.values() for name in imports_of(tree)}

    assert {name for name in listed if name.replace("-", "_") not in imported} == set()


def test_files_beside_the_code_are_in_the_wheel() -> None:
    """Each file of a package that is no Python source is listed as its data."""
    listed = project()["tool"]["setuptools"]["package-data"]
    named = {
        f"{package.split('.')[-1]}/{name}" for package, names in listed.items() for name in names
    }
    found = {
        f"{path.parent.name}/{path.name}"
        for top in ("prefork", "workers", "metrics")
        for path in (HOME / top).rglob("*")
        if path.is_file()
        and path.suffix not in (".py", ".pyc")
        and "prefork/workers" not in str(path)
    }

    assert {name for name in found if "egg-info" not in name} == named


def test_man_page_is_in_the_wheel() -> None:
    """A wheel installs the man page where ``man`` looks for it beside the program."""
    listed = project()["tool"]["setuptools"]["data-files"]
    assert listed == {"share/man/man1": ["docs/prefork.1"]}
    assert (HOME / "docs" / "prefork.1").is_file()


def test_source_distribution_has_what_the_tests_need() -> None:
    """MANIFEST.in names each folder of the checkout that is no package and not hidden."""
    lines = (HOME / "MANIFEST.in").read_text(encoding="utf-8").splitlines()
    grafted = {line.split()[1] for line in lines if line.startswith("graft ")}

    assert {"benchmarks", "docs", "examples", "tests"} == grafted
    assert all((HOME / folder).is_dir() for folder in grafted)
