"""The documents: their generated tables are current, their links lead somewhere.

``make docs`` runs this file as a program, which writes the tables.
"""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

from docs import tables
from prefork.cli.command_line import commands
from prefork.workers.settings import Layer, merge

pytestmark = pytest.mark.once  # documents

HOME = Path(__file__).parents[2]
DOCUMENTS = sorted(
    [*HOME.glob("*.md"), *HOME.glob("docs/*.md"), *HOME.glob("examples/**/README.md")]
)

TABLES = {
    ("README.md", "settings"): tables.main_settings,
    ("docs/SETTINGS.md", "settings"): tables.settings,
    ("docs/SIGNALS.md", "signals"): tables.signals,
    ("docs/SIGNALS.md", "orders"): tables.orders,
    ("docs/METRICS.md", "metrics"): tables.metrics,
}
"""File and name of each pair of markers ``<!-- name -->``, ``<!-- /name -->``, and what stands between."""


def between(name: str) -> re.Pattern[str]:
    """Find what stands between the markers of a name, line breaks included."""
    return re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)


@pytest.mark.parametrize(("document", "name"), TABLES)
def test_table_is_current(document: str, name: str) -> None:
    """The tables in the documents are those that the code gives; make docs writes them."""
    found = between(name).findall((HOME / document).read_text(encoding="utf-8"))

    assert len(found) == 1, f"{document} has not one pair of markers for {name}"
    assert found[0].strip() == TABLES[document, name]().strip(), "out of date: run make docs"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(HOME)))
def test_links_lead_somewhere(document: Path) -> None:
    """Every relative link of a document is a file or folder here, with a heading of that name if it has a #."""
    targets = re.findall(r"\]\(([^):]+)\)", document.read_text(encoding="utf-8"))

    assert [target for target in targets if not leads_somewhere(document, target)] == []


def leads_somewhere(document: Path, target: str) -> bool:
    """Return whether a relative link of a document leads to something that exists."""
    name, _, anchor = target.partition("#")
    found = document.parent / name if name else document
    return found.exists() and (not anchor or anchor in anchors_of(found))


def anchors_of(document: Path) -> set[str]:
    """Return the names by which links refer to the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_file_of_settings_is_valid() -> None:
    """The TOML file that docs/SETTINGS.md shows has settings that exist, with values that are allowed."""
    text = (HOME / "docs" / "SETTINGS.md").read_text(encoding="utf-8")
    (file,) = re.findall(r"^```toml\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    shown = tomllib.loads(file)

    values, _ = merge([Layer(shown, str)])

    assert values.keys() == shown.keys() != set()


def test_every_command_is_described() -> None:
    """docs/COMMANDS.md has a row for each command of the command line, and for no other."""
    text = (HOME / "docs" / "COMMANDS.md").read_text(encoding="utf-8")

    assert sorted(re.findall(r"^\| `prefork (\w+)", text, re.MULTILINE)) == sorted(
        commands.commands
    )


def test_every_benchmark_has_its_figures() -> None:
    """docs/BENCHMARKS.md names the command of each section of benchmarks/run.py, and no other."""
    source = ast.parse((HOME / "benchmarks" / "run.py").read_text(encoding="utf-8"))
    (sections,) = (
        node.value
        for node in source.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SECTIONS"
    )
    text = (HOME / "docs" / "BENCHMARKS.md").read_text(encoding="utf-8")

    assert re.findall(r"--only (\w+)", text) == list(ast.literal_eval(sections))


def write_tables() -> None:
    """Bring the documents' tables up to date."""
    for (document, name), table in TABLES.items():
        path = HOME / document
        content = f"\n{table().strip()}\n\n"
        text = path.read_text(encoding="utf-8")
        path.write_text(between(name).sub(lambda _, new=content: new, text), encoding="utf-8")


if __name__ == "__main__":
    write_tables()
