"""The metrics process: it answers whatever happens, holds what it must only, and is replaced when it fails."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pwd
import random
import re
import signal
import socket
import statistics
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.clients import ask, can_bind, connect, send, send_line
from tests.support.processes import (
    fds_of,
    is_alive,
    live_children_of,
    process,
    status_of,
    title_of,
)
from tests.support.server import serving
from tests.support.waiting import Stopwatch, let_pass, stays, wait_until
from tests.support.web import Observed, exchange, fetch, metrics_of, received

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.clients import Address
    from tests.support.server import Program

PROMPT = 0.1
"""Seconds within which it answers, whatever the load: the promise, for the median of some tries."""

ROUTES = ("/metrics", "/livez", "/readyz", "/status", "/")


def observed(handler: str = "Echo", **members: object) -> str:
    """Return a program with two workers and a metrics process on a free port."""
    return serving(
        handler,
        **{"workers": 2, "metrics_address": "127.0.0.1:0", "graceful_timeout": 2, **members},
    )


def median_latency(address: Address, path: str, tries: int = 20) -> float:
    """Return the median of the seconds that an answer takes; every single one is bounded, too."""
    seconds = []
    for _ in range(tries):
        watch = Stopwatch()
        assert fetch(address, path).status in (200, 503)
        seconds.append(watch.seconds)
    return statistics.median(seconds)


def workers_of(program: Program) -> set[int]:
    """Return the pids of the live children that are workers."""
    return {pid for pid in live_children_of(program.pid) if "worker" in title_of(pid)}


def sockets_of(pid: int) -> set[str]:
    """Return the sockets that a process holds."""
    return {what for what in fds_of(pid).values() if what.startswith("socket:")}


def scoreboard_mappings(pid: int) -> list[str]:
    """Return the permissions of a process's mappings of a scoreboard."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return [line.split()[1] for line in lines if "prefork-scoreboard" in line]


# --- what it answers


def test_every_route_answers(start: Callable[..., Program]) -> None:
    """Metrics, verdicts, status and page come with their types, and headers that keep browsers from mischief."""
    program = start(observed())
    program.address()
    address = metrics_of(program).address
    wait_until(lambda: fetch(address, "/readyz").status == 200, "the pool is ready")

    answers = {path: fetch(address, path) for path in ROUTES}

    assert {path: answer.status for path, answer in answers.items()} == dict.fromkeys(ROUTES, 200)
    assert answers["/metrics"].headers["content-type"].startswith("text/plain; version=")
    assert answers["/metrics"].value('prefork_workers{state="idle"}') == 2
    assert answers["/livez"].text == "live\n"
    assert json.loads(answers["/status"].body)["pid"] == program.pid
    assert answers["/"].headers["content-type"].startswith("text/html")
    assert b"<script" in answers["/"].body
    for path, answer in answers.items():
        assert answer.headers["x-content-type-options"] == "nosniff", path
        assert answer.headers["cache-control"] == "no-store", path
        assert answer.headers["connection"] == "close", path
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'"), path
        assert "frame-ancestors 'none'" in policy, path
        assert ("sha256-" in policy) == (path == "/"), path


def test_metrics_are_negotiated(start: Callable[..., Program]) -> None:
    """OpenMetrics where it is asked for, compressed where that is accepted, only the metrics that are named."""
    program = start(observed())
    program.address()
    address = metrics_of(program).address

    open_metrics = fetch(address, Accept="application/openmetrics-text; version=1.0.0")
    assert open_metrics.headers["content-type"].startswith("application/openmetrics-text")
    assert open_metrics.text.endswith("# EOF\n")

    packed = fetch(address, Accept_Encoding="br, gzip;q=0.5")
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.value("prefork_workers_target") == 2

    named = fetch(address, "/metrics?name[]=prefork_workers_target&name[]=prefork_build_info")
    samples = [line for line in named.text.splitlines() if not line.startswith("#")]
    assert {re.split(r"[{ ]", line)[0] for line in samples} == {
        "prefork_workers_target",
        "prefork_build_info",
    }


