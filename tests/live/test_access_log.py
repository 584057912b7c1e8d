"""The access log of running pools: one line for each request, whoever served it and whatever the client is called."""

from __future__ import annotations

import json
import os
import re
import socket
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.clients import (
    TIMEOUT,
    ask,
    ask_datagram,
    connect,
    read_to_the_end,
    send,
    send_line,
)
from tests.support.server import serving
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.server import Program

HOSTILE = (
    b"\0evil\nWARNING master forged line",
    b"\0\x1b[31mred\x1b[0m",
    b'\0quote" client=other outcome=ok',
    b"\0\xff\xfe\r\x00\x7f",
    "\0\u202esp\xe4th".encode(),
)
"""Abstract names that a Unix client can give itself: any bytes."""


def lines(program: Program, count: int) -> list[str]:
    """Return the access lines without what the log's format puts before them, once there are this many."""
    found = wait_until(
        lambda: seen if len(seen := program.logged(r"INFO (request client=|\{)")) >= count else [],
        lambda: f"{count} lines of the access log",
    )
    return [line.partition(" INFO ")[2] for line in found]


def facts(program: Program, count: int) -> list[dict[str, Any]]:
    """Return the facts of JSON lines, once there are this many."""
    return [json.loads(line) for line in lines(program, count)]


def test_no_line_by_default(start: Callable[..., Program]) -> None:
    """Nobody asked for an access log, and at no level is there one."""
    program = start(serving(workers=1))
    for _ in range(3):
        ask(program.address())
    program.settle()
    assert program.logged("request|client=") == []


def test_text_lines(start: Callable[..., Program]) -> None:
    """Each request has one line that names client, duration, wait, outcome, slot, generation and listener."""
    program = start(serving(workers=2, access_log="text"))
    address = program.address()
    ports = set()
    for _ in range(5):
        with send(address, "hello") as client:
            ports.add(client.getsockname()[1])
            read_to_the_end(client)
    pattern = re.compile(
        r"request client=127\.0\.0\.1:(\d+) duration=0\.\d{6} queue_wait=\d\.\d{6} outcome=ok "
        rf"slot=[01] generation=0 listener=tcp://127\.0\.0\.1:{address[1]}"
    )
    found = [pattern.fullmatch(line) for line in lines(program, 5)]
    assert None not in found
    assert {int(match[1]) for match in found if match} == ports


def test_json_lines_tell_how_requests_went(start: Callable[..., Program]) -> None:
    """Good, failed and rejected requests and one that ends its worker have a line each, in order."""
    program = start(
        "from tests.support.app import *\n"
        "import prefork\n"
        "class Server(prefork.PreForkingTCPServer):\n"
        "    def verify_request(self, request, client_address):\n"
        "        return request.recv(100, socket.MSG_PEEK) != b'reject\\n'\n"
        "serve(Run, Server, workers=1, access_log='json')\n"
    )
    address = program.address()
    for said in ("time.sleep(0.2)", "1 / 0", "reject", "sys.exit(0)"):
        with send(address, said) as client:
            read_to_the_end(client)
    good, failed, rejected, last = facts(program, 4)
    outcomes = [one["outcome"] for one in (good, failed, rejected, last)]
    assert outcomes == ["ok", "error", "rejected", "error"]
    assert 0.2 <= good["duration"] < 5
    assert good["queue_wait"] < 5
    assert good["client"].startswith("127.0.0.1:")
    assert good["listener"] == f"tcp://127.0.0.1:{address[1]}"
    assert {(one["slot"], one["generation"]) for one in (good, failed, rejected, last)} == {(0, 0)}


def test_request_that_is_killed_has_no_line(start: Callable[..., Program]) -> None:
    """A worker that is killed in a request logs nothing of it: the master says what became of the worker."""
    program = start(serving("Run", workers=1, access_log="json"))
    address = program.address()
    with send(address, "os.kill(os.getpid(), 9)") as client:
        read_to_the_end(client)
    ask(address, "1")
    assert [one["outcome"] for one in facts(program, 1)] == ["ok"]
    program.wait_logged(r"exited cause=killed\(SIGKILL\)")


