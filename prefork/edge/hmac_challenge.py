"""The challenge of ``multiprocessing.connection``: both sides prove that they have a key, and neither sends it.

The messages are those of ``multiprocessing.connection.Client(address, authkey=…)``:

    server: #CHALLENGE#{sha256}<40 random bytes>     client: {sha256}<HMAC of it>
    server: #WELCOME#, or #FAILURE# and the end
    client: #CHALLENGE#<random bytes>                server: <HMAC of it>
    client: #WELCOME#

Each message has its length in front, four bytes. A client of Python 3.11 and earlier knows no digest but
MD5: it answers with the bare HMAC, and sends bare challenges. HMAC-MD5 is not broken, although MD5 is.

The server answers a challenge only after the client has passed its own. Otherwise a stranger could have
the server solve the challenge of another connection.
"""

from __future__ import annotations

import contextlib
import hmac
import secrets
import struct
from collections.abc import Mapping
from typing import Any, Final

from prefork.workers.errors import AuthenticationError

CHALLENGE: Final = b"#CHALLENGE#"
WELCOME: Final = b"#WELCOME#"
FAILURE: Final = b"#FAILURE#"

MOST_BYTES: Final = 256
"""Bytes of the longest message, as in multiprocessing."""

DIGESTS: Final = ("sha256", "sha384", "md5")
"""The digests of multiprocessing, but for sha3."""

_LEAST_CHALLENGE: Final = 20
_BARE_ANSWER: Final = 16
_LENGTH: Final = struct.Struct("!i")


def authenticate(sock: Any, keys: Mapping[str, bytes]) -> str:
    """Have a client prove that it has one of the keys; return the name of that key (worker).

    Raises AuthenticationError where it has none, and OSError where it goes away.
    """
    challenge = b"{sha256}" + secrets.token_bytes(40)
    _send(sock, CHALLENGE + challenge)
    name = key_of(challenge, _receive(sock), keys)
    if name is None:
        with contextlib.suppress(OSError):  # a client that has left has failed as well
            _send(sock, FAILURE)
        raise AuthenticationError("the client does not have the key")
    _send(sock, WELCOME)
    theirs = _receive(sock)
    if not theirs.startswith(CHALLENGE):
        raise AuthenticationError("the client has sent no challenge")
    _send(sock, answer_to(theirs.removeprefix(CHALLENGE), keys[name]))
    if _receive(sock) != WELCOME:
        raise AuthenticationError("the client did not accept the answer")
    return name


def key_of(challenge: bytes, answer: bytes, keys: Mapping[str, bytes]) -> str | None:
    """Return the name of the key with which a challenge was answered; None where it was none of them.

    The time depends neither on which key it is nor on how much of the answer is right.
    """
    digest, proof = _digest_and_rest(answer, bare=_BARE_ANSWER)
    found = None
    for name, key in keys.items():
        if hmac.compare_digest(hmac.digest(key, challenge, digest or "md5"), proof):
            found = name
    return found if digest is not None else None


def answer_to(challenge: bytes, key: bytes) -> bytes:
    """Return the answer to a challenge. Raises AuthenticationError for one that is too short or unknown."""
    if len(challenge) < _LEAST_CHALLENGE:
        raise AuthenticationError("the challenge is too short")
    digest, _ = _digest_and_rest(challenge, bare=_LEAST_CHALLENGE)
    if digest is None:
        raise AuthenticationError("the challenge has an unknown digest")
    if not digest:
        return hmac.digest(key, challenge, "md5")
    return b"{%s}" % digest.encode() + hmac.digest(key, challenge, digest)


def _digest_and_rest(message: bytes, *, bare: int) -> tuple[str | None, bytes]:
    """Return the digest that a message names and what follows; "" for a bare message, None for an unknown one."""
    if len(message) == bare:
        return "", message
    name, brace, rest = message[1:].partition(b"}")
    for digest in DIGESTS:
        if brace and message[:1] == b"{" and name == digest.encode():
            return digest, rest
    return None, message


def _send(sock: Any, message: bytes) -> None:
    sock.sendall(_LENGTH.pack(len(message)) + message)


def _receive(sock: Any) -> bytes:
    (length,) = _LENGTH.unpack(_exactly(sock, _LENGTH.size))
    if not 0 < length <= MOST_BYTES:
        raise AuthenticationError("a message of a wrong length")
    return _exactly(sock, length)


def _exactly(sock: Any, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        if not part:
            raise ConnectionError("the client has closed the connection")
        data += part
    return data
