"""What a program has beside its pool, and its files: a reload takes them over, and a trial leaves them alone."""

from __future__ import annotations

import signal
import socket
from typing import TYPE_CHECKING

import pytest

from tests.support.clients import TIMEOUT, ask
from tests.support.ports import free_port
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.server import Program

PROGRAM = """
    {before}
    import asyncio, http.server, pathlib, shutil, socketserver
    from tests.support.app import *
    import prefork

    PORTS = {ports}

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"page of %d" % os.getpid())
        def log_message(self, *_):
            pass

    class SharedServer(http.server.ThreadingHTTPServer):
        allow_reuse_port = True

    class PlainUnix(prefork.PreForkingMixIn, socketserver.UnixStreamServer):
        pass

    def in_thread(run):
        threading.Thread(target=run, daemon=True).start()

    def http_beside(way="http"):
        in_thread(http.server.ThreadingHTTPServer(("127.0.0.1", PORTS[way]), Page).serve_forever)

    def shared_beside():
        in_thread(SharedServer(("127.0.0.1", PORTS["shared"]), Page).serve_forever)

    def asyncio_beside():
        async def answer(reader, writer):
            await reader.readuntil(b"\\r\\n\\r\\n")
            writer.write(b"HTTP/1.0 200 OK\\r\\n\\r\\npage of %d" % os.getpid())
            writer.close()
        async def run():
            server = await asyncio.start_server(answer, "127.0.0.1", PORTS["asyncio"])
            ready.set()
            await server.serve_forever()
        ready = threading.Event()
        in_thread(lambda: asyncio.run(run()))
        ready.wait(10)

    def udp_beside():
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", PORTS["udp"]))
        def run():
            while True:
                _, client = sock.recvfrom(100)
                sock.sendto(b"page of %d" % os.getpid(), client)
        in_thread(run)

    def unix_beside():
        if os.path.exists("beside"):
            os.unlink("beside")
        class Answer(socketserver.StreamRequestHandler):
            def handle(self):
                while self.rfile.readline().strip():
                    pass
                self.wfile.write(b"page of %d" % os.getpid())
        server = socketserver.ThreadingUnixStreamServer("beside", Answer)
        os.chmod("beside", 0o600)
        in_thread(server.serve_forever)

    def http_when_ready(server):
        http_beside("when_ready")
        announce(server)

    MEMBERS, SERVERS = dict(workers=1), []
    BASE, ADDRESS = prefork.PreForkingTCPServer, LOOPBACK
    exec(open("first").read())
    if SERVERS:
        log_to_stderr()
        prefork.serve(*SERVERS)
        for server in SERVERS:
            server.server_close()
    else:
        serve(Echo, BASE, ADDRESS, **MEMBERS)
"""

WAYS = ("http", "shared", "asyncio", "udp", "unix", "when_ready")
"""How the program opens a second listener."""

ALL_WAYS = (
    "http_beside(); shared_beside(); asyncio_beside(); udp_beside(); unix_beside()\n"
    "MEMBERS['when_ready'] = http_when_ready"
)


class Beside:
    """Such a program. first: what it does before it serves; it is read again at each reload."""

    def __init__(
        self, start: Callable[..., Program], folder: Path, first: str, before: str = ""
    ) -> None:
        self.ports = dict(zip(WAYS, [free_port() for _ in WAYS], strict=True))
        self.folder = folder
        self.will_do(first)
        self.program = start(PROGRAM.format(ports=self.ports, before=before))
        self.program.wait_logged("master .*ready workers=")
        self.reloads = 0

    def will_do(self, first: str) -> None:
        """Change what it does before it serves."""
        (self.folder / "first").write_text(first)

    def reload(self) -> None:
        """Have it reload, which must succeed."""
        self.reloads += 1
        failed = len(self.program.logged("reload failed"))
        self.program.signal(signal.SIGHUP)
        wait_until(
            lambda: (
                len(self.program.logged("master reloaded")) == self.reloads
                or len(self.program.logged("reload failed")) > failed
            ),
            "the end of the reload",
        )
        assert len(self.program.logged("master reloaded")) == self.reloads, self.program.log[-3000:]

    def fail_to_reload(self, reason: str) -> None:
        """Have it reload, which must fail for this reason."""
        before = len(self.program.logged(reason))
        self.program.signal(signal.SIGHUP)
        self.program.wait_logged(reason, times=before + 1)

    def page(self, way: str) -> str:
        """Ask a second listener, and return its answer."""
        if way == "udp":
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.settimeout(TIMEOUT)
                client.sendto(b"x", ("127.0.0.1", self.ports[way]))
                return client.recv(100).decode()
        unix = str(self.folder / "beside")
        where = unix if way == "unix" else ("127.0.0.1", self.ports[way])
        return ask(where, "GET / HTTP/1.0\r\n\r\n").splitlines()[-1]


