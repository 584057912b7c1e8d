"""A pool whose machine or container changes while it serves: affinity, CPU quota and memory limit of a real master."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.cgroup import memory_group, why_no_cgroup
from tests.support.clients import ask
from tests.support.processes import live_children_of
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.server import Program

AUTO = """
from prefork.master import box, box_watch, master
from tests.support.app import *
import prefork

box.FALL, box_watch.LOOK_EVERY, master.LOOK_INTERVAL = 5, 0.02, 0.02


def run(self, worker):
    if {bytes}:
        self.held = bytearray(os.urandom(1 << 20) * ({bytes} >> 20))


log_to_stderr()
serve(Run, prefork.PreForkingTCPServer, worker_init=run)
"""
"""A pool of one worker for each CPU, each with some memory of its own, which looks often and soon acts."""

needs_two_cpus = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="one CPU alone cannot become more"
)


def cpu_quota_file() -> Path | None:
    """Return the folder in which this process may make a group with a CPU quota of version 1."""
    folder = Path("/sys/fs/cgroup/cpu")
    return folder if (folder / "cpu.cfs_quota_us").exists() and os.access(folder, os.W_OK) else None


@pytest.fixture(name="quota")
def _quota() -> Iterator[Path]:
    """Make a CPU group of the test's own."""
    parent = cpu_quota_file()
    if parent is None:
        pytest.skip("no CPU group of version 1 can be made here")
    group = parent / f"prefork-test-{os.getpid()}"
    group.mkdir()
    yield group

    def is_removed() -> bool:
        # The program still runs: one of its workers may end before it is moved, and another begin.
        with contextlib.suppress(OSError):
            for pid in (group / "cgroup.procs").read_text().split():
                (parent / "cgroup.procs").write_text(pid)
            group.rmdir()
            return True
        return False

    wait_until(is_removed, "the group is empty")


@needs_two_cpus
def test_affinity_and_quota_of_a_running_master(start: Callable[..., Program], quota: Path) -> None:
    """The pool becomes smaller and larger with the affinity and with the quota of its master, and serves all the time."""
    cpus = sorted(os.sched_getaffinity(0))
    program = start(AUTO.format(bytes=0))
    address = program.address()
    program.wait_workers(len(cpus))

    os.sched_setaffinity(program.pid, cpus[:1])
    program.wait_logged(rf"resized old={len(cpus)} new=1 why=box reason=.affinity 1,")
    program.wait_workers(1)
    assert ask(address, "1 + 1").endswith(" 2")
    os.sched_setaffinity(program.pid, cpus)
    program.wait_workers(len(cpus))

    (quota / "cpu.cfs_quota_us").write_text("50000")
    (quota / "cgroup.procs").write_text(str(program.pid))
    program.wait_logged(rf"resized old={len(cpus)} new=1 why=box reason=.cgroup quota 0.5,")
    (quota / "cpu.cfs_quota_us").write_text("-1")
    program.wait_workers(len(cpus))
    assert ask(address, "2 + 2").endswith(" 4")


@needs_two_cpus
@pytest.mark.skipif(why_no_cgroup() != "", reason=why_no_cgroup() or "-")
def test_memory_limit_of_a_running_master(start: Callable[..., Program]) -> None:
    """A memory limit that is lowered makes the pool smaller before the kernel kills a worker, and it grows again with the limit."""
    cpus = len(os.sched_getaffinity(0))
    each = 24 << 20
    with memory_group(1 << 30) as group:
        program = start(
            AUTO.format(bytes=each),
            before=["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"],
        )
        program.wait_workers(cpus)
        program.wait_logged("worker .* ready", times=cpus)
        usage = next(group.glob("memory.usage_in_bytes"), group / "memory.current")
        limit = next(group.glob("memory.limit_in_bytes"), group / "memory.max")
        limit.write_text(str(int(usage.read_text()) + (4 << 20)))
        program.wait_logged(rf"resized old={cpus} new={cpus - 1} why=box .*memory limit")
        wait_until(lambda: len(live_children_of(program.pid)) < cpus, "a worker has left")
        limit.write_text(str(1 << 30))
        program.wait_workers(cpus)
        assert "oom_killed" not in program.log
        program.stop()
