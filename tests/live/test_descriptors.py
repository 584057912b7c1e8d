"""Who holds which descriptor: workers nothing of the master's, programs of handlers nothing of ours, nobody ever more."""

from __future__ import annotations

import os
import signal
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.clients import ask
from tests.support.load import request
from tests.support.processes import fds_of, private_bytes
from tests.support.server import serving
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.server import Program


def shared(first: int, second: int, kind: str) -> set[str]:
    """Return what both processes hold of a kind, such as "pipe" or "socket"."""
    return {
        link
        for link in set(fds_of(first).values()) & set(fds_of(second).values())
        if link.startswith(kind)
    }


def test_workers_hold_nothing_of_the_masters(start: Callable[..., Program]) -> None:
    """Of the master's descriptors a worker has the standard streams, listener, scoreboard and what tells of its end."""
    program = start(serving(workers=3))
    address = program.address()
    for _ in range(3):
        victim = program.worker()
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda gone=victim: gone not in program.workers(), "the death")
    program.wait_logged(" ready boot=", times=6)  # one that is just forked still has them
    workers = program.wait_workers(3)
    ask(address)
    stdout = fds_of(program.pid)[1]
    for worker in workers:
        links = list(fds_of(worker).values())
        assert not [link for link in links if "pidfd" in link]
        assert sum("eventpoll" in link for link in links) <= 1
        assert len(shared(program.pid, worker, "socket")) == 1, "more than the listener"
        # The life pipe, the worker's own wake-up pipe, the master's, and our standard output.
        assert len(shared(program.pid, worker, "pipe") - {stdout}) <= 3
        assert len(links) <= 16


def is_write_end(pid: int, fd: int) -> bool:
    """Whether a descriptor was opened for writing only."""
    info = Path(f"/proc/{pid}/fdinfo/{fd}").read_text()
    flags = next(line.split()[1] for line in info.splitlines() if line.startswith("flags"))
    return int(flags, 8) & os.O_ACCMODE == os.O_WRONLY


def test_nobody_but_the_master_holds_the_life_pipe_open(start: Callable[..., Program]) -> None:
    """The write end of the pipe whose end of file tells of the master's death is in the master alone."""
    program = start(serving(workers=3))
    program.address()
    workers = program.wait_workers(3)
    writers: dict[str, set[int]] = {}
    for pid in [program.pid, *workers]:
        for fd, link in fds_of(pid).items():
            if link.startswith("pipe") and fd > 2 and is_write_end(pid, fd):
                writers.setdefault(link, set()).add(pid)
    readers = {link: {pid for pid in workers if link in fds_of(pid).values()} for link in writers}
    assert any(writers[link] == {program.pid} and readers[link] == workers for link in writers)


def test_program_started_by_a_handler_inherits_nothing(start: Callable[..., Program]) -> None:
    """Even with close_fds=False a program that a handler starts has the standard streams only."""
    program = start(serving("Run", workers=2))
    answer = ask(
        program.address(),
        "subprocess.check_output(['ls', '/proc/self/fd'], close_fds=False).split()",
    )
    numbers = {int(word.strip("b'[],")) for word in answer.split()[1:]}
    assert numbers <= {0, 1, 2, 3}, "ls itself has one more, the folder it lists"


def test_program_started_by_the_master_inherits_nothing(start: Callable[..., Program]) -> None:
    """Nor does a program that a hook of the master starts."""
    program = start("""
        from tests.support.app import *

        def worker_ready(self, worker):
            tell("fds", subprocess.check_output(["ls", "/proc/self/fd"], close_fds=False).decode())

        serve(Echo, workers=2, worker_ready=worker_ready)
    """)
    assert set(map(int, program.told("fds", 1).split())) <= {0, 1, 2, 3}


def test_descriptors_do_not_grow_with_respawns(start: Callable[..., Program]) -> None:
    """After two hundred respawns the master has as many descriptors as before, and a new worker as many as the first one."""
    program = start(serving(workers=8))
    program.address()
    ready = r"worker slot=\d+ gen=\d+ pid=\d+ ready"
    program.wait_logged(ready, times=8)

    def counts() -> tuple[int, set[int]]:
        return len(fds_of(program.pid)), {len(fds_of(pid)) for pid in program.wait_workers(8)}

    before = counts()
    memory = private_bytes(program.pid)
    for round_ in range(1, 26):
        for victim in program.wait_workers(8):
            os.kill(victim, signal.SIGKILL)
        program.wait_logged(ready, times=8 + 8 * round_)
    wait_until(lambda: counts() == before, lambda: f"{before} descriptors: {counts()}")
    assert private_bytes(program.pid) - memory < 2 << 20


def test_descriptors_do_not_grow_with_requests(start: Callable[..., Program]) -> None:
    """After two thousand requests, good and bad ones, workers have as many descriptors as before."""
    program = start("""
        from tests.support.app import *

        class Moody(Echo):
            def handle(self):
                super().handle()
                if time.monotonic_ns() % 3 == 0:
                    raise RuntimeError

        serve(Moody, workers=2, handle_error=lambda *_: None)
    """)
    address = program.address()
    workers = program.wait_workers(2)
    for number in range(50):
        request(address, str(number))

    def quiet() -> dict[int, set[int]]:
        """Return the descriptors of the workers, none of which is a connection."""
        held = {pid: fds_of(pid) for pid in workers}
        sockets = [link for links in held.values() for link in links.values() if "socket" in link]
        return {pid: set(links) for pid, links in held.items()} if len(sockets) == 2 else {}

    before = wait_until(quiet, "no connection open")
    memory = sum(map(private_bytes, workers))
    for number in range(2000):
        request(address, str(number))
    wait_until(
        lambda: {pid: fds_of(pid).keys() for pid in workers} == before, "the same descriptors"
    )
    assert sum(map(private_bytes, workers)) - memory < 2 << 20
    assert program.workers() == workers


def test_idle_worker_costs_little_memory(start: Callable[..., Program]) -> None:
    """An idle worker of a plain program has less than 2.5 MiB of memory to itself."""
    program = start("""
        import json, os
        import prefork

        class Echo(prefork.StreamRequestHandler):
            def handle(self):
                self.wfile.write(self.rfile.readline())

        class Server(prefork.PreForkingTCPServer):
            workers = 4

            def when_ready(self):
                os.write(1, json.dumps(["address", self.server_address]).encode() + b"\\n")

        with Server(("127.0.0.1", 0), Echo) as server:
            server.serve_forever()
    """)
    program.address()
    used = [private_bytes(pid) for pid in program.wait_workers(4)]
    sys.stdout.write(f"private memory of idle workers: {[n >> 10 for n in used]} KiB\n")
    assert statistics.median(used) < 2.5 * 2**20
