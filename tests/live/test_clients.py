"""Slow, silent and vanishing clients: they cost a bounded time, no worker, and no flood of the log."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from typing import TYPE_CHECKING

import pytest

from prefork.workers.scoreboard import SlotField
from tests.support.board import board_of
from tests.support.clients import (
    ask,
    ask_datagram,
    connect,
    datagram_client,
    read_all,
    reset_on_close,
    send,
    send_line,
)
from tests.support.server import serving
from tests.support.waiting import Stopwatch, let_pass, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.clients import Address
    from tests.support.server import Program

MARGIN = 3.0
"""Seconds for a busy machine; what is measured here would otherwise last for ever."""


def at_info(source: str) -> str:
    """Have a program log as it does in production, where level DEBUG is off."""
    return f"import logging\nlogging.getLogger('prefork').setLevel(logging.INFO)\n{source}"


def address_for(kind: str, tmp_path: Path) -> dict[str, object]:
    """Return the class and address of a stream server of this kind."""
    if kind == "tcp":
        return {}
    return {"base": "PreForkingUnixStreamServer", "address": str(tmp_path / "socket")}


def silent_clients(stack: contextlib.ExitStack, address: Address, count: int) -> None:
    """Connect this many clients that say nothing until the end of the stack."""
    for _ in range(count):
        stack.enter_context(connect(address))


def total_of(program: Program, field: SlotField) -> int:
    """Read a total of all slots."""
    with board_of(program.pid) as board:
        return board.total(field)


def errors_of(program: Program) -> int:
    """Read how many requests went wrong."""
    return total_of(program, SlotField.ERRORS)


# --- client_timeout


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_silent_clients_hold_no_worker(
    start: Callable[..., Program], tmp_path: Path, kind: str
) -> None:
    """Two silent clients on two workers: the third is served when they have had their time, by the same workers."""
    program = start(at_info(serving(workers=2, client_timeout=0.5, **address_for(kind, tmp_path))))
    address = program.address()
    workers = program.wait_workers(2)
    with contextlib.ExitStack() as stack:
        silent_clients(stack, address, 2)
        watch = Stopwatch()
        pid = int(ask(address).split()[0])
        assert watch.seconds < 0.5 + MARGIN
        assert pid in workers
        timed_out = SlotField.CLIENT_TIMEOUTS
        wait_until(lambda: total_of(program, timed_out) == 2, "both silent clients counted")
    assert errors_of(program) == 0
    assert program.workers() == workers
    (line, *_) = program.wait_logged("client timed out")
    assert "WARNING worker slot=" in line
    assert "place=" in line
    assert "app.py:" in line
    assert "Traceback" not in program.log


def test_silence_is_patiently_borne_by_default(start: Callable[..., Program]) -> None:
    """The library sets no timeout: a handler waits for its client as it does with the standard servers."""
    program = start(
        "from tests.support.app import *\n"
        "class Timed(Echo):\n"
        "    def setup(self):\n"
        "        super().setup()\n"
        "        tell('timeout', self.connection.gettimeout())\n"
        "serve(Timed, workers=1)\n"
    )
    ask(program.address())
    assert program.told("timeout") is None


@pytest.mark.parametrize(("own", "expected"), [(None, 4.5), (2.5, 2.5)])
def test_timeout_of_a_handler_class_wins(
    start: Callable[..., Program], own: float | None, expected: float
) -> None:
    """A handler class with a timeout of its own keeps it, the others get the setting's."""
    program = start(
        "from tests.support.app import *\n"
        "class Timed(Echo):\n"
        f"    timeout = {own!r}\n"
        "    def setup(self):\n"
        "        super().setup()\n"
        "        tell('timeout', self.connection.gettimeout())\n"
        "serve(Timed, workers=1, client_timeout=4.5)\n"
    )
    ask(program.address())
    assert program.told("timeout") == expected


