"""The words of the documents and docstrings: one word for one thing, and none that a reader has to look up.

docs/DESIGN.md lists the words that the project uses. This file lists those that stood or could stand in their
place, each with the word to write.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.once  # documents

HOME = Path(__file__).parents[2]
NOT_WRITTEN_HERE = {"CHANGELOG.md", "package.md", "MUTANTS.md"}
"""What is quoted from earlier versions, and what a program writes."""

PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "examples/**/*.md")
    for path in HOME.glob(pattern)
    if path.name not in NOT_WRITTEN_HERE
)
MODULES = sorted(
    path
    for folder in ("prefork", "workers", "metrics")
    for path in (HOME / folder).rglob("*.py")
    if not any(parent.is_symlink() for parent in path.parents)
)

OTHER_WORDS = {
    r"arbiter|main process": "master",
    r"(?:listen|listener|server) socket": "listening socket",
    r"listen queue|connection queue|accept-queue": "accept queue",
    r"score board|score-board|shared board": "scoreboard",
    r"legacy|heritage|estate": "handover state",
    r"rehears\w+": "trial",
    r"bell|rope": "wake-up pipe",
    r"crew": "workers",
    r"hot reload\w*|graceful restart": "reload",
    r"mixin": "mix-in",
    r"time-outs?": "timeout",
    r"wake ups": "wake-ups",
    r"back-log": "backlog",
    r"data base": "database",
    r"stack trace": "stacks, or traceback",
}
"""Pattern of what is not written, and the project's word for it."""

OTHER_PHRASES = {
    r"so many(?! as)|so long(?! as)": "this many, that long",
    r"of before": "previous",
    r"for want of": "because of low ..., without",
    r"in order to": "to",
    r"e\.g\.|i\.e\.|etc\.|resp\.": "for example, that is, and so on",
    r"utili[sz]e\w*": "use",
    r"whatsoever|heretofore|thereof|whereby": "a plain word",
}
"""Pattern of what a reader has to read twice, and what to write."""

FOR_PAGES_ALONE = {r"nobody|somebody|whoever": "a noun: the process, the client, a user"}
"""What a page names, and a docstring may leave open."""

CODE = re.compile(r"```.*?```|`[^`]*`", re.DOTALL)


def docstrings(module: Path) -> str:
    """Return all docstrings of a module, and its other texts in three quotes."""
    return "\n".join(re.findall(r'"""(.*?)"""', module.read_text(encoding="utf-8"), re.DOTALL))


def found(text: str, words: dict[str, str]) -> Iterator[str]:
    """Find the words of a table in a text outside of its code; yield each with what to write."""
    prose = CODE.sub("", text)
    for match in re.finditer(rf"\b(?:{'|'.join(words)})(?!\w)", prose, re.IGNORECASE):
        around = prose[max(0, match.start() - 30) : match.end() + 20].replace("\n", " ")
        pattern = next(one for one in words if re.fullmatch(one, match[0], re.IGNORECASE))
        yield f"{match[0]!r} in {around!r}: write {words[pattern]}"


def test_pages_use_the_words_of_the_project() -> None:
    """No page has another word for a thing that has a name here, or a phrase that has to be read twice."""
    words = OTHER_WORDS | OTHER_PHRASES | FOR_PAGES_ALONE
    wrong = [
        f"{page.relative_to(HOME)}: {one}"
        for page in PAGES
        for one in found(page.read_text(encoding="utf-8"), words)
    ]
    assert not wrong, "\n".join(wrong)


def test_docstrings_use_the_words_of_the_project() -> None:
    """No docstring of the package has another word for a thing that has a name here."""
    words = OTHER_WORDS | OTHER_PHRASES
    wrong = [
        f"{module.relative_to(HOME)}: {one}"
        for module in MODULES
        for one in found(docstrings(module), words)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("The arbiter forks in order to serve.", 2),
        ("The master forks to serve, so long as a client comes.", 0),
        ("`legacy` and\n```\nlegacy\n```\nare code.", 0),
        ("A bellwether ropes.", 0),
    ],
)
def test_words_are_found_in_prose_alone(text: str, count: int) -> None:
    """A word counts as a whole, in any case of its letters, and not within code."""
    assert len([*found(text, OTHER_WORDS | OTHER_PHRASES)]) == count
