"""The registration of one server with rpcbind, kept by the master.

The master talks to rpcbind on its Unix socket, because rpcbind takes changes from there alone and learns
from the kernel who asks. One *conversation* is: ask for all entries, compare, and ask for the changes.
It begins when the pool is ready, when it begins to stop, and whenever the connection has ended.

**How a restart is noticed.** The connection stays open after a conversation. It ends when rpcbind ends,
and also after half a minute of silence, because rpcbind closes idle connections. In both cases the next
conversation finds out what is missing. So entries are there again at once after a restart, and within a
minute after another program has deleted them.

**Why nothing is handed over at a reload.** What is to be unset are entries that lead to the socket of
this server and that the server does not have. The list of rpcbind says which ones these are, whichever program
has set them. So the new image of the master finds out what it needs, and the entries stay meanwhile.

Nothing here waits: the socket is non-blocking, a conversation has a bound, and after a failure there is
a pause, which grows. ``settle()`` waits, at the end of a pool.
"""

from __future__ import annotations

import logging
import os
import select
import socket
from collections.abc import Callable, Collection
from time import monotonic
from typing import Final, Literal

from prefork.rpc.record import Record, RecordError, marked
from prefork.rpc.rpcbind import (
    Changes,
    Entry,
    change_calls,
    changes,
    dump_call,
    entries_in,
    is_done,
)
from prefork.rpc.xdr import XDRError
from prefork.workers import forks, log
from prefork.workers.errors import PreforkError

Mode = Literal["off", "try", "require"]

SOCKET: Final = "/run/rpcbind.sock"
"""Where rpcbind listens for servers of this machine."""

BOUND: Final = 2.0
"""Seconds for a conversation. rpcbind answers within a millisecond."""

LOOK: Final = 0.01
"""Seconds between two looks for an answer."""

FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 15.0
"""Seconds until the next try after a failure: the first time, and at most."""

END_BOUND: Final = 1.0
"""Seconds for which the end of a pool waits for rpcbind."""

MOST_REPLY: Final = 4 << 20
"""Bytes of the list of rpcbind, at most."""


class RegistrationError(PreforkError):
    """A server cannot register its programs with rpcbind, and has ``rpcbind = "require"``."""


class Registration:
    """The entries of one server. Made before the workers, and used by the master alone.

    entries: what the server has. places: netid and address of each way to it. path: of rpcbind's socket.
    """

    def __init__(
        self,
        entries: Collection[Entry],
        places: Collection[tuple[str, str]],
        *,
        mode: Mode,
        path: str = SOCKET,
    ) -> None:
        self._entries = frozenset(entries)
        self._places = frozenset(places)
        self._is_required = mode == "require"
        self._path = path
        self._talk: Talk | None = None
        self._step: Callable[[Talk], None] | None = None
        """What the replies of the conversation are for; None while there is none."""
        self._plan = Changes()
        self._kept: set[Entry] = set()
        """Entries that lead here, are not ours, and that rpcbind has refused to unset."""
        self._is_serving: bool | None = None
        """What the last tick wanted, None before the first one."""
        self._is_for_serving = False
        """What the conversation under way is to bring about. The wish can change meanwhile."""
        self._is_settled = True
        """Whether rpcbind is known to have what this server wants it to have."""
        self._was_registered = False
        self._is_failing = False
        self._try_at = 0.0
        self._pause = FIRST_PAUSE

    def tick(self, now: float, *, serving: bool) -> float | None:
        """Do what can be done without waiting (master); see ``Announcement``.

        RegistrationError: the entries are required, and rpcbind refuses them.
        """
        if serving is not self._is_serving:
            self._is_serving, self._is_settled, self._try_at = serving, False, now
            self._pause = FIRST_PAUSE
        try:
            self._go_on(now)
        except (OSError, XDRError, RecordError) as error:
            self._fail(now, error)
        if self._is_settled:
            return None
        return self._try_at if self._talk is None else now + LOOK

    def settle(self, *, serving: bool) -> None:
        """Do all that is to be done, and wait for it, END_BOUND at most and no longer than a failure."""
        until = monotonic() + END_BOUND
        while True:
            now = monotonic()
            self.tick(now, serving=serving)
            if self._is_settled or self._talk is None or now >= until:
                return
            answer = select.poll()  # select() takes no descriptor above 1023
            answer.register(self._talk.sock, select.POLLIN)
            answer.poll(LOOK * 1000)

    def close(self) -> None:
        """End the connection to rpcbind."""
        if self._talk is not None:
            self._talk.close()
            self._talk = self._step = None

    def _go_on(self, now: float) -> None:
        """Take the next steps of a conversation, as far as rpcbind has answered, or begin one."""
        if self._step is None:
            self._begin(now)
        while self._talk is not None and self._step is not None and self._talk.receive():
            self._step(self._talk)
        if self._talk is not None and self._step is not None and now > self._talk.until:
            raise TimeoutError(f"rpcbind has not answered within {BOUND:g} s")

    def _begin(self, now: float) -> None:
        """Begin a conversation if there is a reason for one: a new wish, or a connection that has ended."""
        if self._talk is not None and self._talk.has_ended():
            self.close()
            self._is_settled, self._try_at = False, now
        if self._is_settled or now < self._try_at:
            return
        if self._talk is None:
            self._talk = Talk(self._path)
        self._ask_for_entries(self._talk, now)

    def _ask_for_entries(self, talk: Talk, now: float) -> None:
        talk.until = now + BOUND
        talk.ask([dump_call(1)])
        self._step = self._compare

    def _compare(self, talk: Talk) -> None:
        there = entries_in(talk.replies[0])
        self._is_for_serving = bool(self._is_serving)
        ours = self._entries if self._is_for_serving else frozenset[Entry]()
        first = not self._was_registered
        self._plan = changes(ours, self._places, there, taking_over=first)
        if not self._plan:
            self._end_well()
            return
        talk.ask(change_calls(self._plan))
        self._step = self._see

    def _see(self, talk: Talk) -> None:
        answers = [is_done(reply) for reply in talk.replies]
        plan, count = self._plan, len(self._plan.unset)
        refused = [one for one, done in zip(plan.set, answers[count:], strict=True) if not done]
        if refused:
            raise ConnectionRefusedError(
                f"rpcbind refuses to set {refused[0]}, which another user may have set"
            )
        kept = {one for one, done in zip(plan.unset, answers[:count], strict=True) if not done}
        if kept - self._kept:
            what = "cannot unset entries of another user in rpcbind"
            log.event(logging.WARNING, "master", what, entries=_words(kept))
        self._kept = kept
        unset = tuple(one for one in plan.unset if one not in kept)
        self._plan = Changes(unset, plan.set)
        self._end_well()

    def _end_well(self) -> None:
        self._step = None
        self._is_settled, self._is_failing = self._is_for_serving is self._is_serving, False
        self._pause = FIRST_PAUSE
        if self._is_for_serving and (self._plan or not self._was_registered):
            what = "registered with rpcbind"
            log.event(logging.INFO, "master", what, entries=_words(self._entries))
        elif not self._is_for_serving and self._plan:
            log.event(
                logging.INFO, "master", "taken back from rpcbind", entries=_words(self._plan.unset)
            )
        self._was_registered = self._is_for_serving
        self._plan = Changes()

    def _fail(self, now: float, error: Exception) -> None:
        self.close()
        self._try_at = now + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        if not self._is_serving:
            self._is_settled = True  # rpcbind has gone, and the entries with it, or nothing helps
        elif self._is_required and not self._was_registered:
            self._is_settled = True
            raise RegistrationError(f"{_cannot(self._path, error)}") from None
        if not self._is_failing and (self._is_serving or self._was_registered):
            self._is_failing = True
            what = (
                "cannot register with rpcbind, retrying"
                if self._is_serving
                else "cannot take back from rpcbind"
            )
            log.event(logging.WARNING, "master", what, socket=self._path, error=error)


