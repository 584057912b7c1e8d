"""How soon a pool follows a burst, and what a thousand killed workers cost its clients."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import statistics
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import psutil
from processes import running
from table import markdown

from prefork.workers.scoreboard import PoolField, Scoreboard, SlotField
from prefork.workers.states import READY, ExitKind, StartReason, WorkerState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

CEILING = 32
WORKERS = 8
CLIENTS = 8
HOLD = 0.003
"""Seconds that a handler takes, long enough for most kills to hit a request."""

PAUSE = (0.002, 0.01)
"""Seconds between two kills, long enough that some workers always serve."""

PATIENCE = 10.0
"""Seconds after which an answer is late, and after which a pool that has not come to rest has failed."""

Address = tuple[str, int]


def report(kills: int, bursts: int) -> str:
    """Return a table of both."""
    return markdown(["faults", "measured"], [*_burst_rows(bursts), *_storm_rows(kills)])


# --- a burst


def _burst_rows(bursts: int) -> list[list[str]]:
    times = [_burst() * 1000 for _ in range(bursts)]
    return [
        [
            f"1 idle worker → {CEILING} busy ones, p50 of {bursts}",
            f"{statistics.median(times):.0f} ms",
        ],
        ["the same, least and most", f"{min(times):.0f} … {max(times):.0f} ms"],
    ]


def _burst() -> float:
    """Return the seconds from the first of many clients until each has a worker of its own."""
    with running("tcp", "prefork", "--workers", 1, "--most", CEILING, "--hold", 60) as server:
        with scoreboard_of(server.pid) as board:
            _wait(lambda: board.snapshot().count(WorkerState.IDLE) == 1)
        began = time.monotonic_ns()
        with contextlib.ExitStack() as clients:
            asking = []
            for _ in range(CEILING):
                client = clients.enter_context(socket.create_connection(server.address, PATIENCE))
                client.send(b"hold")
                asking.append(client)
            told = [client.recv(64).split() for client in asking]
            os.kill(server.pid, signal.SIGQUIT)  # or its end would take as long as the requests
    assert len({pid for pid, _ in told}) == CEILING
    return (max(int(since) for _, since in told) - began) / 1e9


# --- a thousand kills


@dataclass
class Losses:
    """The fate of the clients' requests; each client writes under the lock."""

    answered: int = 0
    under: list[int] = field(default_factory=list)
    """For each request that was cut off, the pid of the worker that had announced it; 0 if none had."""
    others: Counter[str] = field(default_factory=Counter)
    """Losses that no kill explains: refused, late, the answer of another request."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def unexplained(self, killed: set[int]) -> int:
        """Count the losses that no kill explains; each kill explains at most one cut request (pure)."""
        named = Counter(pid for pid in self.under if pid)
        explained = {pid for pid in named if pid in killed}
        nameless = len(self.under) - named.total()
        too_many = max(0, nameless - (len(killed) - len(explained)))
        return named.total() - len(explained) + too_many + self.others.total()


def _storm_rows(kills: int) -> list[list[str]]:
    with (
        running("tcp", "prefork", "--workers", WORKERS, "--hold", HOLD) as server,
        scoreboard_of(server.pid) as board,
    ):
        _wait(lambda: board.snapshot().count(WorkerState.IDLE) == WORKERS)
        fds, memory = _descriptors(server.pid), _private(server.pid)
        losses, watch = Losses(), Watch(board, server.pid)
        with _clients(server.address, losses), watch:
            began = time.monotonic()
            killed = _kill(board, server.pid, kills)
            seconds = time.monotonic() - began
            _wait(lambda: board.snapshot().exits[ExitKind.KILLED] == len(killed))
        _wait(lambda: board.snapshot().count(WorkerState.IDLE) == WORKERS)
        zombies = len(_zombies(server.pid))
        aborted = board.total(SlotField.ABORTED)
        respawned = board.snapshot().starts[StartReason.RESPAWNED]
        leaked = _descriptors(server.pid) ^ fds
        grown = _private(server.pid) - memory
    lost, nameless = len(losses.under), losses.under.count(0)
    unexplained = losses.unexplained(killed)
    return [
        [f"kill -9 under load of {CLIENTS} clients", f"{len(killed)} in {seconds:.1f} s"],
        ["replacements", str(respawned)],
        ["requests answered", str(losses.answered)],
        ["lost with a killed worker", f"{lost}, {nameless} before it named itself"],
        ["aborted, as the scoreboard counts", str(aborted)],
        ["lost for another reason", _must_be(0, unexplained, dict(losses.others))],
        ["zombies afterwards", _must_be(0, zombies)],
        [
            "oldest zombie, looked at every 5 ms",
            f"{watch.oldest_zombie * 1000:.0f} ms ({watch.zombies_seen} seen)",
        ],
        ["counters that decreased", _must_be(0, watch.fallen)],
        ["descriptors gained or lost in the master", _must_be(0, len(leaked))],
        ["growth of the master's private memory", f"{grown / 2**20:.2f} MiB"],
    ]


def _must_be(wanted: int, found: int, why: object = None) -> str:
    return str(found) if found == wanted else f"**{found}**, must be {wanted} ({why})"


def _kill(board: Scoreboard, master: int, kills: int) -> set[int]:
    """Kill ready workers, idle and busy, one after the other; return their pids."""
    dice = random.Random(1)
    killed: set[int] = set()
    while len(killed) < kills:
        time.sleep(dice.uniform(*PAUSE))
        ready = [one[SlotField.PID] for one in board.snapshot().slots if one.state in READY]
        victims = [pid for pid in ready if pid not in killed]
        if victims and _kill_child(victim := dice.choice(victims), master):
            killed.add(victim)
    return killed


def _kill_child(pid: int, master: int) -> bool:
    """Kill a live child of the master; leave a pid alone that another process has by now."""
    try:
        held = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        child = psutil.Process(pid)
        if child.ppid() != master or child.status() == psutil.STATUS_ZOMBIE:
            return False
        signal.pidfd_send_signal(held, signal.SIGKILL)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return False
    finally:
        os.close(held)
    return True


@contextlib.contextmanager
def _clients(address: Address, losses: Losses) -> Iterator[None]:
    """Have clients ask again and again until the block ends."""
    ending = threading.Event()

    def ask_on(client: int) -> None:
        number = 0
        while not ending.is_set():
            number += 1
            _ask(address, b"%d-%d" % (client, number), losses)

    threads = [threading.Thread(target=ask_on, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ending.set()
        for thread in threads:
            thread.join()


def _ask(address: Address, nonce: bytes, losses: Losses) -> None:
    """Make one request and note its fate."""
    answer, trouble, connected = b"", "", False
    try:
        with socket.create_connection(address, PATIENCE) as client:
            connected = True
            client.sendall(nonce)
            while part := client.recv(1024):
                answer += part
    except TimeoutError:
        trouble = "late"
    except OSError as error:
        trouble = "" if connected else f"refused: {error.strerror}"
    told, ended, rest = answer.partition(b"\n")
    with losses.lock:
        if trouble:
            losses.others[trouble] += 1
        elif ended and rest == nonce:
            losses.answered += 1
        elif nonce.startswith(rest):
            losses.under.append(int(told.split()[0]) if ended else 0)
        else:
            losses.others["the answer of another request"] += 1


# --- watching


class Watch:
    """Looks at the scoreboard and the master's children every few milliseconds."""

    def __init__(self, board: Scoreboard, master: int) -> None:
        self.fallen = 0
        self.oldest_zombie = 0.0
        self.zombies_seen = 0
        self._board = board
        self._master = master
        self._before: tuple[int, ...] = ()
        self._dead_since: dict[int, float] = {}
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._look_on)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def _look_on(self) -> None:
        while not self._ending.wait(0.005):
            now = _counters(self._board)
            self.fallen += sum(new < old for new, old in zip(now, self._before, strict=False))
            self._before = now
            self._note_zombies()

    def _note_zombies(self) -> None:
        now = time.monotonic()
        self._dead_since = {pid: self._dead_since.get(pid, now) for pid in _zombies(self._master)}
        ages = [now - since for since in self._dead_since.values()]
        self.oldest_zombie = max([self.oldest_zombie, *ages])
        self.zombies_seen += len(ages)


