"""Parking: a connection whose client says nothing holds no worker, and nothing is lost by parking it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from http.client import HTTPConnection
from typing import TYPE_CHECKING

import pytest

from prefork.workers.scoreboard import PoolField, SlotField
from prefork.workers.states import Phase
from tests.support import board
from tests.support.clients import TIMEOUT, connect, hangs_up
from tests.support.processes import fds_of, is_alive, live_children_of, status_of
from tests.support.waiting import CEILING, Stopwatch, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from prefork.workers.scoreboard import Scoreboard
    from tests.support.clients import Address
    from tests.support.server import Program

COUNTING = """
    from tests.support.app import *
    import prefork

    class Counting(prefork.ParkingMixIn, prefork.StreamRequestHandler):
        # Answers a line with the pid of the worker, the number of the request on this connection, and the line.

        def handle(self):
            line = self.rfile.readline()
            if not line or line.strip() == b"bye":
                self.close_connection = True
                return
            if line.startswith(b"sleep"):
                time.sleep(float(line.split()[1]))
            if line == b"fail\\n":
                raise RuntimeError("asked to")
            number = int(self.state or b"0") + 1
            self.state = b"%d" % number
            self.wfile.write(b"%d %d %s" % (os.getpid(), number, line))

    serve(Counting, BASE, ADDRESS, **SETTINGS)
"""


def program_with(
    *,
    base: str = "prefork.PreForkingTCPServer",
    address: object = ("127.0.0.1", 0),
    **settings: object,
) -> str:
    """Return a program whose handlers park."""
    source = COUNTING.replace("BASE", base).replace("ADDRESS", repr(address))
    return source.replace("SETTINGS", repr({"workers": 2, "linger": 0} | settings))


def ask_on(client: socket.socket, line: str = "hello") -> tuple[int, int, str]:
    """Ask on a connection that stays open; return who answered, which request it was, and the rest."""
    client.sendall(line.encode() + b"\n")
    return answer_on(client)


def answer_on(client: socket.socket) -> tuple[int, int, str]:
    """Read one answer, byte by byte, so that nothing behind it is lost."""
    answer = b""
    while not answer.endswith(b"\n"):
        byte = client.recv(1)
        assert byte, f"the connection ended after {answer!r}"
        answer += byte
    pid, number, rest = answer.decode().split(" ", 2)
    return int(pid), int(number), rest.strip()


@pytest.fixture
def board_of() -> Iterator[Callable[[Program], Scoreboard]]:
    """Open the scoreboards of pools for one test."""
    with contextlib.ExitStack() as stack:

        def open_board(program: Program) -> Scoreboard:
            program.address()  # its pool is ready
            return stack.enter_context(board.board_of(program.pid))

        yield open_board


def is_over(client: socket.socket) -> bool:
    """Wait for the end of a connection."""
    with contextlib.suppress(ConnectionResetError):
        return client.recv(1) == b""
    return True


@contextlib.contextmanager
def clients_of(address: Address, count: int) -> Iterator[list[socket.socket]]:
    """Connect several times, and close the connections at the end."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(connect(address)) for _ in range(count)]


def wait_parked(board: Scoreboard, count: int) -> None:
    """Wait until the lot holds this many connections."""
    wait_until(
        lambda: board.pool(PoolField.PARKED) == count,
        lambda: f"{count} parked connections; there are {board.pool(PoolField.PARKED)}",
    )


def wait_count(board: Scoreboard, field: PoolField, count: int) -> None:
    """Wait until the lot has published a count: it does so after it has closed the connection."""
    wait_until(lambda: board.pool(field) == count, lambda: f"{field.name} is {board.pool(field)}")


def lot_of(board: Scoreboard) -> int:
    """Return the pid of the lot."""
    return wait_until(lambda: board.pool(PoolField.LOT_PID), "a lot")


def test_quiet_clients_hold_no_worker(start: Callable[..., Program]) -> None:
    """Forty clients keep their connections open on two workers, and each is answered whenever it speaks."""
    program = start(program_with())
    with clients_of(program.address(), 40) as clients:
        for number in range(1, 6):
            assert [ask_on(client)[1] for client in clients] == [number] * 40
    assert program.stop() == 0


