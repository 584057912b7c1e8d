"""Authentication: who a client is, asked before its handler runs (made by the master, used by the workers)."""

from __future__ import annotations

import mmap
import os
import threading
import weakref
from collections.abc import Callable
from time import monotonic
from typing import Any

from prefork.edge.access_step import credentials_of
from prefork.edge.edge import Step
from prefork.edge.failures import BYTES, Failures, client_key
from prefork.edge.passage import Passage, Refused, is_of_client
from prefork.workers.errors import AuthenticationError
from prefork.workers.states import Rejection


def authentication_step(
    server: Any, most_failures: int | None, clock: Callable[[], float] = monotonic
) -> Step:
    """Return the step that calls ``authenticate()`` of the server.

    most_failures: of one client within a minute, in all processes that are forked from this one; None for no
    bound. Then the client is refused without being asked, so that a guess costs it more than it costs the
    server.
    """
    ref = weakref.ref(server)  # the server has the edge, and the edge must not keep the server
    failures = None if most_failures is None else _shared_failures(most_failures)
    lock = threading.Lock()

    def authenticate(passage: Passage) -> None:
        client = _key_of(passage)
        with lock:
            if failures is not None and failures.is_too_many(client, clock()):
                raise Refused(Rejection.THROTTLED, "too many failures within a minute")
        try:
            identity = _answer(ref(), passage)
        except AuthenticationError as error:
            with lock:
                if failures is not None:
                    failures.note(client, clock())
            raise Refused(Rejection.AUTHENTICATION, str(error)) from None
        if identity is not None:
            if not isinstance(identity, str):
                raise TypeError(
                    f"authenticate() must return a str or None, not {type(identity).__name__}"
                )
            passage.identity = identity

    return authenticate


def _answer(server: Any, passage: Passage) -> Any:
    """Return what ``authenticate()`` of the server returns.

    RuntimeError: it has raised an OSError of the program, such as that of a file. The edge would take the
    OSError itself for one of the connection.
    """
    try:
        return server.authenticate(_as_asked(passage), passage.address())
    except OSError as error:
        if is_of_client(error):
            raise
        what = f"authenticate() raised {type(error).__name__}: {error}"
        raise RuntimeError(what) from error


def _as_asked(passage: Passage) -> Any:
    """Return the request as ``authenticate()`` gets it: a datagram is there already, and needs no deadline."""
    return passage.request if isinstance(passage.request, tuple) else passage.timed()


def _shared_failures(most: int) -> Failures:
    """Return failures in memory that this process shares with those that are forked from it."""
    return Failures(memoryview(mmap.mmap(-1, BYTES)).cast("q"), most, os.urandom(16))


def _key_of(passage: Passage) -> Any:
    if isinstance(passage.client, tuple):
        return client_key(passage.client, None)
    who = credentials_of(passage.request)
    return client_key(passage.client, None if who is None else who.uid)
