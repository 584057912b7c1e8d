"""The logging of the program can be as broken as it likes: the pool works, and its errors are seen."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.support.clients import ask, hangs_up
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.server import Program

LOGGING = {
    "a filter that raises": """
class NeedsRequest(logging.Filter):
    def filter(self, record):
        record.path = record.args["path"]
        return True
handler = logging.StreamHandler()
handler.addFilter(NeedsRequest())
logging.basicConfig(level=logging.DEBUG, handlers=[handler])
""",
    "a handler that raises": """
class Broken(logging.Handler):
    def handle(self, record):
        raise RuntimeError("broken")
logging.basicConfig(level=logging.DEBUG, handlers=[Broken()])
""",
    "dictConfig() with its defaults": """
import logging.config
logging.config.dictConfig({
    "version": 1,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "root": {"level": "INFO", "handlers": ["console"]},
})
""",
}


@pytest.mark.parametrize("way", LOGGING)
def test_logging_of_the_program_neither_ends_the_pool_nor_hides_an_error(
    start: Callable[..., Program], way: str
) -> None:
    """The pool starts, replaces a killed worker and stops; the tracebacks of requests and the death are on standard error."""
    program = start(f"""
from tests.support.app import *
import logging
import prefork
{LOGGING[way]}
class Server(prefork.PreForkingTCPServer):
    workers, when_ready = 1, announce
with Server(LOOPBACK, Run) as server:
    server.serve_forever()
""")
    address = program.address()
    worker = int(ask(address, "None").split()[0])
    hangs_up(address, "1 / 0")
    assert int(ask(address, "None").split()[0]) == worker
    program.wait_logged("ZeroDivisionError")

    os.kill(worker, signal.SIGKILL)
    program.wait_logged(rf"pid={worker} exited cause=killed")
    wait_until(lambda: hangs_up(address, "None"), "an answer of the next worker")
    assert program.stop() == 0
