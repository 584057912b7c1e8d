"""Which calls a request makes, in which order and process, and what happens when one of them fails."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

import pytest

from tests.support.clients import ask, connect, read_all, send_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.server import Program

BOTH_WAYS = pytest.mark.parametrize("arguments", [["plain"], ["prefork"]], ids=["plain", "prefork"])

RECORDING = """
import os
import socketserver
from tests.compat.inside import Pool, serve_here
from tests.support.app import Echo, tell

def recorded(name):
    def call(self, *args):
        if name == "get_request":  # told when it has got one: a pool also asks in vain
            taken = super(Recording, self).get_request()
        tell("call", [name, os.getpid()])
        return taken if name == "get_request" else getattr(super(Recording, self), name)(*args)
    return call

class Recording(Pool):
    workers = 1

for name in ("server_bind", "server_activate", "get_request", "verify_request", "process_request",
             "finish_request", "shutdown_request", "close_request", "handle_error", "server_close"):
    setattr(Recording, name, recorded(name))

class Handler(Echo):
    def __init__(self, request, client_address, server):
        super().__init__(request, client_address, server)

    def setup(self):
        tell("call", ["setup", os.getpid()])
        super().setup()

    def handle(self):
        tell("call", ["handle", os.getpid()])
        super().handle()

    def finish(self):
        tell("call", ["finish", os.getpid()])
        super().finish()
"""

BEFORE = ["server_bind", "server_activate"]
WHOLE_REQUEST = [
    "get_request",
    "verify_request",
    "process_request",
    "finish_request",
    "setup",
    "handle",
    "finish",
    "shutdown_request",
    "close_request",
]


def calls(program: Program, count: int) -> list[str]:
    """Wait for ``count`` calls and return the names of all so far."""
    program.told("call", nth=count - 1)
    return [name for name, _ in program.all_told("call")]


def processes(program: Program, names: list[str]) -> set[int]:
    """Return the pids of the processes that made the calls of these names."""
    return {pid for name, pid in program.all_told("call") if name in names}


@BOTH_WAYS
def test_order_of_calls(start: Callable[..., Program], arguments: list[str]) -> None:
    """Each request makes the documented calls in the documented order, the pool's as the plain server's (M15-M20, H02)."""
    program = start(RECORDING + "serve_here(Recording, Handler)", arguments=arguments)

    ask(program.address())
    ask(program.address())

    expected = BEFORE + WHOLE_REQUEST + WHOLE_REQUEST
    assert calls(program, len(expected)) == expected


def test_where_the_calls_are_made(start: Callable[..., Program]) -> None:
    """Binding, listening and closing happen in the master, once; everything about a request in the worker (M03, M04, M14, D06)."""
    program = start(RECORDING + "serve_here(Recording, Handler)")
    ask(program.address())
    (worker,) = program.wait_workers(1)

    assert program.stop() == 0

    program.wait_silent()
    assert processes(program, WHOLE_REQUEST) == {worker}
    in_master = [name for name, pid in program.all_told("call") if pid == program.pid]
    assert in_master == ["server_bind", "server_activate", "server_close"]
    assert "server_close" not in [
        name for name, pid in program.all_told("call") if pid != program.pid
    ]


@BOTH_WAYS
def test_refused_by_verify_request(start: Callable[..., Program], arguments: list[str]) -> None:
    """A request that verify_request() refuses is shut down and closed, and never processed (M16, M19)."""
    program = start(
        RECORDING + "Recording.verify_request = lambda self, request, client_address: False\n"
        "serve_here(Recording, Handler)",
        arguments=arguments,
    )

    with connect(program.address()) as client:
        assert read_all(client) == ""

    expected = [*BEFORE, "get_request", "shutdown_request", "close_request"]
    assert calls(program, len(expected)) == expected


@BOTH_WAYS
def test_handler_raises(start: Callable[..., Program], arguments: list[str]) -> None:
    """An exception in handle() is reported with forty dashes, the request closed, and the same process serves on (M21, K04, H02)."""
    program = start(
        RECORDING
        + """
class Failing(Handler):
    def handle(self):
        super().handle()
        raise ValueError("from the handler")

