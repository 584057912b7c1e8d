"""How often a client has failed to authenticate within the last minute (pure).

**One memory for all workers.** The master makes the memory before the fork, and each worker writes its
failures to it. So the bound holds for the pool, however the kernel spreads the guesses of a client over
the workers. Each word is the instant of one failure, stored whole, and nothing is locked: a worker that is
killed leaves nothing behind that another one would wait for.

**Cells.** The memory has two rows of cells. A client has one cell in each row, by a hash of its name, and
a cell holds the latest failures of its clients, as many as one client may have. Other clients have the same
cell; few have both. A client counts as one that has failed too often while *both* of its cells are full of
failures of the last minute. Whatever strangers do, this never counts too little, which would give more
guesses: nothing is thrown out of a full cell before its minute is over. It can count too much. Of two
rows with 26,214 cells each, as there are for ten failures, 1,000 clients that fail as often as they may fill
0.15 % of the pairs; a client with one of these is refused with them. This is the count-min sketch of
Cormode and Muthukrishnan, with instants in place of counts.

**What is lost.** Two workers that note a failure of one client within the same microseconds can take the same
word. And each worker can have one guess in hand that it took up before the last failure was noted.

**What a worker scribbles** here can refuse clients, or let them guess, and nothing else. An instant that lies
in the future counts as an empty word.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from ipaddress import IPv6Address
from typing import Any, Final

WINDOW: Final = 60.0
"""Seconds for which a failure counts."""

BYTES: Final = 4 * 1024 * 1024
"""The size of the memory. The kernel allocates a page of it when the first failure is written there."""

_ROWS: Final = 2

_AHEAD: Final = 1_000_000_000
"""Nanoseconds by which another worker's reading of the clock may be later than one's own."""


class Failures:
    """The failures of all clients of one server.

    memory: BYTES bytes of zeros as words of eight bytes, which all workers have. most: failures of one client within
    a minute. salt: secret bytes, so that nobody can choose an address by its cells.
    """

    def __init__(self, memory: memoryview[int], most: int, salt: bytes) -> None:
        self._memory = memory
        self._most = min(most, len(memory) // _ROWS)
        self._cells = len(memory) // _ROWS // self._most
        self._salt = salt

    def is_too_many(self, client: Hashable, now: float) -> bool:
        """Return whether a client has failed so often that it is not asked again. now: seconds of CLOCK_MONOTONIC."""
        since, until = _window(now)
        return all(
            all(since < instant <= until for instant in cell) for cell in self._cells_of(client)
        )

    def note(self, client: Hashable, now: float) -> None:
        """Note that a client has failed."""
        since, until = _window(now)
        for cell in self._cells_of(client):
            # In place of one that does not count any more, and otherwise of the oldest.
            ages = [instant if since < instant <= until else 0 for instant in cell]
            cell[ages.index(min(ages))] = int(now * 1e9)

    def _cells_of(self, client: Hashable) -> Iterator[memoryview[int]]:
        for row in range(_ROWS):
            # Of bytes, which hash() mixes well. The hashes of two tuples that differ in one number are related, so
            # that clients who share a cell in one row would often share one in the other row, too.
            cell = hash(b"%d" % row + self._salt + repr(client).encode()) % self._cells
            start = (row * self._cells + cell) * self._most
            yield self._memory[start : start + self._most]


def _window(now: float) -> tuple[int, int]:
    """Return between which instants a failure counts, in nanoseconds."""
    instant = int(now * 1e9)
    return max(0, instant - int(WINDOW * 1e9)), instant + _AHEAD


def client_key(address: Any, uid: int | None) -> Hashable:
    """Return what counts as one client: an IPv4 address, a network of IPv6 (/64), or a user of this machine.

    One client of IPv6 usually has a whole /64 to choose its addresses from.
    """
    if not isinstance(address, tuple) or not address:
        return ("uid", uid)
    host = str(address[0]).partition("%")[0]
    if ":" not in host:
        return host
    try:
        packed = IPv6Address(host)
    except ValueError:
        return host
    mapped = packed.ipv4_mapped
    return str(mapped) if mapped is not None else packed.packed[:8]
