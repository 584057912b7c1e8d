"""A request can be ended: asked first, in its handler and nowhere else, while its worker goes on."""

from __future__ import annotations

import contextlib
import os
import random
import re
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from prefork.workers.cancel import FLAGS, CancelReason, word_of
from prefork.workers.identity import CANCEL_NUMBER
from prefork.workers.scoreboard import CANCELLED_FIELDS, Scoreboard, SlotField
from prefork.workers.states import ExitKind
from tests.support.board import board_of
from tests.support.certificates import Authority
from tests.support.clients import ask, connect, read_to_the_end, send_line
from tests.support.server import environment
from tests.support.waiting import CEILING, Stopwatch, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.server import Program

SOFT = 0.2
"""Seconds of soft_timeout."""

ANSWERING = """
    from tests.support.app import *
    import prefork, socketserver

    class Server(prefork.PreForkingTCPServer):
        def request_cancelled(self, request, client_address, reason):
            assert isinstance(reason, prefork.CancelReason)
            request.sendall(f"{os.getpid()} ended: {reason}\\n".encode())

    def swallow(seconds):
        try:
            time.sleep(seconds)
        except BaseException as error:
            return type(error).__name__

    def shield(seconds):
        began = time.monotonic()
        try:
            with prefork.shielded():
                time.sleep(seconds)
        finally:
            tell("shielded for", time.monotonic() - began)

    def spin():
        while True:
            pass

    def in_group():
        try:
            time.sleep(1000)
        except BaseException as error:
            raise BaseExceptionGroup("of tasks", [error]) from None

    vars(sys.modules[Run.__module__]).update(
        swallow=swallow, shield=shield, spin=spin, in_group=in_group
    )

    class Late(Run):
        def finish(self):
            time.sleep(getattr(self, "late", 0))
            super().finish()
"""


def cancelled(pid: int, *reasons: CancelReason) -> int:
    """Return how many requests of a pool were cancelled; for these reasons, if there are any."""
    wanted = [*CancelReason]
    with board_of(pid) as board:
        return sum(
            board.total(field)
            for field, reason in zip(CANCELLED_FIELDS, wanted, strict=True)
            if not reasons or reason in reasons
        )


def wait_cancelled(count: int, pid: int, *reasons: CancelReason) -> None:
    """Wait until this many were; the client of the last one may know before the scoreboard does."""
    wait_until(
        lambda: cancelled(pid, *reasons) == count,
        lambda: f"{count} cancelled, there are {cancelled(pid, *reasons)}",
    )


def test_request_is_asked_to_end_at_its_soft_timeout(start: Callable[..., Program]) -> None:
    """At soft_timeout the handler gets RequestTimeout, the hook answers, and the same worker serves the next client."""
    program = start(ANSWERING + f"    serve(Late, Server, workers=1, soft_timeout={SOFT})\n")
    address = program.address()
    worker = ask(address, "1 + 1").split()[0]
    for line in ("time.sleep(1000)", "spin()", "in_group()"):
        took = Stopwatch()
        assert ask(address, line) == f"{worker} ended: soft_timeout"
        assert SOFT <= took.seconds < SOFT + 2
    # A handler that has caught the exception is not asked for the same reason again.
    assert ask(address, f"swallow(1000), time.sleep({SOFT * 3})") == (
        f"{worker} ('RequestTimeout', None)"
    )
    wait_cancelled(3, program.pid, CancelReason.SOFT_TIMEOUT)
    wait_cancelled(3, program.pid)
    line = program.wait_logged("WARNING.* request cancelled reason=soft_timeout")[0]
    assert re.search(
        r'client=127\.0\.0\.1:\d+ at="<string>:1 in <module> < app\.py:\d+ in handle"', line
    )
    program.wait_logged(r"is asked to end its request reason=soft_timeout request_age=\d\.")
    program.wait_logged("RequestTimeout: soft_timeout")  # the whole stack, at level DEBUG


def test_moments_that_do_not_fit_delay_the_end(start: Callable[..., Program]) -> None:
    """Nothing is raised in a shielded block, whose end raises it, and in finish() nothing is raised at all."""
    program = start(ANSWERING + f"    serve(Late, Server, workers=1, soft_timeout={SOFT})\n")
    address = program.address()
    worker = ask(address, "1 + 1").split()[0]
    took = Stopwatch()
    assert ask(address, f"[shield({3 * SOFT}), time.sleep(1000)]").endswith("ended: soft_timeout")
    assert 3 * SOFT <= took.seconds < 3 * SOFT + 3
    assert program.told("shielded for") >= 3 * SOFT
    assert ask(address, f"setattr(self, 'late', {3 * SOFT})") == f"{worker} None"
    wait_cancelled(1, program.pid)