def test_a_thousand_idle_clients_cost_little(
    start: Callable[..., Program], board_of: Callable[[Program], Scoreboard]
) -> None:
    """With a thousand idle clients on two workers, those who speak are answered at once, and the lot stays small."""
    program = start(program_with(linger=0.001))
    scores = board_of(program)
    with clients_of(program.address(), 1000) as clients:
        for client in clients:
            ask_on(client)
        wait_parked(scores, 1000)
        for client in clients[::20]:
            watch = Stopwatch()
            assert ask_on(client)[1] == 2
            assert watch.seconds < 2.0
        assert int(status_of(lot_of(scores))["VmRSS"].split()[0]) < 32 * 1024


def test_state_and_address_travel(start: Callable[..., Program]) -> None:
    """The next handler of a connection finds its state, also where another worker serves it."""
    program = start(program_with(workers=4))
    with clients_of(program.address(), 8) as clients:
        served = [[ask_on(client) for client in clients] for _ in range(10)]
    by_client = [{pid for pid, _, _ in column} for column in zip(*served, strict=True)]
    assert any(len(pids) > 1 for pids in by_client)
    assert [number for _, number, _ in served[-1]] == [10] * 8


@pytest.mark.parametrize("linger", [0, 0.001])
def test_requests_that_were_read_ahead_are_served(
    start: Callable[..., Program], linger: float
) -> None:
    """A client that sends five requests at once gets five answers, and then goes on as any other."""
    program = start(program_with(linger=linger))
    with connect(program.address()) as client:
        client.sendall(b"a\nb\nc\nd\ne\n")
        assert [answer_on(client)[1:] for _ in range(5)] == [
            (n, word) for n, word in enumerate("abcde", 1)
        ]
        assert ask_on(client, "f")[1:] == (6, "f")


def test_many_requests_that_were_read_ahead_keep_nobody_waiting(
    start: Callable[..., Program],
) -> None:
    """Of two hundred requests that are sent at once none is lost, and the one worker serves others in between."""
    program = start(program_with(workers=1))
    with clients_of(program.address(), 2) as (eager, other):
        eager.sendall(b"sleep 0.005\n" * 200)
        assert answer_on(eager)[1] == 1
        assert ask_on(other)[1] == 1
        eager.settimeout(3.0)  # below the seconds for which an idle worker sleeps
        assert [answer_on(eager)[1] for _ in range(199)] == [*range(2, 201)]


def test_handler_decides_when_a_connection_ends(start: Callable[..., Program]) -> None:
    """close_connection ends a connection, and so does an exception; others go on."""
    program = start(program_with())
    with clients_of(program.address(), 3) as (leaving, failing, staying):
        assert ask_on(leaving)[1] == ask_on(failing)[1] == ask_on(staying)[1] == 1
        leaving.sendall(b"bye\n")
        failing.sendall(b"fail\n")
        assert is_over(leaving)
        assert is_over(failing)
        assert ask_on(staying)[1] == 2
    program.wait_logged("asked to")


def test_client_that_leaves_troubles_no_worker(
    start: Callable[..., Program], board_of: Callable[[Program], Scoreboard]
) -> None:
    """A client that closes while it is parked is taken off by the lot, and no handler is called."""
    program = start(program_with())
    scores = board_of(program)
    with connect(program.address()) as client:
        ask_on(client)
        wait_parked(scores, 1)
    wait_parked(scores, 0)
    wait_count(scores, PoolField.PARKED_LEFT, 1)
    assert scores.pool(PoolField.RESUMED_TOTAL) == 0


def test_parked_connections_outlive_their_worker(
    start: Callable[..., Program], board_of: Callable[[Program], Scoreboard]
) -> None:
    """A worker that is killed takes no parked connection with it."""
    program = start(program_with())
    scores = board_of(program)
    with clients_of(program.address(), 10) as clients:
        pids = {ask_on(client)[0] for client in clients}
        wait_parked(scores, 10)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        assert [ask_on(client)[1] for client in clients] == [2] * 10


