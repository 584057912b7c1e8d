"""What reloads cost the clients, and what a hundred reloads leave behind."""

from __future__ import annotations

import array
import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from faults import scoreboard_of
from load import FAMILIES
from processes import HERE, environment
from table import markdown

from prefork.workers.scoreboard import PoolField, Scoreboard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WORKERS = 12
CLIENTS = {"tcp": 6, "unix": 5, "udp": 5}
"""Clients of each kind. Each kind has a process of its own; together they are a few more than the workers."""

PATIENCE = 10.0
"""Seconds after which a request has failed."""

LONGEST = 240.0
"""Seconds after which the load ends, even with fewer requests than wanted."""

STORM = (signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR1)
STORM_PAUSE = 0.05
PAUSE = 1.5
"""Seconds of steady load between two reloads, to compare with."""


def report(reloads: int, requests: int, idle_reloads: int) -> str:
    """Return a table of both."""
    rows = [*_load_rows(reloads, requests), *_idle_rows(idle_reloads)]
    return markdown(["reloads", "measured"], rows)


# --- the server


@dataclass
class Reloaded:
    """A running ``reload_server.py`` and its scoreboard."""

    pid: int
    folder: Path
    board: Scoreboard

    def reload(self, *, broken: bool = False, meanwhile: Callable[[], None] | None = None) -> None:
        """Reload the server and wait for the end; raise RuntimeError if the outcome is not the expected one."""
        mark = self.folder / "broken"
        if broken:
            mark.touch()
        else:
            mark.unlink(missing_ok=True)
        before = self._ended()
        os.kill(self.pid, signal.SIGHUP)
        end = time.monotonic() + LONGEST
        while (now := self._ended()) == before:
            if time.monotonic() > end:
                raise RuntimeError("a reload did not end")
            if meanwhile is not None:
                meanwhile()
            time.sleep(0.005)
        if now != (before[0] + (not broken), before[1] + broken):
            raise RuntimeError(f"the reload went wrong: {self.board.reload_report.read()}")

    def _ended(self) -> tuple[int, int]:
        return self.board.pool(PoolField.RELOADS), self.board.pool(PoolField.RELOADS_FAILED)


@contextlib.contextmanager
def _server(workers: int) -> Iterator[Reloaded]:
    with tempfile.TemporaryDirectory(prefix="prefork-bench-") as name:
        folder = Path(name)
        command = [sys.executable, str(HERE / "reload_server.py"), name, str(workers)]
        process = subprocess.Popen(command, env=environment(), start_new_session=True)
        try:
            _wait(lambda: (folder / "addresses").exists() and _is_ready(process.pid, workers))
            with scoreboard_of(process.pid) as board:
                yield Reloaded(process.pid, folder, board)
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _is_ready(pid: int, workers: int) -> bool:
    return len(psutil.Process(pid).children()) == workers


