"""Noticing that a certificate was renewed: a file that changes asks for a reload (master)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Final

INTERVAL: Final = 1.0
"""Seconds between two looks."""

Stamp = tuple[int, int, int]
"""Inode, time of the last change, and size."""

Stamps = tuple[Stamp | None, ...]


def stamps_of(files: Sequence[str]) -> Stamps:
    """Return what changes when one of the files is replaced or written to; None for one that is gone."""
    stamps: list[Stamp | None] = []
    for path in files:
        try:
            # Of what a symbolic link leads to: Kubernetes replaces the link.
            found = os.stat(path)
        except OSError:
            stamps.append(None)
        else:
            stamps.append((found.st_ino, found.st_mtime_ns, found.st_size))
    return tuple(stamps)


class FileWatch:
    """Says once for each change of some files that they have changed, when they are at rest again.

    A renewal writes several files one after the other, and a reload in between would find a
    certificate without its key. So a change counts when two looks in a row have found the same, and all
    of the files.

    known: each file, with its stamp from before it was read. What has changed while the program was
    starting then counts, too. look: reads the files; tests pass another one.
    """

    def __init__(
        self,
        known: Mapping[str, Stamp | None],
        look: Callable[[Sequence[str]], Stamps] = stamps_of,
    ) -> None:
        self._files = tuple(known)
        self._look = look
        self._known = self._last = tuple(known.values())
        self._next_look = 0.0

    def changed(self, now: float) -> bool:
        """Return whether the files have changed. now: of a clock that never goes back, in seconds."""
        if not self._files or now < self._next_look:
            return False
        self._next_look = now + INTERVAL
        last, self._last = self._last, self._look(self._files)
        if self._last != last or self._last == self._known or None in self._last:
            return False
        self._known = self._last
        return True
