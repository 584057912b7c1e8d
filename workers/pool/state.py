"""What one image of the master leaves to the next one, which goes on in the same process.

It is passed in memory that no worker has: pids and descriptors are never taken from the
scoreboard. Instants are of the master's clock, which goes on, too.
"""

from __future__ import annotations

import msgspec

from prefork.workers.pool.handle import Handle


class PoolState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A pool that goes on: its descriptors, its live workers, and what is known of them.

    board, life: descriptors of the scoreboard and of both ends of the life pipe. generation: of
    the youngest workers.
    """

    board: int
    life: tuple[int, int]
    generation: int
    lost: int
    workers: tuple[Handle, ...]

    @property
    def fds(self) -> list[int]:
        """All descriptors that have to outlive the exec."""
        of_workers = [fd for one in self.workers for fd in (one.child.pidfd, *one.pipes.fds)]
        return [self.board, *self.life, *of_workers]
