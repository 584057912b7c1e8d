"""What the master does before its first fork: other threads, and memory to share (master)."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Final, NamedTuple

from prefork.workers.errors import BootError
from prefork.workers.settings import Settings


@contextlib.contextmanager
def frozen_heap() -> Iterator[None]:
    """Exclude the objects that exist now from garbage collection (master, around its whole run).

    After a fork the worker shares every page of memory with the master until one of them writes to
    the page. The collector writes into each object that it examines, so the first collection in a
    worker would copy nearly the whole heap. ``gc.freeze()`` moves the objects to a generation that
    is never examined. A program that has frozen its heap itself is left as it is.
    """
    ours = gc.get_freeze_count() == 0
    if ours:
        gc.collect()
        gc.freeze()
    try:
        yield
    finally:
        if ours:
            gc.unfreeze()


def refuse_threads(settings: Settings) -> list[str]:
    """Return a description of each thread that workers would lack.

    None is described when ``fork_check`` is ``off``. A fork copies only the thread that calls it.
    Raises BootError when there are other threads and ``fork_check`` is ``error``.
    """
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
    """Return a description of each thread of this process beside the main one and the calling one.

    A thread of Python is described by its name and by the function that it was started with.
    Threads of native code have neither, so they are only counted.
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
    loaded = _thread_pools_loaded() if native > 0 else []
    if native <= _most_harmless(loaded):
        return named
    remedies = [f"{one.variable}=1 starts none for {one.name}" for one in loaded]
    return [*named, "; ".join([f"{native} of native code", *remedies])]


class _ThreadPool(NamedTuple):
    """A library that starts threads of its own for computing.

    part: of the name of its file. variable: in the environment, limits the threads. survives: whether
    the library is made for a fork: it ends its threads before, and starts new ones where it needs them.
    """

    name: str
    part: str
    variable: str
    survives: bool = False


_THREAD_POOLS: Final = (
    _ThreadPool("OpenBLAS", "openblas", "OPENBLAS_NUM_THREADS", survives=True),
    _ThreadPool("OpenMP of GCC", "libgomp", "OMP_NUM_THREADS"),
    _ThreadPool("OpenMP of LLVM or Intel", "libomp", "OMP_NUM_THREADS"),
    _ThreadPool("OpenMP of LLVM or Intel", "libiomp5", "OMP_NUM_THREADS"),
    _ThreadPool("MKL", "libmkl", "MKL_NUM_THREADS"),
)


def _thread_pools_loaded() -> list[_ThreadPool]:
    """Return the libraries with threads that this process has loaded."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            files = {line.rpartition("/")[2] for line in maps if "/" in line}
    except OSError:
        return []
    return [one for one in _THREAD_POOLS if any(one.part in file for file in files)]


def _most_harmless(loaded: list[_ThreadPool]) -> int:
    """Return how many native threads a fork leaves without harm.

    They are those of OpenBLAS, one for each further CPU of the machine. It has handlers for a fork. With
    any other such library loaded it is unknown whose the threads are.
    """
    known = loaded and all(one.survives for one in loaded)
    return len(loaded) * ((os.cpu_count() or 1) - 1) if known else 0


def _origin(frame: FrameType | None) -> str:
    """Return the outermost function of a thread that is not part of ``threading`` itself."""
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