def test_lot_that_dies_is_replaced(
    start: Callable[..., Program], board_of: Callable[[Program], Scoreboard]
) -> None:
    """A lot that is killed costs the parked connections and nothing else; the next one comes at once."""
    program = start(program_with())
    scores = board_of(program)
    first = lot_of(scores)
    with clients_of(program.address(), 5) as clients:
        workers = {ask_on(client)[0] for client in clients}
        wait_parked(scores, 5)
        wait_until(
            lambda: program.logged("lot pid=.* ready"), "a lot that has given a sign of life"
        )
        watch = Stopwatch()
        os.kill(first, signal.SIGKILL)
        assert all(is_over(client) for client in clients)
        wait_until(lambda: scores.pool(PoolField.LOT_PID) not in {0, first}, "another lot")
        assert watch.seconds < 3.0
    with connect(program.address()) as client:
        assert ask_on(client)[0] in live_children_of(program.pid)
        wait_parked(scores, 1)
        assert ask_on(client)[1] == 2
    assert all(is_alive(pid) for pid in workers)
    program.wait_logged("exited.*connections_lost=5")


def test_stopped_lot_holds_no_worker(
    start: Callable[..., Program], board_of: Callable[[Program], Scoreboard]
) -> None:
    """While the lot is stopped, workers go on: whom they cannot park they close."""
    program = start(program_with())
    scores = board_of(program)
    lot = lot_of(scores)
    os.kill(lot, signal.SIGSTOP)
    try:
        address = program.address()
        for _ in range(600):
            with connect(address) as client:
                assert ask_on(client)[1] == 1
    finally:
        os.kill(lot, signal.SIGCONT)
    assert program.stop() == 0


def test_lot_that_pauses_costs_no_connection(
    start: Callable[..., Program], board_of: Callable[[Program], Scoreboard]
) -> None:
    """A lot that takes nothing for a moment, so that its link is full, gets every connection afterwards."""
    patient = "import prefork.workers.worker.parking as parking; parking.ROOM_WAIT_NS = 10 * 10**9"
    program = start(
        program_with(workers=1).replace("import prefork\n", f"import prefork\n    {patient}\n")
    )
    scores = board_of(program)
    address = program.address()
    with contextlib.ExitStack() as stack:
        clients = []
        os.kill(lot_of(scores), signal.SIGSTOP)
        try:
            is_waiting = False
            while not is_waiting and len(clients) < 1000:
                client = stack.enter_context(connect(address))
                clients.append(client)
                client.sendall(b"hello\n")
                is_waiting = not select.select([client], [], [], 0.1)[0]
                if not is_waiting:
                    answer_on(client)
        finally:
            os.kill(lot_of(scores), signal.SIGCONT)
        answer_on(clients[-1])
        assert [ask_on(client)[1] for client in clients] == [2] * len(clients)
        assert scores.snapshot().slots[0][SlotField.PARK_FAILURES] == 0
    assert program.stop() == 0


def test_reload_keeps_parked_connections(
    start: Callable[..., Program], board_of: Callable[[Program], Scoreboard]
) -> None:
    """A reload replaces every worker, and the parked connections go on in the new ones."""
    program = start(program_with())
    scores = board_of(program)
    lot = lot_of(scores)
    with clients_of(program.address(), 20) as clients:
        before = {ask_on(client)[0] for client in clients}
        for count in (1, 2):
            program.signal(signal.SIGHUP)
            wait_until(
                lambda count=count: scores.pool(PoolField.RELOADS) == count, f"{count} reloads"
            )
            assert [ask_on(client)[1] for client in clients] == [1 + count] * 20
        assert not {ask_on(client)[0] for client in clients} & before
    assert lot_of(scores) == lot
    assert program.stop() == 0


