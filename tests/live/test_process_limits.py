"""Limits of the workers' processes: what the kernel says of real workers, and what a limit costs."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.live.test_privileges import needs_root
from tests.support.clients import ask, hangs_up
from tests.support.server import serving

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.server import Program


def limit_of(pid: int, name: str) -> list[str]:
    """Return the soft and the hard limit of a process, as /proc shows them."""
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return next(line for line in lines if line.startswith(name))[26:].split()[:2]


def oom_score_adj_of(pid: int) -> int:
    """Return the oom_score_adj of a process."""
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


@needs_root
def test_workers_have_the_limits(start: Callable[..., Program]) -> None:
    """Workers of another user have all the limits before their first request, and the master keeps its own."""
    adj, niceness = oom_score_adj_of(os.getpid()), os.getpriority(os.PRIO_PROCESS, 0)
    program = start(
        serving(
            "Run",
            workers=2,
            run_as_user="nobody",
            limits={"nofile": 200, "as": "3G", "fsize": "1M", "core": 0, "nproc": 1000},
            nice=niceness + 3,
            oom_score_adj=adj + 5,
        )
    )
    address = program.address()
    for pid in program.wait_workers(2):
        assert Path(f"/proc/{pid}").stat().st_uid in (0, pwd.getpwnam("nobody").pw_uid)
        assert limit_of(pid, "Max open files") == ["200", "200"]
        assert limit_of(pid, "Max address space") == [str(3 << 30)] * 2
        assert limit_of(pid, "Max file size") == [str(1 << 20)] * 2
        assert limit_of(pid, "Max core file size") == ["0", "0"]
        assert limit_of(pid, "Max processes") == ["1000", "1000"]
        assert os.getpriority(os.PRIO_PROCESS, pid) == niceness + 3
        assert oom_score_adj_of(pid) == adj + 5
    for name in ("Max open files", "Max address space", "Max file size"):
        assert limit_of(program.pid, name) == limit_of(os.getpid(), name)
    assert os.getpriority(os.PRIO_PROCESS, program.pid) == niceness
    assert oom_score_adj_of(program.pid) == adj
    # A file that grows too long is an error of the request.
    path = f"/tmp/prefork-limits-{os.getpid()}"
    assert hangs_up(address, f"open({path!r}, 'wb').write(bytes(2 << 20))") == ""
    program.wait_logged("File too large")
    assert "True" in ask(
        address, f"os.path.getsize({path!r}) <= 1 << 20 and not os.unlink({path!r})"
    )


GREEDY = """
from tests.support.app import *
import prefork


class Greedy(Run):
    def handle(self) -> None:
        line = self.rfile.readline().decode().strip()
        held = []
        if line == "blocks":
            while True:
                held.append(bytearray(1 << 20))
        if line == "crumbs":
            held = [None] * 2_000_000
            for number in range(len(held)):
                held[number] = bytes(40)
        if line == "one":
            held.append(bytes(8 << 30))
        self.wfile.write(f"{os.getpid()} {line}\\n".encode())


serve(Greedy, prefork.PreForkingTCPServer, workers=1, limits="as=150M")
"""


def test_memory_error_costs_the_request(start: Callable[..., Program]) -> None:
    """A handler that fills the address space gets MemoryError, with large blocks and with small objects, and its worker serves on."""
    program = start(GREEDY)
    address = program.address()
    worker = program.worker()
    for number, way in enumerate(("one", "blocks", "crumbs", "blocks"), 1):
        assert hangs_up(address, way) == ""
        program.wait_logged("MemoryError", times=number)
        assert ask(address, "calm") == f"{worker} calm"
    assert program.workers() == {worker}
    assert "could not end a failed request properly" not in program.log


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"limits": {"nofile": 1 << 40}}, "limits = 'nofile=1099511627776'"),
        ({"limits": {"as": "4M"}}, "limits = 'as=4M'"),
        ({"oom_score_adj": -1000}, "oom_score_adj = -1000"),
    ],
)
def test_impossible_limits_are_refused(
    start: Callable[..., Program], setting: dict[str, object], words: str
) -> None:
    """A limit that the kernel would refuse to a worker ends the start before a worker is forked, with its origin."""
    program = start(serving(**setting))  # type: ignore[arg-type]

    assert program.wait() == 1
    assert words in program.log
    assert "attribute" in program.log
    assert "master pid=" not in program.log
