"""What the programs of these tests import beside ``tests.support.app``.

A program started with the argument ``plain`` leaves the mix-in out: the same text then shows
what the standard library does, and a test that runs both ways holds prefork against it.
"""

from __future__ import annotations

import contextlib
import socketserver
import sys
import threading
from typing import TYPE_CHECKING, Any

import prefork
from tests.support.app import LOOPBACK, announce, tell
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

MIXIN: tuple[type, ...] = () if "plain" in sys.argv else (prefork.PreForkingMixIn,)


class Pool(*MIXIN, socketserver.TCPServer):  # type: ignore[misc]
    """A TCP server of the standard library with the mix-in in front of it."""

    allow_reuse_address = True


def serve_here(
    server_class: type, handler: type, address: Any = LOOPBACK, **attributes: Any
) -> None:
    """Serve in this thread until a stop; tell the address before, and "left" and "closed" after.

    attributes: settings of the instance, made after its constructor.
    """
    with server_class(address, handler) as server:
        for name, value in attributes.items():
            setattr(server, name, value)
        announce(server)
        server.serve_forever()
        tell("left")
    tell("closed")


@contextlib.contextmanager
def serving(server: Any, poll_interval: float = 0.5) -> Iterator[threading.Thread]:
    """Serve from another thread until the end of the block, which calls ``shutdown()``."""
    thread = threading.Thread(target=server.serve_forever, args=(poll_interval,))
    thread.start()
    try:
        yield thread
    finally:
        server.shutdown()
        thread.join()


def wait_inside(thread: threading.Thread, function: str) -> None:
    """Wait until a thread stands still in the function of that name, or has ended."""
    assert thread.ident is not None
    ident = thread.ident
    seen: list[tuple[int, int]] = []

    def stands_still() -> bool:
        if not thread.is_alive():
            return True
        frame = sys._current_frames().get(ident)
        seen.append((id(frame), frame.f_lasti if frame else -1))
        names = []
        while frame is not None:
            names.append(frame.f_code.co_name)
            frame = frame.f_back
        return function in names and len(seen) > 20 and len(set(seen[-20:])) == 1

    wait_until(stands_still, f"the thread stands still in {function}()")
