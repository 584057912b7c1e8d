"""The generated parts of a page in Markdown: tables between two markers."""
# ruff: noqa: INP001 - as in charts.py

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence


def filled(text: str, parts: Mapping[str, Callable[[], str]]) -> str:
    """Return a page with each part made anew between ``<!-- name -->`` and ``<!-- /name -->``."""
    for name, part in parts.items():
        between = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)
        text = between.sub(f"\n{part()}\n\n".replace("\\", r"\\"), text)
    return text


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
