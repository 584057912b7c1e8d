"""Count primes for people at a telnet, who can stop a computation.

    python examples/urgent/telnet.py 4000
    telnet localhost 4000

Type a number. While the server counts, press Ctrl-] and type ``send synch``: telnet sends an urgent byte,
and the server stops that computation. The connection goes on. (``toggle autosynch`` has telnet do the same for
Ctrl-C.)
"""

from __future__ import annotations

import argparse
import re

import prefork

COMMAND = re.compile(rb"\xff(?:[\xfb-\xfe].|[\xf0-\xfa])?|\xf2", re.DOTALL)
"""What telnet says to a server besides the text: interrupts, negotiations, and what an urgent byte has left."""


class StoppedError(Exception):
    """The client does not want the answer any more."""


class Primes(prefork.UrgentMixIn, prefork.StreamRequestHandler):
    """Answers each number with how many primes there are up to it."""

    is_computing = False

    def handle(self) -> None:
        """Serve one client until it leaves."""
        for line in self.rfile:
            text = COMMAND.sub(b"", line).decode("ascii", "replace").strip()
            if text:
                self.wfile.write(f"{self.answer(text)}\r\n".encode())

    def answer(self, text: str) -> str:
        """Return the answer to one line."""
        if not text.isdigit():
            return f"{text!r} is no number"
        try:
            self.is_computing = True
            self.wfile.write(b"computing ...\r\n")
            return f"{count_primes(int(text))} primes up to {text}"
        except StoppedError:
            return "stopped"
        finally:
            self.is_computing = False

    def handle_urgent(self, _byte: bytes) -> None:
        """Stop the computation. Between two of them there is nothing to stop."""
        if self.is_computing:
            self.is_computing = False
            raise StoppedError


def count_primes(most: int) -> int:
    """Count the slow way, so that there is something to stop."""
    return sum(all(number % one for one in range(2, number)) for number in range(2, most + 1))


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
    parser.add_argument("port", nargs="?", type=int, default=4000, help="0 for a free one")
    with Server(("127.0.0.1", parser.parse_args().port), Primes) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
