"""What workers leave behind in words, stack dumps and last words: where they write it, and how it is shown.

Each worker has memory of its own for it, of a fixed size, so that the kernel cuts a dump that is too
long: ``faulthandler`` writes on and on, and in the scoreboard that would go over what is another's.
The master has all of them open, so whoever may read its scoreboard may read them, too.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re

from prefork.workers import system
from prefork.workers.text import printable

REPORT_BYTES = 64 * 1024
"""A hundred frames of a dozen threads; pages are allocated only when written."""

_FRAME_OF_OURS = re.compile(
    r'/prefork/workers/worker/life\.py", line \d+ in (run_worker|write_stacks)$'
)


def name_of(board: int, slot: int) -> str:
    """Return the name that /proc shows for the report of a slot's worker. board: a descriptor of the scoreboard."""
    return f"prefork-report-{os.fstat(board).st_ino}-{slot}"


def create(name: str) -> int:
    """Make an empty one (master).

    Where files may not be so long any more (RLIMIT_FSIZE) what is written is lost: a worker without
    a report is better than none.
    """
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, REPORT_BYTES)
        fcntl.fcntl(
            fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        )
    except OSError as error:
        os.close(fd)
        if error.errno != errno.EFBIG:
            raise
        return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    return fd


def clear(fd: int) -> None:
    """Empty it, and have what is written next go to its beginning, whoever writes (master).

    To write over it is refused by a limit on the size of files, and where the worker has set
    O_APPEND, which is the master's then, too; a hole is refused by a filter of system calls only.
    """
    if not system.punch_hole(fd, REPORT_BYTES):
        with contextlib.suppress(OSError):
            os.pwrite(fd, bytes(REPORT_BYTES), 0)
    os.lseek(fd, 0, os.SEEK_SET)


def read(fd: int) -> str:
    """Return its text: bytes of a worker's choosing, not yet escaped."""
    return os.pread(fd, REPORT_BYTES, 0).split(b"\0", 1)[0].decode("utf-8", "replace")


def shown(report: str) -> str:
    """Return a report as it may be shown: without what a terminal would obey (pure).

    A stack dump also without the frames of the program that has forked the worker, which are below
    its first one, and without that of the dump's writer. The traceback of a boot stays whole: its
    frames are written in another way.
    """
    lines = []
    is_below = False
    for raw in report.splitlines():
        line = printable(raw)
        if not line.startswith("  "):  # the next thread
            is_below = False
        ours = _FRAME_OF_OURS.search(line)
        is_first = ours is not None and ours[1] == "run_worker"
        if not is_below and (ours is None or is_first):
            lines.append(line)
        is_below = is_below or is_first
    return "\n".join(lines)
