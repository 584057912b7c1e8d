"""Ending a request before its worker is killed: reasons, exceptions, and the word that names a request (pure).

The master asks a worker to end the request in hand by one word in the worker's slot and one signal. The
word has the number of the request and the reasons. The number of a request is the instant of its beginning,
in monotonic nanoseconds, which is what REQUEST_NS of the slot says while the request is in hand. Two
requests of one worker never have the same number, because the worker reads the clock between them.

One word, and not two: a reader then never meets the number of one request with the reasons of another.
"""

from __future__ import annotations

import enum
from typing import Final


class CancelReason(enum.StrEnum):
    """Why a request was asked to end: the same word in the log, the metrics and the hook.

    The scoreboard counts by position, so a new reason goes to the end.
    """

    SOFT_TIMEOUT = "soft_timeout"
    """The request took longer than ``soft_timeout``."""
    CPU_TIMEOUT = "cpu_timeout"
    """The worker has used ``cpu_timeout`` seconds of CPU time for it."""
    CLIENT_GONE = "client_gone"
    """The client of the request has gone (``check_client``)."""
    COMMAND = "command"
    """``prefork cancel`` has asked for it."""
    HANDLER = "handler"
    """The handler has raised RequestCancelled itself."""
    URGENT = "urgent"
    """The client has sent urgent data."""


_REASONS = tuple(CancelReason)


class RequestCancelled(BaseException):
    """The request in hand is to end. Raised in the handler, between two bytecodes of the main thread.

    The class is no Exception, so that a broad ``except Exception`` of a handler does not swallow it. A
    handler may catch it to tidy up, and should raise it again. A handler may also raise it. In both cases
    the worker calls ``request_cancelled()`` of the server and closes the connection, and the request
    counts as ``cancelled``.

    reason: a CancelReason, which is a string. place: where the handler was when it was asked to end, such
    as "views.py:12 in handle"; "" where the handler has raised the exception itself.
    """

    reason: CancelReason = CancelReason.HANDLER
    place: str = ""


class RequestTimeout(RequestCancelled):
    """The request has taken longer than ``soft_timeout``."""

    reason = CancelReason.SOFT_TIMEOUT


class CPUTimeExceeded(RequestCancelled):
    """The worker has used more than ``cpu_timeout`` of CPU time for the request in hand."""

    reason = CancelReason.CPU_TIMEOUT


class ClientGone(RequestCancelled):
    """The client of the request has gone, so nothing would read the answer (``check_client``)."""

    reason = CancelReason.CLIENT_GONE


_KINDS: Final[dict[CancelReason, type[RequestCancelled]]] = {
    kind.reason: kind for kind in (RequestTimeout, CPUTimeExceeded, ClientGone)
}


def exception_for(reason: CancelReason, place: str) -> RequestCancelled:
    """Return what is raised in a handler that was at this place."""
    error = _KINDS.get(reason, RequestCancelled)(reason.value)
    error.reason, error.place = reason, place
    return error


def cancelled_in(error: BaseException) -> RequestCancelled | None:
    """Return the RequestCancelled that an exception is, or that a group of exceptions consists of.

    A task group of ``asyncio`` puts what a task raises into a group. A group with an exception of another
    kind is not the end of a request that was asked for.
    """
    if isinstance(error, RequestCancelled):
        return error
    if not isinstance(error, BaseExceptionGroup):
        return None
    found = [cancelled_in(one) for one in error.exceptions]
    return found[0] if all(found) else None


# --- the word

ASKABLE: Final = (
    CancelReason.SOFT_TIMEOUT,
    CancelReason.CPU_TIMEOUT,
    CancelReason.CLIENT_GONE,
    CancelReason.COMMAND,
)
"""The reasons for which the master asks. CLIENT_GONE means: look whether the client is there."""

FLAGS: Final = {reason: 1 << index for index, reason in enumerate(ASKABLE)}
"""The bit of each of these reasons in the word."""

_BITS: Final = len(ASKABLE)
_MOST_NUMBER: Final = (1 << 63 - _BITS) - 1  # 18 years of uptime


def word_of(request: int, flags: int) -> int:
    """Return the word that asks this request to end.

    request: its number, which is taken within the range of the word: the master has it from the
    scoreboard, where anything may stand. flags: of the reasons.
    """
    return (request & _MOST_NUMBER) << _BITS | flags


def flags_in(word: int, request: int) -> int:
    """Return the flags of a word that is for this request; 0 for a word that is for another one."""
    if request <= 0 or word >> _BITS != request & _MOST_NUMBER:
        return 0
    return word & (1 << _BITS) - 1


def reason_at(index: int) -> CancelReason:
    """Return the reason that the scoreboard counts at this position."""
    return _REASONS[index]


def index_of_reason(reason: CancelReason) -> int:
    """Return the position at which the scoreboard counts this reason."""
    return _REASONS.index(reason)