def test_memory_that_is_costly_to_count_is_shown_when_it_is_named(
    start: Callable[..., Program],
) -> None:
    """The families that need a long look at each worker are left out unless they are asked for."""
    program = start(observed())
    program.address()
    address = metrics_of(program).address
    name = "prefork_worker_unique_memory_bytes"

    assert f"\n{name}" not in fetch(address).text
    assert fetch(address, f"/metrics?name[]={name}").total(name) > 2 * 2**20


def test_head_is_get_without_a_body(start: Callable[..., Program]) -> None:
    """HEAD gets the headers of GET, and nothing else."""
    program = start(observed())
    program.address()
    address = metrics_of(program).address

    for path in ("/livez", "/", "/nothing"):
        whole, head = fetch(address, path), fetch(address, path, method="HEAD")
        assert head.body == b""
        assert whole.body != b""
        assert head.status == whole.status
        assert head.headers["content-length"] == whole.headers["content-length"]


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /nothing HTTP/1.1\r\n\r\n", 404),
        (b"GET /metrics/ HTTP/1.1\r\n\r\n", 404),
        (b"GET /../etc/passwd HTTP/1.0\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", 405),
        (b"DELETE / HTTP/1.1\r\n\r\n", 405),
        (b"GET /livez\r\n\r\n", 400),
        (b"GET  /livez HTTP/1.1\r\n\r\n", 400),
        (b"GET /livez HTTP/2.0\r\n\r\n", 400),
        (b"GET /liv\xc3\xa9z HTTP/1.1\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\n folded: x\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nA: \x00\r\n\r\n", 400),
        (b"GET http://[ HTTP/1.1\r\n\r\n", 400),
        (b"GET /metrics?" + b"a=1&" * 500 + b" HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01", 400),
        (b"GET /livez HTTP/1.1\r\nA: " + b"x" * 9000 + b"\r\n\r\n", 431),
        (b"GET /" + b"x" * 100_000, 431),
        (b"GET http://somewhere/livez HTTP/1.1\r\n\r\n", 200),
        (b"GET /livez HTTP/1.0\n\n", 200),
        (b"GET /livez HTTP/1.1\r\n\r\nGET /status HTTP/1.1\r\n\r\n", 200),
    ],
)
def test_what_is_asked_wrongly_is_refused(
    served: Observed, request_bytes: bytes, status: int
) -> None:
    """Whatever is no GET or HEAD of a known path gets the error that says so, whole, and one answer only."""
    answer = exchange(served.address, request_bytes)

    assert answer.status == status
    if status == 405:
        assert answer.headers["allow"] == "GET, HEAD"


@pytest.fixture
def served(start: Callable[..., Program]) -> Observed:
    """Return the metrics process of a pool with one worker."""
    program = start(observed(workers=1))
    program.address()
    return metrics_of(program)


# --- bounds


def test_silent_clients_keep_nobody_waiting(served: Observed) -> None:
    """With a hundred connections that say nothing every answer comes promptly, and only sixteen are held."""
    before = len(sockets_of(served.pid))
    silent = [connect(served.address) for _ in range(100)]
    try:
        assert median_latency(served.address, "/readyz") < PROMPT
        assert len(sockets_of(served.pid)) - before <= 16
    finally:
        for client in silent:
            client.close()


@pytest.mark.once  # a clock that is read, and five seconds long
def test_client_has_five_seconds(served: Observed) -> None:
    """A client that sends its request byte by byte is cut off after five seconds, and keeps nobody waiting meanwhile."""
    before = len(sockets_of(served.pid))
    watch = Stopwatch()
    with connect(served.address) as slow, connect(served.address) as idle:
        exchange_of_idle = b"GET /livez HTTP/1.1\r\n\r\n"
        idle.sendall(exchange_of_idle)  # and never closes its side
        with contextlib.suppress(ConnectionError):
            while watch.seconds < 8:
                slow.sendall(b"G")
                assert fetch(served.address, "/livez").status == 200
                let_pass(0.2)
        assert 4.9 < watch.seconds < 7.5
        wait_until(lambda: len(sockets_of(served.pid)) == before, "both are dropped")