BEYOND_REACH = {
    "holds the lock in C": ("Run", "prefork.PreForkingTCPServer", "sum(range(10**13))"),
    "swallows everything": (
        "Run",
        "prefork.PreForkingTCPServer",
        "[swallow(1000), swallow(1000), swallow(1000)]",
    ),
    "in a thread of the server": ("Run", "Threads", "time.sleep(1000)"),
    "in a thread of its own": (
        "Run",
        "prefork.PreForkingTCPServer",
        "[swallow(0), [t.start() or t.join() for t in [threading.Thread(target=time.sleep, args=[1000], daemon=True)]]]",
    ),
}


@pytest.mark.parametrize("how", BEYOND_REACH)
def test_request_that_cannot_be_reached_ends_with_its_worker(
    start: Callable[..., Program], how: str
) -> None:
    """What the exception does not reach, or what swallows it, ends at request_timeout, with the worker."""
    handler, server, line = BEYOND_REACH[how]
    is_reached = how == "in a thread of its own"  # the main thread waits in join(), which is Python
    hard = (30 if is_reached else 3) * SOFT
    program = start(
        ANSWERING
        + "    class Threads(prefork.PreForkingMixIn, socketserver.ThreadingTCPServer):\n"
        + "        pass\n"
        + f"    serve({handler}, {server}, workers=1, soft_timeout={SOFT}, request_timeout={hard})\n"
    )
    address = program.address()
    took = Stopwatch()  # the time of a request begins when its connection is taken
    with connect(address) as client:
        send_line(client, line)
        assert read_to_the_end(client) == ""
    assert took.seconds >= (SOFT if is_reached else hard)
    assert ask(address, "1 + 1").endswith(" 2")  # of the next worker, where this one was killed
    with board_of(program.pid) as board:
        wait_until(
            lambda: board.snapshot().exits[ExitKind.REQUEST_TIMEOUT] == int(not is_reached),
            "the end of the worker is counted",
        )
    wait_cancelled(int(is_reached), program.pid)


def test_cpu_time_of_a_request_is_bounded(start: Callable[..., Program]) -> None:
    """cpu_timeout ends a request that computes, and none that waits; each request has all of the time."""
    program = start(ANSWERING + f"    serve(Run, Server, workers=1, cpu_timeout={SOFT})\n")
    address = program.address()
    assert ask(address, f"time.sleep({2 * SOFT})").endswith(" None")
    for _ in range(2):
        took = Stopwatch()
        assert ask(address, "spin()").endswith("ended: cpu_timeout")
        assert took.seconds >= SOFT
    wait_cancelled(2, program.pid, CancelReason.CPU_TIMEOUT)


def test_operator_ends_a_request(start: Callable[..., Program]) -> None:
    """Prefork cancel ends the request in a slot and no other, and says so; an idle or unknown slot is refused."""
    program = start(ANSWERING + "    serve(TellingRun, Server, workers=2)\n")
    address = program.address()

    def cancel(slot: int) -> tuple[int, str]:
        command = [sys.executable, "-m", "prefork", "cancel", str(slot), str(program.pid)]
        ran = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment()
        )
        return ran.returncode, ran.stdout + ran.stderr

    with connect(address) as one, connect(address) as other:
        for client in (one, other):
            send_line(client, "self.rfile.readline()")
        program.told("busy", 1)
        with board_of(program.pid) as board:
            wait_until(
                lambda: all(board.word(slot, SlotField.REQUEST_NS) for slot in range(2)),
                "two in hand",
            )
            first, second = (board.word(slot, SlotField.PID) for slot in range(2))
        status, said = cancel(0)
        assert status == 0, said
        assert "the request in slot 0 was ended" in said
        for client in (one, other):
            with contextlib.suppress(OSError):
                send_line(client, "go on")
        answers = {read_to_the_end(one), read_to_the_end(other)}
    assert answers == {f"{first} ended: command", f"{second} b'go on\\n'"}
    assert cancel(0)[0] == 1
    assert "has no request in hand" in cancel(1)[1]
    assert "has no slot 99" in cancel(99)[1]
    wait_cancelled(1, program.pid)