@pytest.mark.parametrize("mixed", ["socketserver.TCPServer", "socketserver.ThreadingTCPServer"])
def test_client_that_times_out_costs_one_line_behind_the_mix_in(
    start: Callable[..., Program], mixed: str
) -> None:
    """With the mix-in before a standard class, a client that times out costs a line and no traceback."""
    source = (
        "import socketserver\nfrom tests.support.app import *\nimport prefork\n"
        f"class Mixed(prefork.PreForkingMixIn, {mixed}): daemon_threads = True\n"
        "serve(Echo, Mixed, workers=1, client_timeout=0.2)\n"
    )
    program = start(at_info(source))
    with connect(program.address()):
        wait_until(lambda: "client timed out client=127.0.0.1:" in program.log, "a line")
    wait_until(lambda: total_of(program, SlotField.CLIENT_TIMEOUTS) == 1, "the outcome is counted")
    assert ask(program.address())
    program.stop()
    assert "Traceback" not in program.log
    assert "Exception occurred" not in program.log


def test_handle_error_of_the_program_is_called_for_a_timeout(start: Callable[..., Program]) -> None:
    """A ``handle_error()`` of the program also sees the clients that time out."""
    source = (
        "import socketserver\nfrom tests.support.app import *\nimport prefork\n"
        "class Mixed(prefork.PreForkingMixIn, socketserver.TCPServer):\n"
        "    def handle_error(self, request, client_address):\n"
        "        tell('error', type(sys.exception()).__name__)\n"
        "serve(Echo, Mixed, workers=1, client_timeout=0.2)\n"
    )
    program = start(at_info(source))
    with connect(program.address()):
        assert program.told("error") == "TimeoutError"


def test_slow_reader_holds_no_worker(start: Callable[..., Program]) -> None:
    """A client that does not take its reply is given up after client_timeout; the worker serves the next one."""
    program = start(
        at_info(
            "from tests.support.app import *\n"
            "class Big(Telling):\n"
            "    def handle(self):\n"
            "        if self.rfile.readline() == b'big\\n':\n"
            "            self.wfile.write(bytes(30_000_000))\n"
            "        self.wfile.write(b'%d' % os.getpid())\n"
            "serve(Big, workers=1, client_timeout=0.5)\n"
        ).replace("import *\n", "import *\nfrom tests.support.app import Telling\n")
    )
    address = program.address()
    pid = int(ask(address))
    with send(address, "big"):
        program.told("busy", 1)
        watch = Stopwatch()
        assert int(ask(address)) == pid
        assert watch.seconds < 0.5 + MARGIN
    assert "place=" in program.wait_logged("client timed out")[0]


def test_datagram_server_has_no_client_to_time_out(start: Callable[..., Program]) -> None:
    """A datagram server's socket stays as it was: an idle worker waits for as long as it takes."""
    program = start(
        serving("EchoDatagram", base="PreForkingUDPServer", workers=1, client_timeout=0.05)
    )
    assert ask_datagram(program.address()).endswith(" hello")
    let_pass(0.2)
    assert ask_datagram(program.address()).endswith(" hello")
    assert "timed out" not in program.log


# --- clients that leave


def test_a_thousand_resets_cost_neither_worker_nor_log(start: Callable[..., Program]) -> None:
    """Clients that reset their connection before it is accepted are counted; one line a second tells of them."""
    program = start(at_info(serving(workers=2)))
    address = program.address()
    workers = program.wait_workers(2)
    watch = Stopwatch()
    for _ in range(1000):
        with connect(address) as client:
            client.send(b"never read")
            reset_on_close(client)
    wait_until(lambda: errors_of(program) >= 1000, lambda: f"1000 errors, {errors_of(program)}")
    lines = program.logged("client went away")
    assert 1 <= len(lines) <= 2 * (watch.seconds + 2)
    assert len(program.log.splitlines()) <= len(lines) + 10
    assert program.workers() == workers
    assert int(ask(address).split()[0]) in workers