def test_clients_that_do_not_read_are_bounded(served: Observed) -> None:
    """Clients that ask for much and read nothing hold sixteen places, and others get their answers."""
    before = len(sockets_of(served.pid))
    deaf = []
    try:
        for _ in range(60):
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            client.connect(served.address)
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            deaf.append(client)
        assert median_latency(served.address, "/readyz") < PROMPT
        assert len(sockets_of(served.pid)) - before <= 16
    finally:
        for client in deaf:
            client.close()


def test_noise_ends_in_answers_and_errors(served: Observed) -> None:
    """Noise of all kinds gets an error or nothing; the process goes on, the same one, and holds nothing of it."""
    before = fds_of(served.pid)
    dice = random.Random(4)
    seeds = [
        b"GET /metrics?name[]=a HTTP/1.1\r\nAccept: application/openmetrics-text\r\n\r\n",
        b"HEAD / HTTP/1.0\r\nAccept-Encoding: gzip\r\nX: y\r\n\r\n",
        b"\r\n\r\n",
    ]
    for _ in range(400):
        noise = bytearray(dice.choice(seeds))
        for _ in range(dice.randrange(12)):
            noise[dice.randrange(len(noise))] = dice.randrange(256)
        if dice.random() < 0.3:
            noise += dice.randbytes(dice.randrange(20_000))
        with connect(served.address) as client, contextlib.suppress(OSError):
            client.sendall(noise)
            client.shutdown(socket.SHUT_WR)
            answer = received(client)
            assert answer == b"" or re.match(rb"HTTP/1\.1 (200|400|404|405|431) ", answer)
    assert fetch(served.address, "/livez").status == 200
    assert is_alive(served.pid)
    wait_until(
        lambda: fds_of(served.pid).keys() == before.keys(), "the descriptors that it had before"
    )


# --- it answers whatever happens


@contextlib.contextmanager
def burners(start: Callable[..., Program], count: int) -> Iterator[None]:
    """Keep every core busy."""
    programs = [start("while True: pass", name=f"burner{n}") for n in range(count)]
    try:
        yield
    finally:
        for program in programs:
            program.popen.kill()
            program.popen.wait()


@pytest.mark.once  # how quick it is
@pytest.mark.parametrize("path", ["/metrics", "/readyz", "/status"])
def test_answers_when_all_is_busy(start: Callable[..., Program], path: str) -> None:
    """With every worker in a request that burns its core, and more processes than cores, it answers promptly."""
    program = start(observed("TellingRun", workers=2))
    workers = program.address()
    burn = (
        "[0 for end in [time.monotonic() + 60] for _ in iter(lambda: time.monotonic() > end, True)]"
    )
    with burners(start, 2), send(workers, burn), send(workers, burn):
        program.told("busy", 1)
        address = metrics_of(program).address
        assert median_latency(address, path) < PROMPT
        assert fetch(address).value('prefork_workers{state="busy"}') == 2
        program.signal(signal.SIGQUIT)


def test_answers_when_the_master_is_stopped(start: Callable[..., Program]) -> None:
    """While the master does not run, metrics, verdicts and status are there as ever."""
    program = start(observed())
    program.address()
    address = metrics_of(program).address
    wait_until(lambda: fetch(address, "/readyz").status == 200, "the pool is ready")
    program.signal(signal.SIGSTOP)
    try:
        for path in ("/metrics", "/readyz", "/livez", "/status"):
            assert median_latency(address, path) < PROMPT
        assert fetch(address, "/readyz").status == 200
    finally:
        program.signal(signal.SIGCONT)


