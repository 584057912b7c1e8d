"""Which threads of the master are reported before a fork."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from prefork.workers.pool import before_fork

if TYPE_CHECKING:
    import pytest

POOLS = {one.part: one for one in before_fork._THREAD_POOLS}


def reported(monkeypatch: pytest.MonkeyPatch, native: int, *parts: str) -> list[str]:
    """Return what is reported for this many native threads, with these libraries loaded."""
    tasks = len(threading.enumerate()) + native
    monkeypatch.setattr(before_fork, "_count_tasks", lambda: tasks)
    monkeypatch.setattr(before_fork, "_thread_pools_loaded", lambda: [POOLS[one] for one in parts])
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    return before_fork.other_threads()


def test_threads_that_know_fork_are_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The threads of OpenBLAS survive a fork: they are no threads that a worker would lack."""
    assert reported(monkeypatch, 3, "openblas") == []
    assert reported(monkeypatch, 0) == []


def test_other_native_threads_are_reported_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """More threads than OpenBLAS has, and those of other libraries, are reported, with what starts none."""
    assert reported(monkeypatch, 1) == ["1 of native code"]
    (many,) = reported(monkeypatch, 4, "openblas")
    assert many == "4 of native code; OPENBLAS_NUM_THREADS=1 starts none for OpenBLAS"
    (mixed,) = reported(monkeypatch, 3, "openblas", "libgomp")
    assert mixed.endswith("OMP_NUM_THREADS=1 starts none for OpenMP of GCC")


def test_threads_of_python_are_always_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread of the program is reported, whatever else is loaded."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait, name="poller")
    thread.start()
    try:
        (named,) = reported(monkeypatch, 3, "openblas")
        assert named.startswith("poller (")
    finally:
        done.set()
        thread.join()


def test_libraries_are_found_by_their_files() -> None:
    """Looking at what this process has loaded works, and finds nothing that is not there."""
    assert all(one in before_fork._THREAD_POOLS for one in before_fork._thread_pools_loaded())
