"""Urgent data: a byte that reaches a handler while it works, from sockets and from the real clients that send it."""

from __future__ import annotations

import ftplib
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from prefork.workers.scoreboard import SlotField
from prefork.workers.slot_writer import Outcome
from tests.support.board import board_of
from tests.support.clients import connect, read_to_the_end, send_line
from tests.support.terminal import Terminal
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.server import Program

EXAMPLES = Path(__file__).parents[2] / "examples" / "urgent"

HANDLER = """
    from tests.support.app import *
    import prefork, itertools

    class Server(prefork.SERVER):
        workers = 1

        def request_cancelled(self, request, client_address, reason):
            request.sendall(f"ended: {reason}\\n".encode())

    def spin():
        while True:
            pass

    def spin_shielded():
        with prefork.shielded():
            tell("in the shield")
            end = time.monotonic() + 0.3
            while time.monotonic() < end:
                pass
            tell("shield held")
        spin()

    def spin_abandoned():
        def begun():
            try:
                yield
            finally:
                tell("in the clause")
                spin()
        next(begun())  # Python swallows what this clause raises
        spin()

    vars(sys.modules[Run.__module__]).update(
        spin=spin, spin_shielded=spin_shielded, spin_abandoned=spin_abandoned
    )

    class Plain(TellingRun):
        def finish(self):
            if hasattr(self, "slow_end"):
                tell("finishing")
                time.sleep(0.6)
                tell("finished")
            super().finish()

    class Urgent(prefork.UrgentMixIn, Plain):
        def handle_urgent(self, byte):
            tell("urgent", byte.decode())
            if byte != b"!":
                super().handle_urgent(byte)
"""


@pytest.mark.parametrize("server", ["PreForkingTCPServer", "PreForkingUnixStreamServer"])
def test_urgent_byte_reaches_the_handler(
    start: Callable[..., Program], tmp_path: Path, server: str
) -> None:
    """handle_urgent() gets the byte while the handler computes or waits; its default ends the request, and the worker goes on."""
    where = f", address={str(tmp_path / 'socket')!r}" if "Unix" in server else ""
    program = start(HANDLER.replace("SERVER", server) + f"    serve(Urgent, Server{where})\n")
    address = program.address()
    (pid,) = program.wait_workers(1)
    worker = psutil.Process(pid)
    for count, line in enumerate(("spin()", "time.sleep(1000)", "self.rfile.readline()")):
        # A byte that comes just before the handler begins to wait is seen when the wait is over.
        state = psutil.STATUS_RUNNING if line == "spin()" else psutil.STATUS_SLEEPING
        with connect(address) as client:
            send_line(client, line)
            program.told("busy", count)
            wait_until(lambda state=state: worker.status() == state, f"{line} has begun")  # type: ignore[misc]
            client.send(b"!", socket.MSG_OOB)  # the handler's own: it goes on
            program.told("urgent", 2 * count)
            wait_until(lambda state=state: worker.status() == state, f"{line} goes on")  # type: ignore[misc]
            client.send(b"X", socket.MSG_OOB)
            assert read_to_the_end(client) == "ended: urgent"
    assert program.all_told("urgent") == ["!", "X"] * 3
    # The second byte may come while the handler of the first one runs, so the place is not always the same.
    assert program.wait_logged(r'cancelled reason=urgent .* at="\S+ in \S+ < ')
    with board_of(program.pid) as board:
        wait_until(lambda: board.word(0, _field()) == 3, "three cancelled")
        assert board.word(0, SlotField.SPAWNS) == 1


def _field() -> SlotField:
    return Outcome.CANCELLED_URGENT  # type: ignore[return-value]


def test_urgent_byte_waits_for_its_moment(start: Callable[..., Program]) -> None:
    """In a shielded block the byte waits for the end of the block, an exception that gets lost is raised again, and in finish() the byte is left alone."""
    program = start(
        HANDLER.replace("SERVER", "PreForkingTCPServer") + "    serve(Urgent, Server)\n"
    )
    address = program.address()
    with connect(address) as client:
        send_line(client, "spin_shielded()")
        program.told("in the shield")
        client.send(b"X", socket.MSG_OOB)
        assert read_to_the_end(client) == "ended: urgent"
    assert program.all_told("shield held")
    with connect(address) as client:
        send_line(client, "spin_abandoned()")
        program.told("in the clause")
        client.send(b"X", socket.MSG_OOB)
        assert read_to_the_end(client) == "ended: urgent"
    with connect(address) as client:
        send_line(client, "setattr(self, 'slow_end', 1)")
        program.told("finishing")
        client.send(b"X", socket.MSG_OOB)
        assert read_to_the_end(client).endswith(" None")
    program.told("finished")


def test_urgent_byte_is_left_alone_without_the_mix_in(start: Callable[..., Program]) -> None:
    """A handler that does not ask for urgent data is not disturbed by it."""
    program = start(HANDLER.replace("SERVER", "PreForkingTCPServer") + "    serve(Plain, Server)\n")
    with connect(program.address()) as client:
        send_line(client, "[tell('here'), time.sleep(0.6)]")
        program.told("here")
        client.send(b"X", socket.MSG_OOB)
        assert read_to_the_end(client).endswith(" [None, None]")


def test_telnet_stops_a_computation(start: Callable[..., Program], tmp_path: Path) -> None:
    """The real telnet interrupts the example's computation, and its connection goes on."""
    if shutil.which("inetutils-telnet") is None:
        pytest.skip("inetutils-telnet is not installed")
    program = start(EXAMPLES / "telnet.py", arguments=["0"], environ={"PYTHONUNBUFFERED": "1"})
    port = _port(program)
    with Terminal(
        ["127.0.0.1", port], tmp_path, command=["inetutils-telnet", "-e", "^]"]
    ) as telnet:
        telnet.wait_shown("Escape character")
        telnet.press("100\n")
        telnet.wait_shown("25 primes up to 100")
        telnet.press("99999999\n")
        telnet.wait_shown(r"(?s)25 primes.*computing")
        telnet.press("\x1d")
        telnet.wait_shown("telnet>")
        telnet.press("send synch\n")
        telnet.wait_shown("stopped")
        telnet.press("10\n")
        telnet.wait_shown("4 primes up to 10")


def test_ftp_client_aborts_a_transfer(start: Callable[..., Program]) -> None:
    """The standard library's FTP client aborts a transfer of the example, and goes on with the next one."""
    program = start(EXAMPLES / "ftp.py", arguments=["0"], environ={"PYTHONUNBUFFERED": "1"})
    with ftplib.FTP() as ftp:
        ftp.connect("127.0.0.1", int(_port(program)), timeout=10)
        ftp.login()
        for _ in range(2):
            with ftp.transfercmd("RETR numbers") as data:
                assert data.recv(5).startswith(b"0\n")
                assert ftp.abort().startswith("226")
        assert ftp.quit().startswith("221")


def _port(program: Program) -> str:
    """Return the port that an example prints."""
    printed = b""

    def read() -> bool:
        nonlocal printed
        printed += program.popen.stdout.read() or b""  # type: ignore[union-attr]
        return b"\n" in printed

    wait_until(read, "the line of the example")
    return printed.decode().split(":")[1].strip()
