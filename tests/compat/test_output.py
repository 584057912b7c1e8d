"""What handlers print: nothing of it is lost, and nothing appears twice."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from tests.support.clients import ask, server_of
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.server import Program

PROGRAM = """
import atexit
import sys
from tests.compat.inside import Pool, serve_here
from tests.support.app import Echo, tell

sys.stdout = open("printed", "w")  # a file: the buffer is only written when it is full or flushed
atexit.register(tell, "at exit", "master")

class Printing(Echo):
    def handle(self):
        super().handle()
        print("served one")

print("before the fork")
serve_here(Pool, Printing, workers=2)
print("after the stop")
"""


def test_buffered_prints(start: Callable[..., Program], tmp_path: Path) -> None:
    """Buffered prints of master and workers each arrive once, and atexit functions run in the master only (K03, P29)."""
    program = start(PROGRAM)
    for _ in range(6):
        ask(program.address())

    assert program.stop() == 0

    program.wait_silent()
    printed = (tmp_path / "printed").read_text().splitlines()
    assert printed == ["before the fork", *["served one"] * 6, "after the stop"]
    assert program.all_told("at exit") == ["master"]


def test_buffered_prints_and_a_replacement(start: Callable[..., Program], tmp_path: Path) -> None:
    """A worker that is forked later does not print the master's buffer once more (P29)."""
    program = start(
        "import prefork\n"
        "def worker_died(self, worker, cause):\n"
        "    print('died', worker.pid)\n"
        "prefork.PreForkingMixIn.worker_died = worker_died\n" + PROGRAM
    )
    served = server_of(program.address())
    first = program.wait_workers(2)
    (victim,) = first - {served}  # the other one has something in its buffer
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: len(program.workers()) == 2 and program.workers() != first, "a new worker")
    ask(program.address())

    assert program.stop() == 0

    printed = (tmp_path / "printed").read_text().splitlines()
    for line in ("before the fork", f"died {victim}", f"died {served}", "after the stop"):
        assert printed.count(line) == 1
    assert printed.count("served one") == 2
