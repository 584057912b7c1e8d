"""HUP where no reload can be: the pool serves in a child that the program has made of itself."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.support.clients import ask
from tests.support.processes import children_of
from tests.support.server import serving

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.server import Program

IMPORTED_BEFORE = "import prefork"

PROGRAM = """
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    from tests.support.app import *
    {before}

    def serve_here():
        import prefork
        tell("serves", os.getpid())
        serve(Echo, prefork.PreForkingTCPServer, workers=1)

    if __name__ == "__main__":
        {way}
"""

FORKED = """if pid := os.fork():
            os.waitpid(pid, 0)
        else:
            serve_here()
            os._exit(0)"""

DAEMON = """signal.signal(signal.SIGTERM, lambda *_: os.kill(daemon, signal.SIGTERM))
        daemon = os.fork()
        if daemon:
            os.waitpid(daemon, 0)
            os._exit(0)
        if os.fork():
            os._exit(0)
        serve_here()"""

OF_MULTIPROCESSING = """child = multiprocessing.get_context("{kind}").Process(target=serve_here)
        child.start()
        child.join()"""

OF_A_POOL = """with ProcessPoolExecutor(1) as pool:
            pool.submit(serve_here).result()"""

WAYS = {
    "a fork": (IMPORTED_BEFORE, FORKED),
    "a fork, prefork is imported_in_it": ("", FORKED),
    "a fork of a fork": (IMPORTED_BEFORE, DAEMON),
    "multiprocessing, forked": (IMPORTED_BEFORE, OF_MULTIPROCESSING.format(kind="fork")),
    "multiprocessing, spawned": (IMPORTED_BEFORE, OF_MULTIPROCESSING.format(kind="spawn")),
    "multiprocessing, by its server": ("", OF_MULTIPROCESSING.format(kind="forkserver")),
    "a pool of processes": (IMPORTED_BEFORE, OF_A_POOL),
}
"""How the child is made that serves: what is imported before, and what the main module does."""

ECHO = serving(workers=1)

REFUSED = "reload failed, still serving the previous code .*child of the program that was started"


@pytest.mark.parametrize("way", WAYS)
def test_reload_of_a_child_is_refused(start: Callable[..., Program], way: str) -> None:
    """In a child of the program HUP starts no second program: the pool says why, and serves on."""
    before, main = WAYS[way]
    program = start(PROGRAM.format(before=before, way=main))
    master = program.told("serves")
    address = program.address()
    served_by = [one.pid for one in children_of(master)]
    os.kill(master, signal.SIGHUP)
    program.wait_logged(REFUSED)
    assert int(ask(address, "x").split()[0]) in served_by
    assert program.all_told("serves") == [master]
    os.kill(master, signal.SIGTERM)
    program.wait_silent()


def test_new_code_that_serves_in_a_child_is_refused(start: Callable[..., Program]) -> None:
    """New code that would serve in a child of itself fails its trial: after the exec nothing would serve."""
    program = start(
        """
        from tests.support.app import *
        import prefork

        if os.path.exists("daemon"):
            daemon = os.fork()
            if daemon:
                os.waitpid(daemon, 0)
                sys.exit()
        serve(Echo, prefork.PreForkingTCPServer, workers=1)
        """
    )
    address = program.address()
    worker = program.worker()
    (program.stderr_path.parent / "daemon").touch()
    program.signal(signal.SIGHUP)
    program.wait_logged("the new code serves in a child that it makes of itself")
    assert int(ask(address, "x").split()[0]) == worker
    assert program.stop() == 0


@pytest.mark.parametrize("way", ["-c", "-m"])
def test_program_given_in_another_way_is_reloaded(
    start: Callable[..., Program], tmp_path: Path, way: str
) -> None:
    """A program that the interpreter was given by -c or -m is run again as it was started."""
    (tmp_path / "echo.py").write_text(ECHO)
    program = start(None, arguments=["-c", ECHO] if way == "-c" else ["-m", "echo"])
    address = program.address()
    worker = program.worker()
    program.signal(signal.SIGHUP)
    program.wait_logged("master reloaded")
    assert int(ask(address, "x").split()[0]) != worker
    assert program.stop() == 0
