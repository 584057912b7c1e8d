"""Who counts as one client, and which workers count as held."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from prefork.workers.listener import Kind
from prefork.workers.scoreboard import Scoreboard, SlotField
from prefork.workers.slot_writer import REQUEST_NS, SlotWriter
from prefork.workers.states import Rejection
from prefork.workers.waits import QueueWaits
from prefork.workers.worker.admission import Admission, client_number

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("fe80::1%eth0", "fe80::2", True),
        ("::1", "::2", True),
        ("::1", "2001:db8::1", False),
    ],
)
def test_client_is_an_address_or_a_network(one: str, other: str, *, same: bool) -> None:
    """A client is an address of IPv4, however it is written, and a /64 network of IPv6."""
    assert (client_number(one) == client_number(other)) is same
    assert client_number(one) != 0


@given(some.ip_addresses())
def test_each_client_fits_into_a_word(address: object) -> None:
    """The number of every address is within the range of a word."""
    assert -(2**63) <= client_number(str(address)) < 2**63


@pytest.mark.parametrize("host", ["", "/run/socket", "no address", "\0abstract"])
def test_what_is_no_address_is_no_client(host: str) -> None:
    """A client without an internet address has no number, and no limit."""
    assert client_number(host) == 0


class Bench:
    """Three workers of a pool, of which the first one decides."""

    def __init__(self, **limits: Any) -> None:
        self.board = Scoreboard.create(3)
        self.writers = [SlotWriter(self.board, slot) for slot in range(3)]
        usual: dict[str, Any] = {"most_wait": None, "most_workers": None}
        self.admission = Admission(self.writers[0], self.board, **{**usual, **limits})
        self.verify: Any = None
        self.server = self.listener = self
        self.kind = Kind.STREAM
        self.waits = QueueWaits(self.writers[0])
        self.shed: list[Any] = []

    def shed_request(self, request: Any, client_address: Any) -> None:
        """Note it, and fail."""
        self.shed.append((request, client_address))
        raise RuntimeError("on purpose")

    def serve(self, slot: int, host: str, *, in_hand: bool = True) -> None:
        """Have another worker serve a client."""
        self.writers[slot].words[SlotField.CLIENT] = client_number(host)
        self.writers[slot].words[REQUEST_NS] = int(in_hand)

    def admits(self, host: str) -> bool:
        """Ask the first worker, which has the request in hand."""
        self.writers[0].words[REQUEST_NS] = 5
        verify = self.admission.verify_for(self)  # type: ignore[arg-type]
        assert verify is not None
        return verify("request", (host, 1))

    def rejections(self, reason: Rejection) -> int:
        """Return how often the first worker has rejected for this reason."""
        return self.board.word(0, SlotField.REJECTIONS + list(Rejection).index(reason))  # type: ignore[arg-type]

    def close(self) -> None:
        """Take everything down."""
        self.admission._clients.release()
        self.admission._requests.release()
        for writer in self.writers:
            writer.detach()
        self.board.close()


@pytest.fixture
def limited() -> Iterator[Bench]:
    """Give workers of which a client may hold two."""
    made = Bench(most_workers=2)
    yield made
    made.close()


def test_client_that_holds_its_workers_is_refused(limited: Bench) -> None:
    """A client with as many workers as it may hold is refused and counted; another client is admitted."""
    limited.serve(1, "192.0.2.1")
    assert limited.admits("192.0.2.1")
    limited.serve(2, "192.0.2.1")
    assert not limited.admits("192.0.2.1")
    assert limited.rejections(Rejection.PER_CLIENT) == 1
    assert limited.admits("192.0.2.2")
    assert limited.admits("/a/path")


def test_worker_without_a_request_holds_nothing(limited: Bench) -> None:
    """A worker that is idle, or that has died, does not count, whatever its slot still says."""
    limited.serve(1, "192.0.2.1")
    limited.serve(2, "192.0.2.1", in_hand=False)
    assert limited.admits("192.0.2.1")


def test_refused_request_holds_nothing(limited: Bench) -> None:
    """The slot of a worker that has refused a client, or has finished with it, names no client."""
    limited.serve(1, "192.0.2.1")
    limited.serve(2, "192.0.2.1")
    assert not limited.admits("192.0.2.1")
    assert limited.board.word(0, SlotField.CLIENT) == 0
    limited.serve(2, "192.0.2.1", in_hand=False)
    assert limited.admits("192.0.2.1")
    process = limited.admission.process_for(lambda *_: None)
    process("request", None)
    assert limited.board.word(0, SlotField.CLIENT) == 0


def test_age_of_a_request_decides() -> None:
    """A request that is too old is shed and counted, even where the hook fails; one that is not, or of unknown age, is verified."""
    bench = Bench(most_wait=100)
    for waited, admitted in ((100, True), (None, True), (101, False)):
        bench.waits.last = waited
        assert bench.admits("192.0.2.1") is admitted
    assert bench.shed == [("request", ("192.0.2.1", 1))]
    assert bench.rejections(Rejection.QUEUE_WAIT) == 1
    bench.verify = lambda *_: False
    bench.waits.last = 1
    assert not bench.admits("192.0.2.1")
    assert bench.rejections(Rejection.QUEUE_WAIT) == 1
    bench.close()


def test_request_that_is_no_connection_is_never_refused(limited: Bench) -> None:
    """What was taken from a server without a socket is handled, whatever address it says: refused, it would be lost."""
    limited.kind = Kind.POLLED
    assert limited.admission.verify_for(limited) is None  # type: ignore[arg-type]
