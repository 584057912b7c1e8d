"""Clients that ask again and again and check every byte, and clients that misbehave."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

from tests.chaos import service
from tests.chaos.pool import CLIENT_TIMEOUT, STREAMS
from tests.chaos.service import ASKS, End
from tests.chaos.verdict import GOOD, Loss, Outcome
from tests.support.clients import connect, family_of, reset_on_close
from tests.support.processes import is_alive

if TYPE_CHECKING:
    from pathlib import Path

    from tests.chaos.observe import Journal
    from tests.chaos.pool import Pool
    from tests.support.clients import Address

PATIENCE: Final = 12.0
"""Seconds after which a request is late."""

_LOOK: Final = 0.25
"""Seconds without an answer to a datagram after which its client looks whether the worker is gone."""


class Reply(NamedTuple):
    """What became of a request. began, ended: on the monotonic clock. port: the client's own, 0 for none."""

    outcome: Outcome
    began: float
    ended: float
    version: int = 0
    port: int = 0
    connected_in: float = 0.0
    detail: str = ""


class Question(NamedTuple):
    """A request before it is sent."""

    nonce: int
    ask: str
    body: bytes

    @property
    def end(self) -> End:
        """How it ends if nothing goes wrong."""
        return ASKS[self.ask].end

    @property
    def message(self) -> bytes:
        """Its bytes."""
        return service.message(self.nonce, self.ask, self.body)

    def judge(self, data: bytes) -> tuple[Outcome, int, str]:
        """Return what an answer is worth, the version of the code that gave it, and what is wrong with it."""
        if not data:
            as_asked = self.end in (End.ERROR, End.DEATH)
            return (Outcome.ENDED_AS_ASKED if as_asked else Outcome.CUT), 0, ""
        head, line_break, body = data.partition(b"\n")
        wanted = service.payload(self.nonce, service.LARGE) if self.ask == "large" else self.body
        if not line_break:
            is_begin = b"%x" % self.nonce == head[: len(b"%x" % self.nonce)]
            return (Outcome.CUT if is_begin else Outcome.WRONG), 0, repr(head[:80])
        words = head.split()
        if len(words) != 4 or words[0] != b"%x" % self.nonce or words[3] != b"%d" % len(wanted):
            return Outcome.WRONG, 0, repr(head[:80])
        if self.end is not End.ANSWER:
            return Outcome.WRONG, 0, "an answer where none was asked for"
        if body != wanted:
            cut = wanted.startswith(body)
            return (Outcome.CUT if cut else Outcome.WRONG), 0, f"{len(body)} of {len(wanted)} bytes"
        return Outcome.ANSWERED, int(words[2]), ""


def question(dice: random.Random, *, datagram: bool, gentle: bool) -> Question:
    """Invent a request. gentle: one that ends no worker."""
    names = [
        name
        for name, ask in ASKS.items()
        if (ask.datagram or not datagram) and not (gentle and ask.end is End.DEATH)
    ]
    (ask,) = dice.choices(names, [ASKS[name].weight for name in names])
    nonce = dice.getrandbits(63)
    most = 200 if datagram or dice.random() < 0.9 else 100_000
    return Question(nonce, ask, service.payload(nonce, dice.randrange(most)))


def ask_stream(address: Address, asked: Question, patience: float = PATIENCE) -> Reply:
    """Make a request over a connection, and read the answer to its end."""
    began = time.monotonic()
    end = began + patience
    port, connected_in = 0, 0.0
    data: list[bytes] = []

    def reply(outcome: Outcome, version: int = 0, detail: str = "") -> Reply:
        return Reply(outcome, began, time.monotonic(), version, port, connected_in, detail)

    try:
        with connect(address, patience) as client:
            connected_in = time.monotonic() - began
            if isinstance(address, tuple):
                port = client.getsockname()[1]
            client.sendall(asked.message)
            while part := client.recv(1 << 18):
                data.append(part)
                client.settimeout(max(0.01, end - time.monotonic()))
    except TimeoutError:
        return reply(Outcome.LATE, detail=f"{sum(map(len, data))} bytes so far")
    except OSError as error:
        if not port and not connected_in:
            return reply(Outcome.REFUSED, detail=repr(error))
        if asked.end is not End.ANSWER and not data:
            return reply(Outcome.ENDED_AS_ASKED)
        return reply(Outcome.RESET, detail=repr(error))
    return reply(*asked.judge(b"".join(data)))


