"""Start servers as real processes, and read the CPU time that they use."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

HERE = Path(__file__).resolve().parent
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class Server:
    """A running server process of ``servers.py``."""

    def __init__(self, process: subprocess.Popen[str], transport: str) -> None:
        self.process = process
        self.transport = transport
        self.pid = process.pid
        told = self.next_told()
        self.serving_since: float = told["serving"]
        """Instant (monotonic) just before serve_forever()."""
        self.imported: str = told["prefork"]
        """The file of the package that it serves with."""
        address = told["address"]
        self.address: Any = address if isinstance(address, str) else tuple(address)

    def next_told(self) -> dict[str, Any]:
        """Return the next line the process prints; raise RuntimeError if it ended instead."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args} ended with status {self.process.wait()}")
        told: dict[str, Any] = json.loads(line)
        return told

    def workers(self) -> list[int]:
        """Return the pids of the server's live children."""
        return [child.pid for child in psutil.Process(self.pid).children()]

    def cpu_seconds(self) -> float:
        """Return what ``cpu_seconds()`` returns for this process."""
        return cpu_seconds(self.pid)


class OnOneCore:
    """A server whose processes share one core, and its client.

    script: the program that serves ``--serve VARIANT`` and prints its port first. A subclass says in ``ask()``
    what its client does. cpu: the number of the core.
    """

    requests = 1000
    """Of one turn."""

    def __init__(self, script: str, variant: str, cpu: int) -> None:
        self.variant = variant
        command = [sys.executable, script, "--serve", variant]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        os.sched_setaffinity(self.process.pid, {cpu})
        assert self.process.stdout is not None
        self.address = "127.0.0.1", int(self.process.stdout.readline())
        for child in psutil.Process(self.process.pid).children():
            os.sched_setaffinity(child.pid, {cpu})

    def ask(self, count: int) -> None:
        """Make this many requests, one after the other."""
        raise NotImplementedError

    def cost(self) -> float:
        """Return the CPU seconds of one request, the mean over a turn."""
        before = cpu_seconds(self.process.pid)
        self.ask(self.requests)
        return (cpu_seconds(self.process.pid) - before) / self.requests

    def end(self) -> None:
        """End the server and all its processes."""
        end(self.process)
        assert self.process.stdout is not None
        self.process.stdout.close()


def costs_in_turns(
    kind: type[OnOneCore], script: str, variants: Iterable[str], rounds: int
) -> dict[str, list[float]]:
    """Run one server of each variant, and return what a request of each costs in each round, in CPU seconds.

    All servers run at once on one core, and this process on another one. They take turns, so that whatever else
    the machine does falls on all of them alike.
    """
    server_cpu, client_cpu = sorted(os.sched_getaffinity(0))[:2]
    with contextlib.ExitStack() as ends:
        servers = {}
        for variant in variants:
            servers[variant] = kind(script, variant, server_cpu)
            ends.callback(servers[variant].end)
        os.sched_setaffinity(0, {client_cpu})
        costs: dict[str, list[float]] = {variant: [] for variant in servers}
        for _ in range(rounds):
            for variant, server in servers.items():
                costs[variant].append(server.cost())
    return costs


def cpu_seconds(pid: int) -> float:
    """Return user and system time of a process, its descendants and all children they have reaped."""
    family = psutil.Process(pid).children(recursive=True)
    alive = [pid, *(each.pid for each in family)]
    return sum(_cpu_of_live(each) for each in alive) + _cpu_of_reaped(alive)


def _cpu_of_live(pid: int) -> float:
    """Read the CPU clock of a process, exact to the nanosecond; it covers all its threads, also ended ones."""
    try:
        return time.clock_gettime((~pid << 3) | 2)  # what clock_getcpuclockid(3) computes
    except OSError:
        return 0.0  # reaped meanwhile: its time is in the children's time of its parent


def _cpu_of_reaped(parents: list[int]) -> float:
    """Sum the times of reaped children. They are whole clock ticks; the kernel sums before it rounds."""
    ticks = 0
    for pid in parents:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[13]) + int(fields[14])
    return ticks / TICKS_PER_SECOND


@contextlib.contextmanager
def running(
    transport: str,
    variant: str,
    *options: object,
    checkout: Path | None = None,
    script: str = "servers.py",
) -> Iterator[Server]:
    """Start one server; end it and all its processes when the block ends.

    script: the program in this folder that serves. checkout: the folder from which the server imports prefork; None for the one that this process
    uses. Raises RuntimeError if the server has imported another one.
    """
    with tempfile.TemporaryDirectory(prefix="prefork-bench-") as folder:
        command = [sys.executable, str(HERE / script), transport, variant]
        command += ["--path", f"{folder}/socket", *map(str, options)]
        env = environment() if checkout is None else environment(str(checkout))
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
        try:
            server = Server(process, transport)
            if checkout is not None and not server.imported.startswith(f"{checkout}{os.sep}"):
                raise RuntimeError(f"a server of {checkout} has imported {server.imported}")
            yield server
        finally:
            end(process)
            assert process.stdout is not None
            process.stdout.close()


def environment(*before: str) -> dict[str, str]:
    """Return an environment in which a server imports what this process imports. before: folders that come first."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*before, *filter(None, sys.path)])}


def end(process: subprocess.Popen[Any]) -> None:
    """End a server and all its processes."""
    descendants = []
    if process.poll() is None:
        descendants = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=10)
    process.kill()
    process.wait()
    _, left = psutil.wait_procs(descendants, timeout=2)
    for each in left:
        each.kill()
