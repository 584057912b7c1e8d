"""The service of tcp_server.py, written with streams: the handler reads a line as from a file.

$ python examples/upper/stream_server.py
Serving on 127.0.0.1:9999
"""

from __future__ import annotations

import argparse

import prefork


class MyTCPHandler(prefork.StreamRequestHandler):
    # seconds; a client that connects and says nothing must not keep a worker forever
    timeout = 10

    def handle(self) -> None:
        # self.rfile is a file-like object created by the handler;
        # we can now use e.g. readline() instead of raw recv() calls
        data = self.rfile.readline(10_000).strip()
        # one print, flushed: several workers write to the same terminal
        print(f"{self.client_address[0]} wrote:", data, sep="\n", flush=True)
        # Likewise, self.wfile is a file-like object used to write back
        # to the client
        self.wfile.write(data.upper())


def main() -> None:
    parser = argparse.ArgumentParser(description="Answer a line in upper case, over TCP.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9999, help="0 takes any free one")
    given = parser.parse_args()

    with prefork.PreForkingTCPServer((given.host, given.port), MyTCPHandler) as server:
        print("Serving on {}:{}".format(*server.server_address), flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