serve_here(Recording, Failing)
""",
        arguments=arguments,
    )

    first, second = ask(program.address()), ask(program.address())

    failed = [*WHOLE_REQUEST[:7], "handle_error", "shutdown_request", "close_request"]
    expected = BEFORE + failed + failed
    assert calls(program, len(expected)) == expected
    assert first == second
    assert program.log.count("-" * 40 + "\n") == 4
    assert len(program.logged("^ValueError: from the handler$")) == 2


ONE_FAILURE = """
import os
from tests.compat.inside import Pool, serve_here
from tests.support.app import Echo, tell

class Once:
    def __init__(self, error, *args):
        self.error = error
        self.args = args

    def __call__(self):
        try:
            os.close(os.open("failed", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        raise self.error(*self.args)

class Failing(Pool):
    workers = 1
    def handle_error(self, request, client_address):
        tell("error", os.getpid())
        super().handle_error(request, client_address)
"""


def test_get_request_finds_nothing(start: Callable[..., Program]) -> None:
    """An OSError of get_request() means "nothing for me": no error is reported and the same worker serves on (M15)."""
    program = start(
        ONE_FAILURE
        + """
once = Once(BlockingIOError, "lost the race")
class Unlucky(Failing):
    def get_request(self):
        tell("tried", os.getpid())
        once()
        return super().get_request()

serve_here(Unlucky, Echo)
"""
    )

    served_by = int(ask(program.address()).split()[0])

    assert program.told("tried") == served_by
    assert program.all_told("error") == []


def test_get_request_waits_for_its_client(start: Callable[..., Program]) -> None:
    """A get_request() that talks to its client first, as TLS does, makes a silent client cost one worker, and strangers cost nobody else time (D23, P17)."""
    program = start(
        """
from tests.compat.inside import Pool, serve_here
from tests.support.app import Echo, tell

class Handshaking(Pool):
    request_queue_size = 64
    def get_request(self):
        request, client_address = super().get_request()
        tell("shakes hands")
        if request.recv(1) != b"!":
            request.close()
            raise OSError("not our protocol")
        return request, client_address

serve_here(Handshaking, Echo, workers=2)
"""
    )

    with connect(program.address()):
        program.told("shakes hands")
        for _ in range(40):
            with connect(program.address()) as stranger:
                send_line(stranger, "?")
        assert ask(program.address(), "!hello").endswith(" hello")
    assert program.stop() == 0


@pytest.mark.parametrize("method", ["get_request", "verify_request", "process_request"])
@pytest.mark.parametrize("error", ["ValueError", "KeyboardInterrupt", "SystemExit"])
def test_a_call_raises(start: Callable[..., Program], method: str, error: str) -> None:
    """What ends the standard server costs the pool at most one worker, and the client learns at once (M16, P15, P16)."""
    program = start(
        ONE_FAILURE
        + f"""
once = Once({error}, "from {method}")
class Server(Failing):
    def {method}(self, *args):
        if "{method}" != "get_request":
            once()
            return super().{method}(*args)
        taken = super().{method}()
        once()
        return taken

serve_here(Server, Echo)
"""
    )

    with connect(program.address()) as client:
        send_line(client, "lost")
        with contextlib.suppress(ConnectionResetError):  # closed with the line unread
            assert read_all(client) == ""

    assert ask(program.address()).endswith("hello")
    assert program.popen.poll() is None


@pytest.mark.parametrize("error", ["SystemExit, 3", "KeyboardInterrupt"])
def test_handler_leaves(start: Callable[..., Program], error: str) -> None:
    """SystemExit or KeyboardInterrupt in a handler is no matter of handle_error() and does not end the server (P15)."""
    program = start(
        ONE_FAILURE
        + f"""
once = Once({error})
class Leaving(Echo):
    def handle(self):
        super().handle()
        once()

serve_here(Failing, Leaving)
"""
    )

    assert ask(program.address(), "last words").endswith("last words")
    assert ask(program.address()).endswith("hello")

    assert program.all_told("error") == []
    assert program.stop() == 0


def test_shutdown_request_raises_type_error(start: Callable[..., Program]) -> None:
    """A request whose shutdown() takes no argument (pyOpenSSL's) costs that request only (P34)."""
    program = start(
        ONE_FAILURE
        + """
once = Once(TypeError, "shutdown() takes 1 positional argument but 2 were given")
class Server(Failing):
    def shutdown_request(self, request):
        once()
        super().shutdown_request(request)

serve_here(Server, Echo)
"""
    )

    first, second = ask(program.address()), ask(program.address())

    assert first == second
    assert program.told("error") == int(first.split()[0])


def test_shutdown_request_always_raises(start: Callable[..., Program]) -> None:
    """Also when closing fails each time, each client has its answer and its end of file, and the worker lives (P34)."""
    program = start(
        ONE_FAILURE
        + """
class Server(Failing):
    def shutdown_request(self, request):
        raise TypeError("shutdown() takes 1 positional argument but 2 were given")

serve_here(Server, Echo)
"""
    )

    answers = {ask(program.address()) for _ in range(3)}

    assert len(answers) == 1


def test_handle_error_raises(start: Callable[..., Program]) -> None:
    """An exception in handle_error() itself costs at most one worker, and the client's socket is closed (M21)."""
    program = start(
        """
from tests.compat.inside import Pool, serve_here
from tests.support.app import Echo

class Broken(Pool):
    workers = 1
    def handle_error(self, request, client_address):
        raise RuntimeError("from handle_error")

class Failing(Echo):
    def handle(self):
        super().handle()
        raise ValueError("from the handler")

serve_here(Broken, Failing)
"""
    )

    for line in ("one", "two", "three"):
        assert ask(program.address(), line).endswith(line)
    assert program.popen.poll() is None


def test_user_defined_process_request(start: Callable[..., Program]) -> None:
    """A server's own process_request() decides how a request is processed, as it always did (M17)."""
    program = start(
        """
from tests.compat.inside import Pool, serve_here
from tests.support.app import Echo, tell

class Own(Pool):
    workers = 1
    def process_request(self, request, client_address):
        request.sendall(b"before ")
        super().process_request(request, client_address)
        tell("processed")

serve_here(Own, Echo)
"""
    )

    assert ask(program.address()).startswith("before ")
    program.told("processed")


def test_state_is_kept_per_worker(start: Callable[..., Program]) -> None:
    """What a handler changes on the server stays in its worker, from request to request, and never reaches the master (D16, H01)."""
    program = start(
        """
from tests.compat.inside import Pool
from tests.support.app import LOOPBACK, announce, tell
import socketserver

class Counting(socketserver.StreamRequestHandler):
    def handle(self):
        self.rfile.readline()
        self.server.count += 1
        self.wfile.write(str(self.server.count).encode())

with Pool(LOOPBACK, Counting) as server:
    server.workers = 1
    server.count = 0
    announce(server)
    server.serve_forever()
    tell("count", server.count)
"""
    )

    assert [ask(program.address()) for _ in range(3)] == ["1", "2", "3"]

    program.stop()
    assert program.told("count") == 0


def test_a_worker_sees_the_servers_attributes(start: Callable[..., Program]) -> None:
    """Address, handler class and the worker's own record are there in a worker; its siblings are not (A09, A10)."""
    program = start(
        """
import json
import os
from tests.compat.inside import Pool, serve_here
from tests.support.app import LOOPBACK
import socketserver

class Telling(socketserver.StreamRequestHandler):
    def handle(self):
        server = self.server
        self.wfile.write(json.dumps({
            "address": server.server_address,
            "listens at": server.socket.getsockname(),
            "fileno": server.fileno() == server.socket.fileno(),
            "handler": server.RequestHandlerClass.__name__,
            "active children": bool(server.active_children),
            "own pid": server.worker.pid == os.getpid(),
            "slot": server.worker.slot in (0, 1),
            "generation": server.worker.generation,
            "stopping": server.stopping,
        }).encode())

serve_here(Pool, Telling, workers=2)
"""
    )

    assert json.loads(ask(program.address())) == {
        "address": list(program.address()),
        "listens at": list(program.address()),
        "fileno": True,
        "handler": "Telling",
        "active children": False,
        "own pid": True,
        "slot": True,
        "generation": 0,
        "stopping": False,
    }
