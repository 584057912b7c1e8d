"""A process of root's that another user makes look like a pool: no command signals it."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from prefork.inspect.find import find_pool
from prefork.inspect.running_pool import NoPoolError
from tests.support.boards import pools_of
from tests.support.clients import ask

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.server import Program


pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="needs another user")


def test_daemon_that_is_handed_a_scoreboard(start: Callable[..., Program]) -> None:
    """A daemon that takes descriptors of anybody is no pool, whatever nobody hands to it and writes there."""
    daemon = start("""
        import array, os, signal, socket
        from prefork.workers.scoreboard import PoolField, Scoreboard
        from tests.support.app import tell

        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGTTIN):
            signal.signal(number, lambda number, _: tell("signalled", number))
        ours, theirs = socket.socketpair()
        master = os.getpid()
        if os.fork() == 0:
            os.setresuid(65534, 65534, 65534)
            board = Scoreboard.create(2)
            board.set_pool(PoolField.MASTER_PID, master)
            socket.send_fds(theirs, [b"x"], [board.fd])
            os._exit(0)
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
        os.wait()
        tell("has", [os.readlink(f"/proc/self/fd/{fd}") for fd in fds])
        signal.sigwait({signal.SIGUSR2})
    """)
    assert "prefork-scoreboard" in daemon.told("has")[0]
    with pools_of(daemon.pid) as found:
        assert found == []
    with pytest.raises(NoPoolError):
        find_pool(str(daemon.pid)).close()
    assert daemon.all_told("signalled") == []
    daemon.signal(signal.SIGKILL)
    daemon.wait()


def test_daemon_that_is_handed_the_scoreboard_of_a_pool(start: Callable[..., Program]) -> None:
    """A worker of nobody's that passes root's own scoreboard to a daemon of root's, with its pid in it, makes it no pool."""
    daemon = start("""
        import os, signal, socket
        from tests.support.app import tell

        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGTTIN):
            signal.signal(number, lambda number, _: tell("signalled", number))
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"\\0prefork-test-{os.getpid()}")
        listener.listen()
        tell("listens")
        _, fds, _, _ = socket.recv_fds(listener.accept()[0], 1, 1)
        tell("has", [os.readlink(f"/proc/self/fd/{fd}") for fd in fds])
        signal.sigwait({signal.SIGUSR2})
    """)
    daemon.told("listens")
    pool = start("""
        from tests.support.app import *
        from tests.support.hostile import Hostile

        serve(Hostile, run_as_user="nobody", workers=1)
    """)
    answer = ask(pool.address(), f"pass_on_scoreboard({daemon.pid})")
    assert answer.endswith(" True")
    assert "prefork-scoreboard" in daemon.told("has")[0]
    with pools_of(daemon.pid) as found, pools_of(pool.pid) as real:
        assert found == []
        assert len(real) == 1  # the pid that stands in its scoreboard now does not hide it
    assert daemon.all_told("signalled") == []
    daemon.signal(signal.SIGKILL)
    daemon.wait()
