"""What once broke: each of these ended a worker, a pool, or somebody else's socket."""

from __future__ import annotations

import os
import signal
import socket
from typing import TYPE_CHECKING

from tests.support.clients import ask, read_to_the_end, send
from tests.support.server import serving
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.server import Program


def test_hook_that_collects_again_ends_nothing(start: Callable[..., Program]) -> None:
    """worker_died() may call collect_children() while several dead workers are being collected."""
    program = start(
        """
        from tests.support.app import *
        import prefork

        class Collecting(prefork.PreForkingTCPServer):
            def worker_died(self, worker, cause):
                self.collect_children()
                tell("died", worker.pid)

        serve(Echo, Collecting, workers=4)
    """
    )
    program.address()
    victims = program.wait_workers(4)
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len(program.workers() - victims) == 4, "all are replaced")
    assert {program.told("died", nth) for nth in range(4)} == victims
    assert program.stop() == 0


def test_threads_may_all_ask_whether_to_stop(start: Callable[..., Program]) -> None:
    """server.stopping, asked by many threads of one worker at once, takes no news from the worker itself."""
    program = start(
        """
        from tests.support.app import *
        import prefork, socketserver

        class Waiting(socketserver.StreamRequestHandler):
            def handle(self):
                tell("busy", 0)
                while not self.server.stopping:
                    time.sleep(0.001)
                self.wfile.write(b"stopped")

        class Threads(prefork.PreForkingMixIn, socketserver.ThreadingTCPServer):
            pass

        serve(Waiting, Threads, workers=1)
    """
    )
    clients = [send(program.address(), "wait") for _ in range(8)]
    for nth in range(8):
        program.told("busy", nth)
    program.terminate()
    assert [read_to_the_end(client) for client in clients] == ["stopped"] * 8
    for client in clients:
        client.close()
    assert program.wait() == 0


def test_socket_of_another_holder_goes_on(start: Callable[..., Program]) -> None:
    """With listener_inherited a stop by signal leaves the socket and its queue to whoever else holds it."""
    program = start(
        """
        from tests.support.app import *
        import prefork

        class Shared(prefork.PreForkingTCPServer):
            listener_inherited = True

        log_to_stderr()
        server = Shared(LOOPBACK, Echo)
        server.workers = 1
        holder = server.socket.dup()
        server.when_ready = lambda: tell("address", server.server_address)
        server.serve_forever()
        server.server_close()
        tell("stopped")
        connection, _ = holder.accept()
        connection.sendall(b"from the other holder")
        connection.close()
    """
    )
    address = program.address()
    assert ask(address).endswith("hello")
    program.terminate()
    program.told("stopped")
    with socket.create_connection(address, 5.0) as client:
        assert read_to_the_end(client) == "from the other holder"
    assert program.wait() == 0


def test_interrupt_that_was_ignored_stays_ignored(start: Callable[..., Program]) -> None:
    """A program whose starter ignores INT (a job in the background) is not stopped by Ctrl-C."""
    program = start(
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + serving(workers=1)
    )
    address = program.address()
    program.signal(signal.SIGINT)
    program.signal(signal.SIGUSR1)  # whose line comes after INT would have been obeyed
    program.wait_logged("status")
    assert ask(address).endswith("hello")
    assert program.stop() == 0


def test_failed_take_does_not_end_a_drain(start: Callable[..., Program]) -> None:
    """While a Unix stream server drains, a client that goes wrong in get_request() costs no other client."""
    program = start(
        """
        from tests.support.app import *
        import prefork

        class Choosy(prefork.PreForkingUnixStreamServer):
            taken = 0

            def get_request(self):
                request, address = super().get_request()
                self.taken += 1
                if self.taken == 3:
                    request.close()
                    raise OSError("not this one")
                return request, address

        serve(TellingEcho, Choosy, f"\\0drain-{os.getpid()}", workers=1, pause=0.05)
    """
    )
    clients = [send(program.address(), f"{number}") for number in range(7)]
    program.told("busy")
    program.terminate()
    answers = [read_to_the_end(client)[-1:] for client in clients]
    for client in clients:
        client.close()
    assert answers == ["0", "1", "", "3", "4", "5", "6"]
    assert program.wait() == 0
