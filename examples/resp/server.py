"""A small key-value server that speaks RESP, the protocol of Redis, with connections that stay open.

    $ python examples/resp/server.py --port 6380
    Serving on 127.0.0.1:6380
    $ redis-benchmark -p 6380 -c 50 -t ping,set,get -q

The clients of Redis keep their connections. Fifty of them on four workers get answers, because an idle
connection holds no worker: it is parked between two commands. The workers share a database, and each
command can be served by another worker.
"""

from __future__ import annotations

import argparse
import contextlib
import sqlite3
import tempfile
from pathlib import Path

import prefork

LONGEST = 512 * 1024
"""Bytes of one argument."""

MOST_ARGUMENTS = 64


class Command(prefork.ParkingMixIn, prefork.StreamRequestHandler):
    """Serves one command; then the connection is parked until the client sends the next one."""

    server: Server

    def handle(self) -> None:
        """Read a command and answer it. A client that has closed, or sends something else, is let go."""
        try:
            words = self.read_command()
        except ValueError as error:
            self.wfile.write(b"-ERR %s\r\n" % str(error).encode())
            words = []
        if not words:
            self.close_connection = True
            return
        self.wfile.write(self.server.answer(words[0].upper(), words[1:]))

    def read_command(self) -> list[bytes]:
        """Return the words of a command; none at the end of the stream. ValueError: it is no RESP."""
        line = self.rfile.readline(1024)
        if not line:
            return []
        if not line.startswith(b"*"):  # a command typed by hand: telnet 127.0.0.1 6380
            return line.split() or [b"PING"]
        count = int(line[1:])
        if not 0 < count <= MOST_ARGUMENTS:
            raise ValueError("too many arguments")
        return [self.read_word() for _ in range(count)]

    def read_word(self) -> bytes:
        """Return one argument, whose length comes before it."""
        line = self.rfile.readline(32)
        if not line.startswith(b"$") or not 0 <= (length := int(line[1:])) <= LONGEST:
            raise ValueError("a length was expected")
        word = self.rfile.read(length)
        if self.rfile.read(2) != b"\r\n" or len(word) < length:
            raise ValueError("an argument is longer than it says")
        return word


class Server(prefork.PreForkingTCPServer):
    """Keeps the values in a database that all workers open."""

    park_new = True  # clients may connect and say nothing for a while
    database: sqlite3.Connection

    def __init__(self, address: tuple[str, int], path: Path) -> None:
        super().__init__(address, Command)
        self.path = path
        with contextlib.closing(sqlite3.connect(path)) as database, database:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("CREATE TABLE IF NOT EXISTS pairs (key BLOB PRIMARY KEY, value BLOB)")

    def worker_init(self, _worker: prefork.WorkerInfo) -> None:
        """Open the database in this process; SQLite does not allow to use a connection across a fork."""
        self.database = sqlite3.connect(self.path, timeout=10, isolation_level=None)
        self.database.execute("PRAGMA synchronous = OFF")

    def answer(self, command: bytes, arguments: list[bytes]) -> bytes:
        """Return the answer to a command."""
        match command, arguments:
            case b"PING", []:
                return b"+PONG\r\n"
            case b"SET", [key, value]:
                self.database.execute("REPLACE INTO pairs VALUES (?, ?)", [key, value])
                return b"+OK\r\n"
            case b"GET", [key]:
                found = self.database.execute(
                    "SELECT value FROM pairs WHERE key = ?", [key]
                ).fetchone()
                return b"$-1\r\n" if found is None else b"$%d\r\n%s\r\n" % (len(found[0]), found[0])
            case b"CONFIG" | b"COMMAND", _:  # redis-benchmark and redis-cli ask first
                return b"*0\r\n"
            case _:
                return b"-ERR unknown command\r\n"


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--port", type=int, default=6380)
    parser.add_argument("--workers", type=int, default=4)
    given = parser.parse_args()
    Server.workers = given.workers
    with (
        tempfile.TemporaryDirectory(prefix="resp-") as folder,
        Server(("127.0.0.1", given.port), Path(folder, "pairs.sqlite")) as server,
    ):
        print("Serving on {}:{}".format(*server.server_address), flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
