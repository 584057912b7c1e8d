"""One request through a server, without a pool."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING, Any

from tests.support.clients import TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def one_request(server: Any) -> Iterator[socket.socket]:
    """Handle one request in a thread; the block is the client."""
    thread = threading.Thread(target=server.handle_request)
    thread.start()
    try:
        with socket.socket(server.address_family) as client:
            client.settimeout(TIMEOUT)
            client.connect(server.server_address)
            yield client
    finally:
        thread.join(TIMEOUT)
    assert not thread.is_alive()
