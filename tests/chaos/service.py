"""The program under chaos: five listeners, and handlers that do what a request asks of them.

A stream client sends a line ``NONCE ASK SIZE``, nonce in hexadecimal, and then SIZE bytes. The answer is a
line ``NONCE PID VERSION SIZE`` and SIZE bytes, after which the connection is closed. A datagram is one such
message, and so is its answer. What is sent and what is answered follow from the nonce (``payload()``), so a
client knows every byte that it has to receive.

Each request is written into a journal, a pipe that the harness reads: once when a worker has taken it,
once when its line was read. So the harness knows which worker had a request, also when that worker died.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import signal
import socketserver
import struct
import subprocess
import sys
import time
from enum import Enum, IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import prefork

if TYPE_CHECKING:
    from collections.abc import Callable

VERSION = 0
"""Which code serves. Each reload of the harness sets another number (in ``app.py``)."""

JOURNAL: Final = "CHAOS_JOURNAL"
"""The variable with the path of the journal's pipe."""

ADDRESSES: Final = "CHAOS_ADDRESSES"
"""The variable with the addresses, as JSON: ``{"tcp": ["127.0.0.1", 40001], …}``."""

BOOT_TROUBLE: Final = "boot-trouble"
"""A file in the working directory; while it is there, new workers fail in the way that it names."""

RECORD: Final = struct.Struct("<QQII")
"""A record of the journal: key, CLOCK_MONOTONIC in nanoseconds, pid, Mark."""


class Mark(IntEnum):
    """What a record of the journal is about."""

    TAKEN = 1
    """A worker has a request; the key is the client's TCP port, 0 if it has none."""
    READ = 2
    """A worker knows which request it has; the key is the nonce."""
    DOOMED = 3
    """A worker is about to fail while it boots, as the harness wants."""


class End(Enum):
    """How a request ends if nothing goes wrong."""

    ANSWER = "answer"
    ERROR = "error"
    """The handler raises: no answer, and the worker goes on."""
    DEATH = "death"
    """No answer, and the worker is gone."""


class Request(NamedTuple):
    """A request as its handler sees it. reply: sends the answer, of this size or of the request's."""

    server: Any
    nonce: int
    body: bytes
    reply: Callable[[bytes], None]

    def echo(self) -> None:
        """Answer with what was sent."""
        self.reply(self.body)


# --- what a request may ask for ------------------------------------------------------------------


def _quick(request: Request) -> None:
    request.echo()


def _slow(request: Request) -> None:
    time.sleep(0.005 + request.nonce % 50 / 1000)
    request.echo()


def _large(request: Request) -> None:
    request.reply(payload(request.nonce, LARGE))


def _extended(request: Request) -> None:
    """Take longer than ``request_timeout``, having asked for more time."""
    request.server.worker.extend_deadline(3)
    time.sleep(TIMEOUT + 0.3)
    request.echo()


def _raise(_request: Request) -> None:
    raise ValueError("a request asked for this")


def _exit(_request: Request) -> None:
    sys.exit(3)


def _exit_hard(_request: Request) -> None:
    os._exit(4)


def _abort(_request: Request) -> None:
    os.abort()


def _crash(_request: Request) -> None:
    ctypes.string_at(0)


def _hang(_request: Request) -> None:
    while True:
        pass


def _hang_in_c(_request: Request) -> None:
    while True:  # a signal ends a sleep
        ctypes.PyDLL(None).sleep(600)  # it keeps the interpreter lock


def _hang_deaf(_request: Request) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    time.sleep(600)


def _leak_descriptors(request: Request) -> None:
    with contextlib.suppress(OSError):  # it may be a worker without descriptors
        _leaked.extend(os.dup(0) for _ in range(3))
    request.echo()


def _leak_memory(request: Request) -> None:
    _leaked.append(b"\1" * (1 << 20))
    request.echo()


def _fork(request: Request) -> None:
    with contextlib.suppress(OSError):  # the pool may be at its limit of processes
        if (child := os.fork()) == 0:
            os._exit(0)
        os.waitpid(child, 0)
    request.echo()


def _fork_and_return(request: Request) -> None:
    """Fork a child that leaves the handler as its parent does; each of them ends the connection."""
    request.echo()
    with contextlib.suppress(OSError):
        os.fork()


def _orphan(request: Request) -> None:
    with contextlib.suppress(OSError):
        _leaked.append(subprocess.Popen(["sleep", "2"], stdin=subprocess.DEVNULL))
    request.echo()


def _block_listener(request: Request) -> None:
    """Make the shared listening socket blocking, for every process."""
    os.set_blocking(request.server.fileno(), True)
    request.echo()


def _print(request: Request) -> None:
    with contextlib.suppress(OSError):
        os.write(1, b"printed by a handler\n" * 100)
    request.echo()


_leaked: list[Any] = []

TIMEOUT: Final = 3.0
"""``request_timeout`` of the pool, in seconds."""

LARGE: Final = 300_000
"""Bytes of a large answer: more than the socket buffers hold."""


