"""The server that ``reload.py`` reloads: one pool on TCP, UDP and a Unix socket, with handlers of 5 ms.

``python reload_server.py FOLDER WORKERS``. Each reload runs it again. If the folder has a file
``broken``, the program fails. It writes its addresses to a file of the folder and prints nothing.
"""

from __future__ import annotations

import json
import logging
import os
import socketserver
import sys
import time
from pathlib import Path

import prefork

HOLD = 0.005
BACKLOG = 1024


class Hold(socketserver.BaseRequestHandler):
    """Hold the worker for a while, then answer with what came."""

    def handle(self) -> None:
        """Serve one request of either kind."""
        if isinstance(self.request, tuple):
            data, reply_from = self.request
            time.sleep(HOLD)
            reply_from.sendto(data, self.client_address)
        else:
            data = self.request.recv(1024)
            time.sleep(HOLD)
            self.request.sendall(data)


def main() -> None:
    """Serve until it is stopped."""
    folder, workers = Path(sys.argv[1]), int(sys.argv[2])
    logging.getLogger("prefork").setLevel(logging.CRITICAL)  # failed reloads are made on purpose
    if (folder / "broken").exists():
        raise RuntimeError("broken on purpose")
    tcp = prefork.PreForkingTCPServer(("127.0.0.1", 0), Hold)
    # Room for workers of two generations, so that a pool that rolls has all of its workers.
    tcp.workers, tcp.max_children = workers, workers + 4
    unix = prefork.PreForkingUnixStreamServer(str(folder / "socket"), Hold)
    udp = prefork.PreForkingUDPServer(("127.0.0.1", 0), Hold)
    told = {"tcp": tcp.server_address, "unix": unix.server_address, "udp": udp.server_address}
    new = folder / f"addresses.{os.getpid()}"
    new.write_text(json.dumps(told))
    new.rename(folder / "addresses")
    prefork.serve(tcp, unix, udp)


if __name__ == "__main__":
    main()
