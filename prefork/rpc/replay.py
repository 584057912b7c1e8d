"""The calls that were served before, so that a repeated one is not executed twice (worker).

A client of UDP sends its call again when no reply comes. The second datagram may reach another worker,
while the first one is being executed or after its reply was lost. So the memory of calls is shared by
all workers: one memfd, made before the fork.

A call is known by a digest of all its bytes and of its client's address. The digest is keyed, so that
no client can make a call that has the digest of another one. The digest chooses a *set* of WAYS places,
and the call is in one of these or was never seen. A new call takes the place of the oldest one there.

**Locks.** Each place has a lock, which a worker holds while it executes the call. Each set has one,
which is held while a worker looks for a call and takes a place. They are record locks of the kernel
(``fcntl``), for two reasons. No worker waits for a lock, because a call can be dropped: its client sends
it again. And the kernel releases the locks of a worker that dies. So a repeated call is recognized:

====================  ====================  ===========================================================
its place is          its reply is          so the call
====================  ====================  ===========================================================
locked                not there             is being executed, and will be answered: nothing is done
free                  there                 gets the same reply again
free                  not there             was begun by a worker that has died, or its reply had no
                                            room: it may have been executed, and gets SYSTEM_ERR
====================  ====================  ===========================================================

A call without a place cannot be executed, because it could not be recognized later. It is dropped, and the log
says so (``NoPlaceError``). That happens where the memory is small for the number of calls that are executed at
the same time.

A worker writes the reply before it releases the place, and reads a place only when it holds the lock.
The system calls in between keep the order of these accesses.

Record locks belong to a process. Threads of one process are kept apart by a mutex and a set of the
places in use.

A set has one record for each place: the digest, the instant (nanoseconds of CLOCK_MONOTONIC, 0 for a
free place), and the length of the reply. The replies follow behind all sets.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import secrets
import struct
import threading
from collections.abc import Sequence
from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, lockf
from time import monotonic_ns
from typing import Any, Final

WAYS: Final = 8

WINDOW_NS: Final = 60_000_000_000
"""How long a call is known, in nanoseconds: a client may use its number again later."""

LOOKS: Final = 20
"""How often a worker tries to lock a set, which others have for a few microseconds at a time."""

TRY: Final = LOCK_EX | LOCK_NB

_DIGEST: Final = 16
_RECORD: Final = struct.Struct("=16sQI4x")
_TIMES: Final = struct.Struct("=" + "16xQ8x" * WAYS)
_LENGTH: Final = struct.Struct("=I")
_LENGTH_AT: Final = 24
_TIME: Final = struct.Struct("=Q")
_TIME_AT: Final = 16
_SET: Final = WAYS * _RECORD.size
"""Bytes of the records of one set: a power of two, so that no set crosses a page."""

_NO_REPLY: Final = 0
"""The length of a reply that is not there: it was not sent yet, or had no room."""


class NoPlaceError(Exception):
    """A call has no place in the memory right now, so that it must not be executed. The text names the remedy."""


class Replays:
    """The memory of the calls of one server. Made in the master; each worker looks into the same.

    entries: calls to remember, rounded up to whole sets. room: the most bytes of a reply that are kept.
    Memory is used as calls come: at most ``entries * (room + 32)`` bytes.
    """

    def __init__(self, entries: int, room: int) -> None:
        self._entries = entries
        self._room = room
        self._sets = -(-entries // WAYS)
        self._replies_at = self._sets * _SET
        self._key = secrets.token_bytes(32)
        self._mutex = threading.Lock()
        self._executing: set[int] = set()
        size = self._replies_at + self._sets * WAYS * room
        self._fd = os.memfd_create("prefork-rpc", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self._fd, size)
            self._memory = mmap.mmap(self._fd, size)
        except BaseException:
            os.close(self._fd)
            raise

    def close(self) -> None:
        """Give the memory back."""
        if self._fd >= 0:
            self._memory.close()
            os.close(self._fd)
            self._fd = -1

    def claim(self, data: bytes, address: Any, now: int | None = None) -> Claim | None:
        """Return the place of a call; None for a call that is being executed.

        The caller executes the call unless it is known, and has to release the place in any case.
        NoPlaceError: see there. now: nanoseconds of CLOCK_MONOTONIC.
        """
        whole = b"%b%b" % (data, repr(address).encode())
        digest = hashlib.blake2b(whole, digest_size=_DIGEST, key=self._key).digest()
        number = int.from_bytes(digest[:8], "big") % self._sets
        with self._mutex:
            self._lock_set(number)
            try:
                return self._look(number, digest, monotonic_ns() if now is None else now)
            finally:
                lockf(self._fd, LOCK_UN, 1, number)

    # --- of one set, which is locked

    def _lock_set(self, number: int) -> None:
        """Lock a set. NoPlaceError: another worker has it for longer than a look takes."""
        for _ in range(LOOKS):
            try:
                lockf(self._fd, TRY, 1, number)
            except BlockingIOError:
                os.sched_yield()
            else:
                return
        raise self._no_place("another worker is looking there")

    def _look(self, number: int, digest: bytes, now: int) -> Claim | None:
        """Find the call in its set, or give it a place there."""
        at = number * _SET
        times = _TIMES.unpack_from(self._memory, at)
        way = way_of(self._memory[at : at + _SET], digest)
        if way is None:
            return self._begin(self._free_place(number, times), digest, now)
        place = number * WAYS + way
        if not self._hold(place):
            return None
        if now - times[way] < WINDOW_NS:
            return Claim(self, place, self._reply_at(place))
        return self._begin(place, digest, now)

    def _free_place(self, number: int, times: Sequence[int]) -> int:
        """Return the oldest place of a set that is free, which this worker holds from now on."""
        first = number * WAYS
        place = first + times.index(min(times))
        if self._hold(place):  # nearly always
            return place
        for way in sorted(range(WAYS), key=times.__getitem__):
            if self._hold(first + way):
                return first + way
        raise self._no_place(f"all {WAYS} are of calls that are being executed")

    def _no_place(self, why: str) -> NoPlaceError:
        return NoPlaceError(
            f"no place in the memory of calls: {why}; raise limit_replays ({self._entries})"
        )

    def _hold(self, place: int) -> bool:
        """Lock a place until ``let_go()``; return whether it was free."""
        if place in self._executing:
            return False
        try:
            lockf(self._fd, TRY, 1, self._sets + place)
        except BlockingIOError:
            return False
        self._executing.add(place)
        return True

    # --- of one place, which this worker holds

    def _begin(self, place: int, digest: bytes, now: int) -> Claim:
        """Write that the call is being executed."""
        _RECORD.pack_into(self._memory, place * _RECORD.size, digest, now, _NO_REPLY)
        return Claim(self, place, None)

    def _reply_at(self, place: int) -> bytes:
        """Return the reply, b"" for none. A length that cannot be counts as none: any worker can write here."""
        (length,) = _LENGTH.unpack_from(self._memory, place * _RECORD.size + _LENGTH_AT)
        at = self._replies_at + place * self._room
        return self._memory[at : at + length] if length <= self._room else b""

    def keep(self, place: int, reply: bytes, now: int) -> None:
        """Write the reply, if there is room for it. now: as for ``claim()``."""
        if len(reply) > self._room:
            return
        at = self._replies_at + place * self._room
        self._memory[at : at + len(reply)] = reply
        _LENGTH.pack_into(self._memory, place * _RECORD.size + _LENGTH_AT, len(reply))
        # From now on the client can ask again for a reply that was lost.
        _TIME.pack_into(self._memory, place * _RECORD.size + _TIME_AT, now)

    def let_go(self, place: int) -> None:
        """Unlock a place, so that other workers can have it."""
        with self._mutex:
            self._executing.discard(place)
            lockf(self._fd, LOCK_UN, 1, self._sets + place)


class Claim:
    """The place of one call, which this worker holds until ``release()``.

    reply: None for a call that was not seen before; what the call was answered by, or b"" where that is not
    there.
    """

    __slots__ = ("_is_released", "_place", "_replays", "reply")

    def __init__(self, replays: Replays, place: int, reply: bytes | None) -> None:
        self.reply = reply
        self._is_released = False
        self._replays = replays
        self._place = place

    def keep(self, reply: bytes, now: int | None = None) -> None:
        """Keep the reply for calls that come again. now: as for ``Replays.claim()``; the window begins anew then."""
        self._replays.keep(self._place, reply, monotonic_ns() if now is None else now)

    def release(self) -> None:
        """Let other workers have the place; a second call does nothing."""
        if not self._is_released:
            self._is_released = True
            self._replays.let_go(self._place)


def way_of(records: bytes, digest: bytes) -> int | None:
    """Return which of the records of a set has this digest, None for none (pure)."""
    at = records.find(digest)
    while at % _RECORD.size and at >= 0:
        at = records.find(digest, at + 1)
    return None if at < 0 else at // _RECORD.size