def refuse_without_rpcbind(path: str) -> None:
    """Raise RegistrationError where no rpcbind listens, before anything is forked."""
    try:
        Talk(path).close()
    except OSError as error:
        raise RegistrationError(_cannot(path, error)) from None


def _cannot(path: str, error: Exception) -> str:
    reason = getattr(error, "strerror", None) or error
    return f'rpcbind = "require": cannot register with rpcbind on {path}: {reason}; start rpcbind, or use "try"'


def _words(entries: Collection[Entry]) -> str:
    return ", ".join(sorted(map(str, entries)))


class Talk:
    """One connection to rpcbind, on which several calls are asked at once. Never waits.

    replies: those that have come. until: when the conversation has taken too long.
    """

    def __init__(self, path: str) -> None:
        self.until = 0.0
        self.replies: list[bytes] = []
        self._expected = 0
        self._record = Record(MOST_REPLY)
        with forks.lock:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            try:
                self.sock.connect(path)
            except BaseException:
                self.sock.close()
                raise
            self._on_list = forks.add(self._let_go)

    def _let_go(self) -> None:
        os.close(self.sock.detach())

    def close(self) -> None:
        """End the connection."""
        with forks.lock:
            forks.remove(self._on_list)
            self.sock.close()

    def ask(self, calls: list[bytes]) -> None:
        """Send calls. OSError: rpcbind does not take them, or not all at once."""
        data = b"".join(map(marked, calls))
        self.replies, self._expected = [], len(calls)
        if self.sock.send(data, socket.MSG_NOSIGNAL) < len(data):
            raise BlockingIOError("rpcbind does not read")

    def receive(self) -> bool:
        """Take what has come; return whether all replies are there. ConnectionError: the connection has ended."""
        while len(self.replies) < self._expected:
            try:
                data: bytes | None = self.sock.recv(1 << 16)
            except BlockingIOError:
                return False
            if not data:
                raise ConnectionError("rpcbind has closed the connection")
            while data and (data := self._record.feed(data)) is not None:
                self.replies.append(self._record.message)
                self._record = Record(MOST_REPLY)
        return True

    def has_ended(self) -> bool:
        """Return whether rpcbind has closed the connection, outside of a conversation."""
        try:
            return not self.sock.recv(1)
        except BlockingIOError:
            return False
        except OSError:
            return True
