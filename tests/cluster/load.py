"""The clients: ``python -m tests.cluster.load``, a process of its own that runs in the clients' namespace.

Each request is a connection of its own. It says how many seconds the machine takes for it, and the answer says which
machine that was. Requests come at random at a rate (open loop), or each of a number of clients asks again as soon as it
has its answer (closed loop). Time counts from when a request was due, so that a late client hides no wait.

The results go to a file, a line of JSON for each request, in the order of their ends.
"""

from __future__ import annotations

import errno
import heapq
import random
import select
import signal
import socket
import sys
import time
from enum import StrEnum
from typing import IO, TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MOST_OPEN: Final = 5000
"""Connections at a time, so that a fault cannot make their number grow without end."""


class Outcome(StrEnum):
    """What became of a request."""

    OK = "ok"
    REFUSED = "refused"  # there was no connection
    RESET = "reset"
    CUT = "cut"  # an end of file before the answer
    LATE = "late"  # no answer within the deadline
    WRONG = "wrong"  # some other answer, such as a 503


class Order(msgspec.Struct, frozen=True):
    """What to ask, and how often. Seconds, and requests a second.

    rate: of an open loop; 0 for a closed loop of ``clients``. requests, seconds: the load ends with the first of the
    two, and then waits for the answers that are due. mean: of the service times, which are exponential.
    """

    address: tuple[str, int]
    seed: int = 1
    rate: float = 0.0
    clients: int = 0
    requests: int = 1_000_000
    seconds: float = 10.0
    mean: float = 0.0
    deadline: float = 5.0
    is_http: bool = False


class Done(msgspec.Struct, frozen=True, array_like=True):
    """One request: when it was due and when it ended (CLOCK_MONOTONIC), and its outcome.

    machine: the last line of the answer, which in a good one is the name of the machine.
    """

    due: float
    ended: float
    outcome: Outcome
    machine: str

    @property
    def seconds(self) -> float:
        """How long the client has waited."""
        return self.ended - self.due


def results(path: Path) -> list[Done]:
    """Return what a load has written."""
    decode = msgspec.json.Decoder(Done).decode
    return [decode(line) for line in path.read_bytes().splitlines()]


class _Request:
    """A request on its way."""

    __slots__ = ("answer", "due", "is_sent", "socket", "text", "until")

    def __init__(self, due: float, text: bytes, until: float) -> None:
        self.due, self.text, self.until = due, text, until
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.is_sent = False
        self.answer = b""


class Load:
    """Asks until the order is carried out."""

    def __init__(self, order: Order, output: IO[bytes]) -> None:
        self._order = order
        self._encode = msgspec.json.Encoder().encode
        self._output = output
        self._dice = random.Random(order.seed)
        self._poll = select.epoll()
        self._open: dict[int, _Request] = {}
        self._deadlines: list[tuple[float, int, _Request]] = []
        self._asked = 0
        self._end = 0.0

    def run(self) -> None:
        """Carry the order out."""
        began = time.monotonic()
        self._end = began + self._order.seconds
        signal.signal(signal.SIGTERM, self._stop)
        due = self._due_times(began)
        upcoming = next(due, None)
        if not self._order.rate:
            for _ in range(self._order.clients):
                self._ask_again(began)
        while self._open or upcoming is not None:
            now = time.monotonic()
            while upcoming is not None and upcoming <= now and len(self._open) < MOST_OPEN:
                self._ask(upcoming)
                upcoming = next(due, None)
            self._give_up(now)
            self._wait(upcoming)

    def _stop(self, _number: int, _frame: object) -> None:
        """Ask nothing more, and wait for the answers that are due."""
        self._end = 0.0

    def _due_times(self, began: float) -> Iterator[float]:
        at = began
        while self._order.rate and self._asked < self._order.requests:
            at += self._dice.expovariate(self._order.rate)
            if at > self._end:
                return
            yield at

    def _wait(self, upcoming: float | None) -> None:
        times = [
            one for one in (upcoming, self._deadlines[0][0] if self._deadlines else None) if one
        ]
        rest = max(0.0, min(times) - time.monotonic()) if times else 1.0
        for fd, _ in self._poll.poll(rest, 256):
            if (request := self._open.get(fd)) is not None:
                self._go_on(request)

    def _ask(self, due: float) -> None:
        self._asked += 1
        order = self._order
        service = min(10 * order.mean, self._dice.expovariate(1 / order.mean)) if order.mean else 0
        text = f"{service:.5f}\n"
        if order.is_http:
            text = f"GET /{service:.5f} HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n"
        request = _Request(due, text.encode(), max(due, time.monotonic()) + order.deadline)
        fd = request.socket.fileno()
        self._open[fd] = request
        heapq.heappush(self._deadlines, (request.until, self._asked, request))
        result = request.socket.connect_ex(order.address)
        if result not in (0, errno.EINPROGRESS):
            self._finish(request, Outcome.REFUSED)
            return
        self._poll.register(fd, select.EPOLLOUT)

    def _ask_again(self, now: float) -> None:
        order = self._order
        if not order.rate and self._asked < order.requests and now < self._end:
            self._ask(now)

    def _go_on(self, request: _Request) -> None:
        try:
            if not request.is_sent:
                if request.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    self._finish(request, Outcome.REFUSED)
                    return
                request.socket.send(request.text)
                request.is_sent = True
                self._poll.modify(request.socket.fileno(), select.EPOLLIN)
                return
            block = request.socket.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            self._finish(request, Outcome.RESET)
            return
        request.answer += block
        if not block:
            self._finish(request, self._judged(request.answer))

    def _judged(self, answer: bytes) -> Outcome:
        if self._order.is_http:
            head, _, body = answer.partition(b"\r\n\r\n")
            if head and not head.startswith(b"HTTP/1.1 200 "):
                return Outcome.WRONG
            answer = body
        if not answer.endswith(b"\n"):
            return Outcome.CUT
        return Outcome.OK if len(answer) < 16 else Outcome.WRONG

    def _give_up(self, now: float) -> None:
        while self._deadlines and self._deadlines[0][0] <= now:
            _, _, request = heapq.heappop(self._deadlines)
            if request.socket.fileno() in self._open:
                self._finish(request, Outcome.LATE)

    def _finish(self, request: _Request, outcome: Outcome) -> None:
        del self._open[request.socket.fileno()]
        request.socket.close()
        lines = request.answer.decode(errors="replace").splitlines()
        now = time.monotonic()
        done = Done(request.due, now, outcome, lines[-1][:100] if lines else "")
        self._output.write(self._encode(done) + b"\n")
        self._ask_again(now)


def main() -> None:
    """Carry out the order in the first argument; the second one is the file for the results."""
    order = msgspec.json.decode(sys.argv[1], type=Order)
    with open(sys.argv[2], "wb") as output:
        Load(order, output).run()


if __name__ == "__main__":
    main()