@pytest.mark.once  # a clock that is read, and four seconds long
def test_master_that_stood_still_does_not_blame_it(start: Callable[..., Program]) -> None:
    """A master that was stopped for longer than the metrics process may be silent does not replace it."""
    program = start(
        "import prefork.master.supervised\nprefork.master.supervised.SILENCE = 1.5\n" + observed()
    )
    program.address()
    first = metrics_of(program)
    program.signal(signal.SIGSTOP)
    os.kill(first.pid, signal.SIGSTOP)
    let_pass(3)
    program.signal(signal.SIGCONT)
    os.kill(first.pid, signal.SIGCONT)
    stays(lambda: is_alive(first.pid), "the metrics process lives", span=1)
    assert fetch(first.address, "/livez").status == 200


@pytest.mark.parametrize("base", ["PreForkingTCPServer", "PreForkingUnixStreamServer"])
def test_listener_that_a_worker_shuts_down(
    start: Callable[..., Program], tmp_path: Path, base: str
) -> None:
    """A TCP listener that a worker shuts down for all is open again in time; with a Unix one the pool is not ready."""
    tcp = base == "PreForkingTCPServer"
    more = {} if tcp else {"address": str(tmp_path / "sock")}
    program = start(
        serving("TellingRun", base=base, workers=2, metrics_address="127.0.0.1:0", **more)
    )
    address = metrics_of(program).address
    pool = program.address()
    wait_until(lambda: fetch(address, "/readyz").status == 200, "the pool is ready")
    with contextlib.suppress(OSError):
        ask(pool, "self.server.socket.shutdown(socket.SHUT_RD)")
    if tcp:
        program.wait_logged("listener was closed by a worker and is open again")
        assert ask(pool, "1 + 1").endswith(" 2")
        wait_until(lambda: fetch(address, "/readyz").status == 200, "the pool is ready again")
        return
    program.wait_logged("listener takes no clients, the pool is not ready")
    wait_until(lambda: fetch(address, "/readyz").status == 503, "the pool is not ready")
    assert " listeners_closed=1" in fetch(address, "/readyz").text
    assert "prefork_listeners_closed 1.0" in fetch(address, "/metrics").text


def test_readiness_follows_the_pool(start: Callable[..., Program]) -> None:
    """503 while workers boot, 200 when they are ready, 503 from TERM on for as long as the pool drains."""
    program = start("""
        from tests.support.app import *

        def worker_init(self, worker):
            while not os.path.exists("go"):
                time.sleep(0.01)

        serve(TellingRun, workers=2, metrics_address="127.0.0.1:0", drain_delay=1.0,
              worker_init=worker_init, graceful_timeout=5)
    """)
    address = metrics_of(program).address
    booting = fetch(address, "/readyz")
    assert (booting.status, booting.text) == (503, "not ready: phase=serving ready=0 needed=2\n")
    program.stderr_path.with_name("go").touch()
    pool = program.address()
    wait_until(lambda: fetch(address, "/readyz").status == 200, "the pool is ready")

    with send(pool, "self.rfile.readline()") as client:
        program.told("busy")
        program.terminate()
        wait_until(lambda: fetch(address, "/readyz").status == 503, "not ready")
        assert "phase=not_ready" in fetch(address, "/readyz").text
        assert fetch(address, "/livez").status == 200
        wait_until(lambda: "phase=draining" in fetch(address, "/readyz").text, "draining")
        assert fetch(address).value("prefork_requests_in_progress") == 1
        send_line(client, "")
        assert program.wait() == 0
    assert can_bind(address)  # type: ignore[arg-type]


# --- it is replaced


