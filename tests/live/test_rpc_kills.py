"""Calls while workers are killed: each one is answered right, or not at all.

``make calls`` asks a hundred thousand times in place of the few thousand of CI.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import struct
import threading
from typing import TYPE_CHECKING

import pytest

from prefork.rpc import AcceptStatus
from tests.live.test_rpc import program_with
from tests.support.processes import title_of
from tests.support.rpc_clients import Client
from tests.support.waiting import CEILING, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.clients import Address
    from tests.support.server import Program

CALLS = int(os.environ.get("PREFORK_RPC_CALLS", "3000"))

KILLS = max(6, CALLS // 500)

CLIENTS = 4

PATIENCE = 0.25
"""Seconds after which a client of UDP sends its call again."""


class Caller(threading.Thread):
    """A client that asks again and again. calls: how many.

    right: calls with the right answer. wrong: other answers. lost: calls whose connection has ended, or
    that were answered by SYSTEM_ERR because they were begun by a worker that has died. asked: all.
    """

    def __init__(self, address: Address, *, datagrams: bool, calls: int) -> None:
        super().__init__()
        self.right = self.lost = self.asked = 0
        self.wrong: list[object] = []
        self._address = address
        self._datagrams = datagrams
        self._calls = calls

    def run(self) -> None:
        """Ask."""
        while self.asked < self._calls:
            with (
                contextlib.suppress(ConnectionError),
                Client(self._address, datagrams=self._datagrams) as client,
            ):
                if self._datagrams:
                    client.sock.settimeout(PATIENCE)
                self._ask_all(client)

    def _ask_all(self, client: Client) -> None:
        chance = random.Random(self._calls)
        while self.asked < self._calls:
            a, b = chance.randrange(1 << 30), chance.randrange(1 << 30)
            self.asked += 1
            self.lost += 1  # until there is an answer
            status, result = client.ask(1, struct.pack(">2i", a, b), again=self._datagrams)
            if status == AcceptStatus.SYSTEM_ERR and self._datagrams:
                continue
            self.lost -= 1
            if (status, result) == (0, struct.pack(">i", a + b)):
                self.right += 1
            else:
                self.wrong.append((a, b, status, result))


@pytest.mark.parametrize("datagrams", [False, True])
def test_calls_while_workers_are_killed(start: Callable[..., Program], datagrams: bool) -> None:
    """Every call is answered right or lost with its worker, and each kill costs a call at most for each client."""
    program = start(program_with("workers = 4"))
    address = program.address(1 if datagrams else 0)
    callers = [Caller(address, datagrams=datagrams, calls=CALLS // CLIENTS) for _ in range(CLIENTS)]
    for one in callers:
        one.start()
    chance = random.Random(7)
    ceiling = CEILING + CALLS / 100
    for number in range(1, KILLS):
        wait_until(
            lambda n=number: sum(one.asked for one in callers) >= n * CALLS // KILLS,
            "the calls go on",
            ceiling,
        )
        workers = [pid for pid in program.workers() if "lot" not in title_of(pid)]
        with contextlib.suppress(ProcessLookupError):
            os.kill(chance.choice(workers), signal.SIGKILL)
    for one in callers:
        one.join(ceiling)
        assert not one.is_alive()
    assert [one.wrong for one in callers] == [[]] * CLIENTS
    assert sum(one.right + one.lost for one in callers) == sum(one.asked for one in callers)
    assert sum(one.lost for one in callers) <= KILLS * CLIENTS
    program.wait_logged("cause=killed")
