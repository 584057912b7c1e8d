"""The documents: their generated tables are current, their links lead somewhere.

``make docs`` runs this file as a program, which writes the tables.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from docs import manual, tables
from prefork.cli.command_line import commands
from prefork.cli.commands.exit_code import ExitCode
from prefork.workers.layers import Layer, merge
from prefork.workers.settings import ROWS

pytestmark = pytest.mark.once  # documents

HOME = Path(__file__).parents[2]
DOCUMENTS = sorted(
    [*HOME.glob("*.md"), *HOME.glob("docs/*.md"), *HOME.glob("examples/**/README.md")]
)

TABLES = {
    ("docs/SETTINGS.md", "main"): tables.main_settings,
    ("docs/SETTINGS.md", "settings"): tables.settings,
    ("docs/SIGNALS.md", "signals"): tables.signals,
    ("docs/SIGNALS.md", "orders"): tables.orders,
    ("docs/METRICS.md", "metrics"): tables.metrics,
    ("docs/EXIT-CODES.md", "exit codes"): tables.exit_codes,
    ("docs/EXIT-CODES.md", "causes"): tables.causes,
    ("docs/VERSIONS.md", "requirements"): tables.requirements,
}
"""File and name of each pair of markers ``<!-- name -->``, ``<!-- /name -->``, and what stands between."""


CODE = {
    ("prefork/mixin.py", "settings"): tables.attributes,
    ("workers/settings.py", "constructor"): tables.constructor,
}
"""File and name of each pair of comments ``# <name> …``, ``# </name>`` in the code, and what stands between."""


MAN_PAGE = HOME / "docs" / "prefork.1"
PACKAGE_PAGE = HOME / "docs" / "package.md"
README = HOME / "README.md"


def between(name: str) -> re.Pattern[str]:
    """Find what stands between the markers of a name, line breaks included."""
    return re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)


def code_between(name: str) -> re.Pattern[str]:
    """Find what stands between the comments of a name in a source file."""
    return re.compile(rf"(# <{name}>[^\n]*\n)(.*?)(\n *# </{name}>)", re.DOTALL)


@pytest.mark.parametrize(("document", "name"), TABLES)
def test_table_is_current(document: str, name: str) -> None:
    """The tables in the documents are those that the code gives; make docs writes them."""
    found = between(name).findall((HOME / document).read_text(encoding="utf-8"))

    assert len(found) == 1, f"{document} has not one pair of markers for {name}"
    assert found[0].strip() == TABLES[document, name]().strip(), "out of date: run make docs"


@pytest.mark.parametrize(("file", "name"), CODE)
def test_generated_code_is_current(file: str, name: str) -> None:
    """Attributes and constructor are those of the table of settings; make docs writes them."""
    found = code_between(name).findall((HOME / file).read_text(encoding="utf-8"))

    assert [part.strip() for _, part, _ in found] == [CODE[file, name]().strip()], "run make docs"


def test_page_of_the_package_is_current() -> None:
    """The long description of the package is the README without relative links; make docs writes it."""
    found = PACKAGE_PAGE.read_text(encoding="utf-8")
    assert found == tables.long_description(README.read_text(encoding="utf-8")), "run make docs"
    assert re.findall(r"\]\((?!https?://)[^)]*\)", found) == []


def test_man_page_is_current() -> None:
    """The man page is the one that the commands and the table of settings give; make docs writes it."""
    assert MAN_PAGE.read_text(encoding="utf-8") == manual.man_page(), "run make docs"


def test_man_page_has_every_command_flag_and_exit_status() -> None:
    """No command, flag of a setting, signal or exit code is missing from the man page."""
    page = manual.man_page().replace("\\-", "-")
    flags = [row.flag for row in ROWS.values()]
    for word in (*commands.commands, *flags, *(str(int(code)) for code in ExitCode)):
        assert re.search(rf"\\fB(-\w, )?{re.escape(word)}[ \\]", page), word