def test_killed_process_is_replaced_at_once(start: Callable[..., Program]) -> None:
    """Killed with -9 it is replaced at the same address while the workers go on, and the restart is counted."""
    program = start(observed())
    pool = program.address()
    first = metrics_of(program)
    workers = workers_of(program)
    wait_until(lambda: fetch(first.address, "/readyz").status == 200, "the pool is ready")
    let_pass(1)  # it has run for a while

    watch = Stopwatch()
    os.kill(first.pid, signal.SIGKILL)
    second = metrics_of(program, 1)

    assert watch.seconds < 5.0  # one, with room for a loaded machine
    assert second.address == first.address
    assert second.pid != first.pid
    assert fetch(second.address).value("prefork_metrics_process_restarts_total") == 1
    assert ask(pool)
    assert workers_of(program) == workers
    assert len(program.logged(r"metrics pid=\d+ exited cause=killed\(SIGKILL\)")) == 1


def test_stopped_process_is_replaced(start: Callable[..., Program]) -> None:
    """One that was stopped gives no sign of life: it is killed and replaced, and the workers go on."""
    program = start(
        "import prefork.master.supervised\nprefork.master.supervised.SILENCE = 1.5\n" + observed()
    )
    pool = program.address()
    first = metrics_of(program)
    os.kill(first.pid, signal.SIGSTOP)
    assert ask(pool)
    second = metrics_of(program, 1)
    assert not is_alive(first.pid)
    assert fetch(second.address, "/livez").status == 200
    assert len(program.logged("gives no sign of life, killed")) == 1


@pytest.mark.once  # a clock that is read, and three seconds long
def test_process_that_cannot_boot_is_tried_seldom(start: Callable[..., Program]) -> None:
    """One that dies at once is started once a second at most, told once, and the pool serves on."""
    program = start("""
        from tests.support.app import *
        import prefork.master.metrics_process

        start = prefork.master.metrics_process.MetricsProcess._start

        def timed(*arguments):
            tell("started", time.monotonic())
            start(*arguments)

        prefork.master.metrics_process.live = lambda spec, mask: os._exit(7)
        prefork.master.metrics_process.MetricsProcess._start = timed
        serve(Echo, workers=1, metrics_address="127.0.0.1:0")
    """)
    pool = program.address()
    starts = [program.told("started", nth) for nth in range(4)]
    assert min(later - sooner for sooner, later in itertools.pairwise(starts)) > 0.9
    assert ask(pool)
    assert len(program.logged(r"metrics pid=\d+ exited cause=exited\(7\)")) == 1


def test_process_that_never_gets_ready_is_killed(start: Callable[..., Program]) -> None:
    """One that hangs before its first sign of life is killed when its time is over, and tried again."""
    program = start("""
        from tests.support.app import *
        import prefork.master.metrics_process
        import prefork.master.supervised

        real, tries = prefork.master.metrics_process.live, iter([True, False])

        def live(spec, mask):
            if hangs:
                while True:
                    signal.pause()
            real(spec, mask)

        start = prefork.master.metrics_process.MetricsProcess._start

        def counted(*arguments):
            global hangs
            hangs = next(tries)
            prefork.master.supervised.BOOT_BOUND = 1.0 if hangs else 30.0
            start(*arguments)

        prefork.master.metrics_process.live, prefork.master.metrics_process.MetricsProcess._start = live, counted
        serve(Echo, workers=1, metrics_address="127.0.0.1:0")
    """)
    program.address()
    assert fetch(metrics_of(program).address, "/livez").status == 200
    assert len(program.logged("gives no sign of life, killed")) == 1


@pytest.mark.parametrize("connections", [0, 20])
def test_it_goes_with_its_master(start: Callable[..., Program], connections: int) -> None:
    """A master killed with -9 leaves no metrics process behind after a second, whoever is connected."""
    program = start(observed(workers=1))
    program.address()
    found = metrics_of(program)
    clients = [connect(found.address) for _ in range(connections)]
    program.signal(signal.SIGKILL)
    program.wait()
    wait_until(lambda: not is_alive(found.pid), "the metrics process gone", ceiling=4)
    for client in clients:
        client.close()
    assert can_bind(found.address)  # type: ignore[arg-type]


