"""Another identity for the workers: all of it, verified, and without weakening the other promises."""

from __future__ import annotations

import os
import pwd
import signal
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
    wait_until(lambda: not any(map(is_alive, workers)), "the orphans gone", ceiling=1.3)


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
