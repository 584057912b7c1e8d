"""The status page: one HTML file, which asks for ``/status`` once a second."""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from pathlib import Path

_FILE = Path(__file__).with_name("page.html")

_POLICY = (
    "default-src 'none'",
    "script-src {script}",
    "style-src {style}",
    "connect-src 'self'",
    "img-src data:",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    # Whatever the script does, the browser refuses to read text as HTML.
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
)
"""Allows the page's own script and style, by their hashes, and requests to its own server."""


def page() -> tuple[bytes, str]:
    """Return the page as UTF-8 bytes, and the value of its header Content-Security-Policy.

    Reads and hashes a file. The result is always the same, so that one call is enough.
    """
    text = _FILE.read_text("utf-8")
    hashes = {kind: _hash(_content(text, kind)) for kind in ("script", "style")}
    return text.encode(), "; ".join(_POLICY).format(**hashes)


def _content(text: str, tag: str) -> str:
    found: list[str] = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    if len(found) != 1:
        raise ValueError(f"page.html has {len(found)} elements <{tag}>, the policy allows for one")
    return found[0]


def _hash(content: str) -> str:
    return f"'sha256-{b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
