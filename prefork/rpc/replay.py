"""The calls that were served before, so that a repeated one is not executed twice (worker).

A client of UDP sends its call again when no reply comes. The second datagram may reach another worker,
while the first one is being executed or after its reply was lost. So the memory of calls is shared by
all workers: one memfd, made before the fork.

A call is known by a digest of all its bytes and of its client's address. The digest is keyed, so that
no client can make a call that has the digest of another one. The digest chooses a *set* of WAYS places,
and the call is in one of these or was never seen. A new call takes the place of the oldest one there.

**Locks.** Each place has a lock, which a worker holds while it executes the call. Each set has one,
which is held while a worker looks for a call and takes a place. They are record locks of the kernel
(``fcntl``), for two reasons: no lock is waited for, because a call that finds one held can be dropped
(its client sends it again), and the kernel releases the locks of a worker that dies. That is how a
repeated call is understood:

====================  ====================  ===========================================================
its place is          its reply is          so the call
====================  ====================  ===========================================================
locked                not there             is being executed, and will be answered: nothing is done
free                  there                 gets the same reply again
free                  not there             was begun by a worker that has died, or its reply had no
                                            room: it may have been executed, and gets SYSTEM_ERR
====================  ====================  ===========================================================

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


class Replays:
    """The memory of the calls of one server. Made in the master; each worker looks into the same.

    entries: calls to remember, rounded up to whole sets. room: the most bytes of a reply that are kept.
    Memory is used as calls come: at most ``entries * (room + 32)`` bytes.
    """

    def __init__(self, entries: int, room: int) -> None:
        self.room = room
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

        The caller executes the call unless it is known, and has to release the place in any case. None
        is also returned where the kernel lets no worker look right now. now: nanoseconds of
        CLOCK_MONOTONIC.
        """
        whole = b"%b%b" % (data, repr(address).encode())
        digest = hashlib.blake2b(whole, digest_size=_DIGEST, key=self._key).digest()
        number = int.from_bytes(digest[:8], "big") % self._sets
        with self._mutex:
            try:
                lockf(self._fd, TRY, 1, number)
            except BlockingIOError:
                return None
            try:
                return self._look(number, digest, monotonic_ns() if now is None else now)
            finally:
                lockf(self._fd, LOCK_UN, 1, number)

    def _look(self, number: int, digest: bytes, now: int) -> Claim | None:
        """Find the call in its set, or give it a place there; the set is locked."""
        at = number * _SET
        times = _TIMES.unpack_from(self._memory, at)
        way = way_of(self._memory[at : at + _SET], digest)
        if way is not None:
            place = self._hold(number, way)
            if place is not None and now - times[way] < WINDOW_NS:
                place.note_known()
            elif place is not None:
                place.begin(digest, now)
            return place
        place = self._hold(number, times.index(min(times))) or self._hold_another(number, times)
        if place is not None:
            place.begin(digest, now)
        return place

    def _hold_another(self, number: int, times: Sequence[int]) -> Claim | None:
        """Return the oldest place of a set that is free; None where all are of calls that are being executed."""
        held = (self._hold(number, way) for way in sorted(range(WAYS), key=times.__getitem__))
        return next((place for place in held if place is not None), None)

    def _hold(self, number: int, way: int) -> Claim | None:
        """Return a place that this worker holds from now on; None where it is held."""
        place = number * WAYS + way
        if place in self._executing:
            return None
        try:
            lockf(self._fd, TRY, 1, self._sets + place)
        except BlockingIOError:
            return None
        self._executing.add(place)
        return Claim(self, place)


class Claim:
    """The place of one call, which this worker holds.

    is_known: whether the call was seen before. reply: what it was answered by, b"" where that is not
    there.
    """

    __slots__ = (
        *("_is_released", "_place", "_record_at", "_replays", "_reply_at"),
        *("is_known", "reply"),
    )

    def __init__(self, replays: Replays, place: int) -> None:
        self.is_known = False
        self.reply = b""
        self._is_released = False
        self._replays = replays
        self._place = place
        self._record_at = place * _RECORD.size
        self._reply_at = replays._replies_at + place * replays.room  # noqa: SLF001 - its part

    def begin(self, digest: bytes, now: int) -> None:
        """Write that the call is being executed."""
        memory = self._replays._memory  # noqa: SLF001 - as above
        _RECORD.pack_into(memory, self._record_at, digest, now, _NO_REPLY)

    def note_known(self) -> None:
        """Read the reply. A length that cannot be is no length: other workers can write anything there."""
        memory = self._replays._memory  # noqa: SLF001 - as above
        (length,) = _LENGTH.unpack_from(memory, self._record_at + _LENGTH_AT)
        self.is_known = True
        if length <= self._replays.room:
            self.reply = memory[self._reply_at : self._reply_at + length]

    def keep(self, reply: bytes, now: int | None = None) -> None:
        """Write the reply, if there is room for it. now: monotonic nanoseconds; from then on the call is known for WINDOW_NS."""
        if len(reply) <= self._replays.room:
            memory = self._replays._memory  # noqa: SLF001 - as above
            memory[self._reply_at : self._reply_at + len(reply)] = reply
            _LENGTH.pack_into(memory, self._record_at + _LENGTH_AT, len(reply))
            # From now on the client can ask again for a reply that was lost.
            instant = monotonic_ns() if now is None else now
            _TIME.pack_into(memory, self._record_at + _TIME_AT, instant)

    def release(self) -> None:
        """Let other workers have the place; a second call does nothing."""
        replays = self._replays
        if self._is_released:
            return
        self._is_released = True
        with replays._mutex:  # noqa: SLF001 - as above
            replays._executing.discard(self._place)  # noqa: SLF001 - as above
            lockf(replays._fd, LOCK_UN, 1, replays._sets + self._place)  # noqa: SLF001 - as above


def way_of(records: bytes, digest: bytes) -> int | None:
    """Return which of the records of a set has this digest, None for none (pure)."""
    at = records.find(digest)
    while at % _RECORD.size and at >= 0:
        at = records.find(digest, at + 1)
    return None if at < 0 else at // _RECORD.size