def test_hook_has_a_second(start: Callable[..., Program]) -> None:
    """request_cancelled() that does not return is ended after its second, one that raises costs its request only."""
    program = start(
        """
        from tests.support.app import *
        import prefork

        class Server(prefork.PreForkingTCPServer):
            def request_cancelled(self, request, client_address, reason):
                if self.calls:
                    raise RuntimeError("on purpose")
                Server.calls = 1
                tell("hook")
                time.sleep(1000)
            calls = 0

        serve(Run, Server, workers=1, soft_timeout=0.3)
        """
    )
    address = program.address()
    with connect(address) as client:
        took = Stopwatch()
        send_line(client, "time.sleep(1000)")
        program.told("hook")
        assert read_to_the_end(client) == ""
        assert 1.0 <= took.seconds < 10
    program.wait_logged(r'request_cancelled\(\) was ended after="1 s"')
    assert ask(address, "time.sleep(1000)") == ""
    program.wait_logged(r"request_cancelled\(\) raised")
    assert ask(address, "1 + 1").endswith(" 2")
    with board_of(program.pid) as board:
        assert board.snapshot().exits[ExitKind.EXITED] == 0


# --- clients that have gone


def reset(client: socket.socket) -> None:
    """Close a connection so that its other end is reset."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()


@pytest.mark.parametrize("check", ["reset", "closed"])
def test_request_whose_client_has_gone_is_ended(start: Callable[..., Program], check: str) -> None:
    """A request is ended within seconds when its client resets, and not begun when it was reset before; half-closed ones are answered."""
    program = start(
        ANSWERING + f"    serve(TellingRun, Server, workers=1, check_client={check!r})\n"
    )
    address = program.address()
    client = connect(address)
    send_line(client, "time.sleep(1000)")
    program.told("busy")
    # Two wait while the worker is busy: one of them goes, the other one has only half-closed.
    gone, half_closed = connect(address), connect(address)
    send_line(gone, "tell('served in vain')")
    reset(gone)
    with half_closed:
        send_line(half_closed, f"time.sleep({1.3 if check == 'reset' else 0})")
        half_closed.shutdown(socket.SHUT_WR)
        reset(client)
        answer = read_to_the_end(half_closed)
    if check == "reset":
        assert answer.endswith(" None")
    else:
        assert "None" not in answer
    assert ask(address, "1 + 1").endswith(" 2")
    expected = 2 if check == "reset" else 3
    wait_cancelled(expected, program.pid, CancelReason.CLIENT_GONE)
    wait_cancelled(expected, program.pid)
    assert not program.all_told("served in vain")


# --- the race between the end of a request and the signal

REQUESTS = int(os.environ.get("PREFORK_RACE_REQUESTS", "20000"))
"""How many requests race; docs/CANCELLING.md has the figures of a run with 100,000."""

RACE = """
    from tests.support.app import *
    import itertools, logging, random, prefork, socketserver
    from prefork.workers.slot_writer import REQUEST_NS

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            for _ in range(random.randrange(500)):
                pass

        def finish(self):
            for _ in range(100):
                pass

    class Server(prefork.PreForkingMixIn, socketserver.BaseServer):
        workers = 1

        # Its requests are numbers, and there is always a next one.
        def __init__(self):
            super().__init__("-", Handler)
            self.event = os.eventfd(1)
            self.numbers, self.ended = itertools.count(), []

        def fileno(self):
            return self.event

        def get_request(self):
            number = next(self.numbers)
            if number == REQUESTS:
                os.eventfd_read(self.event)
                tell("ended", self.ended)
                raise BlockingIOError
            return number, None

        def request_cancelled(self, request, client_address, reason):
            self.ended.append(self.worker._writer.words[REQUEST_NS])

    log_to_stderr(logging.INFO)
    with Server() as server:
        server.serve_forever()
