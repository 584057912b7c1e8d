"""Load on an ``Echo``: clients that each ask again and again, a nonce and a verdict per request."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Self

from tests.support.clients import TIMEOUT, Address, connect, read_all, send_line

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType


class Verdict(StrEnum):
    """What became of a request."""

    ANSWERED = "answered"
    REFUSED = "refused"  # no connection: the client knows at once and can go elsewhere
    RESET = "reset"  # connected, then reset: a request that the server or its queue has lost
    CUT = "cut"  # connected, then an end of file before the whole answer
    LATE = "late"  # no answer within the timeout
    WRONG = "wrong"  # somebody else's answer


@dataclass(frozen=True, slots=True)
class Request:
    """One request: its verdict, the worker that served it (0: unknown), begin and end on the monotonic clock."""

    verdict: Verdict
    worker: int
    began: float
    ended: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended - self.began


def request(address: Address, nonce: str, timeout: float = TIMEOUT) -> Request:
    """Make one request and judge it."""
    began = time.monotonic()
    verdict, worker = _judged(address, nonce, timeout)
    return Request(verdict, worker, began, time.monotonic())


def _judged(address: Address, nonce: str, timeout: float) -> tuple[Verdict, int]:
    connected = False
    try:
        with connect(address, timeout) as client:
            connected = True
            send_line(client, nonce)
            answer = read_all(client)
    except TimeoutError:
        return Verdict.LATE, 0
    except OSError:
        return (Verdict.RESET if connected else Verdict.REFUSED), 0
    worker, _, echoed = answer.partition(" ")
    if echoed == nonce:
        return Verdict.ANSWERED, int(worker)
    return (Verdict.CUT if nonce.startswith(echoed) else Verdict.WRONG), 0


class Load:
    """``with Load(address, clients=4) as load:`` keeps asking until the block ends or ``stop()`` is called.

    text: what every line begins with, such as "sleep 0.01 " for a handler that obeys.
    until_refused: a client ends at its first refusal, as after a stop.
    """

    def __init__(
        self,
        address: Address,
        clients: int = 4,
        *,
        text: str = "",
        timeout: float = TIMEOUT,
        until_refused: bool = False,
    ) -> None:
        self.requests: list[Request] = []
        self._address = address
        self._text = text
        self._timeout = timeout
        self._until_refused = until_refused
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._ask_on, args=(i,)) for i in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Let every client finish its request and end."""
        self._stopping.set()
        self.join()

    def join(self) -> None:
        """Wait until every client has ended, by ``stop()`` or by a refusal."""
        for thread in self._threads:
            thread.join()

    def _ask_on(self, client: int) -> None:
        for number in itertools.count():
            if self._stopping.is_set():
                return
            done = request(self._address, f"{self._text}{client}-{number}", self._timeout)
            self.requests.append(done)
            if self._until_refused and done.verdict is Verdict.REFUSED:
                return

    @property
    def verdicts(self) -> Counter[Verdict]:
        """How many requests had which verdict so far."""
        return Counter(done.verdict for done in list(self.requests))

    @property
    def answered(self) -> int:
        """How many requests were answered so far."""
        return self.verdicts[Verdict.ANSWERED]

    @property
    def lost(self) -> dict[Verdict, int]:
        """The verdicts that no client should meet, refusals not among them: an empty table when all is well."""
        return {
            verdict: count
            for verdict, count in self.verdicts.items()
            if verdict not in (Verdict.ANSWERED, Verdict.REFUSED)
        }


def shares(requests: Iterable[Request]) -> Counter[int]:
    """How many answered requests each worker served."""
    return Counter(done.worker for done in requests if done.verdict is Verdict.ANSWERED)


def percentile(values: Iterable[float], percent: float) -> float:
    """Return the value that ``percent`` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
