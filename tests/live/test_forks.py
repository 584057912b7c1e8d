"""What a child of the program has of the master: no lock that stays locked, no descriptor that does harm."""

from __future__ import annotations

import os
import signal
import textwrap
from typing import TYPE_CHECKING

import pytest

from prefork.workers.scoreboard import SlotField
from tests.support.board import board_of
from tests.support.clients import ask, server_of
from tests.support.processes import fds_of, is_alive, pipes_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.server import Program

WAITS_FOR_USR2 = "import signal\nsignal.pthread_sigmask(0, [signal.SIGUSR2])\n"

MAKING = """
    from tests.support.app import *
    import logging
    import prefork

    log_to_stderr()

    class Server(prefork.PreForkingTCPServer):
        workers = 1
        metrics_address = "127.0.0.1:0"
        when_ready = announce

        def pre_fork(self, worker):
            forked.wait()  # no worker, and no pipes of one, before the child is there

    first, second = Server(LOOPBACK, Echo), Server(LOOPBACK, Echo)
    pipes, made, go_on = iter(range(NTH)), threading.Event(), threading.Event()
    forked = threading.Event()
    pipe2 = os.pipe2

    def slow_pipe2(flags):
        fds = pipe2(flags)
        if threading.current_thread() is serving and next(pipes, None) == NTH - 1:
            made.set()
            go_on.wait()
        return fds

    def is_to_be_logged(_record):
        # A thread that writes to standard error holds the lock of the stream, which a child would have
        # locked for ever. That is Python's own limit, and not what is tested.
        return threading.current_thread() is not serving or forked.wait()

    logging.getLogger().handlers[0].addFilter(is_to_be_logged)
    os.pipe2 = slow_pipe2
    serving = threading.Thread(target=first.serve_forever)
    serving.start()
    made.wait()
    # The last function that is registered is the first that runs at a fork: the other thread may go
    # on from here, and no thread gets the interpreter before the fork unless this one waits.
    os.register_at_fork(before=go_on.set)
    sys.setswitchinterval(10)
    child = os.fork()
    sys.setswitchinterval(0.005)
    forked.set()
    if child == 0:
        second.serve_forever()
        tell("child left")
        os._exit(0)
    tell("child", child)
    signal.sigwait({signal.SIGUSR2})
    os.waitpid(child, 0)
    first.shutdown()
    serving.join()
"""


@pytest.fixture
def kill_later() -> Iterator[list[int]]:
    """Kill the processes whose pids a test puts into the list, in case it fails before they end."""
    pids: list[int] = []
    yield pids
    for pid in filter(is_alive, pids):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("nth", [1, 2], ids=["the wake-up pipe", "the life pipe"])
def test_child_forked_while_another_thread_makes_a_pool(
    start: Callable[..., Program], kill_later: list[int], nth: int
) -> None:
    """A child that the program forks while another thread makes a pool can serve with a pool and metrics of its own."""
    source = MAKING.replace("NTH", str(nth))
    program = start(WAITS_FOR_USR2 + textwrap.dedent(source))
    child = program.told("child")
    kill_later.append(child)
    addresses = [program.address(nth) for nth in range(2)]
    assert program.wait_logged("metrics pid=.* ready", times=2)
    served_by = {server_of(address) for address in addresses}
    assert len(served_by) == 2
    os.kill(child, signal.SIGTERM)
    program.told("child left")
    program.signal(signal.SIGUSR2)
    assert program.wait() == 0


@pytest.mark.parametrize("nth", [1, 2], ids=["the wake-up pipe", "the life pipe"])
def test_child_forked_while_a_pool_is_made_keeps_no_pipe_open(
    start: Callable[..., Program], kill_later: list[int], nth: int
) -> None:
    """A child of that moment holds no end that keeps the master's death from its workers, and none of its signals' pipe."""
    source = MAKING.replace("NTH", str(nth)).replace("second.serve_forever()", "signal.pause()")
    program = start(WAITS_FOR_USR2 + textwrap.dedent(source))
    child = program.told("child")
    kill_later.append(child)
    program.address()
    with board_of(program.pid) as board:
        worker = board.word(0, SlotField.PID)
    stdout = fds_of(program.pid)[1]
    assert not (pipes_of(child, os.O_WRONLY) & pipes_of(worker, os.O_RDONLY)) - {stdout}
    assert not (pipes_of(child, os.O_RDONLY) & pipes_of(program.pid, os.O_RDONLY)) - pipes_of(
        worker, os.O_RDONLY
    )
    os.kill(child, signal.SIGKILL)
    program.signal(signal.SIGUSR2)
    assert program.wait() == 0


def test_child_that_leaves_a_hook_by_an_exception(start: Callable[..., Program]) -> None:
    """A child forked in a hook that calls sys.exit() ends with that status, as any child, and the pool serves on."""
    program = start("""
        from tests.support.app import *

        def when_ready(self):
            child = os.fork()
            if child == 0:
                sys.exit(5)
            tell("status", os.waitpid(child, 0)[1] >> 8)
            announce(self)

        serve(Echo, workers=2, when_ready=when_ready, metrics_address="127.0.0.1:0")
    """)
    assert program.told("status") == 5
    address = program.address()
    assert program.wait_logged("metrics pid=.* ready")
    assert ask(address).endswith("hello")
    assert not program.logged("phase changed|cause=")
    assert program.stop() == 0


def test_child_closes_its_copy_of_a_server_that_a_thread_serves(
    start: Callable[..., Program],
) -> None:
    """server_close() in a child of the program closes the child's copy of the socket and nothing else, at once."""
    program = start(
        WAITS_FOR_USR2
        + textwrap.dedent("""
        from tests.support.app import *
        import prefork

        log_to_stderr()

        class Server(prefork.PreForkingTCPServer):
            workers = 1
            when_ready = announce

        server = Server(LOOPBACK, Echo)
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        signal.sigwait({signal.SIGUSR2})
        child = os.fork()
        if child == 0:
            signal.alarm(10)
            server.server_close()
            tell("closed in the child", server.fileno())
            os._exit(0)
        tell("child", os.waitpid(child, 0)[1])
        signal.sigwait({signal.SIGUSR2})
        server.shutdown()
        serving.join()
        """)
    )
    address = program.address()
    program.signal(signal.SIGUSR2)
    assert program.told("child") == 0
    assert program.told("closed in the child") == -1
    assert ask(address).endswith("hello")
    program.signal(signal.SIGUSR2)
    assert program.wait() == 0