def test_signals_of_the_terminal_do_not_end_it(start: Callable[..., Program]) -> None:
    """Ctrl-C reaches the whole group; the metrics process answers until its master ends it, last of all."""
    program = start(observed("TellingRun"))
    pool = program.address()
    found = metrics_of(program)
    with send(pool, "self.rfile.readline()") as client:
        program.told("busy")
        os.killpg(program.pid, signal.SIGINT)
        wait_until(lambda: fetch(found.address, "/readyz").status == 503, "it is stopping")
        assert is_alive(found.pid)
        send_line(client, "")
        program.wait()
    assert not is_alive(found.pid)


def test_it_ends_in_time_when_it_is_stopped(start: Callable[..., Program]) -> None:
    """A metrics process that does not react delays the end of the master by a second at most."""
    program = start(observed())
    program.address()
    found = metrics_of(program)
    os.kill(found.pid, signal.SIGSTOP)
    watch = Stopwatch()
    assert program.stop() == 0
    assert watch.seconds < 5.0  # one, with room for a loaded machine
    assert not is_alive(found.pid)


def test_each_serving_has_its_own(start: Callable[..., Program]) -> None:
    """A server that is served again has a metrics process again, also in a thread that is not the main one."""
    program = start("""
        from tests.support.app import *
        import prefork

        class Server(prefork.PreForkingTCPServer):
            workers = 1
            metrics_address = "127.0.0.1:0"
            when_ready = announce

        log_to_stderr()
        with Server(LOOPBACK, Echo) as server:
            for turn in range(2):
                thread = threading.Thread(target=server.serve_forever)
                thread.start()
                while not os.path.exists(f"next{turn}"):
                    time.sleep(0.01)
                server.shutdown()
                thread.join()
                while not os.path.exists(f"seen{turn}"):
                    time.sleep(0.01)
    """)
    for turn in range(2):
        found = metrics_of(program, turn)
        assert fetch(found.address, "/livez").status == 200
        program.stderr_path.with_name(f"next{turn}").touch()
        wait_until(
            lambda gone=found.pid: process(gone) is None, "its end, and that it is collected"
        )
        program.stderr_path.with_name(f"seen{turn}").touch()
    assert program.wait() == 0


# --- what it may do, and what it holds


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give workers another identity")
def test_privileges_are_dropped(start: Callable[..., Program]) -> None:
    """It runs as the workers do: user, groups and mask of theirs, and no capability."""
    nobody = pwd.getpwnam("nobody")
    program = start(observed(run_as_user="nobody", umask=0o027))
    program.address()
    found = metrics_of(program)
    status = status_of(found.pid)
    assert status["Uid"].split() == [str(nobody.pw_uid)] * 4
    assert status["Gid"].split() == [str(nobody.pw_gid)] * 4
    assert set(map(int, status["Groups"].split())) <= {nobody.pw_gid}
    assert int(status["CapEff"], 16) == 0
    assert status["Umask"] == "0027"
    assert {path: fetch(found.address, path).status for path in ROUTES} == dict.fromkeys(
        ROUTES, 200
    )


def test_scoreboard_is_mapped_for_reading(start: Callable[..., Program]) -> None:
    """It cannot write to the scoreboard: neither mapping nor descriptor allows it."""
    program = start(observed())
    program.address()
    found = metrics_of(program)
    assert scoreboard_mappings(found.pid) == ["r--s"]
    assert "rw-s" in scoreboard_mappings(min(workers_of(program)))
    boards = [fd for fd, what in fds_of(found.pid).items() if "prefork-scoreboard" in what]
    flags = [Path(f"/proc/{found.pid}/fdinfo/{fd}").read_text() for fd in boards]
    modes = {int(re.findall(r"flags:\s+(\d+)", text)[0], 8) & os.O_ACCMODE for text in flags}
    assert modes == {os.O_RDONLY}


