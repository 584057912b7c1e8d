"""The WSGI application that all servers of the section ``wsgi`` serve."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

HELLO = b"hello\n"
ROUNDS = 60_000
"""Rounds of a request that computes: some milliseconds."""
PAUSE = 0.02
"""Seconds of a request that waits."""


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """Answer at once, compute, or wait, as the path says."""
    path = environ["PATH_INFO"]
    body = HELLO
    if path == "/compute":
        before = time.thread_time()
        value = 1
        for _ in range(ROUNDS):
            value = value * 48271 % 2147483647
        body = b"%.6f %d\n" % (time.thread_time() - before, value)
    elif path == "/wait":
        time.sleep(PAUSE)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