@pytest.fixture
def beside(start: Callable[..., Program], tmp_path: Path) -> Callable[..., Beside]:
    """``beside("http_beside()")`` starts such a program."""
    return lambda *how, **more: Beside(start, tmp_path, *how, **more)


def test_second_listeners_go_on_over_a_reload(beside: Callable[..., Beside]) -> None:
    """Listeners of the program's own, beside the pool, are taken over by the new image, over and over."""
    server = beside(ALL_WAYS)
    answers = dict.fromkeys(WAYS, f"page of {server.program.pid}")
    assert {way: server.page(way) for way in WAYS} == answers
    for _ in range(2):
        server.reload()
        assert {way: server.page(way) for way in WAYS} == answers
    assert not server.program.logged("raised")
    assert server.program.stop() == 0
    (server.folder / "beside").unlink()  # as the standard library's server leaves it


def test_second_listener_serves_on_while_a_trial_fails(beside: Callable[..., Beside]) -> None:
    """A trial takes no client of the live process, also where it shares the port, and a failure costs nothing."""
    server = beside("shared_beside()")
    server.will_do("shared_beside(); open('bound', 'w').close(); time.sleep(0.3); sys.exit(3)")
    server.program.signal(signal.SIGHUP)
    wait_until((server.folder / "bound").exists, "the trial's second listener")
    for _ in range(20):
        assert server.page("shared") == f"page of {server.program.pid}"
    server.program.wait_logged("reload failed")
    assert server.program.stop() == 0


def test_second_listener_that_is_not_wanted_any_more_is_closed(
    beside: Callable[..., Beside],
) -> None:
    """When the roll is over, an address that the new code has not bound is free, and bind() is Python's own."""
    server = beside("http_beside()")
    server.will_do(
        "MEMBERS['service_actions'] = lambda server: tell('own', 'bind' not in vars(socket.socket))"
    )
    server.reload()
    wait_until(lambda: server.program.all_told("own")[-1:] == [True], "Python's own bind()")
    with pytest.raises(ConnectionRefusedError):
        server.page("http")


CLEANING = """
for name in "abc":
    if os.path.exists(name):
        os.unlink(name)
pathlib.Path("d").unlink(missing_ok=True)

class Cleaning(PlainUnix):
    workers = 1
    def server_bind(self):
        if os.path.exists("c"):
            os.remove("c")
        super().server_bind()
        os.chmod("c", MODE)

MODE = 0o640
SERVERS = [Cleaning("c", Echo), prefork.PreForkingUnixStreamServer("a", Echo)]
SERVERS += [PlainUnix("b", Echo), PlainUnix("d", Echo)]
"""
"""A program that clears the way for its Unix sockets, in all the ways that are common."""