@pytest.mark.parametrize("form", ["text", "json"])
def test_hostile_client_names(start: Callable[..., Program], tmp_path: Path, form: str) -> None:
    """Names with line breaks, terminal codes, quotes and broken UTF-8 stay printable and within their line."""
    program = start(
        serving(
            base="PreForkingUnixStreamServer",
            address=str(tmp_path / "socket"),
            workers=1,
            access_log=form,
        )
    )
    address = program.address()
    for name in HOSTILE:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(TIMEOUT)
            client.bind(name + b" %d" % os.getpid())
            client.connect(address)
            send_line(client, "hello")
            read_to_the_end(client)
    with connect(address) as client:  # one without a name
        send_line(client, "hello")
        read_to_the_end(client)
    found = lines(program, len(HOSTILE) + 1)
    assert len(found) == len(HOSTILE) + 1
    assert all(line.isascii() and line.isprintable() for line in found)
    names = [
        "@" + os.fsdecode(name[1:] + b" %d" % os.getpid()) if isinstance(name, bytes) else None
        for name in (*HOSTILE, None)
    ]
    if form == "json":
        assert [json.loads(line)["client"] for line in found] == names
        assert all(json.loads(line)["queue_wait"] is None for line in found)
    else:
        quoted = [
            re.match(r'request client=("(?:[^"\\]|\\.)*"|-) duration=', line) for line in found
        ]
        told = [json.loads(match[1]) if match and match[1] != "-" else None for match in quoted]
        assert told == names
        assert all(" queue_wait=- " in line for line in found)


def test_datagrams_have_lines(start: Callable[..., Program]) -> None:
    """A datagram is a request like any other."""
    program = start(
        serving("EchoDatagram", base="PreForkingUDPServer", workers=1, access_log="json")
    )
    ask_datagram(program.address())
    (one,) = facts(program, 1)
    assert one["outcome"] == "ok"
    assert 0 <= one["queue_wait"] < 5
    assert one["listener"].startswith("udp://127.0.0.1:")


def test_threads_have_lines(start: Callable[..., Program]) -> None:
    """Requests that overlap in the threads of one worker have a line each, when each is over."""
    program = start(
        "from tests.support.app import *\n"
        "import prefork, socketserver\n"
        "class Server(socketserver.ThreadingMixIn, prefork.PreForkingTCPServer): pass\n"
        "serve(TellingRun, Server, workers=1, access_log='json')\n"
    )
    address = program.address()
    with send(address, "self.rfile.readline()") as slow:
        program.told("busy")
        ask(address, "1")
        (first,) = facts(program, 1)
        assert first["client"] != "{}:{}".format(*slow.getsockname())
        send_line(slow, "")
        read_to_the_end(slow)
    second = facts(program, 2)[1]
    assert second["client"].startswith("127.0.0.1:")
    assert second["client"] != first["client"]
    assert second["duration"] > first["duration"]


def test_fork_of_a_handler_writes_no_second_line(start: Callable[..., Program]) -> None:
    """A process that a handler forks and lets return is no worker, and the request has one line."""
    program = start(serving("Run", workers=1, access_log="json"))
    address = program.address()
    ask(address, "(lambda pid: pid and os.waitpid(pid, 0))(os.fork()) and None")
    ask(address, "1")
    assert len(facts(program, 2)) == 2
    program.settle()
    assert len(facts(program, 2)) == 2


def test_command_line_writes_it_to_standard_error(
    start: Callable[..., Program], tmp_path: Path
) -> None:
    """`prefork run --access-log json` has a line per request on standard error, in one write that never waits."""
    (tmp_path / "shout.py").write_text(
        "import prefork\n"
        "class Shout(prefork.StreamRequestHandler):\n"
        "    def handle(self):\n"
        "        self.wfile.write(self.rfile.readline().upper())\n"
    )
    path = tmp_path / "socket"
    arguments = ["-m", "prefork", "run", "shout.py:Shout", "-b", f"unix:{path}", "-w", "1"]
    program = start(None, arguments=[*arguments, "--access-log", "json", "--log-format", "json"])
    program.wait_logged('"ready"')
    assert ask(str(path), "hello") == "HELLO"
    (line,) = program.wait_logged('"prefork.access"')
    record = json.loads(line)
    assert record["facts"]["outcome"] == "ok"
    assert record["facts"]["listener"] == f"unix:{path}"
    assert (record["message"], record["facts"]["client"]) == ("request", None)