def test_it_holds_nothing_of_the_workers(start: Callable[..., Program]) -> None:
    """It holds no server's socket, no pidfd and no wake-up pipe of a worker, also of a second pool; a worker holds nothing of its."""
    program = start("""
        from tests.support.app import *
        import prefork

        class Server(prefork.PreForkingTCPServer):
            workers = 2
            metrics_address = "127.0.0.1:0"
            when_ready = announce

        log_to_stderr()
        with Server(LOOPBACK, Echo) as one, Server(LOOPBACK, Echo) as two:
            thread = threading.Thread(target=one.serve_forever)
            thread.start()
            while not one.active_children:
                time.sleep(0.01)
            two.serve_forever()
            one.shutdown()
            thread.join()
    """)
    program.address(1)
    observers = [metrics_of(program, nth) for nth in range(2)]
    for found in observers:
        # Replaced, each is forked from a master in full swing.
        os.kill(found.pid, signal.SIGKILL)
    observers = [metrics_of(program, nth) for nth in range(2, 4)]
    os.kill(min(workers_of(program)), signal.SIGKILL)
    wait_until(lambda: len(workers_of(program)) == 4, "four workers")
    program.wait_logged(r"worker slot=\d gen=0 pid=\d+ ready", times=5)

    own = [sockets_of(found.pid) for found in observers]
    assert [len(sockets) for sockets in own] == [1, 1]
    assert own[0] != own[1]
    for found in observers:
        kinds = [re.sub(r"\[?\d+\]?", "", what) for what in fds_of(found.pid).values()]
        assert "anon_inode:[pidfd]" not in kinds
        assert kinds.count("anon_inode:[eventfd]") == 1
        assert kinds.count("anon_inode:[eventpoll]") == 1
        assert kinds.count("pipe:") <= 4  # standard output, life, wake-up
    for worker in workers_of(program):
        assert not sockets_of(worker) & (own[0] | own[1])


def test_master_has_no_metrics_library(start: Callable[..., Program]) -> None:
    """What the metrics process imports, master and workers have not."""
    program = start("""
        from tests.support.app import *

        def loaded():
            return sorted({"prometheus_client", "http.server", "prefork.metrics.exporter"} & set(sys.modules))

        class Loaded(Echo):
            def handle(self):
                self.wfile.write(repr(loaded()).encode())

        def service_actions(self):
            self.collect_children()
            if os.path.exists("look"):
                os.unlink("look")
                tell("loaded", loaded())

        serve(Loaded, workers=1, metrics_address="127.0.0.1:0", service_actions=service_actions)
    """)
    pool = program.address()
    assert "python_info" in fetch(metrics_of(program).address).text
    program.stderr_path.with_name("look").touch()
    assert program.told("loaded") == []
    assert ask(pool) == "[]"


def test_it_is_not_counted(start: Callable[..., Program]) -> None:
    """A pool of max_children workers has its metrics process beside them."""
    program = start(observed(workers=2, max_children=2, pool_name="shop"))
    program.address()
    found = metrics_of(program)
    assert program.wait_workers(3) == workers_of(program) | {found.pid}
    port = found.address[1]
    assert title_of(found.pid) == f"prefork: metrics [shop] 127.0.0.1:{port}"
    status = json.loads(fetch(found.address, "/status").body)
    assert status["workers"]["max"] == 2
    assert len(status["slots"]) == 2


# --- where it listens


def test_unix_socket_is_served_and_removed(start: Callable[..., Program], tmp_path: Path) -> None:
    """A path is served with mode 0660, replaces one that a killed master left, and is gone at the end."""
    path = tmp_path / "metrics"
    source = observed(metrics_address=f"unix:{path}")
    old = start(source)
    old.address()
    found = metrics_of(old)
    old.signal(signal.SIGKILL)
    wait_until(lambda: not is_alive(found.pid), "the metrics process gone")
    assert path.is_socket()

    program = start(source)
    program.address()
    assert fetch(metrics_of(program).address, "/livez").status == 200
    assert path.stat().st_mode & 0o777 == 0o660
    assert program.stop() == 0
    assert not path.exists()


