"""The client of udp_server.py; its output looks exactly like that of the TCP client.

$ python examples/upper/udp_client.py hello world with UDP
Sent:     hello world with UDP
Received: HELLO WORLD WITH UDP
"""

from __future__ import annotations

import argparse
import socket


def main() -> None:
    parser = argparse.ArgumentParser(description="Have words answered in upper case, over UDP.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9999)
    parser.add_argument("words", nargs="+")
    given = parser.parse_args()
    data = " ".join(given.words)

    # SOCK_DGRAM is the socket type to use for UDP sockets
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        # a datagram may get lost: never wait for an answer without a limit
        sock.settimeout(10)

        # As you can see, there is no connect() call; UDP has no connections.
        # Instead, data is directly sent to the recipient via sendto().
        sock.sendto(bytes(data + "\n", "utf-8"), (given.host, given.port))
        received = str(sock.recv(1024), "utf-8")

    print(f"Sent:     {data}")
    print(f"Received: {received}")


if __name__ == "__main__":
    main()
