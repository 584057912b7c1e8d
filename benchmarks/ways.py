"""What a request does to others, in four ways to serve clients: a pool, a process or a thread each, an event loop.

    python benchmarks/ways.py                measure all servers, print the table
    python benchmarks/ways.py --write        write it into docs/CHOOSING.md as well

All servers speak the same protocol. A client sends one word and a line feed: ``quick`` is answered at once,
``compute`` after a fixed amount of computing, ``wait`` after a wait that uses no CPU, and ``crash`` ends the process
as a crash of C code does. Little CPU time is used, so a busy machine disturbs the figures little.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import re
import resource
import signal
import socketserver
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil

HERE: Final = Path(__file__).resolve().parent
sys.path.insert(1, str(HERE.parent))

from table import markdown  # noqa: E402 - beside this file

import prefork  # noqa: E402 - a plain checkout: the package lies beside this folder

if TYPE_CHECKING:
    from collections.abc import Iterator

Address = tuple[str, int]

VARIANTS: Final = {
    "pool": "prefork, 4 workers",
    "large": "prefork, 64 workers",
    "both": "prefork, 4 workers with threads",
    "threads": "`ThreadingMixIn`",
    "forks": "`ForkingMixIn`",
    "loop": "asyncio",
}

COMPUTE_ROUNDS: Final = 1_500_000
"""What a request computes: about 0.1 s on an idle core."""

WAIT: Final = 0.1
WAITING_CLIENTS, COMPUTING_CLIENTS = 64, 2
IDLE_CONNECTIONS: Final = 1000
FORKS: Final = f"holds {socketserver.ForkingMixIn.max_children}"
"""ForkingMixIn has this many processes at most, each of which holds one connection."""

PATIENCE: Final = 30.0
"""Seconds after which an answer that has not come fails the measurement."""


# --- the servers


def compute() -> int:
    """Do what a request computes."""
    value = 1
    for _ in range(COMPUTE_ROUNDS):
        value = value * 48271 % 2147483647
    return value


class Words(socketserver.StreamRequestHandler):
    """Answers each word of a client, until the client has gone."""

    def handle(self) -> None:
        """Serve all requests of a connection."""
        for line in self.rfile:
            self.answer(line)

    def answer(self, line: bytes) -> None:
        """Do what a word asks for, and send it back."""
        word = line.strip()
        if word == b"compute":
            compute()
        elif word == b"wait":
            time.sleep(WAIT)
        elif word == b"crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        self.wfile.write(line)


class ParkedWords(prefork.ParkingMixIn, Words):
    """The same, with the connection parked between two requests."""

    def handle(self) -> None:
        """Serve one request."""
        if line := self.rfile.readline():
            self.answer(line)


async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve all requests of a connection, as a coroutine."""
    with contextlib.suppress(ConnectionError):
        while line := await reader.readline():
            word = line.strip()
            if word == b"compute":
                compute()
            elif word == b"wait":
                await asyncio.sleep(WAIT)
            elif word == b"crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            writer.write(line)
            await writer.drain()
    writer.close()


class Common:
    """What all servers of socketserver have here. Settings of a pool mean nothing to the others."""

    request_queue_size = 1024
    allow_reuse_address = True
    daemon_threads = True
    workers = 4
    max_children = 64


class Many(Common):
    """As many workers as there are clients that wait."""

    workers = 64


def server_class(variant: str) -> type[Any]:
    """Return the class of a server."""
    bases: dict[str, tuple[type[Any], ...]] = {
        "pool": (Common, prefork.PreForkingTCPServer),
        "large": (Many, prefork.PreForkingTCPServer),
        "both": (Common, prefork.PreForkingMixIn, socketserver.ThreadingTCPServer),
        "threads": (Common, socketserver.ThreadingTCPServer),
        "forks": (Common, socketserver.ForkingTCPServer),
    }
    return type(variant, bases[variant], {})


async def serve_loop() -> None:
    """Serve with an event loop until the end of this process."""
    server = await asyncio.start_server(talk, "127.0.0.1", 0, backlog=1024)
    print(json.dumps(server.sockets[0].getsockname()), flush=True)
    await server.serve_forever()


def serve(variant: str) -> None:
    """Serve until the end of this process."""
    logging.getLogger("prefork").setLevel(logging.CRITICAL)
    if variant == "loop":
        asyncio.run(serve_loop())
        return
    handler = Words if variant in {"threads", "forks"} else ParkedWords
    server = server_class(variant)(("127.0.0.1", 0), handler)
    print(json.dumps(server.server_address), flush=True)
    server.serve_forever()