def test_unix_socket_whose_file_was_removed_comes_back_by_a_reload(
    start: Callable[..., Program], tmp_path: Path
) -> None:
    """A reload binds the path of the metrics anew where its file is gone."""
    path = tmp_path / "metrics"
    program = start(observed(metrics_address=f"unix:{path}"))
    program.address()
    wait_until(path.exists, "the socket of the metrics")
    path.unlink()
    program.signal(signal.SIGHUP)
    program.wait_logged("master reloaded")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    assert program.stop() == 0
    assert not path.exists()


def test_ipv6_and_abstract_addresses(start: Callable[..., Program]) -> None:
    """It can listen on IPv6 and on an abstract name."""
    for metrics_address in ("[::1]:0", f"unix:@prefork-test-{os.getpid()}"):
        program = start(observed(workers=1, metrics_address=metrics_address))
        program.address()
        assert fetch(metrics_of(program).address, "/livez").status == 200
        assert program.stop() == 0


@pytest.mark.parametrize(
    ("address", "error", "words"),
    [
        ("nonsense", "SettingsError", "metrics = 'nonsense'"),
        ("udp://127.0.0.1:0", "SettingsError", "metrics"),
        ("fd://3", "SettingsError", "metrics"),
        ("192.0.2.1:9", "BindError", "192.0.2.1:9"),
        ("no-such-host.invalid:9", "BindError", "no-such-host.invalid"),
        ("unix:/no/such/folder/socket", "BindError", "no such file"),
        ("unix:/dev/null", "BindError", "a file that is no socket is there"),
    ],
)
def test_bad_address_is_refused_before_any_fork(
    start: Callable[..., Program], address: str, error: str, words: str
) -> None:
    """An address that is none, or that cannot be had, is refused by name before anything is forked."""
    program = start(f"""
        from tests.support.app import *
        import prefork

        class Server(prefork.PreForkingTCPServer):
            workers = 1
            metrics_address = {address!r}

        os.register_at_fork(before=lambda: tell("forked"))
        with Server(LOOPBACK, Echo) as server:
            held = len(os.listdir("/proc/self/fd"))
            try:
                server.serve_forever()
            except Exception as error:
                tell("refused", [type(error).__name__, str(error)])
            tell("leaked", len(os.listdir("/proc/self/fd")) - held)
    """)
    name, text = program.told("refused")
    assert name == error
    assert words.lower() in text.lower()
    assert program.told("leaked") == 0
    assert program.all_told("forked") == []


def test_busy_address_has_the_exit_code_of_a_failed_bind(
    start: Callable[..., Program], tmp_path: Path
) -> None:
    """The command line ends with code 4 where somebody else listens at the metrics address."""
    (tmp_path / "app.py").write_text("from tests.support.app import Echo\n")
    with socket.create_server(("127.0.0.1", 0)) as busy:
        where = f"127.0.0.1:{busy.getsockname()[1]}"
        arguments = ["-m", "prefork", "run", "app.py:Echo", "-b", "127.0.0.1:0", "--metrics", where]
        program = start(None, arguments=arguments)
        assert program.wait() == 4
    assert where in program.log
    assert "the address is in use by process" in program.log


def test_clients_at_once_get_whole_answers(served: Observed) -> None:
    """Answers that are asked for at the same time do not mix."""
    statuses: list[tuple[str, int]] = []

    def visit(path: str) -> None:
        statuses.extend((path, fetch(served.address, path).status) for _ in range(10))

    threads = [threading.Thread(target=visit, args=(path,)) for path in ROUTES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == sorted((path, 200) for path in ROUTES for _ in range(10))
