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

Layout of a set: WAYS digests, WAYS instants (nanoseconds of CLOCK_MONOTONIC, 0 for a free place), WAYS
lengths of replies. The replies follow behind all sets.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import secrets
import struct
import threading
from time import monotonic_ns
from typing import Any, Final

WAYS: Final = 8

WINDOW_NS: Final = 60_000_000_000
"""How long a call is known, in nanoseconds: a client may use its number again later."""

_DIGEST: Final = 16
_TIMES: Final = struct.Struct(f"={WAYS}Q")
_TIME: Final = struct.Struct("=Q")
_LENGTH: Final = struct.Struct("=I")
_TIMES_AT: Final = WAYS * _DIGEST
_LENGTHS_AT: Final = _TIMES_AT + _TIMES.size
_SET: Final = 256
"""Bytes of one set: a power of two, so that no set crosses a page."""

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
        digest = self._digest(data, address)
        number = int.from_bytes(digest[:8], "big") % self._sets
        with self._mutex:
            if not self._lock(number):
                return None
            try:
                return self._look(number, digest, monotonic_ns() if now is None else now)
            finally:
                self._unlock(number)

    def _digest(self, data: bytes, address: Any) -> bytes:
        digest = hashlib.blake2b(data, digest_size=_DIGEST, key=self._key)
        digest.update(repr(address).encode())
        return digest.digest()

    def _look(self, number: int, digest: bytes, now: int) -> Claim | None:
        """Find the call in its set, or give it a place there; the set is locked."""
        at = number * _SET
        times = _TIMES.unpack_from(self._memory, at + _TIMES_AT)
        way = way_of(self._memory[at : at + _TIMES_AT], digest)
        if way is not None:
            place = self._hold(number, way)
            if place is not None and now - times[way] < WINDOW_NS:
                place.note_known()
            elif place is not None:
                place.begin(digest, now)
            return place
        for oldest in sorted(range(WAYS), key=times.__getitem__):
            place = self._hold(number, oldest)
            if place is not None:
                place.begin(digest, now)
                return place
        return None  # all places of the set are of calls that are being executed

    def _hold(self, number: int, way: int) -> Claim | None:
        """Return a place that this worker holds from now on; None where it is held."""
        place = number * WAYS + way
        if place in self._executing or not self._lock(self._sets + place):
            return None
        self._executing.add(place)
        return Claim(self, number, way)

    def _lock(self, what: int) -> bool:
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, what)
        except BlockingIOError:
            return False
        return True

    def _unlock(self, what: int) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, what)


class Claim:
    """The place of one call, which this worker holds.

    is_known: whether the call was seen before. reply: what it was answered by, b"" where that is not
    there.
    """

    def __init__(self, replays: Replays, number: int, way: int) -> None:
        self.is_known = False
        self.reply = b""
        self._is_released = False
        self._replays = replays
        self._place = number * WAYS + way
        at = number * _SET
        self._digest_at = at + way * _DIGEST
        self._time_at = at + _TIMES_AT + way * _TIME.size
        self._length_at = at + _LENGTHS_AT + way * _LENGTH.size
        self._reply_at = replays._replies_at + self._place * replays.room  # noqa: SLF001 - its part

    def begin(self, digest: bytes, now: int) -> None:
        """Write that the call is being executed."""
        memory = self._replays._memory  # noqa: SLF001 - as above
        _LENGTH.pack_into(memory, self._length_at, _NO_REPLY)
        memory[self._digest_at : self._digest_at + _DIGEST] = digest
        _TIME.pack_into(memory, self._time_at, now)

    def note_known(self) -> None:
        """Read the reply. A length that cannot be is no length: other workers can write anything there."""
        memory = self._replays._memory  # noqa: SLF001 - as above
        (length,) = _LENGTH.unpack_from(memory, self._length_at)
        self.is_known = True
        if length <= self._replays.room:
            self.reply = memory[self._reply_at : self._reply_at + length]

    def keep(self, reply: bytes) -> None:
        """Write the reply, if there is room for it."""
        if len(reply) <= self._replays.room:
            memory = self._replays._memory  # noqa: SLF001 - as above
            memory[self._reply_at : self._reply_at + len(reply)] = reply
            _LENGTH.pack_into(memory, self._length_at, len(reply))

    def release(self) -> None:
        """Let other workers have the place; a second call does nothing."""
        replays = self._replays
        if self._is_released:
            return
        self._is_released = True
        with replays._mutex:  # noqa: SLF001 - as above
            replays._executing.discard(self._place)  # noqa: SLF001 - as above
            replays._unlock(replays._sets + self._place)  # noqa: SLF001 - as above


def way_of(digests: bytes, digest: bytes) -> int | None:
    """Return which of the digests this one is, None for none (pure)."""
    at = digests.find(digest)
    while at % _DIGEST and at >= 0:
        at = digests.find(digest, at + 1)
    return None if at < 0 else at // _DIGEST