@contextlib.contextmanager
def running(variant: str) -> Iterator[tuple[psutil.Process, Address]]:
    """Start a server; kill it and all its processes when the block ends."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--serve", variant],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        host, port = json.loads(process.stdout.readline())
        yield psutil.Process(process.pid), (host, port)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


# --- the clients


async def ask(address: Address, word: bytes) -> float:
    """Ask once on a fresh connection; return the seconds that the answer took. Raises ConnectionError without one."""
    began = time.monotonic()
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection(*address)
        try:
            writer.write(word + b"\n")
            if not await reader.readline():
                raise ConnectionResetError(f"no answer to {word!r}")
        finally:
            writer.close()
    return time.monotonic() - began


async def ask_until(address: Address, word: bytes, end: float) -> list[float]:
    """Ask again and again until an instant (monotonic); return the seconds that each answer took."""
    found = []
    while time.monotonic() < end:
        found.append(await ask(address, word))
    return found


async def quick_beside_computing(address: Address, seconds: float) -> list[float]:
    """Return what quick requests took, one after the other, while other clients had the server compute."""
    end = time.monotonic() + seconds
    others = [
        asyncio.create_task(ask_until(address, b"compute", end)) for _ in range(COMPUTING_CLIENTS)
    ]
    found = await ask_until(address, b"quick", end)
    await asyncio.gather(*others)
    return found


async def waiting_rate(address: Address, seconds: float) -> float:
    """Return how many requests that wait are answered in a second, for clients that ask again at once."""
    began = time.monotonic()
    clients = (ask_until(address, b"wait", began + seconds) for _ in range(WAITING_CLIENTS))
    answers = await asyncio.gather(*clients)
    return sum(map(len, answers)) / (time.monotonic() - began)


async def memory_with_idle(process: psutil.Process, address: Address) -> str:
    """Return what the processes of a server need while many connections that have asked once are idle."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(IDLE_CONNECTIONS):
            reader, writer = await asyncio.open_connection(*address)
            stack.callback(writer.close)
            writer.write(b"quick\n")
            await reader.readline()
        return f"{memory(process) / 2**20:.0f} MiB"


def memory(process: psutil.Process) -> int:
    """Return the memory of a process and its descendants. Pages that several of them have count once."""
    family = [process, *process.children(recursive=True)]
    return sum(each.memory_full_info().pss for each in family)


async def survives_a_crash(address: Address) -> bool:
    """Have one request crash; return whether a request that came before it and one that comes after are answered."""
    before = asyncio.create_task(ask(address, b"wait"))
    await asyncio.sleep(WAIT / 4)
    with contextlib.suppress(ConnectionError):
        await ask(address, b"crash")
    answers = await asyncio.gather(before, ask(address, b"quick"), return_exceptions=True)
    return not any(isinstance(answer, BaseException) for answer in answers)


# --- the result


def measure(variant: str, rounds: int, seconds: float) -> list[str]:
    """Return the row of one kind of server."""
    with running(variant) as (process, address):
        asyncio.run(ask(address, b"quick"))
        quick: list[float] = []
        rates = []
        for _ in range(rounds):
            quick += asyncio.run(quick_beside_computing(address, seconds))
            rates.append(asyncio.run(waiting_rate(address, seconds)))
    with running(variant) as (process, address):
        asyncio.run(waiting_rate(address, 1.0))  # each worker and each thread has served once
        idle = asyncio.run(memory_with_idle(process, address)) if variant != "forks" else FORKS
    with running(variant) as (_, address):
        survived = asyncio.run(survives_a_crash(address))
    return [
        VARIANTS[variant],
        f"{1000 * statistics.median(quick):.1f} ms",
        f"{1000 * statistics.quantiles(quick, n=20)[-1]:.0f} ms",
        f"{statistics.median(rates):.0f}",
        idle,
        "all others" if survived else "no request",
    ]


HEAD: Final = (
    "server",
    "quick, p50",
    "quick, p95",
    "waiting, per second",
    f"{IDLE_CONNECTIONS:,} idle connections",
    "a crash leaves",
)


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=3, help="of the loads, 3 by default")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each load in a round")
    parser.add_argument("--write", action="store_true", help="write the table of the documents")
    given = parser.parse_args()
    if given.serve:
        serve(given.serve)
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    text = markdown(HEAD, [measure(variant, given.rounds, given.seconds) for variant in VARIANTS])
    print(text)
    if given.write:
        page = HERE.parent / "docs" / "CHOOSING.md"
        marks = r"(?s)(<!-- ways -->\n).*(<!-- /ways -->)"
        said = page.read_text(encoding="utf-8")
        page.write_text(re.sub(marks, rf"\1\n{text.strip()}\n\n\2", said), encoding="utf-8")


if __name__ == "__main__":
    main()
