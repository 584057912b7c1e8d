"""http.server with a pool: any server class of the standard library takes the mix-in.

    $ python examples/web/factors.py --port 8000
    Serving on http://127.0.0.1:8000/
    $ curl http://127.0.0.1:8000/1000000016000000063
    {"number": 1000000016000000063, "factors": [1000000007, 1000000009], "pid": 4711}

One request keeps a core busy for a while. Meanwhile the other workers answer other requests.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer

import prefork

LARGEST = 2**64


class FactorsServer(prefork.PreForkingMixIn, HTTPServer):
    """The mix-in stands first. In front of ThreadingHTTPServer, each worker would serve with threads,
    which suits clients that keep their connections open."""


class FactorsHandler(BaseHTTPRequestHandler):
    timeout = 10  # seconds; a client that connects and says nothing must not keep a worker forever

    def do_GET(self) -> None:
        text = self.path.removeprefix("/")
        if not (text.isascii() and text.isdigit() and len(text) <= 20 and 1 < int(text) < LARGEST):
            self.send_error(HTTPStatus.NOT_FOUND, "Ask for /NUMBER, from 2 to 2**64 - 1")
            return
        number = int(text)
        answer = {"number": number, "factors": factors(number), "pid": os.getpid()}
        content = json.dumps(answer).encode() + b"\n"
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def factors(number: int) -> list[int]:
    """Find the prime factors by trying, which is slow on purpose."""
    found = []
    divisor = 2
    while divisor * divisor <= number:
        while number % divisor == 0:
            found.append(divisor)
            number //= divisor
        divisor += 1 if divisor == 2 else 2
    return [*found, number] if number > 1 else found


def main() -> None:
    parser = argparse.ArgumentParser(description="Find the prime factors of numbers, over HTTP.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 takes any free one")
    given = parser.parse_args()

    with FactorsServer((given.host, given.port), FactorsHandler) as server:
        print("Serving on http://{}:{}/".format(*server.server_address), flush=True)
        with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is a good way to stop it
            server.serve_forever()


if __name__ == "__main__":
    main()
