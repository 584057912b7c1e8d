"""The messages of RPC: each call is executed, answered by the status of the RFC, or no call at all."""

from __future__ import annotations

import contextlib
import struct
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.rpc import AcceptStatus, AuthStatus, AuthSys, Flavor, Program, Refusal, procedure, xdr
from prefork.rpc.dispatch import refusal_of, reply_with, task_of
from prefork.rpc.message import Declined, NoCall, call, read_call, read_reply
from prefork.rpc.program import Programs

NUMBER = 0x20000042


class First(Program):
    """Version 1."""

    number, version = NUMBER, 1

    @procedure(1)
    def add(self, a: xdr.int32, b: xdr.int32) -> xdr.int32:
        """Return the sum."""
        return a + b

    @procedure(2)
    def say(self, text: Annotated[str, xdr.Length(8)]) -> str:
        """Return a text."""
        return text


class Third(First):
    """Version 3, for users with a name."""

    version = 3
    flavors = (Flavor.SYS,)


PROGRAMS = Programs([First, Third])
SYS = AuthSys(1, "host", 1000, 100, (7, 8))
ADD = struct.pack(">2i", 2, 3)


def with_credentials(
    flavor: int, body: bytes, *, version: int = 1, arguments: bytes = ADD
) -> bytes:
    """Return a call of add() with these credentials."""
    head = struct.pack(">8I", 5, 0, 2, NUMBER, version, 1, flavor, len(body))
    return head + body + bytes(-len(body) % 4) + bytes(8) + arguments


def declined(data: bytes) -> tuple[int, ...]:
    """Return the words of the reply to a call that is not executed, after its xid."""
    with pytest.raises(Declined) as caught:
        task_of(data, PROGRAMS)
    words = struct.unpack(f">{len(caught.value.reply) // 4}I", caught.value.reply)
    assert words[:2] == (5, 1)
    return words[2:]


def test_call_is_executed() -> None:
    """A call leads to its procedure and arguments, and its result follows the head of the reply."""
    task = task_of(call(5, NUMBER, 1, 1, ADD), PROGRAMS)

    assert (task.program, task.procedure.name, list(task.arguments)) == (First, "add", [2, 3])
    assert read_reply(reply_with(task, 5)) == (5, AcceptStatus.SUCCESS, b"\0\0\0\5")
    assert task_of(call(5, NUMBER, 1, 0), PROGRAMS).procedure.name == "null"


def test_every_reply_of_the_rfc() -> None:
    """What cannot be executed is answered by the words that RFC 5531 has for it."""
    assert declined(call(5, 7, 1, 1)) == (0, 0, 0, AcceptStatus.PROG_UNAVAIL)
    assert declined(call(5, NUMBER, 2, 1)) == (0, 0, 0, AcceptStatus.PROG_MISMATCH, 1, 3)
    assert declined(call(5, NUMBER, 1, 9)) == (0, 0, 0, AcceptStatus.PROC_UNAVAIL)
    assert declined(call(5, NUMBER, 1, 1, ADD[:4])) == (0, 0, 0, AcceptStatus.GARBAGE_ARGS)
    assert declined(call(5, NUMBER, 1, 1, ADD + ADD)) == (0, 0, 0, AcceptStatus.GARBAGE_ARGS)
    assert declined(struct.pack(">10I", 5, 0, 3, *(0,) * 7)) == (1, 0, 2, 2)
    assert declined(with_credentials(6, b"ticket")) == (1, 1, AuthStatus.REJECTEDCRED)
    assert declined(with_credentials(1, b"abcd")) == (1, 1, AuthStatus.BADCRED)
    assert declined(with_credentials(0, bytes(404))) == (1, 1, AuthStatus.BADCRED)
    assert declined(call(5, NUMBER, 3, 1, ADD)) == (1, 1, AuthStatus.TOOWEAK)
    verifier = struct.pack(">10I", 5, 0, 2, NUMBER, 1, 1, 0, 0, 0, 401)
    assert declined(verifier) == (1, 1, AuthStatus.BADVERF)


