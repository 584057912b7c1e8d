"""The threads of the master that its workers would lack (master, before the first fork)."""

from __future__ import annotations

import os
import sys
import threading
from types import FrameType

from prefork.workers.errors import BootError
from prefork.workers.settings import Settings


def refuse_threads(settings: Settings) -> list[str]:
    """Describe the threads that workers would lack; BootError when ``fork_check`` refuses them, none when it is off."""
    if settings.fork_check == "off":
        return []
    threads = other_threads()
    if threads and settings.fork_check == "error":
        raise BootError(
            "the master has other threads, which its workers would lack (fork_check = error): "
            + ", ".join(threads)
        )
    return threads


def other_threads() -> list[str]:
    """Describe the threads of this process beside its main one and the calling one.

    Python's by name and where they were started to run; those of native code by their number.
    """
    expected = {threading.current_thread(), threading.main_thread()}
    threads = threading.enumerate()
    frames = sys._current_frames()  # noqa: SLF001 - the only way to see where a thread runs
    named = [
        f"{thread.name} ({_origin(frames.get(thread.ident or 0))})"
        for thread in threads
        if thread not in expected
    ]
    native = _count_tasks() - len(threads)
    return [*named, f"{native} of native code"] if native > 0 else named


def _origin(frame: FrameType | None) -> str:
    """Return where the outermost frame of a thread that is not of ``threading`` itself began."""
    found = None
    while frame is not None:
        if frame.f_code.co_filename != threading.__file__:
            found = frame
        frame = frame.f_back
    if found is None:
        return "just started"
    code = found.f_code
    return f"{code.co_qualname} at {code.co_filename}:{code.co_firstlineno}"


def _count_tasks() -> int:
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return 0
