"""The scoreboard of a running master, as any other process of its user can read it."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from prefork.workers.scoreboard import Scoreboard

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def board_of(pid: int) -> Iterator[Scoreboard]:
    """Attach to the scoreboard of a master, for reading."""
    board = None
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since the listing
            if os.readlink(link).startswith("/memfd:prefork-scoreboard"):
                board = _attached(os.open(link, os.O_RDONLY | os.O_CLOEXEC))
                break
    if board is None:
        raise AssertionError(f"process {pid} has no scoreboard")
    try:
        yield board
    finally:
        board.close()


def _attached(fd: int) -> Scoreboard:
    try:
        return Scoreboard.attach(fd)
    except ValueError:
        os.close(fd)
        raise
