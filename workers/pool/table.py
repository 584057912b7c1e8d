"""The process table: which worker is in which slot (pure).

The table forks, signals, collects and closes nothing, so its tests invent pids. PostgreSQL keeps
its children in the same way (pmchild.c): assign a slot, find, release, and nothing else in that
file.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator

import msgspec

from prefork.workers.pool.handle import Handle
from prefork.workers.states import StartReason


class Table:
    """The live workers by slot, and the number of those that died and are to be replaced.

    A slot is free, or has one worker whose process has not been collected yet. size: the number of
    slots, ``max_children``.
    """

    def __init__(self, size: int, handles: Iterable[Handle] = (), lost: int = 0) -> None:
        self.size = size
        self.lost = lost
        """Workers that died unexpectedly and have not been replaced yet."""
        self.lost_after_serving = 0
        """Those of them that had served: their deaths say nothing against the next worker."""
        self._handles = {handle.slot: handle for handle in handles}

    def __len__(self) -> int:
        return len(self._handles)

    def __iter__(self) -> Iterator[Handle]:
        # A copy: the hook of one worker may have the table changed while others are gone through.
        return iter([*self._handles.values()])

    def __getitem__(self, slot: int) -> Handle:
        return self._handles[slot]

    # --- transitions

    def free_slots(self, count: int) -> list[int]:
        """Return this many free slots at most, the lowest first."""
        free = [slot for slot in range(self.size) if slot not in self._handles]
        return free[:count]

    def add(self, handle: Handle, reason: StartReason) -> None:
        """Give a worker that was just forked its slot. ValueError when the slot is not free."""
        if handle.slot not in range(self.size):
            raise ValueError(f"there is no slot {handle.slot}: the pool has {self.size}")
        if handle.slot in self._handles:
            raise ValueError(f"slot {handle.slot} has {self._handles[handle.slot]}")
        self._handles[handle.slot] = handle
        if reason is StartReason.RESPAWNED:
            self.lost = max(0, self.lost - 1)
            self.lost_after_serving = max(0, self.lost_after_serving - 1)

    def remove(self, slot: int) -> Handle:
        """Free the slot of a worker that has ended; one that was not asked to leave is lost."""
        handle = self._handles.pop(slot)
        self.lost += handle.asked_for is None
        return handle

    def settle_lost(self, wanted: int) -> None:
        """Count no worker as lost any more once as many workers live as are wanted."""
        if len(self) >= wanted:
            self.lost = self.lost_after_serving = 0

    # --- questions

    @property
    def slots(self) -> list[int]:
        """The slots that have a worker, in order."""
        return sorted(self._handles)

    @property
    def pids(self) -> set[int]:
        """The pids of all live workers."""
        return {handle.info.pid for handle in self}

    @property
    def ready_pids(self) -> list[int]:
        """The pids of the workers that have booted."""
        return [handle.info.pid for handle in self if handle.is_ready]

    def with_pidfds(self, pidfds: Container[int]) -> list[Handle]:
        """Return the workers with these pidfds."""
        return [handle for handle in self if handle.child.pidfd in pidfds]

    def count_ready(self, generation: int = 0) -> int:
        """Return how many workers are ready and stay, of this generation or a younger one."""
        return sum(
            handle.is_ready
            and handle.leave_by is None
            and handle.leaving_since is None
            and handle.info.generation >= generation
            for handle in self
        )

    def has_older(self, generation: int) -> bool:
        """Return whether a worker of an older generation lives."""
        return any(handle.info.generation < generation for handle in self)


class PoolState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one image of the master hands over to the next, which goes on with the same workers.

    The state is passed in memory that no worker has: pids and descriptors are never taken from the
    scoreboard. Instants are on the master's clock, which goes on as well.

    board, proof, life: descriptors of the scoreboard, of the proof that this process is its master,
    and of both ends of the life pipe. slots, layout: of the scoreboard, whose own words are not believed. counters: what is believed of the slots'
    counters (workers/ledger.py). generation: of the youngest workers. lost,
    workers: the process table.
    """

    board: int
    proof: int
    slots: int
    layout: tuple[int, ...]
    life: tuple[int, int]
    generation: int
    lost: int
    workers: tuple[Handle, ...]
    counters: bytes = b""

    @property
    def fds(self) -> list[int]:
        """All descriptors that have to outlive the exec."""
        of_workers = [fd for one in self.workers for fd in (one.child.pidfd, *one.pipes.fds)]
        return [self.board, self.proof, *self.life, *of_workers]
