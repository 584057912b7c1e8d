"""One request through a server, without a pool."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def one_request(server: Any) -> Iterator[socket.socket]:
    """Handle one request in a thread; the block is the client."""
    thread = threading.Thread(target=server.handle_request)
    thread.start()
    try:
        with socket.socket(server.address_family) as client:
            client.settimeout(5)
            client.connect(server.server_address)
            yield client
    finally:
        thread.join(10)
    assert not thread.is_alive()