class Ask(NamedTuple):
    """Something that a request may ask for. weight: of ten thousand requests."""

    run: Callable[[Request], None]
    end: End
    weight: int
    datagram: bool = True


ASKS: Final = {
    "quick": Ask(_quick, End.ANSWER, 7700),
    "slow": Ask(_slow, End.ANSWER, 1500),
    "large": Ask(_large, End.ANSWER, 300, datagram=False),
    "extended": Ask(_extended, End.ANSWER, 1),
    "raise": Ask(_raise, End.ERROR, 60),
    "exit": Ask(_exit, End.DEATH, 8),
    "exit_hard": Ask(_exit_hard, End.DEATH, 8),
    "abort": Ask(_abort, End.DEATH, 6),
    "crash": Ask(_crash, End.DEATH, 6),
    "hang": Ask(_hang, End.DEATH, 1),
    "hang_in_c": Ask(_hang_in_c, End.DEATH, 1),
    "hang_deaf": Ask(_hang_deaf, End.DEATH, 1),
    "leak_descriptors": Ask(_leak_descriptors, End.ANSWER, 60),
    "leak_memory": Ask(_leak_memory, End.ANSWER, 40),
    "fork": Ask(_fork, End.ANSWER, 40),
    "fork_and_return": Ask(_fork_and_return, End.ANSWER, 20),
    "orphan": Ask(_orphan, End.ANSWER, 10),
    "block_listener": Ask(_block_listener, End.ANSWER, 20, datagram=False),
    "print": Ask(_print, End.ANSWER, 60),
}


def payload(nonce: int, size: int) -> bytes:
    """Return the bytes that belong to a nonce."""
    return random.Random(nonce).randbytes(size)


def message(nonce: int, ask: str, body: bytes) -> bytes:
    """Return a request."""
    return b"%x %s %d\n%s" % (nonce, ask.encode(), len(body), body)


def answer(nonce: int, body: bytes) -> bytes:
    """Return an answer of this process."""
    return b"%x %d %d %d\n%s" % (nonce, os.getpid(), VERSION, len(body), body)


# --- servers and handlers ------------------------------------------------------------------------


def _note(mark: Mark, key: int) -> None:
    os.write(_journal, RECORD.pack(key, time.monotonic_ns(), os.getpid(), mark))


class Stream(socketserver.StreamRequestHandler):
    """One request over a connection."""

    def setup(self) -> None:
        """Note that this worker has the connection."""
        _note(Mark.TAKEN, self.client_address[1] if isinstance(self.client_address, tuple) else 0)
        super().setup()

    def handle(self) -> None:
        """Do what the client asks; one that asks for nothing gets nothing."""
        words = self.rfile.readline(200).split()
        if len(words) != 3:
            return
        nonce = int(words[0], 16)
        _note(Mark.READ, nonce)
        body = self.rfile.read(int(words[2]))
        if len(body) == int(words[2]):
            send = self.request.sendall
            request = Request(self.server, nonce, body, lambda body: send(answer(nonce, body)))
            ASKS[words[1].decode()].run(request)


class Datagram(socketserver.DatagramRequestHandler):
    """One request in a datagram. The class has no ``setup()``: prefork serves such handlers in rounds."""

    def handle(self) -> None:
        """Do what the client asks; junk gets no answer."""
        _note(Mark.TAKEN, 0)
        head, _, body = self.packet.partition(b"\n")
        words = head.split()
        if len(words) != 3:
            return
        nonce = int(words[0], 16)
        _note(Mark.READ, nonce)
        write = self.wfile.write
        request = Request(
            self.server, nonce, body, lambda body: write(answer(nonce, body)) and None
        )
        ASKS[words[1].decode()].run(request)


class Tcp(prefork.PreForkingTCPServer):
    """The first listener, with the hooks of the pool."""

    def worker_init(self, worker: object) -> None:
        """Fail in the way that the harness wants, if it wants any."""
        with contextlib.suppress(FileNotFoundError):
            _boot_trouble(Path(BOOT_TROUBLE).read_text())


def _boot_trouble(kind: str) -> None:
    _note(Mark.DOOMED, 0)
    if kind == "raise":
        raise RuntimeError("the harness wants this worker not to boot")
    if kind == "exit":
        os._exit(7)
    if kind == "crash":
        os.abort()
    if kind == "hang":
        time.sleep(600)


def servers() -> list[socketserver.BaseServer]:
    """Make the servers. ``prefork run --factory`` calls this."""
    global _journal  # noqa: PLW0603 - opened once per image, for all workers
    _journal = os.open(os.environ[JOURNAL], os.O_WRONLY | os.O_CLOEXEC)
    at = json.loads(os.environ[ADDRESSES])
    return [
        Tcp(tuple(at["tcp"]), Stream),
        prefork.PreForkingTCPServer(tuple(at["tcp2"]), Stream),
        prefork.PreForkingUnixStreamServer(at["unix"], Stream),
        prefork.PreForkingUDPServer(tuple(at["udp"]), Datagram),
        prefork.PreForkingUnixDatagramServer(at["unixgram"], Datagram),
    ]


_journal = -1
