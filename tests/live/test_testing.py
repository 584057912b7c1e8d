"""prefork.testing: a pool that serves during a test, and the proof that nothing of it is left."""

from __future__ import annotations

import os
import socket
import socketserver
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

import prefork
from prefork.testing import LeftBehindError, PoolFailedError, serving
from tests.support.clients import ask, connect
from tests.support.processes import is_alive
from tests.support.server import environment
from tests.support.waiting import let_pass, wait_until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.processes


class Upper(socketserver.StreamRequestHandler):
    """Answers in upper case."""

    def handle(self) -> None:
        """Answer one line."""
        self.wfile.write(self.rfile.readline().upper())


class UpperDatagram(socketserver.DatagramRequestHandler):
    """The same for datagrams."""

    def handle(self) -> None:
        """Answer one datagram."""
        self.wfile.write(self.rfile.read().upper())


def tcp(handler: Any = Upper, **attributes: Any) -> Any:
    """Make a server with one worker."""
    server = prefork.PreForkingTCPServer(("127.0.0.1", 0), handler)
    vars(server).update({"workers": 1, **attributes})
    return server


def test_pool_serves_while_the_block_runs() -> None:
    """In the block the workers answer; after it the master is gone and the address is free."""
    with serving(tcp(workers=2)) as pool:
        assert ask(pool.address, "hello") == "HELLO"
        status = pool.status()
        assert (status["pid"], len(pool.workers())) == (pool.pid, 2)
        assert pool.pid != os.getpid()
    assert not is_alive(pool.pid)
    with socket.create_server(pool.address):
        pass


def test_several_servers_and_a_socket_file(tmp_path: Path) -> None:
    """Servers of several kinds share one pool, and the file of a Unix socket is gone with it."""
    path = str(tmp_path / "socket")
    unix = prefork.PreForkingUnixStreamServer(path, Upper)
    udp = prefork.PreForkingUDPServer(("127.0.0.1", 0), UpperDatagram)
    with serving(tcp(), unix, udp) as pool:
        assert pool.addresses[1] == path
        assert ask(pool.address, "tcp") == "TCP"
        assert ask(path, "unix") == "UNIX"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(10)
            client.sendto(b"udp", pool.addresses[2])
            assert client.recv(10) == b"UDP"
    assert not os.path.lexists(path)


def test_pool_that_cannot_boot(capfd: pytest.CaptureFixture[str]) -> None:
    """Where no worker becomes ready, the block does not begin, and standard error has the reason."""

    class Broken(prefork.PreForkingTCPServer):
        def worker_init(self, worker: Any) -> None:
            raise RuntimeError("no database")

    server = Broken(("127.0.0.1", 0), Upper)
    with pytest.raises(PoolFailedError, match="before it was ready"), serving(server):
        pytest.fail("the block began")
    log = capfd.readouterr().err
    assert "exited cause=boot_error" in log
    assert "in worker_init" in log
    assert log.count("BootError: ") == 1


def test_exception_of_the_test_comes_through() -> None:
    """What the block raises leaves it, and the pool is stopped."""
    with pytest.raises(ZeroDivisionError), serving(tcp()) as pool:
        raise ZeroDivisionError
    assert not is_alive(pool.pid)


class LeavesProcess(Upper):
    """Starts a program that goes on after its worker."""

    def handle(self) -> None:
        """Answer with the pid of the program."""
        code = (
            "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)"
        )
        left = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.DEVNULL)
        left.returncode = 0  # no warning of a child that still runs
        self.wfile.write(str(left.pid).encode())


def test_process_that_is_left_fails_the_test() -> None:
    """A program that a handler has started and forgotten is named and killed."""
    with pytest.raises(LeftBehindError) as left, serving(tcp(LeavesProcess)) as pool:
        pid = int(ask(pool.address))
    assert str(left.value) == f"the pool has left behind: process {pid}"
    wait_until(lambda: not is_alive(pid), "the end of the program")


class Sleeps(Upper):
    """Does not end."""

    def handle(self) -> None:
        """Sleep longer than any stop takes."""
        self.wfile.write(b"x")
        let_pass(1000.0)


def test_stop_that_takes_too_long_fails_the_test() -> None:
    """A pool that does not stop within stop_timeout is killed, and the test fails."""
    pool = serving(tcp(Sleeps), stop_timeout=0.3)
    served = pool.__enter__()
    with connect(served.address) as client:
        client.sendall(b"\n")
        assert client.recv(1) == b"x"
        with pytest.raises(PoolFailedError, match=r"had not stopped after 0\.3 s"):
            pool.__exit__(None, None, None)
    assert not is_alive(served.pid)


FIXTURE = """
import socket
import prefork

def test_it(prefork_pool):
    class Upper(prefork.StreamRequestHandler):
        def handle(self):
            self.wfile.write(self.rfile.readline().upper())

    pool = prefork_pool(prefork.PreForkingTCPServer(("127.0.0.1", 0), Upper))
    with socket.create_connection(pool.address) as client:
        client.sendall(b"hello\\n")
        assert client.recv(100) == b"HELLO\\n"
"""


def test_fixture(tmp_path: Path) -> None:
    """``prefork_pool`` serves until the end of a test, with a handler that the test defines."""
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["prefork.testing.plugin"]\n')
    (tmp_path / "test_it.py").write_text(FIXTURE)
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "."]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment(),
        timeout=60,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
