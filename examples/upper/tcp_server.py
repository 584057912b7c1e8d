"""The TCP server of the socketserver documentation, served by a pool of workers.

    $ python examples/upper/tcp_server.py
    Serving on 127.0.0.1:9999

Only the class of the server, in ``main``, differs from the documentation's program.
"""

from __future__ import annotations

import argparse

import prefork


class MyTCPHandler(prefork.BaseRequestHandler):
    """
    The request handler class for our server.

    It is instantiated once per connection to the server, and must
    override the handle() method to implement communication to the
    client.
    """

    def handle(self) -> None:
        # self.request is the TCP socket connected to the client
        data = self.request.recv(1024).strip()
        # one print, flushed: several workers write to the same terminal
        print(f"{self.client_address[0]} wrote:", data, sep="\n", flush=True)
        # just send back the same data, but upper-cased
        self.request.sendall(data.upper())


def main() -> None:
    parser = argparse.ArgumentParser(description="Answer what comes in upper case, over TCP.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9999, help="0 takes any free one")
    given = parser.parse_args()

    # Create the server, binding to 127.0.0.1 on port 9999
    with prefork.PreForkingTCPServer((given.host, given.port), MyTCPHandler) as server:
        print("Serving on {}:{}".format(*server.server_address), flush=True)
        # Activate the server; this will keep running until you
        # interrupt the program with Ctrl-C
        server.serve_forever()


if __name__ == "__main__":
    main()