def test_parked_connections_outlive_new_code_that_fails_after_the_exec(
    start: Callable[..., Program], board_of: Callable[[Program], Scoreboard], tmp_path: Path
) -> None:
    """New code that fails when it holds the lot already, again and again, leaves the lot and its connections to good code."""
    fails = (
        "    if prefork.host.process.process.handover and os.path.exists('fails'):\n"
        "        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n"
        "    serve("
    )
    program = start(program_with(fork_check="error").replace("    serve(", fails))
    scores = board_of(program)
    lot = lot_of(scores)
    with clients_of(program.address(), 5) as clients:
        assert [ask_on(client)[1] for client in clients] == [1] * 5
        (tmp_path / "fails").touch()
        program.signal(signal.SIGHUP)
        program.wait_logged("the new code ended before it served", times=3)
        (tmp_path / "fails").unlink()
        wait_until(lambda: scores.pool(PoolField.RELOADS) == 1, lambda: program.log[-3000:])
        assert [ask_on(client)[1] for client in clients] == [2] * 5
    assert lot_of(scores) == lot
    assert program.stop() == 0


def test_lot_that_dies_while_new_code_fails(
    start: Callable[..., Program], board_of: Callable[[Program], Scoreboard], tmp_path: Path
) -> None:
    """A lot that dies while the previous workers serve without a master is collected, and good code brings another one."""
    fails = (
        "    if prefork.host.process.process.handover and os.path.exists('fails'):\n"
        "        sys.exit(1)\n"
        "    serve("
    )
    program = start(program_with().replace("    serve(", fails))
    scores = board_of(program)
    lot = lot_of(scores)
    with clients_of(program.address(), 2) as (first, second):
        assert [ask_on(client)[1] for client in (first, second)] == [1, 1]
        wait_parked(scores, 2)
        (tmp_path / "fails").touch()
        program.signal(signal.SIGHUP)
        program.wait_logged("the new code ended before it served")
        os.kill(lot, signal.SIGKILL)
        program.wait_logged(rf"lot pid={lot} exited cause=killed\(SIGKILL\) connections_lost=2")
        assert not os.path.exists(f"/proc/{lot}")
        assert (scores.pool(PoolField.LOT_PID), scores.pool(PoolField.PARKED)) == (0, 0)
        assert is_over(first)
        (tmp_path / "fails").unlink()
        wait_until(lambda: scores.pool(PoolField.RELOADS) == 1, lambda: program.log[-3000:])
    with clients_of(program.address(), 1) as (third,):
        assert [ask_on(third)[1] for _ in range(2)] == [1, 2]
    assert lot_of(scores) != lot
    assert program.stop() == 0


def test_stop_closes_the_idle_and_serves_those_who_have_spoken(
    start: Callable[..., Program], board_of: Callable[[Program], Scoreboard]
) -> None:
    """At a stop idle connections end at once, and every request that was sent before it is answered."""
    program = start(program_with())
    scores = board_of(program)
    with clients_of(program.address(), 60) as clients:
        for client in clients:
            ask_on(client)
        wait_parked(scores, 60)
        idle, speaking = clients[:30], clients[30:]
        for client in speaking[:2]:
            client.sendall(b"sleep 0.3\n")
        wait_parked(scores, 58)
        for client in speaking[2:]:
            client.sendall(b"last\n")
        watch = Stopwatch()
        program.terminate()
        assert all(is_over(client) for client in idle)
        assert watch.seconds < 3.0
        assert [answer_on(client)[1] for client in speaking] == [2] * 30
        assert all(is_over(client) for client in speaking)
    assert program.wait() == 0


def test_longest_idle_goes_first(
    start: Callable[..., Program], board_of: Callable[[Program], Scoreboard]
) -> None:
    """More connections than max_parked: the one that has been idle for longest is closed."""
    program = start(program_with(max_parked=5))
    scores = board_of(program)
    with clients_of(program.address(), 7) as clients:
        for number, client in enumerate(clients, 1):
            ask_on(client)
            wait_until(
                lambda number=number: scores.pool(PoolField.PARKED_TOTAL) == number, "it is parked"
            )
        assert is_over(clients[0])
        assert is_over(clients[1])
        assert [ask_on(client)[1] for client in clients[2:]] == [2] * 5
    wait_count(scores, PoolField.PARKED_EVICTED, 2)


