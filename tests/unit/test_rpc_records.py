"""Records on a stream: any cut of the bytes gives the same messages, and none exceeds its bounds."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.rpc.record import LAST, MOST_FRAGMENTS, Record, RecordError, Records, marked


def fragments(*parts: bytes) -> bytes:
    """Return a record of these fragments."""
    marks = [len(part) for part in parts[:-1]] + [len(parts[-1]) | LAST]
    return b"".join(mark.to_bytes(4, "big") + part for mark, part in zip(marks, parts, strict=True))


@given(st.lists(st.binary(max_size=9), min_size=1), st.binary(max_size=9), st.integers(1, 7))
def test_any_cut_gives_the_same_message(parts: list[bytes], behind: bytes, step: int) -> None:
    """A record is complete with its last byte, wherever its bytes and its fragments are cut."""
    data = fragments(*parts)
    record = Record(most=10_000)
    cut = [data[at : at + step] for at in range(0, len(data), step)]
    for piece in cut[:-1]:
        assert record.feed(piece) is None
    assert record.feed(cut[-1] + behind) == behind
    assert record.message == b"".join(parts)


def test_bounds() -> None:
    """A record is refused by what it announces, and empty fragments have a number."""
    with pytest.raises(RecordError, match="a record of 11 bytes or more, at most 10"):
        Record(10).feed((11).to_bytes(4, "big"))
    with pytest.raises(RecordError, match="a record of 11 bytes or more, at most 10"):
        Record(10).feed(fragments(b"123456", b"12345"))
    with pytest.raises(RecordError, match="fragments"):
        Record(10).feed(bytes(4) * (MOST_FRAGMENTS + 1))
    assert Record(10).feed(fragments(*[b""] * MOST_FRAGMENTS)) == b""


def test_messages_of_a_connection() -> None:
    """Messages that come together are read one by one, and the end of the stream is None."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        records = Records(theirs)
        ours.sendall(marked(b"one") + fragments(b"t", b"wo") + marked(b"three")[:5])
        assert records.read(100, 10) == b"one"
        assert records.read(100, 10) == b"two"
        ours.sendall(marked(b"three")[5:])
        assert records.read(100, 10) == b"three"
        assert records.ahead == b""
        ours.shutdown(socket.SHUT_WR)
        assert records.read(100, 10) is None


def test_client_that_reads_no_reply() -> None:
    """A reply has the time of a message to leave; one that is read in parts arrives whole."""
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(TimeoutError):
        Records(theirs).send(bytes(2**22), 0.1)
    ours, theirs = socket.socketpair()
    with ours, theirs, ThreadPoolExecutor(1) as reader:
        whole = reader.submit(lambda: sum(iter(lambda: len(ours.recv(2**16)), 0)))
        records = Records(theirs)
        records.send(bytes(2**22), 10)
        assert theirs.gettimeout() is None
        theirs.shutdown(socket.SHUT_WR)
        assert whole.result(10) == 2**22


def test_end_within_a_record() -> None:
    """A client that leaves within a record is an error of the connection, one that is slow a timeout."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(marked(b"one")[:5])
        with pytest.raises(TimeoutError):
            Records(theirs).read(100, 0)
        assert Records(theirs).read(100, 0) is None
        ours.sendall(b"\0")
        ours.shutdown(socket.SHUT_WR)
        with pytest.raises(ConnectionError, match="within a record"):
            Records(theirs).read(100, 10)


def test_long_message_of_one_fragment() -> None:
    """The shortcut for the usual record heeds the bound as well."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(marked(b"one"))
        with pytest.raises(RecordError, match="at most 2"):
            Records(theirs).read(2, 10)
