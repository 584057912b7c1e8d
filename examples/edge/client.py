"""Say something to the server of server.py, with a certificate of one's own.

$ python examples/edge/client.py --ca ca.pem --certificate alice.pem localhost 9443 hello
CN=alice,O=Example at 192.0.2.7:4711 said hello
"""

from __future__ import annotations

import argparse
import socket
import ssl
import sys


def main() -> None:
    parser = argparse.ArgumentParser(description="Be greeted by one's own name.")
    parser.add_argument("--ca", required=True, help="PEM: who has signed the server's certificate")
    parser.add_argument("--certificate", help="PEM: certificate and key of the client")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("words", nargs="+")
    given = parser.parse_args()

    context = ssl.create_default_context(cafile=given.ca)
    if given.certificate:
        context.load_cert_chain(given.certificate)
    try:
        with (
            socket.create_connection((given.host, given.port), timeout=10) as connection,
            context.wrap_socket(connection, server_hostname=given.host) as secured,
            secured.makefile("rw") as stream,
        ):
            stream.write(" ".join(given.words) + "\n")
            stream.flush()
            answer = stream.readline()
    except OSError as error:
        sys.exit(f"The server does not want to talk: {error}")
    print(answer, end="")


if __name__ == "__main__":
    main()