def test_user_of_auth_sys() -> None:
    """The credentials of AUTH_SYS are read whole, and nothing may follow them."""
    body = xdr.encode(AuthSys, SYS)

    for version in (1, 3):
        task = task_of(with_credentials(1, body, version=version), PROGRAMS)
        assert (task.call.credentials, list(task.arguments)) == (SYS, [2, 3])
    assert declined(with_credentials(1, body + bytes(4))) == (1, 1, AuthStatus.BADCRED)
    too_many = body[:-12] + struct.pack(">I", 17) + bytes(17 * 4)
    assert declined(with_credentials(1, too_many)) == (1, 1, AuthStatus.BADCRED)


def test_credentials_of_none_may_have_a_body() -> None:
    """What stands in the credentials of AUTH_NONE is skipped."""
    task = task_of(with_credentials(0, b"abcde"), PROGRAMS)
    assert (task.call.credentials, list(task.arguments)) == (None, [2, 3])


@given(st.binary(max_size=39) | st.binary(max_size=40).map(lambda rest: b"\0\0\0\5\0\0\0\1" + rest))
def test_what_is_no_call_gets_no_reply(data: bytes) -> None:
    """Short messages and replies are not answered, but for a version of RPC that is not spoken."""
    try:
        read_call(data)
    except NoCall:
        return
    except Declined:
        assert struct.unpack_from(">I", data, 8) != (2,) or len(data) >= 32
        assert data[4:8] == bytes(4)
        return
    pytest.fail("a call of less than 40 bytes")


@given(st.binary(max_size=24), st.integers(0, 3), st.integers(0, 3), st.integers(0, 2))
def test_arguments_of_strangers(rest: bytes, version: int, number: int, flavor: int) -> None:
    """Whatever follows a head is executed, declined or no call, and raises nothing else."""
    head = struct.pack(">7I", 5, 0, 2, NUMBER, version, number, flavor)
    with contextlib.suppress(NoCall, Declined):
        task_of(head + bytes(12) * (not flavor) + rest, PROGRAMS)


def test_procedure_may_refuse() -> None:
    """A procedure answers by a status of its own, but neither by SUCCESS nor by a mismatch without versions."""
    task = task_of(call(5, NUMBER, 1, 1, ADD), PROGRAMS)

    for status in (AcceptStatus.GARBAGE_ARGS, AcceptStatus.PROC_UNAVAIL):
        assert read_reply(refusal_of(task, Refusal(status))) == (5, status, b"")
    reply = refusal_of(task, Refusal(AuthStatus.REJECTEDCRED))
    assert struct.unpack(">5I", reply) == (5, 1, 1, 1, AuthStatus.REJECTEDCRED)
    for wrong in (AcceptStatus.SUCCESS, AcceptStatus.PROG_MISMATCH, 4):
        with pytest.raises(TypeError, match="cannot refuse a call by"):
            Refusal(wrong)  # type: ignore[arg-type]


def test_result_of_another_type() -> None:
    """A result that the procedure has no type for is named, with the procedure."""
    task = task_of(call(5, NUMBER, 1, 1, ADD), PROGRAMS)
    with pytest.raises(xdr.XDRError, match=r"the result of First\.add\(\): 'five' is no int32"):
        reply_with(task, "five")


@pytest.mark.parametrize("size", [0, 8, 20, 27])
def test_replies_that_are_none(size: int) -> None:
    """A reply that is cut, denied or none at all is an XDRError for our own client."""
    whole = struct.pack(">7I", 5, 1, 0, 0, 4, 0, 0)
    with pytest.raises(xdr.XDRError):
        read_reply(whole[:size])
    with pytest.raises(xdr.XDRError, match="no accepted reply"):
        read_reply(struct.pack(">6I", 5, 1, 1, 1, 1, 0))
