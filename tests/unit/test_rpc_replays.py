"""The memory of calls: a call that comes again is recognized, in any process, within its bounds."""

from __future__ import annotations

import os
import signal
import struct
from fcntl import lockf
from typing import TYPE_CHECKING

import pytest

from prefork.rpc.replay import TRY, WAYS, WINDOW_NS, NoPlaceError, Replays, way_of

if TYPE_CHECKING:
    from collections.abc import Iterator

CLIENT = ("127.0.0.1", 4711)


@pytest.fixture(name="replays")
def _replays() -> Iterator[Replays]:
    """Yield a memory of a single set."""
    made = Replays(1, 16)
    yield made
    made.close()


def serve(replays: Replays, call: bytes, reply: bytes = b"reply", now: int = 1) -> None:
    """Execute a call."""
    claim = replays.claim(call, CLIENT, now)
    assert claim is not None
    assert claim.reply is None
    claim.keep(reply, now)
    claim.release()


def known(
    replays: Replays, call: bytes, client: object = CLIENT, now: int | None = 1
) -> bytes | None:
    """Return the reply of a call that was seen before, None for a call that was not."""
    claim = replays.claim(call, client, now)
    assert claim is not None
    claim.release()
    return claim.reply


def test_call_that_comes_again(replays: Replays) -> None:
    """The same bytes of the same client are known with their reply; those of another client are not."""
    serve(replays, b"call")

    assert known(replays, b"call") == b"reply"
    assert known(replays, b"call", ("127.0.0.1", 4712)) is None
    assert known(replays, b"calm") is None


def test_call_that_is_being_executed(replays: Replays) -> None:
    """A call that is being executed is not executed by another thread meanwhile, nor answered."""
    claim = replays.claim(b"call", CLIENT)
    assert claim is not None
    assert replays.claim(b"call", CLIENT) is None
    claim.keep(b"reply")
    claim.release()
    assert known(replays, b"call", now=None) == b"reply"


@pytest.mark.processes
def test_other_process_knows_the_call(replays: Replays) -> None:
    """Another process finds the call being executed, and then its reply; one that dies has begun and not answered."""

    def in_child(what: str) -> bool:
        pid = os.fork()
        if pid == 0:
            replays._executing.clear()  # a worker is forked before any call is executed
            claim = replays.claim(b"call" if what != "begin" else b"other", CLIENT)
            held, found = claim is None, claim is not None and claim.reply == b"reply"
            os._exit({"is held": held, "is known": found, "begin": True}[what] is False)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    claim = replays.claim(b"call", CLIENT)
    assert claim is not None
    assert in_child("is held")
    claim.keep(b"reply")
    claim.release()
    assert in_child("is known")
    assert in_child("begin")
    began = replays.claim(b"other", CLIENT)
    assert began is not None
    assert began.reply == b""
    began.release()


def test_oldest_call_makes_room(replays: Replays) -> None:
    """A set remembers its last calls: the oldest one that is not being executed makes room."""
    held = replays.claim(b"held", CLIENT, 1)
    assert held is not None
    for number in range(WAYS):
        serve(replays, b"call %d" % number, now=2 + number)
    assert known(replays, b"call 7", now=20) == b"reply"
    assert replays.claim(b"held", CLIENT, 20) is None
    assert known(replays, b"call 0", now=20) is None
    held.release()


def test_set_that_is_busy(replays: Replays) -> None:
    """Where every place of a set is in use, a further call is not executed, and the error names the remedy."""
    claims = [replays.claim(b"%d" % number, CLIENT) for number in range(WAYS)]
    assert None not in claims
    with pytest.raises(NoPlaceError, match=r"all 8 are of calls .*; raise limit_replays \(1\)"):
        replays.claim(b"more", CLIENT)
    for claim in claims:
        assert claim is not None
        claim.release()
    assert known(replays, b"more", now=None) is None


@pytest.mark.processes
def test_set_that_another_worker_has(replays: Replays) -> None:
    """A worker that was stopped while it looked at a set keeps no other one waiting: the call has no place for now."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            lockf(replays._fd, TRY, 1, 0)
            os.write(theirs, b"x")
            signal.pause()
        finally:
            os._exit(1)
    os.close(theirs)
    try:
        assert os.read(ours, 1) == b"x"
        with pytest.raises(
            NoPlaceError, match="another worker is looking there; raise limit_replays"
        ):
            replays.claim(b"call", CLIENT)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ours)
    assert known(replays, b"call") is None


def test_call_is_forgotten(replays: Replays) -> None:
    """After a minute the same call is a new one, in the same place."""
    serve(replays, b"call", now=1)
    assert known(replays, b"call", now=WINDOW_NS) == b"reply"
    serve(replays, b"call", b"again", now=1 + WINDOW_NS)
    assert known(replays, b"call", now=2 + WINDOW_NS) == b"again"


def test_call_that_takes_long_is_known_from_its_end(replays: Replays) -> None:
    """The minute counts from the reply: a client that has lost it can ask for it again."""
    claim = replays.claim(b"call", CLIENT, 1)
    assert claim is not None
    claim.keep(b"reply", 2 * WINDOW_NS)
    claim.release()
    assert known(replays, b"call", now=3 * WINDOW_NS - 1) == b"reply"


def test_reply_without_room(replays: Replays) -> None:
    """A reply that is too long is not kept, but the call is known all the same."""
    serve(replays, b"call", b"x" * 17)
    assert known(replays, b"call") == b""
    serve(replays, b"other", b"x" * 16)
    assert known(replays, b"other") == b"x" * 16


def test_length_that_cannot_be(replays: Replays) -> None:
    """A length that another worker has made up leads out of no reply."""
    serve(replays, b"call")
    at = replays._memory.find(struct.pack("=QI", 1, len(b"reply"))) + 8
    replays._memory[at : at + 4] = b"\xff\xff\xff\x7f"
    assert known(replays, b"call") == b""


def test_digest_across_two_places() -> None:
    """A digest is found where a place begins, and not where the ends of two places look like it."""
    digest = bytes(range(16))
    other = bytes(32)
    assert way_of(bytes(24) + digest + bytes(24), digest) is None
    assert way_of(other + digest + bytes(16), digest) == 1
    assert way_of(bytes(8) + digest + bytes(8) + other + digest + bytes(16), digest) == 2