def test_silence_ends_after_park_timeout(
    start: Callable[..., Program], board_of: Callable[[Program], Scoreboard]
) -> None:
    """A parked connection is closed after park_timeout of silence, and not before."""
    program = start(program_with(park_timeout=0.5))
    scores = board_of(program)
    with connect(program.address()) as client:
        watch = Stopwatch()
        ask_on(client)
        assert is_over(client)
        assert watch.seconds >= 0.5
    wait_count(scores, PoolField.PARKED_TIMED_OUT, 1)


def test_new_connections_wait_in_the_lot(start: Callable[..., Program]) -> None:
    """With park_new a client that has said nothing yet holds no worker."""
    program = start(program_with(park_new=True))
    with clients_of(program.address(), 20) as silent:
        with connect(program.address()) as client:
            assert ask_on(client)[1] == 1
        assert [ask_on(client)[1] for client in silent] == [1] * 20


def test_unix_sockets_park(start: Callable[..., Program], tmp_path: Path) -> None:
    """Connections of Unix sockets are parked like those of TCP, also that of a client whose path is no UTF-8."""
    program = start(program_with(base="prefork.PreForkingUnixStreamServer", address="server.sock"))
    address = str(tmp_path / program.address())
    with contextlib.ExitStack() as stack:
        odd = stack.enter_context(socket.socket(socket.AF_UNIX))
        odd.settimeout(TIMEOUT)
        path = os.fsencode(tmp_path) + b"/c\xff"
        odd.bind(path)
        stack.callback(os.unlink, path)
        odd.connect(address)
        clients = [odd, *stack.enter_context(clients_of(address, 9))]
        for number in (1, 2, 3):
            assert [ask_on(client)[1] for client in clients] == [number] * 10


def test_threads_of_a_worker_park(
    start: Callable[..., Program], board_of: Callable[[Program], Scoreboard]
) -> None:
    """With ThreadingMixIn behind, the threads give their connections to the lot."""
    program = start(
        "    from socketserver import ThreadingMixIn, TCPServer\n"
        "    import prefork\n"
        "    class Threads(prefork.PreForkingMixIn, ThreadingMixIn, TCPServer):\n"
        "        daemon_threads = True\n" + program_with(base="Threads").lstrip("\n")
    )
    scores = board_of(program)
    with clients_of(program.address(), 20) as clients:
        for number in (1, 2, 3):
            assert [ask_on(client)[1] for client in clients] == [number] * 20
        wait_parked(scores, 20)
    assert program.stop() == 0


HTTP = """
    from tests.support.app import *
    from http.server import BaseHTTPRequestHandler
    import prefork

    class Pages(prefork.ParkingMixIn, BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            text = b"%d %s" % (os.getpid(), self.path.encode())
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_arguments):
            pass

    serve(Pages, prefork.PreForkingTCPServer, workers=2)
"""


def test_http_connections_are_kept(start: Callable[..., Program]) -> None:
    """Twelve HTTP/1.1 clients keep their connections on two workers; HTTP decides when one ends."""
    program = start(HTTP)
    host, port = program.address()
    connections = [HTTPConnection(host, port, timeout=CEILING) for _ in range(12)]
    for path in ("/one", "/two", "/three"):
        for connection in connections:
            connection.request("GET", path)
            assert connection.getresponse().read().endswith(path.encode())
    sockets = [connection.sock for connection in connections]
    connections[0].request("GET", "/last", headers={"Connection": "close"})
    assert connections[0].getresponse().read().endswith(b"/last")
    assert sockets[1].fileno() >= 0
    for connection in connections:
        connection.close()
    assert hangs_up(program.address(), "GET / HTTP/1.0\r\n\r\n").endswith("/")


def test_handlers_leave_no_work_for_the_garbage_collector(start: Callable[..., Program]) -> None:
    """The handler object of a parked connection is freed as soon as its request is over."""
    counting = program_with(workers=1).replace(
        'if line.startswith(b"sleep"):',
        'gc.disable()\n            line = b"%d\\n" % sum(isinstance(o, Counting) for o in gc.get_objects())\n'
        '            if line.startswith(b"sleep"):',
    )
    program = start("    import gc\n" + counting.lstrip("\n"))
    with clients_of(program.address(), 5) as clients:
        assert [ask_on(client)[2] for client in clients * 3] == ["1"] * 15


