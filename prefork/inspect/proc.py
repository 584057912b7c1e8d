"""What ``/proc`` shows of another process: its memfds, its title, its owner, the signals that it takes."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
from collections.abc import Iterator
from typing import Final

from prefork.workers.scoreboard import MEMFD_NAME

_MEMORY: Final = "/memfd:"
_DELETED: Final = " (deleted)"
"""How /proc shows a memfd, before and after its name."""


def memories_of(pid: int) -> Iterator[tuple[int, str]]:
    """Yield the descriptors that are a memfd, each with its name."""
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            link = os.readlink(f"/proc/{pid}/fd/{number}")
            if link.startswith(_MEMORY) and link.endswith(_DELETED):
                yield int(number), link[len(_MEMORY) : -len(_DELETED)]


def scoreboards_of(pid: int) -> dict[int, int]:
    """Return the descriptors that look like scoreboards, one for the inode of each memory behind them."""
    found: dict[int, int] = {}
    for number, name in memories_of(pid):
        if name == MEMFD_NAME:
            with contextlib.suppress(FileNotFoundError):
                inode = os.stat(f"/proc/{pid}/fd/{number}").st_ino
                # Most often the master's own, which stays over an exec in place; Python's mmap has
                # a duplicate of it.
                found[inode] = min(number, found.get(inode, number))
    return found


def own_pid_of(pid: int) -> int:
    """Return the pid by which a process knows itself: in a container it is another one than here."""
    return int(status_word(pid, "NSpid", str(pid)).split()[-1])


def status_word(pid: int, key: str, otherwise: str) -> str:
    """Return a value of ``/proc/PID/status``, ``otherwise`` where it is missing or empty; raises OSError."""
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name == key:
                return value.strip() or otherwise
    return otherwise


def is_taken(pid: int, number: signal.Signals) -> bool:
    """Tell whether a process handles a signal, or keeps it blocked until it does: over an exec in place."""
    with contextlib.suppress(OSError, ValueError):
        caught, blocked = (int(status_word(pid, key, "0"), 16) for key in ("SigCgt", "SigBlk"))
        return bool((caught | blocked) >> (number - 1) & 1)
    return False


def title_of(pid: int) -> bytes:
    """Return the title of a process as ``ps`` shows it, empty when the process is gone."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read(4096).replace(b"\0", b" ").strip()
    except OSError:
        return b""


def owner_of(pid: int) -> str:
    """Return the name of the user that a process belongs to, for people."""
    try:
        uid = os.stat(f"/proc/{pid}").st_uid
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
    except OSError:
        return "another user"