"""


def test_request_and_signal_race_to_the_end(start: Callable[..., Program]) -> None:
    """Of thousands of requests that are asked to end around their ends, each ends once at most, and only those that were meant."""
    program = start(RACE.replace("REQUESTS", str(REQUESTS)))
    program.wait_logged(r"master pid=\d+ ready")
    asked = _ask_without_end(program)
    ended = program.told("ended")
    assert 0 < len(ended) == len({*ended})
    assert {*ended} <= asked
    with board_of(program.pid) as board:
        # The worker has accounted for the last request when it takes the next one.
        snapshot = board.snapshot()
    assert sum(snapshot.exits.values()) == 0
    assert sum(one.cancelled for one in snapshot.slots) == len(ended)
    assert sum(one.ok for one in snapshot.slots) == REQUESTS - len(ended)
    assert not program.logged("ERROR")
    sys.stdout.write(f"{REQUESTS} requests, {len(asked)} asked to end, {len(ended)} ended\n")


def _ask_without_end(program: Program) -> set[int]:
    """Do what the master does, as fast as can be, until the program has served all; return the requests asked."""
    asked: set[int] = set()
    with board_of(program.pid) as readable:
        fd = os.open(f"/proc/self/fd/{readable.fd}", os.O_RDWR | os.O_CLOEXEC)
        board = Scoreboard(fd, readable.slots)
    try:
        worker, at = board.word(0, SlotField.PID), board.slot_at(0)
        while not program.all_told("ended"):
            for _ in range(200):
                request = board.words[at + SlotField.REQUEST_NS]
                if request > 0 and request not in asked:
                    asked.add(request)
                    for _ in range(random.randrange(100)):
                        pass
                    flag = FLAGS[CancelReason.SOFT_TIMEOUT]
                    board.words[at + SlotField.CANCEL] = word_of(request, flag)
                    os.kill(worker, CANCEL_NUMBER)
    finally:
        board.close()
    return asked


def test_answer_to_a_cancelled_request_is_encrypted(
    start: Callable[..., Program], tmp_path: Path
) -> None:
    """With TLS request_cancelled() gets the encrypted socket, so that the client can read the answer."""
    authority = Authority(tmp_path)
    certificate = authority.server("localhost")
    program = start(
        ANSWERING
        + f"    serve(Run, Server, workers=1, soft_timeout={SOFT}, tls_certificate={certificate!r})\n"
    )
    with (
        socket.create_connection(program.address(), timeout=CEILING) as plain,
        authority.trusting.wrap_socket(plain, server_hostname="localhost") as client,
    ):
        client.sendall(b"time.sleep(1000)\n")
        assert client.recv(100).endswith(b"ended: soft_timeout\n")
    wait_cancelled(1, program.pid, CancelReason.SOFT_TIMEOUT)


HOSTS = """
    import asyncio

    async def wait():
        await asyncio.sleep(1000)

    async def group():
        async with asyncio.TaskGroup() as tasks:
            for _ in range(3):
                tasks.create_task(spinning())

    async def spinning():
        while True:
            await asyncio.sleep(0)

    vars(sys.modules[Run.__module__]).update(asyncio=asyncio, wait=wait, group=group)

    class Parked(prefork.ParkingMixIn, Run):
        pass
"""


def test_event_loop_of_a_handler_is_ended(start: Callable[..., Program]) -> None:
    """A handler that runs an event loop is cancelled like any other: while it waits, and in its tasks."""
    program = start(ANSWERING + HOSTS + f"    serve(Run, Server, workers=1, soft_timeout={SOFT})\n")
    address = program.address()
    for line in ("asyncio.run(wait())", "asyncio.run(group())"):
        assert ask(address, line).endswith(" ended: soft_timeout")
    assert ask(address, "1 + 1").endswith(" 2")
    wait_cancelled(2, program.pid)


@pytest.mark.parametrize(
    ("behind", "workers"),
    [("ThreadingTCPServer", 1), ("ForkingTCPServer", 1), ("TCPServer", 0)],
)
def test_handler_that_cancels_itself_ends_its_request_only(
    start: Callable[..., Program], behind: str, workers: int
) -> None:
    """RequestCancelled of a handler is answered also in a thread, in a child of its own, and without workers."""
    program = start(
        ANSWERING
        + f"""
    def stop():
        raise prefork.RequestCancelled

    sys.modules[Run.__module__].stop = stop
    log_to_stderr()

    class Cancels(prefork.PreForkingMixIn, socketserver.{behind}):
        workers = {workers}
        request_cancelled = Server.request_cancelled

    with Cancels(LOOPBACK, Run) as server:
        announce(server)
        server.serve_forever()
"""
    )
    address = program.address()
    assert ask(address, "stop()").endswith(" ended: handler")
    assert ask(address, "1 + 1").endswith(" 2")
    assert not program.logged("^Traceback|^Exception in thread")
    if behind == "ThreadingTCPServer":
        wait_cancelled(1, program.pid, CancelReason.HANDLER)


def test_each_request_of_a_connection_has_its_own_deadline(start: Callable[..., Program]) -> None:
    """Of a connection that is kept, the request in hand is the one that is ended, and earlier ones are not held against it."""
    program = start(
        ANSWERING
        + HOSTS
        + f"    serve(Parked, Server, workers=1, soft_timeout={2 * SOFT}, linger=1)\n"
    )
    with connect(program.address()) as client, client.makefile() as answers:
        for _ in range(6):
            send_line(client, f"time.sleep({SOFT / 2})")
            assert answers.readline().endswith(" None\n")
        send_line(client, "time.sleep(1000)")
        assert answers.readline().endswith(" ended: soft_timeout\n")
        assert answers.read() == ""
    wait_cancelled(1, program.pid)
