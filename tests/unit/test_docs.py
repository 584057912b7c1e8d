"""The documents: their generated tables are current, their links lead somewhere.

Run as a program (``make docs``), this file writes the tables.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from prefork.master.signals import markdown_table
from prefork.metrics import names
from prefork.workers.settings import docs_table

pytestmark = pytest.mark.once  # documents

HOME = Path(__file__).parents[2]
DOCUMENTS = sorted([*HOME.glob("*.md"), *HOME.glob("docs/*.md")])

TABLES = {
    ("README.md", "settings"): docs_table,
    ("README.md", "signals"): markdown_table,
    ("docs/SIGNALS.md", "signals"): markdown_table,
    ("docs/METRICS.md", "metrics"): names.docs_table,
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


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    """Every relative link of a document is a file or folder here."""
    targets = re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8"))

    assert [target for target in targets if not (document.parent / target).exists()] == []


def write_tables() -> None:
    """Bring the documents' tables up to date."""
    for (document, name), table in TABLES.items():
        path = HOME / document
        content = f"\n{table().strip()}\n\n"
        text = path.read_text(encoding="utf-8")
        path.write_text(between(name).sub(lambda _, new=content: new, text), encoding="utf-8")


if __name__ == "__main__":
    write_tables()
