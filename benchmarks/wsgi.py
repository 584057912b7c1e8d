"""What a request of a WSGI application costs, beside the servers that people compare prefork with."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from processes import HERE, cpu_seconds, end, environment
from table import markdown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WORKERS = 2
LONGEST_START = 20.0
MIXED_CLIENTS = 4
"""Clients of the mixed load, two for each worker."""
WAIT_EVERY = 10
"""One of this many requests of the mixed load is one that waits."""

_AT = "127.0.0.1"
_OWN = [sys.executable, "-m", "prefork", "-w", str(WORKERS), "-b", "{at}:{port}"]
COMMANDS: dict[str, list[str]] = {
    "prefork": [*_OWN, "--client-timeout", "30", "{app}"],
    "gunicorn, sync": ["gunicorn", "-w", str(WORKERS), "-b", "{at}:{port}", "{app}"],
    "gunicorn, gthread": [
        *("gunicorn", "-w", str(WORKERS), "-k", "gthread", "--threads", "4"),
        *("-b", "{at}:{port}", "{app}"),
    ],
    "waitress": ["waitress-serve", "--listen={at}:{port}", "{app}"],
    "uWSGI": [
        *("uwsgi", "--http-socket", "{at}:{port}", "--processes", str(WORKERS), "--master"),
        *("--disable-logging", "--need-app", "-w", "{app}"),
    ],
    "Granian": [
        *("granian", "--interface", "wsgi", "--workers", str(WORKERS), "--no-ws"),
        *("--host", "{at}", "--port", "{port}", "{app}"),
    ],
}
"""How each server is started, with as many processes as prefork; waitress has one with four threads."""

CLOSES = frozenset({"gunicorn, sync", "uWSGI"})
"""Servers that end each connection after its answer."""


@dataclass
class Peer:
    """A running server, and what was measured of it. Costs in seconds of CPU time for each request."""

    name: str
    process: subprocess.Popen[bytes]
    address: tuple[str, int]
    costs: dict[str, list[float]] = field(default_factory=dict)
    quick: list[float] = field(default_factory=list)
    """Seconds that the answers of the mixed load took which need not wait."""

    def keeps(self) -> bool:
        """Return whether connections stay open after an answer."""
        return self.name not in CLOSES


@dataclass(frozen=True)
class Load:
    """One way to ask. clients: at once. kept: whether a client keeps its connection."""

    name: str
    clients: int
    kept: bool


LOADS = (
    Load("short, 16 clients", 16, kept=False),
    Load("kept, 2 clients", 2, kept=True),
    Load("kept, 16 clients", 16, kept=True),
)


def report(rounds: int, seconds: float, server_cpu: int, folder: Path | None) -> str:
    """Return tables: CPU time for each request, latency under mixed load, and memory of each worker.

    folder: where the other servers are installed; None for the search path. Those that are not there are
    named and left out.
    """
    with contextlib.ExitStack() as stack:
        peers, missing = [], []
        for name, command in COMMANDS.items():
            program = shutil.which(command[0], path=_path(folder))
            if program is None:
                missing.append(name)
            else:
                peers.append(
                    stack.enter_context(_running(name, [program, *command[1:]], server_cpu))
                )
        for _ in range(rounds):
            for peer in peers:
                _measure(peer, seconds)
        memory = {peer.name: _memory(peer) for peer in peers}
        tables = [_cost_table(peers), _other_table(peers, memory)]
    if missing:
        tables.append(f"Not installed, and left out: {', '.join(missing)}.")
    return "\n\n".join(tables)


def _path(folder: Path | None) -> str:
    return os.environ["PATH"] if folder is None else f"{folder}{os.pathsep}{os.environ['PATH']}"


@contextlib.contextmanager
def _running(name: str, command: list[str], server_cpu: int) -> Iterator[Peer]:
    with socket.create_server((_AT, 0)) as free:
        port = free.getsockname()[1]
    filled = [part.format(at=_AT, port=port, app="wsgi_app:application") for part in command]
    ours = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {server_cpu})  # the server inherits it
    try:
        env = environment() if name == "prefork" else dict(os.environ)
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(filled, stdout=quiet, stderr=quiet, cwd=HERE, env=env)
    finally:
        os.sched_setaffinity(0, ours)
    try:
        peer = Peer(name, process, (_AT, port))
        _wait_until_up(peer)
        yield peer
    finally:
        end(process)


def _wait_until_up(peer: Peer) -> None:
    until = time.monotonic() + LONGEST_START
    while True:
        try:
            _ask(peer, Load("first", 1, kept=False), 0.01)
        except OSError:
            if time.monotonic() > until or peer.process.poll() is not None:
                raise RuntimeError(f"{peer.name} does not answer") from None
            time.sleep(0.05)
        else:
            return


def _measure(peer: Peer, seconds: float) -> None:
    for load in LOADS:
        peer.costs.setdefault(load.name, []).append(_cost(peer, load, seconds))
    computed: list[float] = []
    before = cpu_seconds(peer.process.pid)
    _ask(peer, Load("compute", WORKERS, kept=True), seconds, "/compute", _computed_into(computed))
    used = cpu_seconds(peer.process.pid) - before
    peer.costs.setdefault("share", []).append(sum(computed) / used)
    peer.quick += _mixed(peer, seconds)


def _computed_into(found: list[float]) -> Callable[[bytes, float], None]:
    return lambda answer, _: found.append(float(answer.rpartition(b"\r\n")[2].split()[0]))


def _cost(peer: Peer, load: Load, seconds: float) -> float:
    before = cpu_seconds(peer.process.pid)
    answered = _ask(peer, load, seconds)
    time.sleep(0.01)
    return (cpu_seconds(peer.process.pid) - before) / answered


def _mixed(peer: Peer, seconds: float) -> list[float]:
    """Return how long the quick answers took, among requests that wait."""
    found: list[float] = []

    def note(_: bytes, took: float) -> None:
        found.append(took)

    _ask(peer, Load("mixed", MIXED_CLIENTS, kept=True), seconds, "/", note, wait_every=WAIT_EVERY)
    return found


def _ask(
    peer: Peer,
    load: Load,
    seconds: float,
    path: str = "/",
    note: Callable[[bytes, float], None] | None = None,
    *,
    wait_every: int = 0,
) -> int:
    """Have clients ask, each again as soon as it has its answer; return the number of answers.

    note: called with each answer and the seconds it took, but not for those that wait. wait_every: one request
    in this many is for the path that waits.
    """
    keep = load.kept and peer.keeps()
    asked = answered = 0
    clients: dict[int, tuple[socket.socket, float, bool]] = {}
    deadline = time.monotonic() + seconds
    with select.epoll() as poller:

        def ask(client: socket.socket) -> None:
            nonlocal asked
            asked += 1
            waits = bool(wait_every) and asked % wait_every == 0
            clients[client.fileno()] = client, time.monotonic(), waits
            client.send(_request("/wait" if waits else path, keep=keep))

        def begin() -> None:
            client = socket.create_connection(peer.address)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            poller.register(client, select.EPOLLIN)
            ask(client)

        for _ in range(load.clients):
            begin()
        while clients:
            for number, _ in _events(poller, peer):
                client, since, waits = clients.pop(number)
                answer = _answer(client)
                now = time.monotonic()
                answered += 1
                if note is not None and not waits:
                    note(answer, now - since)
                if now < deadline and keep:
                    ask(client)
                    continue
                client.close()  # leaves the poller by itself
                if now < deadline:
                    begin()
    return answered


def _request(path: str, *, keep: bool) -> bytes:
    connection = "keep-alive" if keep else "close"
    return (
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: bench\r\nAccept: */*\r\n"
        f"Connection: {connection}\r\n\r\n"
    ).encode()


def _events(poller: select.epoll, peer: Peer) -> list[tuple[int, int]]:
    events = poller.poll(10.0)
    if not events:
        raise RuntimeError(f"{peer.name} has not answered for 10 s")
    return events


def _answer(client: socket.socket) -> bytes:
    """Return an answer whose end is there; some servers send head and body apart."""
    answer = b""
    while not (b"\r\n\r\n" in answer and answer.endswith(b"\n") and not answer.endswith(b"\r\n")):
        piece = client.recv(4096)
        if not piece:
            raise ConnectionError("a connection ended without an answer")
        answer += piece
    if not answer.startswith((b"HTTP/1.1 200", b"HTTP/1.0 200")):
        raise RuntimeError(f"unexpected answer: {answer[:100]!r}")
    return answer


def _memory(peer: Peer) -> float:
    """Return the memory of a worker in bytes, with its part of what it shares: the mean of all that serve."""
    found = [
        child.memory_full_info().pss
        for child in psutil.Process(peer.process.pid).children(recursive=True)
        if " lot" not in " ".join(child.cmdline())
    ]
    return statistics.mean(found or [psutil.Process(peer.process.pid).memory_full_info().pss])


# --- tables


def _cost_table(peers: list[Peer]) -> str:
    rows = []
    for peer in peers:
        cells = [peer.name]
        for load in LOADS:
            costs = peer.costs[load.name]
            mark = "" if not load.kept or peer.keeps() else " (closes)"
            cells.append(f"{statistics.median(costs) * 1e6:.0f} ({min(costs) * 1e6:.0f}){mark}")
        rows.append(cells)
    return markdown(["µs of CPU, median (least)", *(load.name for load in LOADS)], rows)


def _other_table(peers: list[Peer], memory: dict[str, float]) -> str:
    rows = [
        [
            peer.name,
            f"{statistics.median(peer.costs['share']):.3f}",
            f"{statistics.median(peer.quick) * 1e3:.2f} ms",
            f"{sorted(peer.quick)[int(0.99 * len(peer.quick))] * 1e3:.1f} ms",
            f"{memory[peer.name] / 2**20:.1f} MiB",
        ]
        for peer in peers
    ]
    head = ["", "CPU that is the application's", "mixed, p50", "mixed, p99", "memory of a worker"]
    return markdown(head, rows)
