"""A lookup service on a Unix socket, to which the kernel reports who asks.

    $ python examples/whoami/server.py /run/user/1000/whoami
    Serving on /run/user/1000/whoami

A request is a line, and a connection may carry several. ``me`` is answered with the client's own
credentials, any other word with the entry of the user of that name. Only root and the user who runs
the server are served. A password or a token could be stolen, a peer's uid cannot.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pwd
import socket
import struct
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import prefork


class Peer(NamedTuple):
    """The process at the other end, as it was when it connected."""

    pid: int
    uid: int
    gid: int

    @classmethod
    def of(cls, connection: socket.socket) -> Peer:
        form = struct.Struct("iII")  # struct ucred of unix(7)
        return cls(
            *form.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, form.size))
        )


class WhoAmI(prefork.StreamRequestHandler):
    # seconds; a connection occupies its worker, so an idle one must not stay forever
    timeout = 10

    def handle(self) -> None:
        with contextlib.suppress(TimeoutError):
            while word := self.rfile.readline(100).decode(errors="replace").strip():
                answer = self.own() if word == "me" else self.entry(word)
                self.wfile.write(f"{answer}\n".encode())

    def own(self) -> str:
        peer = Peer.of(self.request)
        return f"uid={peer.uid}({name_of(peer.uid)}) gid={peer.gid} pid={peer.pid}"

    def entry(self, name: str) -> str:
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            return f"{name}: no such user"
        return f"{name}: uid={user.pw_uid} home={user.pw_dir} shell={user.pw_shell}"


class WhoAmIServer(prefork.PreForkingUnixStreamServer):
    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002
        """Refuse strangers before any handler sees them; runs in the worker."""
        return Peer.of(request).uid in (0, os.geteuid())


def name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return "?"


def main() -> None:
    default = Path(os.environ.get("XDG_RUNTIME_DIR", tempfile.gettempdir())) / "whoami"
    parser = argparse.ArgumentParser(description="Tell users about themselves, on a Unix socket.")
    parser.add_argument("path", nargs="?", default=str(default), help="of the socket")
    given = parser.parse_args()

    with WhoAmIServer(given.path, WhoAmI) as server:
        print(f"Serving on {server.server_address}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is a good way to stop it
            server.serve_forever()


if __name__ == "__main__":
    main()