class DatagramClient:
    """A socket from which datagrams are asked. journal: says which worker has one."""

    def __init__(self, address: Address, journal: Journal, own: Path | None = None) -> None:
        self._journal = journal
        self._socket = socket.socket(family_of(address), socket.SOCK_DGRAM)
        if own is not None:
            self._socket.bind(str(own))
        self._socket.connect(address)
        self._mine: set[bytes] = set()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def ask(self, asked: Question, patience: float = PATIENCE) -> Reply:
        """Send a datagram and wait for the answer, or until the worker that took it is gone."""
        began = time.monotonic()
        self._mine.add(b"%x" % asked.nonce)

        def reply(outcome: Outcome, version: int = 0, detail: str = "") -> Reply:
            return Reply(outcome, began, time.monotonic(), version, detail=detail)

        try:
            self._socket.settimeout(patience)
            self._socket.send(asked.message)
            data = self._answer(asked, began + patience)
        except TimeoutError:
            taker = self._journal.taker(asked.nonce)
            is_late = taker and is_alive(taker)
            return reply(Outcome.LATE if is_late else Outcome.SILENCE)
        except OSError as error:
            return reply(Outcome.REFUSED, detail=repr(error))
        if data is None and asked.end is End.ANSWER:
            return reply(Outcome.SILENCE)
        return reply(*asked.judge(data or b""))

    def _answer(self, asked: Question, end: float) -> bytes | None:
        """Return the answer, None if none will come. TimeoutError: none has come until the end."""
        while True:
            # A worker that is gone has sent what it had to send: one more look, and no answer will come.
            taker = self._journal.taker(asked.nonce)
            is_over = bool(taker) and (asked.end is End.ERROR or not is_alive(taker))
            wait = min(_LOOK, end - time.monotonic())
            if wait <= 0:
                raise TimeoutError
            self._socket.settimeout(wait)
            try:
                data = self._socket.recv(1 << 16)
            except TimeoutError:
                if is_over:
                    return None
                continue
            first = data.split(maxsplit=1)[0] if data else b""
            # An answer that came too late for its question, which was noted as a loss then.
            if first == b"%x" % asked.nonce or first not in self._mine:
                return data


class Book:
    """What became of all requests. Every client writes it."""

    def __init__(self, journal: Journal) -> None:
        self.outcomes: Counter[Outcome] = Counter()
        self.by_listener: Counter[str] = Counter()
        self.losses: list[Loss] = []
        self.answered_at = time.monotonic()
        self.slowest_connect = 0.0
        self.ended_as_asked: set[int] = set()
        """Workers that had a request that asked for their death."""
        self.is_gentle = threading.Event()
        """Set while no request may end a worker."""
        self._journal = journal
        self._lock = threading.Lock()

    def note(self, listener: str, asked: Question, reply: Reply) -> None:
        """Note a request; a lost one with the worker that had it."""
        taker = 0
        if reply.outcome not in GOOD or asked.end is End.DEATH:
            taker = self._journal.taker(asked.nonce, reply.port, reply.began)
        with self._lock:
            self.outcomes[reply.outcome] += 1
            self.by_listener[listener] += 1
            self.slowest_connect = max(self.slowest_connect, reply.connected_in)
            if reply.outcome is Outcome.ANSWERED:
                self.answered_at = reply.ended
            if asked.end is End.DEATH:
                self.ended_as_asked.add(taker)
            if reply.outcome not in GOOD:
                self.losses.append(
                    Loss(
                        listener,
                        asked.ask,
                        reply.outcome,
                        taker,
                        reply.began,
                        reply.ended,
                        reply.detail,
                    )
                )

    def take_slowest_connect(self) -> float:
        """Return the longest time that a connection took since this was asked last."""
        with self._lock:
            slowest, self.slowest_connect = self.slowest_connect, 0.0
            return slowest


