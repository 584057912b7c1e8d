"""A line server whose clients log in by name and password, with SCRAM-SHA-256 (RFC 5802).

    $ pip install scramp
    $ python examples/edge/scram.py serve users.json --certificate server.pem
    Serving on 127.0.0.1:9445
    $ python examples/edge/scram.py ask localhost 9445 --ca ca.pem --user alice hello
    Password: ******
    alice said hello

The password never leaves the client, and the server keeps only what is needed to check a proof. users.json has
the records; ``python examples/edge/scram.py record`` makes one of a password. A name that does not exist has a
record that is made up of a secret and the name, so that neither the answers nor their time say which names
exist. The secret stays in users.json.secret, which the first start makes. With a new secret at each start, only
the salts of real names would stay the same. SCRAM does not encrypt what follows: TLS underneath does.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import getpass
import hashlib
import hmac
import json
import os
import secrets
import socket
import ssl
import sys
from typing import Any

import scramp

import prefork

MECHANISM = scramp.ScramMechanism("SCRAM-SHA-256")
ITERATIONS = 4096
"""Of each record: a name with another number would be known to exist."""

LONGEST_LINE = 1000
SECRET_BYTES = 32


class Records:
    """What the server knows of its users: salt, stored key, server key and iteration count of each."""

    def __init__(self, path: str) -> None:
        with open(path, encoding="utf-8") as file:
            found: dict[str, Any] = json.load(file)
        self._records = {
            name: (*(base64.b64decode(one) for one in keys), count)
            for name, (*keys, count) in found.items()
        }
        self._secret = kept_secret(f"{path}.secret")

    def of(self, name: str) -> tuple[bytes, bytes, bytes, int]:
        """Return the record of a name; for an unknown name always the same one, which no password fits."""
        made_up = [
            hmac.digest(self._secret, f"{part} {name}".encode(), hashlib.sha256)
            for part in range(3)
        ]
        return self._records.get(name, (*made_up, ITERATIONS))  # type: ignore[return-value]


def kept_secret(path: str) -> bytes:
    """Return the content of a file, which gets a new secret where it is missing."""
    with contextlib.suppress(FileExistsError):
        made = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(made, "wb") as file:
            file.write(secrets.token_bytes(SECRET_BYTES))
    with open(path, "rb") as file:
        secret = file.read()
    if len(secret) != SECRET_BYTES:
        sys.exit(f"{path} is damaged: it has to have {SECRET_BYTES} bytes; remove it")
    return secret


class Server(prefork.AuthenticationMixIn, prefork.PreForkingTCPServer):
    records: Any = None

    def authenticate(self, request: Any, client_address: Any) -> str | None:  # noqa: ARG002
        """Do the four steps of SCRAM; every refusal looks the same to the client."""
        names: list[str] = []

        def record_of(name: str) -> tuple[bytes, bytes, bytes, int]:
            names.append(name)
            return self.records.of(name)  # type: ignore[no-any-return]

        scram = MECHANISM.make_server(record_of)
        try:
            scram.set_client_first(receive_line(request))
            send_line(request, scram.get_server_first())
            scram.set_client_final(receive_line(request))
            send_line(request, scram.get_server_final())
        except (scramp.ScramException, ValueError) as error:
            with contextlib.suppress(OSError):  # a client that has left has failed as well
                send_line(request, "e=other-error")
            raise prefork.AuthenticationError(str(error)) from None
        return names[0]


class Said(prefork.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(f"{self.client_address.identity} said ".encode() + line)


def receive_line(sock: Any) -> str:
    """Return a line, byte by byte, so that nothing of the first request is taken along."""
    line = b""
    while not line.endswith(b"\n"):
        byte = sock.recv(1)
        if not byte:
            raise ConnectionError("closed within a line")
        line += byte
        if len(line) > LONGEST_LINE:
            raise ValueError("a line that is too long")
    return line.decode().rstrip("\r\n")


def send_line(sock: Any, line: str) -> None:
    sock.sendall(line.encode() + b"\n")


def serve(given: argparse.Namespace) -> None:
    Server.records = Records(given.users)
    Server.tls_certificate = given.certificate
    with Server(("127.0.0.1", given.port), Said) as server:
        print(f"Serving on 127.0.0.1:{server.server_address[1]}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


def ask(given: argparse.Namespace) -> None:
    password = getpass.getpass() if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")
    scram = scramp.ScramClient([MECHANISM.name], given.user, password)
    context = ssl.create_default_context(cafile=given.ca)
    with (
        socket.create_connection((given.host, given.port), timeout=10) as connection,
        context.wrap_socket(connection, server_hostname=given.host) as secured,
    ):
        send_line(secured, scram.get_client_first())
        scram.set_server_first(receive_line(secured))
        send_line(secured, scram.get_client_final())
        last = receive_line(secured)
        if not last.startswith("v="):
            sys.exit("The server does not know this name with this password.")
        scram.set_server_final(last)  # the server has the record: it is the right one
        send_line(secured, " ".join(given.words))
        print(receive_line(secured))


def record(_given: argparse.Namespace) -> None:
    password = getpass.getpass() if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")
    *parts, count = MECHANISM.make_auth_info(password, iteration_count=ITERATIONS)
    print(json.dumps([*(base64.b64encode(one).decode() for one in parts), count]))


def main() -> None:
    parser = argparse.ArgumentParser(description="Log in by SCRAM.")
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("serve")
    one.add_argument("users")
    one.add_argument("--certificate", required=True)
    one.add_argument("--port", type=int, default=9445)
    one.set_defaults(run=serve)
    one = commands.add_parser("ask")
    one.add_argument("host")
    one.add_argument("port", type=int)
    one.add_argument("words", nargs="+")
    one.add_argument("--ca", required=True)
    one.add_argument("--user", required=True)
    one.set_defaults(run=ask)
    commands.add_parser("record").set_defaults(run=record)
    given = parser.parse_args()
    given.run(given)


if __name__ == "__main__":
    main()
