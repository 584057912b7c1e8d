"""The file of the status page: whole in itself, and under a policy that lets nothing else in."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from prefork.metrics import page as module
from prefork.metrics.page import page


class Elements(HTMLParser):
    """Notes every element with its attributes, and what stands inside of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, str] = {}
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        self.found.append((tag, dict(attrs)))
        self._open = tag

    def handle_endtag(self, tag: str) -> None:
        """Note the end of an element."""
        self._open = ""

    def handle_data(self, data: str) -> None:
        """Note the content of scripts and styles."""
        if self._open in ("script", "style"):
            self.inside[self._open] = self.inside.get(self._open, "") + data


def test_policy_allows_the_script_and_the_style_of_the_page_alone() -> None:
    """Both are there by their hashes; anything else is refused unless the policy names it."""
    body, policy = page()
    elements = Elements(body.decode())
    directives = {rule.split()[0]: rule.split()[1:] for rule in policy.split("; ")}

    for tag in ("script", "style"):
        digest = hashlib.sha256(elements.inside[tag].encode()).digest()
        assert directives[f"{tag}-src"] == [f"'sha256-{base64.b64encode(digest).decode()}'"]
    assert directives["default-src"] == ["'none'"]
    assert directives["connect-src"] == ["'self'"]
    assert "unsafe" not in policy


def test_page_needs_nothing_from_elsewhere() -> None:
    """No element names an address but the page's own, and none has a handler or a style in an attribute."""
    elements = Elements(page()[0].decode())
    attributes = [pair for _, found in elements.found for pair in found.items()]

    assert not [name for name, _ in attributes if name.startswith("on") or name == "style"]
    addresses = {value for name, value in attributes if name in ("src", "href", "action")}
    assert {str(one) for one in addresses if not str(one).startswith("data:")} == {
        *("status", "metrics")
    }
    assert not re.search(r"url\(|@import", elements.inside["style"])
    assert re.findall(r"https?://[^\"']*", elements.inside["script"]) == [
        "http://www.w3.org/2000/svg"
    ]


def test_script_makes_no_html_of_texts() -> None:
    """What a pool says goes into the page as text: nothing that reads HTML or code is called."""
    script = Elements(page()[0].decode()).inside["script"]

    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|DOMParser|\beval\b|Function\(", script
    )


def test_page_of_two_scripts_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The policy knows one script: a second one would be dead, which is a mistake to be told."""
    file = tmp_path / "page.html"
    file.write_text("<style></style><script></script><script></script>")
    monkeypatch.setattr(module, "_FILE", file)

    with pytest.raises(ValueError, match="2 elements <script>"):
        page()
