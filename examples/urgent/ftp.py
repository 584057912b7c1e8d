"""A toy FTP server whose transfers can be aborted, as RFC 959 describes ABOR.

    python examples/urgent/ftp.py 2121

It has one file, which never ends: ``RETR numbers``. A client that sends ABOR as urgent data, as Python's
``ftplib.FTP.abort()`` and other clients do, stops the transfer and keeps its connection. There are neither
accounts nor files to be protected, and it is no server to offer to strangers.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import socket
from collections.abc import Iterator

import prefork


class AbortedError(Exception):
    """The client does not want the rest of the file."""


class Session(prefork.UrgentMixIn, prefork.StreamRequestHandler):
    """Serves the commands of one client, one after the other."""

    data: socket.socket | None = None
    is_sending = False

    def handle(self) -> None:
        """Serve one client until it says QUIT or leaves."""
        self.say("220 one endless file")
        for line in self.rfile:
            command, _, argument = line.decode("ascii", "replace").strip().partition(" ")
            if command.upper() == "QUIT":
                self.say("221 bye")
                return
            getattr(self, f"do_{command.lower()}", self.do_not_know)(argument)

    def say(self, text: str) -> None:
        """Send one line of the control connection."""
        self.wfile.write(f"{text}\r\n".encode())

    def do_not_know(self, _argument: str) -> None:
        """Refuse a command."""
        self.say("502 not implemented")

    def do_user(self, _argument: str) -> None:
        """Let everybody in."""
        self.say("230 welcome")

    def do_type(self, _argument: str) -> None:
        """Take any representation: all of the file is ASCII."""
        self.say("200 as you like")

    def do_pasv(self, _argument: str) -> None:
        """Listen for a data connection."""
        self.data = socket.create_server((self.request.getsockname()[0], 0), backlog=1)
        host, port = self.data.getsockname()
        numbers = [*host.split("."), port // 256, port % 256]
        self.say(f"227 Entering Passive Mode ({','.join(map(str, numbers))})")

    def do_retr(self, name: str) -> None:
        """Send a file until the client aborts the transfer."""
        if name != "numbers" or self.data is None:
            self.say("550 PASV, then RETR numbers")
            return
        self.say("150 here it comes")
        with self.transfer(self.data) as connection:
            for number in itertools.count():
                connection.sendall(b"%d\n" % number)

    @contextlib.contextmanager
    def transfer(self, listener: socket.socket) -> Iterator[socket.socket]:
        """Give the data connection, and answer when the transfer has ended."""
        try:
            with listener, listener.accept()[0] as connection:
                self.is_sending = True
                yield connection
        except AbortedError:
            self.skip_command()
            self.say("226 aborted")
        except OSError:
            self.say("426 the data connection is closed")
        finally:
            self.is_sending = False
            self.data = None

    def handle_urgent(self, _byte: bytes) -> None:
        """Abort the transfer, where there is one."""
        if self.is_sending:
            self.is_sending = False
            raise AbortedError

    def skip_command(self) -> None:
        """Read the ABOR, whose last byte was the urgent one."""
        seen = b""
        while not seen.endswith(b"ABOR\r"):
            part = self.rfile.read(1)
            if not part:
                return
            seen += part


class Server(prefork.PreForkingTCPServer):
    """Says where it serves."""

    workers = 4

    def when_ready(self) -> None:
        """Say it when clients are served."""
        host, port = self.server_address[:2]
        print(f"Serving on {host}:{port}", flush=True)


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("port", nargs="?", type=int, default=2121, help="0 for a free one")
    with Server(("127.0.0.1", parser.parse_args().port), Session) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
