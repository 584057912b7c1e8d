"""What each worker's memory is made of: shared with the master, or its own, and why (``prefork memory``).

After a fork a worker shares all pages with the master. A page becomes the worker's own when the worker writes to
it, and what a worker allocates afterwards is its own from the beginning. The kernel lists for each range of
addresses how many bytes are shared and how many are private (``/proc/PID/smaps``). A range that the master has, too,
is from before the fork: its private bytes are *copied*. In a range that has grown since, such as the heap, the
growth counts as allocated. A range that the master does not have is from after the fork: *allocated*, or a file
that was mapped, which mostly is a module that was imported late.

What malloc() keeps although it is free is a part of these bytes, mostly of what is allocated. Only the process itself
can distinguish it, so workers publish this number, and how many modules they have imported since the fork, when they
have nothing to do (workers/worker/trimming.py). Both are as old as the worker's last rest.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePath
from typing import Final

import msgspec

from prefork.inspect.proc import own_pid_of

_HEAD: Final = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \d+ *(.*)$")
_FIELD: Final = re.compile(r"^(Shared|Private)_(?:Clean|Dirty): +(\d+) kB$")


class Mapping(msgspec.Struct, frozen=True):
    """One range of addresses. shared, private: bytes in memory. path: of the file, "" for none."""

    start: int
    end: int
    path: str
    shared: int = 0
    private: int = 0


class Use(msgspec.Struct, frozen=True):
    """The memory of one worker, in bytes. late: the files that were mapped after the fork.

    copied, allocated, mapped: what the private bytes are. kept: those of them that malloc() keeps although they
    are free. modules: how many modules the worker has imported since the fork.
    """

    slot: int
    pid: int
    shared: int
    copied: int
    allocated: int
    mapped: int
    late: tuple[str, ...]
    kept: int = 0
    modules: int = 0

    def as_said(self, kept: int, modules: int) -> Use:
        """Return this with what the worker says of itself (pure). Its words may be untrue, and are bounded."""
        bounded = {"kept": min(max(0, kept), self.private), "modules": min(max(0, modules), 10**6)}
        return msgspec.structs.replace(self, **bounded)

    @property
    def private(self) -> int:
        """What the worker has for itself: what would be free if it ended."""
        return self.copied + self.allocated + self.mapped


def mappings_in(text: str) -> Iterator[Mapping]:
    """Yield the mappings of a file ``smaps`` (pure)."""
    head: re.Match[str] | None = None
    bytes_of = {"Shared": 0, "Private": 0}
    for line in [*text.splitlines(), "0-0 - - - 0"]:
        if (field := _FIELD.match(line)) is not None:
            bytes_of[field[1]] += int(field[2]) * 1024
        elif (found := _HEAD.match(line)) is not None:
            if head is not None:
                start, end = int(head[1], 16), int(head[2], 16)
                yield Mapping(start, end, head[3], bytes_of["Shared"], bytes_of["Private"])
            head, bytes_of = found, {"Shared": 0, "Private": 0}


def use_of(slot: int, pid: int, worker: Iterable[Mapping], master: Sequence[Mapping]) -> Use:
    """Return what a worker's memory is made of (pure). master: its master's mappings."""
    inherited = {one.start: one.end for one in master}
    shared = copied = allocated = mapped = 0
    late: set[str] = set()
    for one in worker:
        shared += one.shared
        end = inherited.get(one.start)
        if end is not None:
            grown = min(one.private, max(0, one.end - end))
            allocated += grown
            copied += one.private - grown
        elif any(old.start < one.end and one.start < old.end for old in master):
            copied += one.private  # a part of a range that was divided since
        elif one.path.startswith("/") and not one.path.startswith(("/memfd:", "/dev/")):
            mapped += one.private
            late.add(PurePath(one.path).name)
        else:
            allocated += one.private
    return Use(slot, pid, shared, copied, allocated, mapped, tuple(sorted(late)))


def read(pid: int) -> list[Mapping]:
    """Return the mappings of a process. Raises OSError where it has ended or belongs to another user."""
    with open(f"/proc/{pid}/smaps", encoding="utf-8", errors="replace") as smaps:
        return [*mappings_in(smaps.read())]


def children_of(master: int) -> dict[int, int]:
    """Return the children of a process: the pid as seen from here, by the pid that the child itself has.

    Both differ if the pool is in a container. The kernel lists the children, because the pids that a
    scoreboard has may be untrue. OSError: the process has ended.
    """
    found: dict[int, int] = {}
    for thread in os.listdir(f"/proc/{master}/task"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # ended meanwhile
            with open(f"/proc/{master}/task/{thread}/children", encoding="ascii") as listing:
                pids = [int(word) for word in listing.read().split()]
            for pid in pids:
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    found[own_pid_of(pid)] = pid
    return found


def cost_of_one_more(uses: Sequence[Use]) -> int:
    """Return what one more worker would cost, judged by those that there are: the middle of their private bytes."""
    private = sorted(one.private for one in uses)
    return private[len(private) // 2] if private else 0
