"""What a worker forgets at its birth and does at its end, each step by itself."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import textwrap

import pytest

from prefork.workers.worker import python_process
from tests.support.server import environment


def run(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, which has the life of a worker before it."""
    source = f"import os, sys\nfrom prefork.workers.worker import python_process\n{textwrap.dedent(code)}"
    return subprocess.run(
        [sys.executable, "-c", source],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.processes
def test_end_before_the_birth_runs_nothing() -> None:
    """Where a boot has failed before begin(), what is registered is the master's, and end() leaves it alone."""
    done = run("""
        import atexit
        atexit.register(print, "of the master")
        python_process.end("worker")
        sys.stdout.flush()
        os._exit(0)
    """)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.processes
def test_step_that_raises_keeps_no_other_from_its_turn() -> None:
    """An atexit function that raises, and one that calls sys.exit(), cost neither the others nor the end."""
    done = run("""
        import atexit
        python_process.begin(0, os.getppid(), 0)
        atexit.register(print, "last", flush=True)
        atexit.register(sys.exit, 7)
        atexit.register(lambda: 1 / 0)
        atexit.register(print, "first", flush=True)
        python_process.end("worker")
        os._exit(3)
    """)
    assert done.returncode == 3
    assert done.stdout.split() == ["first", "last"]


@pytest.mark.processes
def test_private_name_that_is_missing_costs_its_step_only() -> None:
    """A later Python without a name that is used here still has the other steps."""
    done = run("""
        import atexit, multiprocessing.queues, multiprocessing.process, weakref
        del weakref.finalize._registry
        del multiprocessing.process._ParentProcess
        atexit.register(print, "of the master")
        python_process.begin(0, os.getppid(), 0)
        atexit.register(print, "of the worker", flush=True)
        python_process.end("worker")
        os._exit(0)
    """)
    assert done.stdout == "of the worker\n"
    assert done.returncode == 0


@pytest.mark.processes
@pytest.mark.parametrize("has_master", [True, False])
def test_bound_takes_the_place_of_a_timer_and_its_handler(has_master: bool) -> None:
    """A timer that the program has left, its handler and a blocked signal do not keep the kernel from ending it."""
    seconds = -python_process.LATER_THAN_MASTER + 0.05 if has_master else 0.01
    done = run(f"""
        import signal, time
        python_process.DUMP_BEFORE_END = 0.05
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
        signal.alarm(1000)
        os.kill(os.getpid(), signal.SIGALRM)
        python_process.bound({seconds}, has_master={has_master})
        print("goes on", flush=True)
        time.sleep(20)
    """)
    assert done.stdout == "goes on\n"
    assert done.returncode == -signal.SIGALRM


def test_flush_of_a_plain_stream_handler_is_left_out() -> None:
    """A stream whose lock was held at the fork is not touched; a handler that holds records back is flushed."""
    flushed = []

    class Stream:
        def write(self, _text: str) -> None: ...

        def flush(self) -> None:
            flushed.append("stream")

    class Holding(logging.StreamHandler):  # type: ignore[type-arg]
        def flush(self) -> None:
            flushed.append("records")

    for handler in (logging.StreamHandler(Stream()), Holding(Stream())):
        python_process._flush(handler)
        handler.close()
    assert flushed.count("records") >= 1
    assert flushed[0] == "records"


def test_process_is_no_fork_of_multiprocessing() -> None:
    """A fork that multiprocessing has not made is not taken for one, whether or not it is loaded."""
    assert not python_process._is_fork_of_multiprocessing()
