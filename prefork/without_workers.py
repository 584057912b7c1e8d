"""Serving without workers (``workers = 0``): the standard library's loop, in the program's own process.

This is for debuggers. There is no pool, so nothing ends a request that takes too long, and nothing
answers at the addresses for metrics.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

from prefork.host.addresses import Address
from prefork.host.endpoint import ENDPOINTS
from prefork.master.announcements import Announcements
from prefork.runs import Served, announcements_of
from prefork.workers import log
from prefork.workers.cancel import cancelled_in
from prefork.workers.errors import SettingsError
from prefork.workers.polled import descriptor_of
from prefork.workers.settings import Settings
from prefork.workers.worker.accounting import has_edge
from prefork.workers.worker.cancelling import answer


def serve_without_workers(
    all_served: Sequence[Served], settings: Settings, poll_interval: float | None
) -> None:
    """Serve in this process, with the standard library's loop (``workers = 0``)."""
    if len(all_served) > 1:
        raise SettingsError(
            "workers", 0, "settings", "0 serves a single server; give it one, or some workers"
        )
    only = all_served[0]
    if descriptor_of(only.server) is None:
        allowed = "0 serves in the standard library's loop, which waits for a descriptor, and fileno() of this server gives none; use 1"
        raise SettingsError("workers", 0, "settings", allowed)
    try:
        if only.run.begin_without_workers():
            subject, where = f"master pid={os.getpid()}", _where(only.server)
            log.event(logging.INFO, subject, "serves without workers", listeners=where)
            unanswered = {
                key: wanted for key in ENDPOINTS if (wanted := getattr(settings, key)) is not None
            }
            if unanswered:
                log.event(
                    logging.WARNING,
                    subject,
                    "without workers nothing answers at these addresses",
                    **unanswered,
                )
            with _announced(announcements_of(all_served)), _cancellable(only.server, subject):
                only.behind.serve_forever(0.5 if poll_interval is None else poll_interval)
    finally:
        only.run.without_workers = False


@contextlib.contextmanager
def _announced(announcements: Announcements) -> Iterator[None]:
    """Have servers known while they are served without a master."""
    try:
        announcements.begin_without_workers()
        yield
    finally:
        announcements.end()


@contextlib.contextmanager
def _cancellable(server: Any, subject: str) -> Iterator[None]:
    """Have a handler that raises RequestCancelled end its request only. subject: for the log.

    The standard library's loop ends with what is no Exception. Behind an edge the request here is the socket
    below the encryption, so its client gets no answer.
    """
    own, finish = vars(server).get("finish_request"), server.finish_request

    def finish_request(request: Any, address: Any) -> None:
        try:
            finish(request, address)
        except BaseException as error:
            if (cancelled := cancelled_in(error)) is None:
                raise
            if not has_edge(server):
                answer(subject, server, request, address, cancelled.reason)

    server.finish_request = finish_request
    try:
        yield
    finally:
        del server.finish_request
        if own is not None:
            server.finish_request = own


def _where(server: Any) -> str:
    """Return the address of a server; the name of its class where its socket does not say one."""
    with contextlib.suppress(Exception):  # a class of the program may have anything there
        return str(Address.of_socket(server.socket))
    return type(server).__name__
