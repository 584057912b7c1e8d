"""Whether the client of a request is still there: the setting ``check_client`` (worker).

The worker looks before a request is handed to its handler, and once a second while the handler runs. The
second look is made by the handler of the master's signal (cancelling.py), so it needs no thread, and
nothing of it is on the way of a request. Without the setting there is neither of the two.

What the kernel knows of a client is one of three things. A connection that was *reset* is gone for
certain: the client's process has ended with unread data, or its machine has refused a packet. A client that
has *closed* its end looks to a TCP server like one that has only closed its sending side and waits for the
answer, as ``nc`` and ``shutdown(SHUT_WR)`` do. So a closed client counts as gone only where the setting
says so, which is right for protocols that do not half-close, such as HTTP. For a Unix socket the kernel
distinguishes the two, and a client that has closed its sending side only is never taken for one that has gone.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from typing import Any, Final

from prefork.workers.cancel import CancelReason, exception_for

_RESET: Final = select.POLLHUP | select.POLLERR
_CLOSED: Final = _RESET | select.POLLRDHUP

Process = Callable[[Any, Any], None]
"""Does what ``process_request()`` does, called with a request and its client's address."""


class ClientCheck:
    """Looks at the clients of requests. when_closed: whether a client that has closed is gone, too."""

    def __init__(self, *, when_closed: bool) -> None:
        self._gone = _CLOSED if when_closed else _RESET

    def checked(self, process: Process) -> Process:
        """Return ``process`` for requests whose clients are there; for any other ClientGone is raised."""

        def process_checked(request: Any, address: Any) -> None:
            if self.is_gone(request):
                raise exception_for(CancelReason.CLIENT_GONE, "")
            process(request, address)

        return process_checked

    def is_gone(self, request: Any) -> bool:
        """Return whether the client of a request has gone; False where that cannot be known."""
        try:
            poll = select.poll()
            poll.register(request, select.POLLRDHUP)
            events = sum(found for _, found in poll.poll(0))
            return bool(events & self._gone) and not _is_half_closed(request, events)
        except (
            TypeError,
            ValueError,
            OSError,
            AttributeError,
        ):  # no socket, or one that the handler has closed
            return False


def _is_half_closed(request: Any, events: int) -> bool:
    return not events & _RESET and request.family == socket.AF_UNIX