@pytest.mark.processes
@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_man_page_is_good_roff() -> None:
    """Groff formats the man page without a warning."""
    done = subprocess.run(
        ["groff", "-man", "-ww", "-z", "-Tutf8", MAN_PAGE],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""


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
    assert shown.pop("target") == "app:Handler"

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


def test_comparison_has_the_servers_of_its_program() -> None:
    """The table of docs/CHOOSING.md has a row for each server that benchmarks/ways.py measures, in its order."""
    source = ast.parse((HOME / "benchmarks" / "ways.py").read_text(encoding="utf-8"))
    (variants,) = (
        node.value
        for node in source.body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "VARIANTS"
    )
    text = (HOME / "docs" / "CHOOSING.md").read_text(encoding="utf-8")
    (table,) = between("ways").findall(text)
    assert variants is not None

    rows = re.findall(r"^\| (.*?) +\|", table, re.MULTILINE)
    assert rows[2:] == [*ast.literal_eval(variants).values()]


# --- names of code


NAMED_CODE = re.compile(r"`([\w/]+\.py)(?::([\w.]+))?`")
"""A file, and after a colon a class, function, method or constant in it."""


def defines(path: Path, name: str) -> bool:
    """Return whether a source file defines this name; ``Class.method`` is one in the body of a class."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    for part in name.split("."):
        found = [node for node in body if part in names_of(node)]
        if not found:
            return False
        body = getattr(found[0], "body", [])
    return True


def names_of(node: ast.stmt) -> set[str]:
    """Return the names that a statement gives to something."""
    if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return {
        one.id
        for target in targets
        if target
        for one in ast.walk(target)
        if isinstance(one, ast.Name)
    }


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(HOME)))
def test_named_code_exists(document: Path) -> None:
    """Every file of the code that a document names exists, and defines the name after the colon."""
    named = {
        (path, name)
        for path, name in NAMED_CODE.findall(document.read_text(encoding="utf-8"))
        if (HOME / path.partition("/")[0]).is_dir()
    }

    missing = [path for path, _ in named if not (HOME / path).is_file()]
    assert missing == []
    assert [
        f"{path}:{name}" for path, name in named if name and not defines(HOME / path, name)
    ] == []


def steps_of_tour() -> dict[str, list[str]]:
    """Return the walks of docs/TOUR.md by their headings, each as its numbered steps."""
    text = (HOME / "docs" / "TOUR.md").read_text(encoding="utf-8")
    walks = re.findall(r"^## (A \w+)\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    step = re.compile(r"^\d+\. (.*?)(?=^\d+\. |^$)", re.DOTALL | re.MULTILINE)
    return {name: step.findall(walk) for name, walk in walks}


def test_tour_names_code_in_each_walk() -> None:
    """docs/TOUR.md has its four walks, and every step of them but a few names a file to read."""
    walks = steps_of_tour()

    assert [*walks] == ["A connection", "A signal", "A death", "A reload"]
    for steps in walks.values():
        without = [step for step in steps if not NAMED_CODE.search(step)]
        assert len(steps) >= 8
        assert len(without) <= 2, without


def test_tour_shortens_names_of_the_same_file() -> None:
    """A method that a step of docs/TOUR.md names without a file is defined in a file that the step names."""
    shortened = 0
    for step in (step for steps in steps_of_tour().values() for step in steps):
        files = {path for path, _ in NAMED_CODE.findall(step)}
        for name in re.findall(r"`([A-Z]\w*\.\w+)`", step):
            shortened += 1
            assert any(defines(HOME / path, name) for path in files), name

    assert shortened


def test_map_is_complete() -> None:
    """The map of docs/DESIGN.md has each folder of the code once, and names files that are in it."""
    text = (HOME / "docs" / "DESIGN.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `((?:prefork|workers|metrics)/[\w/]*)` \|(.*)$", text, re.MULTILINE)
    folders = ["prefork", "workers", "metrics"]
    folders += [
        str(found.parent.relative_to(HOME))
        for top in ("prefork", "workers")
        for found in (HOME / top).glob("*/__init__.py")
        if not found.parent.is_symlink()
    ]

    assert sorted(folder for folder, _ in rows) == sorted(f"{folder}/" for folder in folders)
    for folder, row in rows:
        start = row.split("|")[-2]
        assert [
            name
            for name in re.findall(r"`([\w/]+\.py)`", start)
            if not (HOME / folder / name).is_file()
        ] == []


def write_tables() -> None:
    """Bring the man page, the documents' tables and the page of the package up to date."""
    MAN_PAGE.write_text(manual.man_page(), encoding="utf-8")
    for (document, name), table in TABLES.items():
        path = HOME / document
        content = f"\n{table().strip()}\n\n"
        text = path.read_text(encoding="utf-8")
        path.write_text(between(name).sub(lambda _, new=content: new, text), encoding="utf-8")
    page = tables.long_description(README.read_text(encoding="utf-8"))
    PACKAGE_PAGE.write_text(page, encoding="utf-8")
    for (file, name), code in CODE.items():
        path = HOME / file
        text = path.read_text(encoding="utf-8")
        content = code().rstrip("\n")
        path.write_text(
            code_between(name).sub(
                lambda found, new=content: f"{found[1]}{new}{_line_of_air(found)}{found[3]}", text
            ),
            encoding="utf-8",
        )


def _line_of_air(found: re.Match[str]) -> str:
    """Return the empty line at the end of what stands there: ruff wants one after a function."""
    return "\n" if found[2].endswith("\n") else ""


def test_every_page_is_in_the_site() -> None:
    """docs/index.md lists each page, so that the site has it in its menu."""
    docs = HOME / "docs"
    listed = re.findall(
        r"^([A-Z-]+)$", (docs / "index.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    pages = {path.stem for path in docs.glob("*.md")} - {"index", "package"}

    assert sorted(listed) == sorted(pages)


if __name__ == "__main__":
    write_tables()
