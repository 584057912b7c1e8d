"""The messages of ONC RPC version 2 (RFC 5531): reading calls, and writing replies (pure).

A call is: xid, CALL, 2, program, version, procedure, credentials, verifier, arguments. Credentials and
verifier have a flavor and at most 400 bytes each.

Three things can be wrong with a message, and each has a different answer:

- The message is not a call: it is too short, or a reply. Such a message is never answered (``NoCall``),
  because two servers would otherwise answer each other without end.
- The call is for another version of RPC, or its credentials are not accepted. The reply is *denied*.
- The program, the version, the procedure or the arguments are not there. The reply is *accepted*, and
  says so.
"""

from __future__ import annotations

import enum
import functools
import struct
from typing import Annotated, Final

import msgspec

from prefork.rpc import xdr

RPC_VERSION: Final = 2

MOST_OPAQUE: Final = 400
"""The most bytes of credentials, and of a verifier."""

CALL: Final = 0
REPLY: Final = 1


class Flavor(enum.IntEnum):
    """How a client says who it is."""

    NONE = 0
    SYS = 1
    SHORT = 2
    GSS = 6


class AcceptStatus(enum.IntEnum):
    """How an accepted call has ended."""

    SUCCESS = 0
    PROG_UNAVAIL = 1
    PROG_MISMATCH = 2
    PROC_UNAVAIL = 3
    GARBAGE_ARGS = 4
    SYSTEM_ERR = 5


class RejectStatus(enum.IntEnum):
    """Why a call was denied."""

    RPC_MISMATCH = 0
    AUTH_ERROR = 1


class AuthStatus(enum.IntEnum):
    """Why the credentials of a call were not accepted."""

    BADCRED = 1
    REJECTEDCRED = 2
    BADVERF = 3
    REJECTEDVERF = 4
    TOOWEAK = 5
    FAILED = 7


class AuthSys(msgspec.Struct, frozen=True):
    """The credentials of AUTH_SYS: who the client says it is. Nothing proves them.

    stamp: any number. machine: the name of the client's host. uid, gid, gids: of the calling user.
    """

    stamp: xdr.uint32
    machine: Annotated[str, xdr.Length(255)]
    uid: xdr.uint32
    gid: xdr.uint32
    gids: Annotated[tuple[xdr.uint32, ...], xdr.Length(16)] = ()


class Call(msgspec.Struct, frozen=True, gc=False):
    """The head of a call. begin: the offset of the arguments. flavor: of the credentials.

    credentials: those of AUTH_SYS, None for AUTH_NONE.
    """

    xid: int
    program: int
    version: int
    procedure: int
    begin: int
    flavor: int = 0
    credentials: AuthSys | None = None


class NoCall(Exception):  # noqa: N818 - no error of the program
    """A message is not answered, because it is not a call. The text says why."""


class Declined(Exception):  # noqa: N818 - no error of the program
    """A call is answered without being executed. reply: what the client gets. The text says why."""

    def __init__(self, reply: bytes, why: str) -> None:
        super().__init__(why)
        self.reply = reply


_PLAIN_HEAD: Final = struct.Struct(">10I")
_HEAD: Final = struct.Struct(">8I")
_PAIR: Final = struct.Struct(">2I")
_SYS: Final = xdr.codec_of(AuthSys)

_ACCEPTED: Final = struct.Struct(">6I")
_MISMATCH: Final = struct.Struct(">8I")
_DENIED: Final = struct.Struct(">4I")
_DENIED_AUTH: Final = struct.Struct(">5I")
_DENIED_VERSION: Final = struct.Struct(">6I")

HEAD_BYTES: Final = _ACCEPTED.size
"""Bytes of an accepted reply before its result."""

_plain_head = _PLAIN_HEAD.unpack_from
_accepted = _ACCEPTED.pack


def read_call(data: bytes) -> Call:
    """Return the head of a call. NoCall: the message is not a call. Declined: the call is not accepted."""
    if len(data) >= _PLAIN_HEAD.size:
        # The usual call: AUTH_NONE, and a verifier that is empty. One call of struct reads all of it.
        xid, kind, rpc, program, version, procedure, flavor, size, _, verifier = _plain_head(data)
        if not (kind or flavor or size or verifier) and rpc == RPC_VERSION:
            return Call(xid, program, version, procedure, _PLAIN_HEAD.size)
    return _read_any_call(data)


