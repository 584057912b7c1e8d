"""What ``/proc`` shows of another process: its memfds, its title, its owner, the signals that it handles."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
from collections.abc import Iterator
from typing import Final

from prefork.workers.scoreboard import MEMFD_NAME

_MEMFD_PREFIX: Final = "/memfd:"
_MEMFD_SUFFIX: Final = " (deleted)"
"""``/proc/PID/fd`` shows a memfd as a link to its name between these two."""


def memories_of(pid: int) -> Iterator[tuple[int, str]]:
    """Yield each descriptor of a process that is a memfd, with the name of the memfd.

    OSError: the process has ended (FileNotFoundError, ProcessLookupError) or belongs to another
    user (PermissionError).
    """
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed since the listing
            link = os.readlink(f"/proc/{pid}/fd/{number}")
            if link.startswith(_MEMFD_PREFIX) and link.endswith(_MEMFD_SUFFIX):
                yield int(number), link[len(_MEMFD_PREFIX) : -len(_MEMFD_SUFFIX)]


def scoreboards_of(pid: int) -> dict[int, int]:
    """Return the memfds of a process that have the name of a scoreboard, as inode to descriptor.

    A process usually has several descriptors of one memfd: the master's own, which survives an
    exec in place, and the duplicate that Python's ``mmap`` keeps, which does not. The lowest number
    is most often the master's own. Raises OSError as ``memories_of()``.
    """
    found: dict[int, int] = {}
    for number, name in memories_of(pid):
        if name == MEMFD_NAME:
            with contextlib.suppress(FileNotFoundError):
                inode = os.stat(f"/proc/{pid}/fd/{number}").st_ino
                found[inode] = min(number, found.get(inode, number))
    return found


def own_pid_of(pid: int) -> int:
    """Return the pid by which a process knows itself.

    In a container that is not the pid seen from here.
    """
    return int(status_word(pid, "NSpid", str(pid)).split()[-1])


def effective_user_of(pid: int) -> int:
    """Return the effective user of a process; OSError where it has ended.

    The owner of ``/proc/PID`` would not do: root owns it where the process may not be dumped.
    """
    return int(status_word(pid, "Uid", "-1 -1").split()[1])


def status_word(pid: int, key: str, otherwise: str) -> str:
    """Return the value of one line of ``/proc/PID/status``, or ``otherwise`` where it is missing or empty.

    OSError: the process has ended.
    """
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name == key:
                return value.strip() or otherwise
    return otherwise


def takes_signal(pid: int, number: signal.Signals) -> bool:
    """Return whether a process has a handler for a signal, or blocks it for now.

    A master blocks its signals during an exec in place and handles them afterwards. False for a
    process that has ended.
    """
    with contextlib.suppress(OSError, ValueError):
        caught, blocked = (int(status_word(pid, key, "0"), 16) for key in ("SigCgt", "SigBlk"))
        return bool((caught | blocked) >> (number - 1) & 1)
    return False


def ignores_signal(pid: int, number: signal.Signals) -> bool:
    """Return whether a process ignores a signal. False for a process that has ended."""
    with contextlib.suppress(OSError, ValueError):
        return bool(int(status_word(pid, "SigIgn", "0"), 16) >> (number - 1) & 1)
    return False


def title_of(pid: int) -> bytes:
    """Return the title of a process as ``ps`` shows it, empty when the process has ended."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read(4096).replace(b"\0", b" ").strip()
    except OSError:
        return b""


def owner_of(pid: int) -> str:
    """Return the name of the user that a process belongs to, as text for a message."""
    try:
        uid = os.stat(f"/proc/{pid}").st_uid
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
    except OSError:
        return "another user"


def is_of_another_user(pid: int) -> bool:
    """Return whether a process belongs to another user than this one. False when it has ended."""
    with contextlib.suppress(OSError):
        return os.stat(f"/proc/{pid}").st_uid != os.geteuid()
    return False