def _counters(board: Scoreboard) -> tuple[int, ...]:
    """Return every number of the scoreboard that must never decrease."""
    snapshot = board.snapshot()
    ends = [*snapshot.exits.values(), *snapshot.starts.values(), *snapshot.boots]
    ends += [snapshot[PoolField.SPAWN_FAILURES], snapshot[PoolField.BOOT_NS]]
    fields = [SlotField.SPAWNS, SlotField.ABORTED, SlotField.TIMEOUTS, SlotField.ERRORS]
    fields += [SlotField.REJECTED, SlotField.ACCEPT_FAILURES, SlotField.BUSY_NS]
    fields += [SlotField.CPU_USER_NS, SlotField.CPU_SYSTEM_NS]
    for one in snapshot.slots:
        ends += [one[name] for name in fields]
        ends += [*one.histogram(SlotField.DURATIONS), *one.histogram(SlotField.QUEUE_WAITS)]
    return tuple(ends)


@contextlib.contextmanager
def scoreboard_of(master: int) -> Iterator[Scoreboard]:
    """Attach to the scoreboard of a running master, for reading, once it has one."""
    found = _wait(lambda: _scoreboard_link(master))
    board = Scoreboard.attach(os.open(found, os.O_RDONLY | os.O_CLOEXEC))
    try:
        yield board
    finally:
        board.close()


def _scoreboard_link(master: int) -> Path | None:
    for link in Path(f"/proc/{master}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(link).startswith("/memfd:prefork-scoreboard"):
                return link
    return None


def _zombies(master: int) -> set[int]:
    """Return the children of the master that have ended and are not collected."""
    listed = Path(f"/proc/{master}/task/{master}/children").read_text()
    return {int(pid) for pid in listed.split() if _is_zombie(pid)}


def _is_zombie(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _private(pid: int) -> int:
    used: int = psutil.Process(pid).memory_full_info().uss
    return used


def _descriptors(pid: int) -> set[str]:
    """Return the descriptors of a process at rest, each with its kind."""
    return {
        f"{link.name} {os.readlink(link).partition(':[')[0]}"
        for link in Path(f"/proc/{pid}/fd").iterdir()
    }


def _wait(fact: Callable[[], T | None]) -> T:
    """Return the first true value of a fact; raise RuntimeError if there is none in time."""
    end = time.monotonic() + PATIENCE
    while not (value := fact()):
        if time.monotonic() > end:
            raise RuntimeError(f"waited {PATIENCE:g} s in vain")
        time.sleep(0.001)
    return value