def _read_any_call(data: bytes) -> Call:
    if len(data) < 12:
        raise NoCall(f"{len(data)} bytes")
    xid, kind, version = struct.unpack_from(">3I", data)
    if kind != CALL:
        raise NoCall("a reply" if kind == REPLY else f"a message of type {kind}")
    if version != RPC_VERSION:
        reply = _DENIED_VERSION.pack(
            *(xid, REPLY, 1, RejectStatus.RPC_MISMATCH, RPC_VERSION, RPC_VERSION)
        )
        raise Declined(reply, f"version {version} of RPC")
    if len(data) < _HEAD.size:
        raise NoCall("a call that ends within its head")
    _, _, _, program, number, procedure, flavor, size = _HEAD.unpack_from(data)
    end = _end_of_opaque(data, _HEAD.size, size, xid, AuthStatus.BADCRED)
    if end + _PAIR.size > len(data):
        raise NoCall("a call that ends within its head")
    _, verifier = _PAIR.unpack_from(data, end)
    begin = _end_of_opaque(data, end + _PAIR.size, verifier, xid, AuthStatus.BADVERF)
    credentials = _credentials(data[_HEAD.size : _HEAD.size + size], flavor, xid)
    return Call(xid, program, number, procedure, begin, flavor, credentials)


def _end_of_opaque(data: bytes, at: int, size: int, xid: int, status: AuthStatus) -> int:
    """Return the offset behind credentials or a verifier. status: for those that are too long."""
    if size > MOST_OPAQUE:
        raise Declined(auth_error(xid, status), f"{size} bytes of authentication")
    end = at + size + (-size & 3)
    if end > len(data):
        raise NoCall("a call that ends within its head")
    return end


def _credentials(data: bytes, flavor: int, xid: int) -> AuthSys | None:
    if flavor == Flavor.NONE:
        return None
    if flavor != Flavor.SYS:
        raise Declined(auth_error(xid, AuthStatus.REJECTEDCRED), f"authentication flavor {flavor}")
    try:
        return _user(data)
    except xdr.XDRError as error:
        raise Declined(auth_error(xid, AuthStatus.BADCRED), f"AUTH_SYS: {error}") from None


@functools.lru_cache(maxsize=256)  # a client sends the same ones with each of its calls
def _user(data: bytes) -> AuthSys:
    """Return the credentials of AUTH_SYS. XDRError: the bytes are not such credentials."""
    credentials, end = _SYS.read(data, 0)
    if end != len(data):
        raise xdr.XDRError(f"{len(data) - end} bytes follow")
    found: AuthSys = credentials
    return found


def accepted(xid: int, status: int = 0) -> bytes:
    """Return an accepted reply: for SUCCESS without the result, which follows; else whole."""
    return _accepted(xid, REPLY, 0, 0, 0, status)


def mismatch(xid: int, lowest: int, highest: int) -> bytes:
    """Return the reply for a version of a program that is not there, with those that are."""
    return _MISMATCH.pack(xid, REPLY, 0, 0, 0, AcceptStatus.PROG_MISMATCH, lowest, highest)


def auth_error(xid: int, status: AuthStatus) -> bytes:
    """Return the reply that denies a call because of its credentials."""
    return _DENIED_AUTH.pack(xid, REPLY, 1, RejectStatus.AUTH_ERROR, status)


# --- the client's side, which the registration with rpcbind needs


def call(xid: int, program: int, version: int, procedure: int, arguments: bytes = b"") -> bytes:
    """Return a call with AUTH_NONE."""
    head = (xid, CALL, RPC_VERSION, program, version, procedure, 0, 0, 0, 0)
    return _PLAIN_HEAD.pack(*head) + arguments


def read_reply(data: bytes) -> tuple[int, int, bytes]:
    """Return xid, status and result of an accepted reply. XDRError: the message is not such a reply."""
    try:
        xid, kind, denied, _, size = struct.unpack_from(">5I", data)
        if (kind, denied) != (REPLY, 0):
            raise xdr.XDRError("no accepted reply")
        at = 20 + size + (-size & 3)
        (status,) = struct.unpack_from(">I", data, at)
    except struct.error:
        raise xdr.XDRError("the message ends within its head") from None
    return xid, status, data[at + 4 :]