class Client(threading.Thread):
    """Does something again and again while the gate is open, until it is ended."""

    def __init__(self, pool: Pool, book: Book, dice: random.Random) -> None:
        super().__init__(daemon=True)
        self.idle = threading.Event()
        self.gate = threading.Event()
        self.error: BaseException | None = None
        self._pool = pool
        self._book = book
        self._dice = dice
        self._ending = threading.Event()

    def run(self) -> None:
        """Go on until the end. An exception is the harness's own fault and is kept."""
        try:
            while not self._ending.is_set():
                if not self.gate.is_set():
                    self.idle.set()
                    self.gate.wait(0.1)
                    continue
                self.idle.clear()
                if not self.step():
                    break
                time.sleep(self._dice.random() * 0.005)
        except BaseException as error:  # noqa: BLE001 - the episode raises it
            self.error = error
        finally:
            self.idle.set()

    def step(self) -> bool:
        """Do it once; return whether to go on."""
        raise NotImplementedError

    def end(self) -> None:
        """Have it end after what it is doing now."""
        self._ending.set()
        self.gate.set()


class StreamClient(Client):
    """Asks a stream listener. Once ``refused_ends`` is set, a refused connection is its end and no loss."""

    def __init__(self, pool: Pool, book: Book, dice: random.Random, listener: str) -> None:
        super().__init__(pool, book, dice)
        self.listener = listener
        self.refused_ends = threading.Event()

    def step(self) -> bool:
        """Make a request."""
        asked = question(self._dice, datagram=False, gentle=self._book.is_gentle.is_set())
        ends = self.refused_ends.is_set()
        reply = ask_stream(self._pool.addresses[self.listener], asked)
        if reply.outcome is Outcome.REFUSED:
            if ends or self.refused_ends.is_set():
                return False
            self._ending.wait(0.1)
        self._book.note(self.listener, asked, reply)
        return True


class AskingDatagrams(Client):
    """Asks a datagram listener."""

    def __init__(
        self, pool: Pool, book: Book, dice: random.Random, listener: str, journal: Journal
    ) -> None:
        super().__init__(pool, book, dice)
        self.listener = listener
        self._journal = journal

    def run(self) -> None:
        """Make a socket, and go on until the end."""
        address = self._pool.addresses[self.listener]
        own = self._pool.folder / f"client-{id(self)}" if isinstance(address, str) else None
        self._client = DatagramClient(address, self._journal, own)
        with contextlib.closing(self._client):
            super().run()
        if own is not None:
            own.unlink()

    def step(self) -> bool:
        """Make a request."""
        asked = question(self._dice, datagram=True, gentle=self._book.is_gentle.is_set())
        self._book.note(self.listener, asked, self._client.ask(asked))
        return True


class Vandal(Client):
    """A client that misbehaves. What becomes of it is not judged, but for what it does to the others."""

    def step(self) -> bool:
        """Misbehave once."""
        what = self._dice.choice(
            [
                self._says_nothing,
                self._resets,
                self._leaves_in_the_middle,
                self._does_not_read,
                self._drips,
                self._sends_junk,
            ]
        )
        with contextlib.suppress(OSError):
            what(self._pool.addresses[self._dice.choice(STREAMS)])
        self._ending.wait(0.05)
        return True

    def _says_nothing(self, address: Address) -> None:
        with connect(address) as client:
            client.settimeout(self._dice.uniform(0.05, CLIENT_TIMEOUT + 0.5))
            client.recv(1)

    def _resets(self, address: Address) -> None:
        for _ in range(self._dice.randint(1, 20)):
            with connect(address) as client:
                reset_on_close(client)

    def _leaves_in_the_middle(self, address: Address) -> None:
        message = service.message(0, "quick", b"x" * 5000)
        with connect(address) as client:
            client.sendall(message[: self._dice.randrange(len(message))])
            if self._dice.random() < 0.5:
                reset_on_close(client)

    def _does_not_read(self, address: Address) -> None:
        with connect(address) as client:
            client.sendall(service.message(self._dice.getrandbits(40), "large", b""))
            self._ending.wait(self._dice.uniform(0, 1))

    def _drips(self, address: Address) -> None:
        with connect(address) as client:
            for byte in service.message(self._dice.getrandbits(40), "quick", b""):
                client.sendall(bytes([byte]))
                time.sleep(0.01)

    def _sends_junk(self, _address: Address) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            for size in (0, 1, self._dice.randrange(60_000)):
                client.sendto(os.urandom(size), self._pool.addresses["udp"])
