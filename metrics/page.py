"""The status page: one file that asks ``/status`` once a second and loads nothing else."""

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
    # The browser itself refuses to read a text as HTML, whatever the script does.
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
)
"""Nothing but the page's own script and style, by their hashes, and requests to where it came from."""


def page() -> tuple[bytes, str]:
    """Return the page, UTF-8 encoded HTML, and the value of its Content-Security-Policy header.

    Reads a file and hashes it: call it once and keep the result, which depends on nothing else.
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
