"""What an answer of ``http.server`` says about its connection (worker)."""

from __future__ import annotations

from typing import Any


def word_about_connection(handler: Any, *, is_closing: bool) -> str | None:
    """Return what the header Connection of the answer has to say; None for nothing.

    handler: a handler of ``http.server`` whose headers are complete but for this one. is_closing:
    whether the pool parks no more, because it is about to stop. Clients of HTTP/1.0 keep a connection
    only where the answer says so. All others keep theirs unless the answer says "close"; with that
    word they ask the next server in place of finding a connection that ends under their hands.
    """
    lines: list[bytes] = getattr(handler, "_headers_buffer", [])
    is_final = bool(lines) and lines[0].partition(b" ")[2][:1] != b"1"
    if not is_final or handler.close_connection:
        return None
    if any(line[:11].lower() == b"connection:" for line in lines):
        return None
    if is_closing:
        return "close"
    return "keep-alive" if handler.request_version == "HTTP/1.0" else None
