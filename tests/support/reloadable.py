"""A server program whose code a test changes while it serves."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

from prefork.workers.scoreboard import PoolField
from tests.support.clients import ask
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefork.workers.scoreboard import Scoreboard
    from tests.support.server import Program

SERVER = """
    from tests.support.app import *
    import prefork

    VERSION = open("version").read()
    exec(open("first").read())

    class Versioned(prefork.StreamRequestHandler):
        def handle(self):
            line = self.rfile.readline()
            if line == b"version\\n":
                line = b"%s %d" % (VERSION.encode(), self.server.worker.generation)
            elif line:
                time.sleep(float(line.split()[1]) if line.startswith(b"sleep") else 0.005)
            self.wfile.write(b"%d %s" % (os.getpid(), line))

    def worker_init(self, worker):
        exec(open("init").read())

    def on_reload(self):
        tell("on_reload", os.getpid())
        exec(open("hook").read())

    settings = dict(workers=3, max_children=6, worker_init=worker_init, on_reload=on_reload)
    settings.update(eval(open("settings").read()))
    serve(Versioned, prefork.BASE, ADDRESS, **settings)
"""


class Reloadable:
    """A server program whose code lies in files that a test rewrites."""

    def __init__(
        self,
        start: Callable[..., Program],
        folder: Path,
        *,
        base: str = "PreForkingTCPServer",
        address: object = ("127.0.0.1", 0),
        first: str = "",
        **settings: object,
    ) -> None:
        self.folder = folder
        self.write(version="1", first=first, init="", hook="", settings=repr(settings))
        self.program = start(SERVER.replace("BASE", base).replace("ADDRESS", repr(address)))
        self.address = self.program.address()

    def write(self, **files: str) -> None:
        """Change some of the files that the program reads."""
        for name, text in files.items():
            (self.folder / name).write_text(text)

    def reload(self, board: Scoreboard, *, fails: bool = False) -> None:
        """Have it reload, and wait until that is over, well or badly."""
        fields = PoolField.RELOADS, PoolField.RELOADS_FAILED
        before = [board.pool(field) for field in fields]
        self.program.signal(signal.SIGHUP)
        wait_until(
            lambda: [board.pool(field) for field in fields] != before,
            lambda: f"the reload is over: {self.program.log[-3000:]}",
        )
        after = [board.pool(field) for field in fields]
        assert after == [before[0] + (not fails), before[1] + fails], self.program.log[-3000:]

    def version(self) -> tuple[str, int]:
        """Ask a worker for its code and its generation."""
        _, version, generation = ask(self.address, "version").split()
        return version, int(generation)