def test_clients_that_leave_before_the_reply_cost_no_worker(start: Callable[..., Program]) -> None:
    """A reply to a client that has gone is an error of its own kind, and shutting its connection down is none."""
    program = start(
        at_info(
            "from tests.support.app import *\n"
            "class Late(Echo):\n"
            "    def handle(self):\n"
            "        self.rfile.readline()\n"
            "        for _ in range(50):\n"
            "            self.wfile.write(bytes(100_000))\n"
            "serve(Late, workers=2)\n"
        )
    )
    address = program.address()
    workers = program.wait_workers(2)
    for _ in range(100):
        send(address, "hello").close()
    wait_until(lambda: errors_of(program) >= 100, lambda: f"100 errors, {errors_of(program)}")
    assert program.workers() == workers
    assert "Traceback" not in program.log


def test_other_exceptions_keep_their_traceback(start: Callable[..., Program]) -> None:
    """What is not a client's doing is logged whole, as before: also a peer of the handler's that refuses it."""
    program = start(at_info(serving("Run", workers=1)))
    for raised in ("1 / 0", "(_ for _ in ()).throw(ConnectionRefusedError(111, 'refused'))"):
        with send(program.address(), raised) as client:
            assert client.recv(100) == b""
    lines = program.wait_logged("request failed", times=2)
    assert all(" ERROR worker slot=" in line for line in lines)
    assert all(re.search(r"request failed client=127\.0\.0\.1:\d+$", line) for line in lines)
    assert program.log.count("Traceback (most recent call last)") == 2


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_half_closed_client_gets_its_whole_reply(
    start: Callable[..., Program], tmp_path: Path, kind: str
) -> None:
    """A client that has said all it has to say and shut its side reads everything to the end of file."""
    program = start(
        "from tests.support.app import *\n"
        "import prefork\n"
        "class Long(Echo):\n"
        "    def handle(self):\n"
        "        self.wfile.write(b'%d' % len(self.rfile.read()) + bytes(3_000_000))\n"
        + serving("Long", workers=1, client_timeout=5, **address_for(kind, tmp_path))
    )
    with connect(program.address()) as client:
        client.sendall(b"x" * 1000)
        client.shutdown(socket.SHUT_WR)
        let_pass(0.05)
        reply = read_all(client)
    assert len(reply) == 4 + 3_000_000
    assert reply.startswith("1000\0")


# --- defer_accept


def test_deferred_silence_costs_no_worker(start: Callable[..., Program]) -> None:
    """With defer_accept a client that has not said anything is the kernel's: the only worker serves others at once."""
    program = start(serving("TellingEcho", workers=1, defer_accept=30))
    address = program.address()
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(connect(address)) for _ in range(5)]
        watch = Stopwatch()
        for _ in range(3):
            ask(address)
        assert watch.seconds < MARGIN
        assert len(program.all_told("busy")) == 3
        send_line(silent[0], "now")
        assert read_all(silent[0]).endswith(" now")


def test_defer_accept_is_put_back(start: Callable[..., Program]) -> None:
    """While the pool serves, the listener has the option, of a Unix socket nothing is asked; afterwards it is as it was."""
    program = start("""
        from tests.support.app import *
        import prefork

        def deferred():
            return server.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT)

        class Server(prefork.PreForkingTCPServer):
            workers, defer_accept = 1, 2.5

            def when_ready(self):
                tell("serving", deferred())
                threading.Thread(target=self.shutdown).start()

        log_to_stderr()
        with Server(LOOPBACK, Echo) as server:
            tell("before", deferred())
            server.serve_forever()
            tell("after", deferred())
    """)
    assert program.told("before") == 0
    assert program.told("serving") >= 3
    assert program.told("after") == 0
    assert program.wait() == 0


# --- more time for a request