def test_cleaning_program_does_not_remove_the_live_socket(beside: Callable[..., Beside]) -> None:
    """Neither a trial, good or bad, nor the new image removes or changes the socket's file that is in use."""
    server = beside(CLEANING)
    paths = [server.folder / name for name in "abcd"]

    def look() -> list[tuple[int, int]]:
        assert all(ask(str(path), "x") for path in paths)
        return [(path.stat().st_ino, path.stat().st_mode) for path in paths]

    before = look()
    server.will_do(CLEANING.replace("0o640", "0o600") + "\nsys.exit(3)")
    server.fail_to_reload("exit status 3")
    assert look() == before
    server.will_do(CLEANING)
    for _ in range(2):
        server.reload()
        assert look() == before
    assert server.program.stop() == 0
    for path in paths[1:]:
        path.unlink()  # plain classes leave it, as socketserver does


def test_trial_that_would_remove_the_live_socket_otherwise_fails(
    beside: Callable[..., Beside],
) -> None:
    """What the exchanged functions do not see is refused to a trial, which then fails and names it."""
    first = "BASE, ADDRESS = prefork.PreForkingUnixStreamServer, 's'\n"
    server = beside(first, before="from os import unlink as unseen")
    path = server.folder / "s"
    for way in ("unseen('s')", "open('t', 'w').close(); os.rename('t', 's')"):
        server.will_do(first + way)
        server.fail_to_reload("leaves alone what the live pool has")
        assert ask(str(path), "x")
    assert server.program.stop() == 0


@pytest.mark.parametrize("base", ["prefork.PreForkingUnixStreamServer", "PlainUnix"])
def test_socket_file_that_was_removed_comes_back_by_a_reload(
    beside: Callable[..., Beside], base: str
) -> None:
    """Where the file of the Unix socket is gone, new code binds the path anew, and the old queue is served."""
    server = beside(f"BASE, ADDRESS = {base}, 's'\nMEMBERS['pause'] = 0.05")
    path = server.folder / "s"
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as queued:
        for client in (busy, queued):
            client.connect(str(path))
            client.sendall(b"early\n")
        path.unlink()
        server.reload()
        assert ask(str(path), "late")
        for client in (busy, queued):
            assert client.recv(100).endswith(b"early\n")
    server.reload()
    assert ask(str(path), "later")
    assert server.program.stop() == 0
    path.unlink(missing_ok=True)


def test_trial_leaves_no_file_of_a_socket_that_it_binds(beside: Callable[..., Beside]) -> None:
    """A path that only the new code binds is free again after the trial, good or bad."""
    server = beside("")
    server.will_do("BASE, ADDRESS = PlainUnix, 'new'\nMEMBERS['workers'] = 0")
    server.fail_to_reload("cannot be reloaded to serve without workers")
    assert not (server.folder / "new").exists()
    server.will_do("BASE, ADDRESS = PlainUnix, 'new'")
    server.reload()
    assert ask(str(server.folder / "new"), "x")
    assert server.program.stop() == 0
    (server.folder / "new").unlink(missing_ok=True)


def test_folder_of_metrics_is_left_alone(beside: Callable[..., Beside]) -> None:
    """A program that empties the folder of its metrics at its start loses nothing by a reload."""
    first = (
        "shutil.rmtree('m', ignore_errors=True); os.makedirs('m', exist_ok=True)\n"
        "MEMBERS['metrics_dir'] = 'm'"
    )
    server = beside(first)
    kept = server.folder / "m" / "counter_0.db"
    kept.write_bytes(b"")
    server.reload()
    assert kept.exists()
    server.will_do("open('m/of_the_program', 'w').close()\n" + first + "\nsys.exit(3)")
    server.fail_to_reload("exit status 3")
    assert kept.exists()
    assert server.program.stop() == 0


def test_program_knows_that_it_is_on_trial(beside: Callable[..., Beside]) -> None:
    """on_trial() is true in the trial alone: neither at the start nor in the new image."""
    server = beside("os.write(2, b'trial %r\\n' % prefork.on_trial())")
    server.reload()
    assert server.program.logged("^trial ") == ["trial False", "trial False"]
    server.will_do("sys.exit(5 if prefork.on_trial() else 0)")
    server.fail_to_reload("exit status 5")
    assert server.program.stop() == 0
