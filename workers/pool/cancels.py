"""Asking workers to end their requests: the hands of ``cancelling.py`` (master)."""

from __future__ import annotations

import logging
import time

from prefork.workers import log
from prefork.workers.cancel import FLAGS, CancelReason, word_of
from prefork.workers.identity import CANCEL_NUMBER
from prefork.workers.named_requests import is_named
from prefork.workers.pool.handle import Handle
from prefork.workers.pool.table import Table
from prefork.workers.pool.views import Cancel
from prefork.workers.scoreboard import Scoreboard, SlotField
from prefork.workers.system import System


class Cancels:
    """The requests of one pool that are asked to end. now: on the master's clock."""

    def __init__(self, table: Table, board: Scoreboard, system: System) -> None:
        self._table = table
        self._board = board
        self._system = system

    def note_named(self, now: float) -> None:
        """Note the requests that commands have named (``prefork cancel``); each command has sent a signal.

        Each slot is read anew: a request may have begun, and been named, since the previous tick.
        """
        now_ns = time.monotonic_ns()
        for handle in self._table:
            handle.look(self._board, now, now_ns)
            if handle.request_ns > 0 and is_named(self._board.fd, handle.request_ns):
                handle.asked.is_unwanted = True

    def measure(self, handle: Handle) -> None:
        """Read the CPU time of a worker that has a request."""
        asked = handle.asked
        if not handle.request_ns:
            return
        used = self._system.cpu_seconds(handle.child)
        if asked.cpu_before is None:
            # What the request used before this first look is not counted against it.
            asked.cpu_before = used
        if used is not None and asked.cpu_before is not None:
            asked.cpu_used = used - asked.cpu_before

    def ask(self, cancel: Cancel, now: float) -> None:
        """Ask a worker: write the word, then send the signal."""
        handle = self._table[cancel.slot]
        asked = handle.asked
        for reason in (one for one, flag in FLAGS.items() if cancel.flags & flag):
            self._log(handle, reason, now)
        asked.note(cancel.flags, now)
        flags = asked.flags
        if cancel.look:
            asked.client_looked_at = now
            flags |= FLAGS[CancelReason.CLIENT_GONE]
        # The word first: the signal has the worker read it.
        at = self._board.slot_at(handle.slot) + SlotField.CANCEL
        self._board.words[at] = word_of(handle.request_ns, flags)
        self._system.send(handle.child, CANCEL_NUMBER)

    def _log(self, handle: Handle, reason: CancelReason, now: float) -> None:
        age = now - handle.busy_since if handle.busy_since is not None else 0.0
        what = "is asked to end its request"
        log.event(logging.WARNING, str(handle), what, reason=reason, request_age=age)
