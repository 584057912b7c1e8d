"""Reports: where a worker writes stack dumps and last words, and how they are shown (both).

Each worker has a memfd of its own for its report. The size of the memfd is fixed and sealed, so the
kernel cuts what is too long: ``faulthandler`` writes without a bound, and in the scoreboard a long
dump would overwrite the words of another slot. The master keeps the reports of all workers open. A
process that may read the master's scoreboard may read them as well, which is how ``prefork dump``
works.
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
"""Room for a hundred frames of a dozen threads. Pages are allocated when they are written."""

_FRAME_OF_OURS = re.compile(
    r'/prefork/workers/worker/life\.py", line \d+ in (run_worker|write_stacks)$'
)


def name_of(board: int, slot: int) -> str:
    """Return the name that /proc shows for a slot's report. board: the scoreboard's descriptor."""
    return f"prefork-report-{os.fstat(board).st_ino}-{slot}"


def create(name: str) -> int:
    """Make an empty report and return its descriptor (master).

    Where files may not be that long (RLIMIT_FSIZE) the descriptor is that of /dev/null, and what
    the worker writes is lost: a worker without a report is better than no worker. Raises OSError
    for anything else.
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
    """Empty a report, so that the next text begins at its beginning (master).

    Worker and master share the file position, which is moved there.     The report is emptied by
    punching a hole. Writing zeros over it, which is the second choice, fails under a limit on the
    size of files, and where the worker has set O_APPEND, a flag that both share as well. A hole
    fails only where a filter of system calls refuses it.
    """
    if not system.punch_hole(fd, REPORT_BYTES):
        with contextlib.suppress(OSError):
            os.pwrite(fd, bytes(REPORT_BYTES), 0)
    os.lseek(fd, 0, os.SEEK_SET)


def read(fd: int) -> str:
    """Return the text of a report (master). The worker has chosen it: escape before showing."""
    return os.pread(fd, REPORT_BYTES, 0).split(b"\0", 1)[0].decode("utf-8", "replace")


def shown(report: str) -> str:
    """Return a report as it may be shown: without characters that steer a terminal (pure).

    In a stack dump, two kinds of frames are left out: those below ``run_worker``, which belong to
    the program that has forked the worker, and that of ``write_stacks``, which has written the
    dump. The traceback of a failed boot stays whole, because its frames are written in another
    form.
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
