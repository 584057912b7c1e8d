"""Another identity for the workers: all of it, verified, and without weakening the other promises."""

from __future__ import annotations

import ast
import os
import pwd
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.clients import ask, hangs_up
from tests.support.processes import is_alive, status_of
from tests.support.server import serving
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.server import Program

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can give workers another identity"
)


@pytest.fixture
def supplementary_groups() -> Iterator[list[int]]:
    """Give the programs of a test two groups more, as a login of root may have."""
    before = os.getgroups()
    os.setgroups([*before, 4, 27])
    yield [4, 27]
    os.setgroups(before)


@needs_root
def test_workers_drop_uid_gid_and_groups(
    start: Callable[..., Program], supplementary_groups: list[int]
) -> None:
    """With run_as_user a worker has that user's uid, gid and groups only, and cannot take the old ones back."""
    nobody = pwd.getpwnam("nobody")
    program = start(serving("Run", workers=2, run_as_user="nobody"))
    address = program.address()
    for pid in program.wait_workers(2):
        status = status_of(pid)
        assert status["Uid"].split() == [str(nobody.pw_uid)] * 4
        assert status["Gid"].split() == [str(nobody.pw_gid)] * 4
        assert set(map(int, status["Groups"].split())) <= {nobody.pw_gid}
        assert int(status["CapEff"], 16) == 0
    assert status_of(program.pid)["Uid"].split() == ["0"] * 4
    assert set(supplementary_groups) <= set(map(int, status_of(program.pid)["Groups"].split()))
    assert hangs_up(address, "os.setuid(0)") == ""
    program.wait_logged("PermissionError")


@pytest.fixture(name="folder")
def _folder() -> Iterator[Path]:
    """Give a folder that other users can reach: pytest closes its own again and again."""
    with tempfile.TemporaryDirectory(prefix="prefork-temporary-") as path:
        yield Path(path)


SURROUNDINGS = (
    "{k: os.environ.get(k) for k in ('HOME', 'USER', 'LOGNAME', 'TMPDIR')}, "
    "__import__('tempfile').mkdtemp()"
)


@needs_root
@pytest.mark.parametrize("is_private", [True, False])
def test_surroundings_of_the_user(
    start: Callable[..., Program], folder: Path, *, is_private: bool
) -> None:
    """Workers of another user have the HOME, USER and LOGNAME of that user, and a folder for temporary files that it may write to."""
    nobody = pwd.getpwnam("nobody")
    folder.chmod(0o700 if is_private else 0o1777)
    program = start(
        "import tempfile\ntempfile.gettempdir()\n"
        + serving("Run", workers=1, run_as_user="nobody"),
        environ={"HOME": "/root", "USER": "root", "LOGNAME": "root", "TMPDIR": str(folder)},
    )
    answer = ask(program.address(), SURROUNDINGS)
    (environ, made) = ast.literal_eval(answer.partition(" ")[2])
    assert environ["HOME"] == nobody.pw_dir
    assert environ["USER"] == environ["LOGNAME"] == "nobody"
    assert environ["TMPDIR"] == (None if is_private else str(folder))
    assert (Path(made).parent == folder) is not is_private
    Path(made).rmdir()


@needs_root
@pytest.mark.parametrize("user", ["root", None])
def test_surroundings_stay_without_another_user(
    start: Callable[..., Program], user: str | None
) -> None:
    """Where the user stays the same, so does the environment."""
    program = start(
        serving("Run", workers=1, run_as_user=user, run_as_group="nogroup"),
        environ={"HOME": "/elsewhere", "USER": "somebody"},
    )
    answer = ask(program.address(), "os.environ['HOME'], os.environ['USER']")
    assert answer.endswith(" ('/elsewhere', 'somebody')")


@needs_root
def test_group_alone_is_dropped(start: Callable[..., Program]) -> None:
    """With run_as_group alone the worker keeps its uid and has that group only."""
    program = start(serving(workers=1, run_as_group=65534))
    program.address()
    status = status_of(program.worker())
    assert status["Uid"].split() == ["0"] * 4
    assert status["Gid"].split() == ["65534"] * 4


@needs_root
def test_dropped_workers_still_notice_the_end_of_the_master(start: Callable[..., Program]) -> None:
    """Workers of another identity leave as promptly when their master is killed."""
    program = start(serving(workers=3, run_as_user="nobody"))
    program.address()
    workers = program.wait_workers(3)
    program.signal(signal.SIGKILL)
    wait_until(lambda: not any(map(is_alive, workers)), "the orphans gone", ceiling=4)


@needs_root
def test_dropped_workers_are_stopped_replaced_and_dumped(start: Callable[..., Program]) -> None:
    """The master keeps its hold on workers of another identity: TTOU, respawn, dump, graceful stop."""
    program = start(serving(workers=3, run_as_user="nobody"))
    address = program.address()
    workers = program.wait_workers(3)
    os.kill(min(workers), signal.SIGKILL)
    wait_until(lambda: program.workers() - workers, "another worker")
    program.signal(signal.SIGTTOU)
    program.wait_workers(2)
    program.signal(signal.SIGUSR1)
    program.wait_logged("_wait|in run", times=1)
    ask(address)
    assert program.stop() == 0


def test_identity_that_only_root_can_give_is_refused(start: Callable[..., Program]) -> None:
    """Somebody who is not root is told before any fork that workers cannot become another user."""
    program = start("""
        from tests.support.app import *
        import prefork

        class Server(prefork.PreForkingTCPServer):
            workers = 1
            run_as_user = "root"

        os.register_at_fork(before=lambda: tell("forked"))
        with Server(LOOPBACK, Echo) as server:
            if os.geteuid() == 0:
                os.setresuid(65534, 65534, 65534)
            try:
                server.serve_forever()
            except prefork.SettingsError as error:
                tell("refused", str(error))
        tell("end")
    """)
    program.told("end")
    assert "root" in program.told("refused")
    assert program.all_told("forked") == []


def test_umask_of_the_workers(start: Callable[..., Program]) -> None:
    """The umask setting is in force in the workers."""
    program = start(serving("Run", workers=1, umask=0o027))
    assert ask(program.address(), "oct(os.umask(0o077))").endswith("'0o27'")


REACHES = """
from tests.support.app import *
import socketserver

class Reaches(socketserver.StreamRequestHandler):
    '''Answers the name of the exception that a line of Python raises, or its value.'''
    def handle(self):
        master = os.getppid()
        siblings = open(f"/proc/{master}/task/{master}/children").read().split()
        try:
            answer = eval(self.rfile.readline(), globals(), locals())
        except Exception as error:
            answer = type(error).__name__
        self.wfile.write(str(answer).encode())

LOADED = "known before the fork"
serve(Reaches, workers=2, run_as_user="nobody")
"""


@needs_root
def test_what_a_worker_of_another_user_reaches(start: Callable[..., Program]) -> None:
    """The master is out of reach of such a worker; its siblings and what was loaded before the fork are not."""
    program = start(REACHES, environ={"PASSWORD": "secret"})
    address = program.address()

    for line in (
        "os.kill(master, 0)",
        'open(f"/proc/{master}/environ").read()',
        'open(f"/proc/{master}/mem", "rb")',
        'os.listdir(f"/proc/{master}/fd")',
        "os.pidfd_open(master) and signal.pidfd_send_signal(os.pidfd_open(master), 0)",
    ):
        assert ask(address, line) == "PermissionError", line
    assert ask(address, "LOADED") == "known before the fork"
    assert ask(address, 'os.environ["PASSWORD"]') == "secret"
    assert ask(address, "[os.kill(int(pid), 0) for pid in siblings][0]") == "None"