def _wait(fact: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not fact():
        if time.monotonic() > end:
            raise RuntimeError("the server did not come up")
        time.sleep(0.02)


# --- under load


@dataclass
class Outcome:
    """What the clients saw: the begin and the end of each answered request, and failures in words."""

    began: array.array[float] = field(default_factory=lambda: array.array("d"))
    ended: array.array[float] = field(default_factory=lambda: array.array("d"))
    failed: list[str] = field(default_factory=list)


def _load_rows(reloads: int, requests: int) -> list[list[str]]:
    spans: list[tuple[float, float]] = []
    failures = 0
    with _server(WORKERS) as server, _clients(server.folder) as clients:
        began = time.monotonic()
        for turn in itertools.count():
            time.sleep(PAUSE)
            if turn < reloads:
                since = time.monotonic()
                server.reload(meanwhile=_storm(server.pid) if turn % 2 else None)
                spans.append((since, time.monotonic()))
                if turn % 4 == 3:
                    time.sleep(PAUSE / 2)
                    server.reload(broken=True)
                    failures += 1
            elif clients.answered() >= requests or time.monotonic() - began > LONGEST:
                break
        took = time.monotonic() - began
        outcomes = clients.stop()
    during, steady = _split(outcomes.values(), spans)
    failed = [one for outcome in outcomes.values() for one in outcome.failed]
    kinds = ", ".join(f"{kind} {len(one.ended)}" for kind, one in outcomes.items())
    whole = [end - since for since, end in spans]
    return [
        ["reloads, and broken ones between them", f"{len(spans)} and {failures}"],
        [f"requests answered in {took:.0f} s ({kinds})", f"{len(during) + len(steady)}"],
        [
            "requests failed",
            f"{len(failed)}{': ' if failed else ''}{', '.join(sorted(set(failed)))}",
        ],
        [
            "a reload, HUP → all workers new, p50 and most",
            f"{_at(whole, 50):.2f} s, {max(whole):.2f} s",
        ],
        ["latency, steady, p50 and p99.9", _latency(steady)],
        [f"latency during reloads ({len(during)} requests), p50 and p99.9", _latency(during)],
        [
            "longest, steady and during reloads",
            f"{max(steady) * 1e3:.0f} ms, {max(during) * 1e3:.0f} ms",
        ],
    ]


def _storm(pid: int) -> Callable[[], None]:
    last = 0.0

    def rain() -> None:
        nonlocal last
        if time.monotonic() - last >= STORM_PAUSE:
            last = time.monotonic()
            for number in STORM:
                os.kill(pid, number)

    return rain


def _split(outcomes: Any, spans: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Return the latencies of requests that met a reload, and of all others."""
    during: list[float] = []
    steady: list[float] = []
    for outcome in outcomes:
        for began, ended in zip(outcome.began, outcome.ended, strict=True):
            met = any(began < end and ended > since for since, end in spans)
            (during if met else steady).append(ended - began)
    return during, steady


def _at(values: list[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def _latency(values: list[float]) -> str:
    return f"{_at(values, 50) * 1e3:.1f} ms, {_at(values, 99.9) * 1e3:.1f} ms"


class Clients:
    """The client processes, one of each kind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        addresses = json.loads((folder / "addresses").read_text())
        self._running = {
            kind: subprocess.Popen(
                [
                    sys.executable,
                    str(HERE / "reload.py"),
                    kind,
                    json.dumps(addresses[kind]),
                    str(folder),
                ],
                env=environment(),
            )
            for kind in CLIENTS
        }

    def answered(self) -> int:
        """Return how many requests were answered, as of a second ago."""
        return sum(int(path.read_text() or 0) for path in self.folder.glob("answered.*"))

    def stop(self) -> dict[str, Outcome]:
        """End the clients and return what they saw."""
        self.end()
        outcomes = {}
        for kind in self._running:
            outcome = Outcome(failed=json.loads((self.folder / f"failed.{kind}").read_text()))
            for name in ("began", "ended"):
                getattr(outcome, name).frombytes((self.folder / f"{name}.{kind}").read_bytes())
            outcomes[kind] = outcome
        return outcomes

    def end(self) -> None:
        """Make the clients finish their requests and leave."""
        (self.folder / "enough").touch()
        for process in self._running.values():
            process.wait(2 * PATIENCE)


@contextlib.contextmanager
def _clients(folder: Path) -> Iterator[Clients]:
    clients = Clients(folder)
    try:
        yield clients
    finally:
        clients.end()


# --- one process of clients


def _as_address(told: Any) -> Any:
    return tuple(told) if isinstance(told, list) else told


def _be_clients(kind: str, address: Any, folder: Path) -> None:
    """Ask from several threads until there is enough, and write down what was seen."""
    import threading  # noqa: PLC0415 - only a client needs it

    outcome = Outcome()
    lock = threading.Lock()
    enough = threading.Event()

    def ask_on(number: int) -> None:
        with _open(kind) as kept:
            for count in itertools.count():
                if enough.is_set():
                    return
                nonce = f"{kind} {number} {count}".encode()
                began = time.monotonic()
                try:
                    answer = _ask(kind, kept, address, nonce)
                except OSError as error:
                    answer = repr(error).encode()
                ended = time.monotonic()
                with lock:
                    if answer == nonce:
                        outcome.began.append(began)
                        outcome.ended.append(ended)
                    else:
                        outcome.failed.append(f"{kind}: {answer.decode(errors='replace')}")

    threads = [threading.Thread(target=ask_on, args=(number,)) for number in range(CLIENTS[kind])]
    for thread in threads:
        thread.start()
    while not (folder / "enough").exists():
        time.sleep(0.5)
        (folder / f"answered.{kind}").write_text(str(len(outcome.ended)))
    enough.set()
    for thread in threads:
        thread.join()
    (folder / f"failed.{kind}").write_text(json.dumps(outcome.failed))
    (folder / f"began.{kind}").write_bytes(outcome.began.tobytes())
    (folder / f"ended.{kind}").write_bytes(outcome.ended.tobytes())


def _open(kind: str) -> socket.socket:
    client = socket.socket(
        FAMILIES[kind], socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM
    )
    client.settimeout(PATIENCE)
    return client


def _ask(kind: str, kept: socket.socket, address: Any, nonce: bytes) -> bytes:
    """Make one request. A stream uses a new connection, datagrams use the same socket."""
    if kind == "udp":
        kept.sendto(nonce, address)
        return kept.recv(1024)
    with _open(kind) as client:
        client.connect(address)
        client.sendall(nonce)
        answer = b""
        while part := client.recv(1024):
            answer += part
        return answer


# --- without load


def _idle_rows(reloads: int) -> list[list[str]]:
    with _server(2) as server:
        server.reload()
        before = _state(server.pid)
        began = time.monotonic()
        for _ in range(reloads):
            server.reload()
        took = time.monotonic() - began
        time.sleep(0.5)  # the workers that leave are gone
        after = _state(server.pid)
    words = "descriptors {}, children {}, private memory {:.2f} MiB".format
    return [
        [
            f"the master before {reloads} reloads without load ({took / reloads:.2f} s each)",
            words(*before),
        ],
        ["the master after them", words(*after)],
    ]


def _state(pid: int) -> tuple[int, int, float]:
    master = psutil.Process(pid)
    return master.num_fds(), len(master.children()), master.memory_full_info().uss / 2**20


if __name__ == "__main__":
    _be_clients(sys.argv[1], _as_address(json.loads(sys.argv[2])), Path(sys.argv[3]))
