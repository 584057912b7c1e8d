"""What idle connections cost: a request through the lot, a client that asks again at once, and 10,000 idle clients."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import select
import socket
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil
from processes import Server, running
from table import markdown, spread

if TYPE_CHECKING:
    from collections.abc import Iterator

LINE = b"m" * 63 + b"\n"
CROWD, FEW = 64, 2
SPEAKING = 50
"""Clients that ask now and then, among those that are idle."""
PAUSE = 0.05
"""Seconds between the answer to such a client and its next request, on the average."""
CLIENTS_OF_AN_ADDRESS = 20_000


@dataclass(frozen=True)
class Kind:
    """One way to serve lines. variant, linger: of the server. clients: at once. fresh: a connection for each request."""

    name: str
    variant: str
    clients: int
    linger: float = 0.001
    fresh: bool = False


FRESH = Kind("a fresh connection for each request, 64 clients", "lines-once", CROWD, fresh=True)
HELD = Kind("held by its worker, 2 clients on 2 workers", "lines-held", FEW)
THROUGH = Kind("through the lot, 64 clients on 2 workers", "lines-parked", CROWD)
CHATTY = Kind("parked with linger, 2 clients on 2 workers", "lines-parked", FEW, linger=0.02)
KINDS = (FRESH, THROUGH, HELD, CHATTY)
BASE_OF = {THROUGH: FRESH, CHATTY: HELD}


def report(rounds: int, seconds: float, server_cpu: int) -> str:
    """Return a table: CPU time of all processes for each request, all kinds in turn in each round."""
    costs: dict[Kind, list[float]] = {kind: [] for kind in KINDS}
    with contextlib.ExitStack() as stack:
        servers = {
            kind: stack.enter_context(
                running(
                    "tcp",
                    kind.variant,
                    *("--workers", 2, "--linger", kind.linger, "--cpu", server_cpu),
                )
            )
            for kind in KINDS
        }
        for _ in range(rounds):
            for kind, server in servers.items():
                costs[kind].append(_cost(server, kind, seconds))
    head = ["connection", "µs per request", "least", "ratio", "ratios seen"]
    return markdown(head, [_row(kind, costs) for kind in KINDS])


def _row(kind: Kind, costs: dict[Kind, list[float]]) -> list[str]:
    mine = costs[kind]
    cells = [kind.name, f"{statistics.median(mine) * 1e6:.1f}", f"{min(mine) * 1e6:.1f}"]
    if kind not in BASE_OF:
        return [*cells, "1", ""]
    ratios = [one / base for one, base in zip(mine, costs[BASE_OF[kind]], strict=True)]
    return [*cells, f"{statistics.median(ratios):.2f}", spread(ratios, "{:.2f}")]


def _cost(server: Server, kind: Kind, seconds: float) -> float:
    before = server.cpu_seconds()
    answered = _ask(server, kind, seconds)
    time.sleep(0.01)
    return (server.cpu_seconds() - before) / answered


def _ask(server: Server, kind: Kind, seconds: float) -> int:
    """Have clients ask, each one again as soon as it has its answer; return the number of answers."""
    answered, clients = 0, {}
    deadline = time.monotonic() + seconds
    with select.epoll() as poller:

        def begin() -> None:
            client = socket.create_connection(server.address)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            clients[client.fileno()] = client
            poller.register(client, select.EPOLLIN)
            client.send(LINE)

        for _ in range(kind.clients):
            begin()
        while clients:
            for number, _ in _events(poller, 10.0):
                answered += _answer(clients[number])
                goes_on = time.monotonic() < deadline
                if goes_on and not kind.fresh:
                    clients[number].send(LINE)
                    continue
                clients.pop(number).close()  # leaves the poller by itself
                if goes_on:
                    begin()
    return answered


def _events(poller: select.epoll, longest: float) -> list[tuple[int, int]]:
    events = poller.poll(longest)
    if not events:
        raise RuntimeError(f"no answer for {longest:g} s")
    return events


def _answer(client: socket.socket) -> int:
    if client.recv(1024) != LINE:
        raise RuntimeError("a connection ended without an answer")
    return 1


# --- ten thousand idle clients


@dataclass(frozen=True)
class Held:
    """What was measured while clients were idle. Latencies in seconds, sorted; memory in bytes."""

    latencies: list[float]
    lot_rss: int
    lot_own: int
    master_cpu: float


def idle_report(idle: int, seconds: float) -> str:
    """Return a table: how soon those are answered who speak, among many that are idle."""
    _raise_descriptor_limit()
    with running("tcp", "lines-held", "--workers", 2) as server:
        held = _measured(server, [_connected(server, 0)], seconds / 4, speaking=1)
    with running("tcp", "lines-parked", "--workers", 2) as server:
        few = _measured(server, [], seconds / 4, speaking=0)
    with running("tcp", "lines-parked", "--workers", 2) as server:
        clients = [_connected(server, number) for number in range(idle)]
        parked = _measured(server, clients, seconds, speaking=SPEAKING)
        for client in clients:
            client.close()
    rows = [
        ["answers", str(len(held.latencies)), str(len(parked.latencies))],
        ["p50", _micros(held.latencies, 0.5), _micros(parked.latencies, 0.5)],
        ["p99", _micros(held.latencies, 0.99), _micros(parked.latencies, 0.99)],
        ["longest", _micros(held.latencies, 1.0), _micros(parked.latencies, 1.0)],
        ["lot, resident", "", f"{parked.lot_rss / 2**20:.1f} MiB"],
        ["lot, of its own", "", f"{parked.lot_own / 2**20:.1f} MiB"],
        [
            "master, CPU of a second",
            f"{few.master_cpu * 1e3:.2f} ms without clients",
            f"{parked.master_cpu * 1e3:.2f} ms",
        ],
    ]
    ratio = _share(parked.latencies, 0.5) / _share(held.latencies, 0.5)
    head = ["", "a connection that a worker holds", f"{SPEAKING} of {idle:,} idle ones speak"]
    return markdown(head, rows) + f"\n\nThe p50 is {ratio:.2f} times that of a held connection."


def _connected(server: Server, number: int) -> socket.socket:
    """Connect, and ask once."""
    client = socket.socket()
    # One address has too few ports for all.
    client.bind((f"127.0.0.{2 + number // CLIENTS_OF_AN_ADDRESS}", 0))
    client.connect(server.address)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.send(LINE)
    _answer(client)
    return client


def _measured(
    server: Server, clients: list[socket.socket], seconds: float, *, speaking: int
) -> Held:
    master = psutil.Process(server.pid)
    before, began = _cpu(master), time.monotonic()
    latencies = sorted(_speak(random.sample(clients, speaking), seconds))
    cpu = (_cpu(master) - before) / (time.monotonic() - began)
    memory = [
        child.memory_full_info()
        for child in master.children()
        if "lot" in " ".join(child.cmdline())
    ]
    rss, own = (memory[0].rss, memory[0].uss) if memory else (0, 0)
    return Held(latencies, rss, own, cpu)


def _cpu(process: psutil.Process) -> float:
    return time.clock_gettime((~process.pid << 3) | 2)


def _speak(clients: list[socket.socket], seconds: float) -> Iterator[float]:
    """Have clients ask, each after a pause; yield how long each answer took."""
    now = time.monotonic()
    deadline = now + seconds
    due = {client.fileno(): now + random.uniform(0, 2 * PAUSE) for client in clients}
    by_number = {client.fileno(): client for client in clients}
    asked: dict[int, float] = {}
    if not clients:
        time.sleep(seconds)
    with select.epoll() as poller:
        for number in due:
            poller.register(number, select.EPOLLIN)
        while due or asked:
            now = time.monotonic()
            for number in [number for number, at in due.items() if at <= now]:
                del due[number]
                if now < deadline:
                    asked[number] = time.monotonic()
                    by_number[number].send(LINE)
            for number, _ in poller.poll(max(0.0, min(due.values(), default=now + 1) - now)):
                _answer(by_number[number])
                now = time.monotonic()
                yield now - asked.pop(number)
                due[number] = now + random.uniform(0, 2 * PAUSE)


def _share(latencies: list[float], share: float) -> float:
    return latencies[min(len(latencies) - 1, int(share * len(latencies)))]


def _micros(latencies: list[float], share: float) -> str:
    return f"{_share(latencies, share) * 1e6:.0f} µs"


def _raise_descriptor_limit() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    print(idle_report(int(os.environ.get("IDLE", "10000")), 4.0))
