"""The bench itself: it sees what it is there to see. Each guard is shown the fault that it guards against."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.clients import ask, can_bind
from tests.support.leftovers import socket_files, wait_for_descriptors, wait_for_no_children
from tests.support.load import Load, Verdict, percentile
from tests.support.processes import children_of, fds_of, is_alive
from tests.support.sampling import ChildrenWatch
from tests.support.tracing import injected, why_no_strace
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.server import Program

pytestmark = pytest.mark.once  # the harness itself

THREADING = """
    import socketserver, signal
    from tests.support.app import Echo, announce, tell

    class Server(socketserver.ThreadingTCPServer):
        request_queue_size = 128

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Server(("127.0.0.1", 0), Echo) as server:
        announce(server)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            tell("left")
"""


def test_program_tells_its_address_and_answers(start: Callable[..., Program]) -> None:
    """A program reports where it listens, serves there, and stops when asked."""
    program = start(THREADING)
    assert ask(program.address(), "hello") == f"{program.pid} hello"
    assert program.stop() == 0
    program.wait_silent()
    assert program.all_told("left") == [None]


def test_load_gives_every_request_a_verdict(start: Callable[..., Program]) -> None:
    """Answered requests are told from lost ones and from refusals."""
    program = start(THREADING)
    with Load(program.address(), clients=3, until_refused=True) as load:
        wait_until(lambda: load.answered > 50, "50 answers")
        program.stop()
        load.join()
    assert load.verdicts[Verdict.REFUSED] == 3
    assert percentile((done.seconds for done in load.requests), 50) < 1


def test_load_sees_a_server_that_loses_requests(start: Callable[..., Program]) -> None:
    """A connection that is closed without an answer is no answer."""
    program = start(
        THREADING.replace("Echo, ", "").replace("Echo)", "socketserver.BaseRequestHandler)")
    )
    with Load(program.address(), clients=1) as load:
        wait_until(lambda: len(load.requests) > 5, "requests")
    assert load.answered == 0
    assert sum(load.lost.values()) == len(load.requests)


def test_watch_counts_live_children_and_ages_zombies(start: Callable[..., Program]) -> None:
    """Children that live at once are counted, the dead ones are timed until they are reaped."""
    program = start("""
        import os, signal, time
        from tests.support.app import tell

        children = []
        for _ in range(3):
            if not (child := os.fork()):
                signal.pause()
            children.append(child)
        os.kill(children[0], signal.SIGKILL)
        os.waitid(os.P_PID, children[0], os.WEXITED | os.WNOWAIT)
        tell("children", children)
        signal.pause()
    """)
    children = program.told("children")
    with ChildrenWatch(program.pid) as watch:
        wait_until(lambda: watch.oldest_zombie > 0.05, "a zombie of 50 ms")
    assert watch.most == 2
    assert watch.samples > 5
    for child in children[1:]:
        os.kill(child, signal.SIGKILL)


def test_orphans_are_adopted_and_seen(start: Callable[..., Program]) -> None:
    """A process whose parent was killed becomes a child of the test, which sees it and its end."""
    program = start("""
        import os, signal
        from tests.support.app import tell
        if not (child := os.fork()):
            signal.pause()
        tell("child", child)
        signal.pause()
    """)
    child = program.told("child")
    program.signal(signal.SIGKILL)
    program.wait()
    (orphan,) = wait_until(program.leftovers, "the orphan")
    assert f"[{child}]" in orphan
    os.kill(child, signal.SIGKILL)
    program.wait_silent()


def test_left_child_is_found() -> None:
    """A child that a test forgets is named and ended."""
    child = subprocess.Popen(["sleep", "60"])
    assert [child.pid] == [left.pid for left in wait_for_no_children(patience=0.05)]
    assert not is_alive(child.pid)
    assert children_of(os.getpid()) == []
    child.returncode = 0  # it was reaped by the guard


def test_left_descriptor_is_found() -> None:
    """A descriptor that a test forgets is named."""
    before = fds_of()
    with socket.socket() as forgotten:
        found = wait_for_descriptors(before, patience=0.05)
        fd = forgotten.fileno()
        assert [f"{fd} -> {fds_of()[fd]} is new"] == found


@pytest.mark.leaves_socket
def test_left_socket_file_is_found(tmp_path: Path) -> None:
    """A socket file that a test forgets is named."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "forgotten"))
    assert [tmp_path / "forgotten"] == socket_files(tmp_path)


def test_address_in_use_cannot_be_bound(start: Callable[..., Program]) -> None:
    """The probe for a free port tells a listener from none."""
    program = start(THREADING)
    address = program.address()
    assert not can_bind(address)
    program.stop()
    assert can_bind(address)


@pytest.mark.skipif(why_no_strace() != "", reason=why_no_strace())
def test_fork_is_made_to_fail(start: Callable[..., Program], tmp_path: Path) -> None:
    """An injected fault reaches the process it is meant for, and ends with the block."""
    program = start("""
        import os, signal, sys
        from tests.support.app import tell

        def fork(*_):
            try:
                child = os.fork()
            except OSError as error:
                tell("fork", error.errno)
            else:
                child or os._exit(0)
                os.waitpid(child, 0)
                tell("fork", 0)

        signal.signal(signal.SIGUSR1, fork)
        tell("ready")
        while True:
            signal.pause()
    """)
    program.told("ready")
    with injected(program.pid, "clone,clone3,fork,vfork:error=EAGAIN", log=tmp_path / "strace"):
        program.signal(signal.SIGUSR1)
        assert program.told("fork") == 11
    program.signal(signal.SIGUSR1)
    assert program.told("fork", 1) == 0


def test_report_of_a_failed_test_shows_the_log(tmp_path: Path) -> None:
    """What a program has written to standard error stands in the report when its test fails."""
    (tmp_path / "test_it.py").write_text(
        "def test_it(start):\n    start('import sys; sys.exit(\"my last words\")').told('never')\n"
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "tests.conftest",
        "-p",
        "no:cacheprovider",
        "-q",
    ]
    tried = subprocess.run(
        [*command, "--rootdir", str(tmp_path), str(tmp_path / "test_it.py")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert tried.returncode == 1
    assert "standard error of program" in tried.stdout
    assert "my last words" in tried.stdout
