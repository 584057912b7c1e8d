"""Requests on kept connections, while everything happens to the pool that an operator can do: none is lost.

``make kept`` asks a million times in place of the few thousand of CI.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.live.test_parking import program_with
from tests.support.clients import connect
from tests.support.processes import live_children_of, title_of
from tests.support.server import environment
from tests.support.waiting import CEILING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.clients import Address
    from tests.support.server import Program

REQUESTS = int(os.environ.get("PREFORK_KEPT_REQUESTS", "6000"))

CLIENTS = 24

PAUSE = 0.25
"""Seconds between two things that happen."""


class Talk:
    """Clients that keep their connections, and ask again as soon as they have their answer.

    answered: requests. lost: requests whose connection ended before the answer.
    """

    def __init__(self, address: Address) -> None:
        self.answered = self.lost = 0
        self._address = address
        self._poller = select.epoll()
        self._clients: dict[int, socket.socket] = {}
        self._numbers: dict[int, int] = {}
        for _ in range(CLIENTS):
            self._begin()

    def _begin(self) -> None:
        client = connect(self._address)
        self._clients[client.fileno()] = client
        self._numbers[client.fileno()] = 0
        self._poller.register(client, select.EPOLLIN)
        self._ask(client)

    def _ask(self, client: socket.socket) -> None:
        # A connection that ended without a request in hand would be a loss, too.
        with contextlib.suppress(OSError):
            client.sendall(b"hello\n")

    def run(self, seconds: float) -> None:
        """Go on for a while."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            events = self._poller.poll(CEILING)
            assert events, f"no answer in {CEILING} s after {self.answered}"
            for number, _ in events:
                self._hear(self._clients[number])

    def _hear(self, client: socket.socket) -> None:
        answer = b""
        with contextlib.suppress(ConnectionError):
            answer = client.recv(100)
        if answer:
            number = self._numbers[client.fileno()] = self._numbers[client.fileno()] + 1
            assert answer.split()[1:] == [b"%d" % number, b"hello"]
            self.answered += 1
            self._ask(client)
            return
        self.lost += 1
        self._end(client)
        self._begin()

    def _end(self, client: socket.socket) -> None:
        self._poller.unregister(client)
        del self._clients[client.fileno()], self._numbers[client.fileno()]
        client.close()

    def close(self) -> None:
        """End all connections."""
        for client in self._clients.values():
            client.close()
        self._poller.close()


def happenings(program: Program, commands: list[subprocess.Popen[bytes]]) -> Iterator[str]:
    """Do things to a pool, one with each step, for ever; yield what was done. commands: those that were started."""
    while True:
        for name in ("SIGTTIN", "kill", "SIGHUP", "SIGTTOU", "kill", "SIGUSR2", "scale"):
            if name == "kill":
                (victim, *_) = sorted(
                    pid for pid in live_children_of(program.pid) if "worker" in title_of(pid)
                )
                os.kill(victim, signal.SIGKILL)
            elif name == "scale":
                command = [sys.executable, "-m", "prefork", "scale", "4", str(program.pid)]
                commands.append(subprocess.Popen(command, env=environment()))
            else:
                program.signal(signal.Signals[name])
            yield name


@pytest.mark.parametrize("settings", [{"linger": 0.001}, {"max_requests": 500}])
def test_nothing_is_lost_but_what_a_killed_worker_had_in_hand(
    start: Callable[..., Program], settings: dict[str, object]
) -> None:
    """Through kills, recycling, reloads, upgrades and changes of size, each kill costs one request at most."""
    program = start(program_with(workers=3, max_children=8, park_new=True, **settings))
    done: list[str] = []
    commands: list[subprocess.Popen[bytes]] = []
    with contextlib.closing(Talk(program.address())) as talk:
        things = happenings(program, commands)
        while talk.answered < REQUESTS or len(done) < 7:
            talk.run(PAUSE)
            done.append(next(things))
        talk.run(PAUSE)
    said = f"{talk.answered} answered, {talk.lost} lost, {done.count('kill')} kills, {len(done)} events"
    sys.stdout.write(f"{said}\n")
    assert talk.lost <= done.count("kill"), said
    for command in commands:
        command.wait(CEILING)
    assert program.stop() == 0
