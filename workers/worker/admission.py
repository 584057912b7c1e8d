"""Who is served at all: what has waited too long is shed, and one client holds a few workers only (worker).

Both are decided when a request was taken and before ``verify_request()``, so that a refusal costs a
look and a close. A refused request is the outcome ``rejected``, with the reason as a label. Where neither
setting is set, nothing of this is on the way of a request.

**max_queue_wait.** A pool that gets more requests than it can serve has a queue that only grows. The
clients at its head have waited longest, and leave before they are answered; the pool then works for
nobody at full load. So a request that has waited for longer in the kernel's queue is refused at once, and the
worker takes the next one. Those that are served were young enough.

**max_per_client.** Each slot has a word with the address that its worker serves. A worker writes the word
first and then counts the slots with this address that have a request in hand. Of several workers that
do so at the same moment, each sees at least those that have written before it. So never more than the limit
are admitted; at such a moment one more than needed may be refused. There is no lock that a killed
worker could leave behind: the master clears the word REQUEST_NS of a slot whose worker has ended.
"""

from __future__ import annotations

import functools
import ipaddress
import logging
from collections.abc import Callable
from typing import Any, Final

from prefork.workers import log
from prefork.workers.listener import Kind
from prefork.workers.scoreboard import SLOT_WORDS, Scoreboard, SlotField
from prefork.workers.slot_writer import REQUEST_NS, SlotWriter
from prefork.workers.states import Rejection
from prefork.workers.waits import QueueWaits
from prefork.workers.worker.accounting import EDGE, count_rejection, has_edge
from prefork.workers.worker.clients import client_name
from prefork.workers.worker.limited_lines import LimitedLines
from prefork.workers.worker.source import Process, Source, Verify

_CLIENT: Final = int(SlotField.CLIENT)

_IPV4: Final = 0xFFFF << 32
"""What stands in front of an IPv4 address; no network of IPv6 has this prefix."""


_LOOPBACK: Final = 1
"""The number of the network of ``::1``, which would be 0. The network with this prefix does not exist."""


@functools.lru_cache(maxsize=1024)
def client_number(host: str) -> int:
    """Return a number for a client: its IPv4 address, or the /64 network of its IPv6 address; 0 for neither."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return 0
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            number = int(address) >> 64 or _LOOPBACK
            return number - 2**64 if number >= 2**63 else number
        address = address.ipv4_mapped
    return _IPV4 | int(address)


def _close(_request: Any, _address: Any) -> None:
    """Answer nothing; the request is closed afterwards."""


def admits(address: Any) -> bool:
    """Return whether the client of the request in hand may hold this worker; True outside of a worker.

    Called by the edge, which knows who the client is where a proxy speaks for it.
    """
    return not _of_this_process or _of_this_process[-1].admits(address)


class Admission:
    """What one worker refuses. lines: about refusals.

    most_wait: nanoseconds; None for no limit. most_workers: of one client; None for no limit.
    """

    def __init__(
        self,
        writer: SlotWriter,
        board: Scoreboard,
        *,
        most_wait: int | None,
        most_workers: int | None,
    ) -> None:
        self.lines = LimitedLines()
        self._writer = writer
        self._most_wait = most_wait
        self._most_workers = most_workers
        self._clients = board.words[board.slot_at(0) + _CLIENT :: SLOT_WORDS]
        self._requests = board.words[board.slot_at(0) + REQUEST_NS :: SLOT_WORDS]

    def begin(self, subject: str) -> None:
        """Note who this worker is."""
        self.lines.subject = subject
        _of_this_process.append(self)

    def verify_for(self, source: Source) -> Verify | None:
        """Return what verifies the requests of a source: its own ``verify``, behind what is refused here."""
        verify = source.verify
        if source.listener.kind is Kind.POLLED:
            return verify  # what was taken would be lost
        if self._most_workers is not None and not has_edge(source.server):
            verify = self._within_limit(verify, self._most_workers)
        if self._most_wait is not None and source.waits is not None:
            verify = self._young_enough(source.server, source.waits, verify, self._most_wait)
        return verify

    def process_for(self, process: Process) -> Process:
        """Return ``process``, after which the client is not counted any more."""
        if self._most_workers is None:
            return process
        writer = self._writer

        def process_and_release(request: Any, address: Any) -> None:
            try:
                process(request, address)
            finally:
                writer.words[_CLIENT] = 0

        return process_and_release

    def _young_enough(
        self, server: Any, waits: QueueWaits, verify: Verify | None, most: int
    ) -> Verify:
        # Before a handshake of TLS, nothing that is written would be an answer.
        is_plain = not getattr(vars(server).get(EDGE), "certificates", ())
        shed = server.shed_request if is_plain else _close

        def young_enough(request: Any, address: Any) -> bool:
            waited = waits.last
            if waited is None or waited <= most:
                return verify is None or verify(request, address)
            self._refuse(shed, request, address, Rejection.QUEUE_WAIT)
            self._note("request shed", Rejection.QUEUE_WAIT, address, waited=waited / 1e9)
            return False

        return young_enough

    def _within_limit(self, verify: Verify | None, most: int) -> Verify:
        def within_limit(request: Any, address: Any) -> bool:
            if self.admits(address):
                return verify is None or verify(request, address)
            count_rejection(self._writer, Rejection.PER_CLIENT)
            self._note("client refused", Rejection.PER_CLIENT, address, workers=most)
            return False

        return within_limit

    def admits(self, address: Any) -> bool:
        """Return whether a client may hold this worker, too, and have it do so from now on if it may."""
        number = client_number(address[0]) if isinstance(address, tuple) and address else 0
        most = self._most_workers
        if not number or most is None:
            return True
        words = self._writer.words
        words[_CLIENT] = number
        if self._clients.tolist().count(number) <= most or self._held(number) <= most:
            return True
        words[_CLIENT] = 0
        return False

    def _held(self, number: int) -> int:
        """Return how many workers serve this client. A worker that is idle, or has died, serves none."""
        pairs = zip(self._clients.tolist(), self._requests.tolist(), strict=True)
        return sum(client == number and request != 0 for client, request in pairs)

    def _refuse(
        self, answer: Callable[[Any, Any], None], request: Any, address: Any, reason: Rejection
    ) -> None:
        count_rejection(self._writer, reason)
        try:
            answer(request, address)
        except Exception as error:  # noqa: BLE001 - costs this request, not the worker
            log.failure(logging.ERROR, self.lines.subject, "shed_request() raised", error)

    def _note(self, what: str, reason: Rejection, address: Any, **facts: Any) -> None:
        client = client_name(address) or "-"
        self.lines.write(reason, what, reason=reason, client=client, **facts)


_of_this_process: Final[list[Admission]] = []
"""What this process is: the last one counts. A worker that serves a pool of its own forks others."""
