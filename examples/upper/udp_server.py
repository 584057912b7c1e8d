"""The UDP server of the socketserver documentation, served by a pool of workers.

$ python examples/upper/udp_server.py
Serving on 127.0.0.1:9999
"""

from __future__ import annotations

import argparse

import prefork


class MyUDPHandler(prefork.BaseRequestHandler):
    """
    This class works similar to the TCP handler class, except that
    self.request consists of a pair of data and client socket, and since
    there is no connection the client address must be given explicitly
    when sending data back via sendto().
    """

    def handle(self) -> None:
        data = self.request[0].strip()
        socket = self.request[1]
        # one print, flushed: several workers write to the same terminal
        print(f"{self.client_address[0]} wrote:", data, sep="\n", flush=True)
        socket.sendto(data.upper(), self.client_address)


def main() -> None:
    parser = argparse.ArgumentParser(description="Answer what comes in upper case, over UDP.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9999, help="0 takes any free one")
    given = parser.parse_args()

    with prefork.PreForkingUDPServer((given.host, given.port), MyUDPHandler) as server:
        print("Serving on {}:{}".format(*server.server_address), flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
