"""The client of tcp_server.py and stream_server.py.

$ python examples/upper/tcp_client.py hello world with TCP
Sent:     hello world with TCP
Received: HELLO WORLD WITH TCP
"""

from __future__ import annotations

import argparse
import socket


def main() -> None:
    parser = argparse.ArgumentParser(description="Have words answered in upper case, over TCP.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9999)
    parser.add_argument("words", nargs="+")
    given = parser.parse_args()
    data = " ".join(given.words)

    # Connect to server and send data
    with socket.create_connection((given.host, given.port), timeout=10) as sock:
        sock.sendall(bytes(data + "\n", "utf-8"))

        # Receive data from the server until it has sent everything and closes
        with sock.makefile("rb") as answer:
            received = str(answer.read(), "utf-8")

    print(f"Sent:     {data}")
    print(f"Received: {received}")


if __name__ == "__main__":
    main()
