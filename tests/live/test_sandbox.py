"""A sandbox that forbids what a pool needs: the start fails, and says what to allow."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from tests.support.clients import ask
from tests.support.sandbox import CALLS, without
from tests.support.server import serving

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.server import Program

pytestmark = pytest.mark.skipif(not CALLS, reason="the numbers of the calls are not known here")

NEEDED = ("memfd_create", "pidfd_open", "pidfd_send_signal", "waitid")


@pytest.mark.parametrize("call", NEEDED)
def test_start_fails_where_a_call_is_forbidden(start: Callable[..., Program], call: str) -> None:
    """serve_forever() raises before it forks anything, and the error has the call and the remedy."""
    program = start(serving(), before=without(call))
    assert program.wait() == 1
    last = program.log.splitlines()[-1]
    assert f"the system call {call} is refused (Operation not permitted)" in last
    assert "allow memfd_create, pidfd_open, pidfd_send_signal and waitid" in last


@pytest.mark.parametrize("command", ["run", "check"])
def test_commands_fail_where_a_call_is_unknown(
    start: Callable[..., Program], tmp_path: Path, command: str
) -> None:
    """`prefork run` and `prefork check` fail with one line where the kernel does not have a call."""
    (tmp_path / "app.py").write_text("from tests.support.app import Echo\n")
    more = ["-b", "127.0.0.1:0"] if command == "run" else []
    program = start(
        None,
        before=without("pidfd_open", errno.ENOSYS),
        arguments=["-m", "prefork", command, "app.py:Echo", *more],
    )
    assert program.wait() != 0
    (line,) = program.log.splitlines()
    assert line.startswith("prefork: error: the system call pidfd_open is refused (Function not")


def test_command_for_a_pool_names_the_call(start: Callable[..., Program]) -> None:
    """A command that may hold no process does not say that no pool runs: it names the call."""
    program = start(None, before=without("pidfd_open"), arguments=["-m", "prefork", "reload", "1"])
    assert program.wait() == 2
    (line,) = program.log.splitlines()
    assert line.startswith("prefork: error: the system call pidfd_open is refused (Operation not")


def test_without_workers_nothing_is_needed(start: Callable[..., Program]) -> None:
    """`workers = 0` serves where the calls of a pool are forbidden."""
    source = """
        from tests.support.app import *
        import prefork
        class Server(prefork.PreForkingTCPServer):
            workers = 0
        with Server(LOOPBACK, Echo) as server:
            announce(server)
            server.serve_forever()
    """
    program = start(source, before=without("pidfd_open"))
    assert ask(program.address(), "x")
    program.popen.kill()
    assert program.wait() == -9
