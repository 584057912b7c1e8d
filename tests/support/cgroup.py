"""A memory cgroup of a test's own, for processes that it started."""

from __future__ import annotations

import contextlib
import os
import signal
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from prefork.workers.machine import groups
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefork.workers.machine import Group


def own_group() -> Group | None:
    """Return the innermost memory group that this process is in."""
    return next(groups("memory"), None)


def why_no_cgroup() -> str:
    """Why no memory cgroup can be made here; "" when one can."""
    parent = own_group()
    if parent is None:
        return "no memory cgroup here"
    probe = parent.directory / f"prefork-probe-{os.getpid()}"
    try:
        probe.mkdir()
    except OSError as error:
        return f"no memory cgroup can be made: {error}"
    limit = (probe / _limit_file(parent)).exists()
    probe.rmdir()
    return "" if limit else "memory cgroups have no limit here"


@contextmanager
def memory_group(limit: int) -> Iterator[Path]:
    """Make a group with a limit in bytes; whatever is left in it at the end is killed.

    ``(group / "cgroup.procs").write_text(str(pid))`` puts a process into it, and with it the
    children that it forks from then on.
    """
    parent = own_group()
    assert parent is not None
    group = parent.directory / f"prefork-test-{os.getpid()}"
    group.mkdir()
    try:
        (group / _limit_file(parent)).write_text(str(limit))
        yield group
    finally:
        wait_until(lambda: _is_empty(group), "the group is empty")
        group.rmdir()


def _is_empty(group: Path) -> bool:
    pids = (group / "cgroup.procs").read_text().split()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    return not pids


def _limit_file(parent: Group) -> str:
    return "memory.max" if parent.version == 2 else "memory.limit_in_bytes"
