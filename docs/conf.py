"""The site of docs/: ``make site`` writes it to build/site, where it can be read without a network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import prefork
from prefork.workers.settings import ROWS

if TYPE_CHECKING:
    from sphinx.application import Sphinx

HOME = Path(__file__).parents[1]

project = "prefork"
version = release = prefork.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
autodoc_member_order = "bysource"
autodoc_mock_imports = ["httptools", "pytest"]  # packages of extras, which the site does not need
autodoc_typehints_format = "short"
maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"
smartquotes = False  # it makes dashes of the hyphens before a flag
source_suffix = {".md": "markdown"}
exclude_patterns = ["package.md", "images"]
myst_heading_anchors = 4  # links such as EDGE.md#tls, which GitHub has, too
html_theme = "furo"
html_title = "prefork"
html_show_copyright = False
html_copy_source = False
html_show_sourcelink = False

_OUTSIDE = re.compile(r"\[([^\]]*)\]\(\.\./([^)\s]+)\)")


def _named(link: re.Match[str]) -> str:
    text, path = link[1], link[2].partition("#")[0]
    if not (HOME / path).exists():
        raise FileNotFoundError(f"a page links to {path}, which is not in the repository")
    return f"`{path}`" if text.strip("`") in path else f"{text} (`{path}`)"


def name_outside_files(_app: Sphinx, _page: str, source: list[str]) -> None:
    """Name files outside of docs/, which the site does not have, in place of a link."""
    source[0] = _OUTSIDE.sub(_named, source[0])


_SETTINGS = {row.attribute for row in ROWS.values()}


def leave_out_setting(
    _app: Sphinx, _what: str, name: str, value: object, *_: object
) -> bool | None:
    """Leave a setting out of the description of its class, because the settings have a page of their own."""
    return True if name in _SETTINGS and not callable(value) else None


def leave_out_list(_app: Sphinx, _what: str, name: str, *rest: object) -> None:
    """Leave the list of the settings out of the description of ``Settings``, for the same reason."""
    lines = rest[-1]
    if name == "prefork.Settings" and isinstance(lines, list):
        del lines[lines.index("The settings:") :]


def setup(app: Sphinx) -> None:
    """Have every page and every description go through here."""
    app.connect("source-read", name_outside_files)
    app.connect("autodoc-skip-member", leave_out_setting)
    app.connect("autodoc-process-docstring", leave_out_list)
