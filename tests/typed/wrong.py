"""Mistakes of a user. Each line with a comment "wrong" has to be found by type checkers; nothing runs them."""

from __future__ import annotations

import http.server

import prefork


class Server(prefork.PreForkingMixIn, http.server.HTTPServer):
    """Each attribute has a value that its setting cannot have."""

    crash_loop = "retyr"  # wrong
    access_log = "yaml"  # wrong
    max_children = "many"  # wrong
    workers = "all"  # wrong


def main() -> None:
    """Make what cannot be made."""
    Server("nonsense")  # wrong
    prefork.PreForkingTCPServer(("127.0.0.1", 0))  # wrong
    prefork.Settings(worker=3)  # wrong
    prefork.Settings(fork_check="maybe")  # wrong
    prefork.current_worker().pid  # wrong
    prefork.serve(http.server.HTTPServer)  # wrong
