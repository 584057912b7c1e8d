"""handle_request(): one request, in the calling process, with the server's timeout."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.server import Program

BOTH_WAYS = pytest.mark.parametrize("arguments", [["plain"], ["prefork"]], ids=["plain", "prefork"])

HEAD = """
import os
import selectors
import sys
from tests.compat.inside import Pool, serving
from tests.support.app import LOOPBACK, Echo, tell
from tests.support.clients import ask, connect, read_all, send_line
from tests.support.processes import children_of

class Server(Pool):
    def handle_timeout(self):
        super().handle_timeout()
        tell("timeout")
"""


def finished(start: Callable[..., Program], source: str, arguments: list[str]) -> Program:
    """Run a program that ends by itself, and return it when it has, with nobody left."""
    program = start(HEAD + source, arguments=arguments)
    assert program.wait() == 0, program.log
    program.wait_silent()
    assert program.leftovers() == []
    return program


@BOTH_WAYS
def test_serves_in_this_process(start: Callable[..., Program], arguments: list[str]) -> None:
    """handle_request() serves one request in the process that calls it, and forks nothing (M06)."""
    program = finished(
        start,
        """
with Server(LOOPBACK, Echo) as server, connect(server.server_address) as client:
    send_line(client, "hello")
    server.handle_request()
    tell("answer", read_all(client))
    tell("children", [str(child) for child in children_of(os.getpid())])
""",
        arguments,
    )

    assert program.told("answer") == f"{program.pid} hello"
    assert program.told("children") == []


@BOTH_WAYS
def test_timeout(start: Callable[..., Program], arguments: list[str]) -> None:
    """Without a request within ``timeout``, handle_timeout() is called and handle_request() returns (M07, M22, A07)."""
    program = finished(
        start,
        """
with Server(LOOPBACK, Echo) as server:
    server.timeout = 0.01
    server.handle_request()
    server.handle_request()
""",
        arguments,
    )

    assert program.all_told("timeout") == [None, None]


@BOTH_WAYS
def test_after_serve_forever(start: Callable[..., Program], arguments: list[str]) -> None:
    """handle_request() does the same after serve_forever() has returned: it waits, and it serves (M06, M07)."""
    program = finished(
        start,
        """
import threading
with Server(LOOPBACK, Echo) as server:
    with serving(server):
        ask(server.server_address)
    waiting = threading.Thread(target=server.handle_request)
    waiting.start()
    tell("answer", ask(server.server_address))
    waiting.join()
    server.timeout = 0.01
    server.handle_request()
""",
        arguments,
    )

    assert program.told("answer") == f"{program.pid} hello"
    assert program.all_told("timeout") == [None]


@BOTH_WAYS
def test_system_exit_leaves(start: Callable[..., Program], arguments: list[str]) -> None:
    """SystemExit in a handler leaves handle_request(), other exceptions do not (M06)."""
    program = finished(
        start,
        """
class Raising(Echo):
    def handle(self):
        raise (ValueError if self.rfile.readline() == b"stay\\n" else SystemExit)("said the client")

with Server(LOOPBACK, Raising) as server:
    for line in ("stay", "leave"):
        with connect(server.server_address) as client:
            send_line(client, line)
            try:
                server.handle_request()
            except SystemExit as error:
                tell("left", str(error))
            tell("answer", read_all(client))
""",
        arguments,
    )

    assert program.all_told("left") == ["said the client"]
    assert program.all_told("answer") == ["", ""]


@BOTH_WAYS
def test_a_loop_of_ones_own(start: Callable[..., Program], arguments: list[str]) -> None:
    """fileno() lets a program watch several servers and call handle_request() where something came (M05)."""
    program = finished(
        start,
        """
with Server(LOOPBACK, Echo) as one, Server(LOOPBACK, Echo) as two, selectors.DefaultSelector() as selector:
    for server in (one, two):
        selector.register(server, selectors.EVENT_READ, server)
    for server in (two, one, two):
        with connect(server.server_address) as client:
            send_line(client, "hello")
            for key, _ in selector.select(5):
                key.data.handle_request()
            tell("answer", read_all(client))
""",
        arguments,
    )

    assert program.all_told("answer") == [f"{program.pid} hello"] * 3