def test_descriptors_do_not_grow(
    start: Callable[..., Program], board_of: Callable[[Program], Scoreboard]
) -> None:
    """After a thousand connections were parked and resumed, no process has more descriptors than before."""
    program = start(program_with())
    scores = board_of(program)
    address = program.address()

    def round_of(count: int) -> None:
        with clients_of(address, count) as clients:
            for client in clients:
                ask_on(client)
            assert [ask_on(client)[1] for client in clients] == [2] * count
        wait_parked(scores, 0)

    program.wait_logged("lot pid=.* ready")
    processes: Sequence[int] = [program.pid, *live_children_of(program.pid)]

    def descriptors() -> dict[int, int]:
        return {pid: len(fds_of(pid)) for pid in processes}

    before = descriptors()
    for _ in range(10):
        round_of(50)
    # Nothing is parked; the last connections may still be about to be closed.
    wait_until(lambda: descriptors() == before, lambda: f"{descriptors()} is not {before}")


def test_lot_ends_quietly_with_its_master(
    start: Callable[..., Program], board_of: Callable[[Program], Scoreboard]
) -> None:
    """A master that is killed, with signs of life that it has not read, takes the lot along without a traceback."""
    program = start(program_with())
    program.address()
    scores = board_of(program)
    lot = wait_until(lambda: scores.pool(PoolField.LOT_PID), "the lot runs")

    def looks() -> int:
        return int(status_of(lot)["voluntary_ctxt_switches"])

    program.signal(signal.SIGSTOP)
    before = looks()
    wait_until(lambda: looks() > before + 1, "the lot gives a sign of life")
    program.signal(signal.SIGKILL)
    wait_until(lambda: not is_alive(lot), "the end of the lot")
    assert "Traceback" not in program.log


def test_without_a_server_that_parks_there_is_no_lot(
    start: Callable[..., Program], board_of: Callable[[Program], Scoreboard]
) -> None:
    """A pool whose handlers do not park has no lot and no link."""
    program = start(
        """
        from tests.support.app import *
        import prefork
        serve(Echo, prefork.PreForkingTCPServer, workers=2)
        """
    )
    program.address()
    assert board_of(program).pool(PoolField.LOT_PID) == 0
    assert len(live_children_of(program.pid)) == 2


def test_answers_say_whether_the_connection_goes_on(
    start: Callable[..., Program], board_of: Callable[[Program], Scoreboard]
) -> None:
    """A client of HTTP/1.0 that wants to keep its connection is told that it may; in drain_delay all are told to leave."""
    program = start(HTTP.replace("workers=2", "workers=2, drain_delay=20"))
    host, port = program.address()
    scores = board_of(program)
    with connect((host, port)) as old, connect((host, port)) as new:
        for _ in range(2):
            old.sendall(b"GET /old HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert "connection: keep-alive" in head_of(old)
            new.sendall(b"GET /new HTTP/1.1\r\nHost: x\r\n\r\n")
            assert "connection:" not in head_of(new)
        program.signal(signal.SIGTERM)
        wait_until(lambda: scores.snapshot().phase is Phase.NOT_READY, "a pool that drains")
        for client, version in ((old, "1.0"), (new, "1.1")):
            client.sendall(
                b"GET / HTTP/%s\r\nHost: x\r\nConnection: keep-alive\r\n\r\n" % version.encode()
            )
            assert "connection: close" in head_of(client)
            assert is_over(client)
    program.signal(signal.SIGQUIT)
    program.wait()


def head_of(client: socket.socket) -> str:
    """Read an answer with a body; return its head, in lower case."""
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += received(client)
    head, _, body = answer.partition(b"\r\n\r\n")
    (length,) = (
        int(line.split(b":")[1])
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"content-length:")
    )
    while len(body) < length:
        body += received(client)
    return head.decode().lower()


def received(client: socket.socket) -> bytes:
    """Return what a client receives next; its connection has not ended."""
    piece = client.recv(4096)
    assert piece, "the connection has ended"
    return piece