def test_handler_extends_its_own_deadline(start: Callable[..., Program]) -> None:
    """What a handler asks for stands in its slot beside the request it is for, and the next request has none of it."""
    program = start(serving("TellingRun", workers=1))
    address = program.address()
    with board_of(program.pid) as board:
        extend = "self.server.worker.extend_deadline(12.5)"
        with send(
            address, f"({extend}, {extend}, tell('extended'), self.rfile.readline())"
        ) as client:
            program.told("extended")
            slot = board.snapshot().slots[0]
            assert slot[SlotField.REQUEST_NS] != 0
            assert slot[SlotField.EXTENDED_FOR_NS] == slot[SlotField.REQUEST_NS]
            assert slot[SlotField.EXTENSION_NS] == 25_000_000_000
            send_line(client, "")
            read_all(client)
        with send(address, "(tell('next'), self.rfile.readline())") as client:
            program.told("next")
            slot = board.snapshot().slots[0]
            assert slot[SlotField.REQUEST_NS] not in (0, slot[SlotField.EXTENDED_FOR_NS])
            send_line(client, "")
            read_all(client)


def test_absurd_extension_is_an_error_of_the_request(start: Callable[..., Program]) -> None:
    """A handler that asks for a negative time gets a ValueError; str() of its worker is the log's name of it."""
    program = start(serving("Run", workers=1))
    assert ask(program.address(), "str(self.server.worker)").endswith(
        f"'worker slot=0 gen=0 pid={program.worker()}'"
    )
    with send(program.address(), "self.server.worker.extend_deadline(-1)") as client:
        assert client.recv(100) == b""
    program.wait_logged("cannot extend a deadline by -1")


# --- queue waits


def waits_of(program: Program) -> tuple[int, float]:
    """Read how many queue waits were measured, and their sum in seconds."""
    with board_of(program.pid) as board:
        slot = board.snapshot().slots[0]
        return sum(slot.histogram(SlotField.QUEUE_WAITS)), slot[SlotField.QUEUE_WAIT_NS] / 1e9


@pytest.mark.parametrize("kind", ["tcp", "udp", "unixgram"])
def test_wait_behind_a_busy_worker_is_measured(
    start: Callable[..., Program], tmp_path: Path, kind: str
) -> None:
    """A request that waits while the only worker is busy has waited about that long."""
    pause = 0.4
    own = str(tmp_path / "client") if kind == "unixgram" else ""
    source = {
        "tcp": lambda: serving(workers=1, access_log="text", pause=pause),
        "udp": lambda: serving(
            "EchoDatagram", base="PreForkingUDPServer", workers=1, access_log="text", pause=pause
        ),
        "unixgram": lambda: serving(
            "EchoDatagram",
            base="PreForkingUnixDatagramServer",
            address=str(tmp_path / "socket"),
            workers=1,
            access_log="text",
            pause=pause,
        ),
    }[kind]()
    program = start(source)
    address = program.address()
    clients: list[socket.socket] = []
    watch, late = Stopwatch(), 0.0
    with contextlib.ExitStack() as stack:
        if kind == "tcp":
            for _ in range(3):
                clients.append(stack.enter_context(send(address, "hello")))
                late += watch.seconds
        else:
            clients = [
                stack.enter_context(datagram_client(address, own=f"{own}{n}" if own else ""))
                for n in range(3)
            ]
            for client in clients:
                client.send(b"hello")
                late += watch.seconds
        for client in clients:
            assert client.recv(1000)
        longest = watch.seconds
    wait_until(lambda: waits_of(program)[0] == 3, lambda: f"three waits, {waits_of(program)}")
    total = waits_of(program)[1]
    assert 3 * pause - late - 0.1 <= total <= 2 * longest
    for n in range(3):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{own}{n}")


def test_waits_are_sampled_for_metrics(start: Callable[..., Program]) -> None:
    """Where nobody reads single waits, one request in seven is measured, beginning with a worker's first."""
    program = start(
        "from tests.support.app import *\n"
        "import prefork\n"
        "prefork.PreForkingTCPServer.metrics_address = '127.0.0.1:0'\n" + serving(workers=1)
    )
    for _ in range(15):
        ask(program.address())
    wait_until(lambda: waits_of(program)[0] == 3, lambda: f"three waits, {waits_of(program)}")


def test_nobody_asks_for_waits_by_default(start: Callable[..., Program]) -> None:
    """Without metrics and access log the kernel is asked nothing."""
    program = start(serving(workers=1))
    for _ in range(8):
        ask(program.address())
    assert waits_of(program) == (0, 0.0)
