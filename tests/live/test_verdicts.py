"""Crash loops, deaths and their causes, and the threads that a fork leaves behind."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from prefork.workers.states import ExitKind
from tests.support.board import board_of
from tests.support.cgroup import memory_group, why_no_cgroup
from tests.support.clients import ask, connect, read_to_the_end, send_line
from tests.support.waiting import Stopwatch, stays, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.server import Program

FRAGILE = """
    from tests.support.app import *
    import prefork

    def worker_init(self, worker):
        if os.path.exists("broken"):
            tell("booting")
            {deed}

    try:
        serve(Echo, workers=2, worker_init=worker_init, {settings})
    except prefork.CrashLoopError as error:
        tell("gave up", [str(error), error.report])
"""


def broken(program: Program) -> None:
    """Have the workers fail from now on, and kill one."""
    (program.stderr_path.parent / "broken").touch()
    os.kill(program.worker(), signal.SIGKILL)


def test_crash_loop_ends_the_pool_that_wants_it(start: Callable[..., Program]) -> None:
    """With crash_loop = exit a pool whose new workers die again and again raises CrashLoopError with the traceback."""
    program = start(FRAGILE.format(deed="1 / 0", settings="crash_loop='exit'"))
    program.address()
    broken(program)
    message, report = program.told("gave up")
    assert "crash_loop = exit" in message
    assert "ZeroDivisionError" in report
    assert program.wait() == 0
    program.wait_silent()


def test_crash_loop_is_retried_by_default(start: Callable[..., Program]) -> None:
    """Without it the healthy worker goes on serving while the other one is retried ever more slowly."""
    program = start(FRAGILE.format(deed="1 / 0", settings="crash_loop='retry'"))
    address = program.address()
    broken(program)
    wait_until(lambda: len(program.all_told("booting")) >= 5, "five tries")
    assert ask(address)
    assert program.stop() == 0


@pytest.mark.once  # one number
def test_command_line_exits_with_5(start: Callable[..., Program], tmp_path: object) -> None:
    """The command line's exit code of a crash loop is 5."""
    application = f"{tmp_path}/fragile.py"
    with open(application, "w", encoding="utf-8") as file:
        file.write(
            "import os, socketserver, prefork\n"
            "class Server(prefork.PreForkingTCPServer):\n"
            "    workers = 1\n"
            "    def worker_init(self, worker):\n"
            "        if os.path.exists('broken'):\n"
            "            raise LookupError('no database')\n"
            "class Handler(socketserver.StreamRequestHandler):\n"
            "    def handle(self):\n"
            "        os._exit(1)\n"
            "def make():\n"
            "    return Server(('127.0.0.1', 0), Handler)\n"
        )
    flags = ["--factory", "--crash-loop", "exit"]
    program = start(None, arguments=["-m", "prefork", "run", "fragile.py:make", *flags])
    program.wait_logged(" ready workers=1")
    broken(program)
    assert program.wait() == 5
    assert "no database" in program.log


def test_crash_right_after_ready_backs_off(start: Callable[..., Program]) -> None:
    """Workers that die by their own fault just after they were ready are not forked in a storm."""
    program = start("""
        from tests.support.app import *

        def worker_init(self, worker):
            if os.path.exists("broken"):
                tell("booting")
                threading.Timer(0.01, os._exit, [7]).start()

        serve(Echo, workers=1, worker_init=worker_init)
    """)
    program.address()
    broken(program)
    program.told("booting")
    stays(lambda: len(program.all_told("booting")) <= 6, "a storm", span=1.5, poll=0.05)
    (program.stderr_path.parent / "broken").unlink()
    wait_until(lambda: ask(program.address()), "it serves again")
    assert len(program.logged(r"exited cause=exited\(7\)")) >= 3


@pytest.mark.skipif(why_no_cgroup() != "", reason=why_no_cgroup())
def test_worker_killed_for_want_of_memory_is_told_from_a_kill(
    start: Callable[..., Program],
) -> None:
    """A worker that the kernel kills for memory has the cause oom_killed, one that somebody kills has killed(SIGKILL)."""
    with memory_group(120_000_000) as group:
        program = start(f"""
            from tests.support.app import *

            with open({str(group / "cgroup.procs")!r}, "w") as procs:
                procs.write(str(os.getpid()))
            serve(Run, workers=2)
        """)
        address = program.address()
        with connect(address) as client:
            send_line(client, "len(bytearray(b'x') * 400_000_000)")
            assert read_to_the_end(client) == ""
        program.wait_logged("exited cause=oom_killed")
        wait_until(lambda: len(program.workers()) == 2, "it was replaced")
        victim = program.worker()
        os.kill(victim, signal.SIGKILL)
        program.wait_logged(rf"pid={victim} exited cause=killed\(SIGKILL\)")
        with board_of(program.pid) as board:
            kinds = (ExitKind.OOM_KILLED, ExitKind.KILLED)
            wait_until(
                lambda: [board.snapshot().exits[kind] for kind in kinds] == [1, 1], "one of each"
            )
        assert program.stop() == 0


CAUSES = {
    "os._exit(3)": "exited(3)",
    "sys.exit(4)": "exited(4)",
    "os.kill(os.getpid(), signal.SIGKILL)": "killed(SIGKILL)",
    "ctypes.string_at(0)": "killed(SIGSEGV)",
}


def test_one_word_for_a_cause(start: Callable[..., Program]) -> None:
    """Log, hook and scoreboard give the same cause, with the request's age, CPU time and memory in the log."""
    program = start("""
        from tests.support.app import *

        def worker_died(self, worker, cause):
            tell("died", [str(cause), cause.kind])

        serve(Run, workers=1, worker_died=worker_died)
    """)
    address = program.address()
    for number, (line, cause) in enumerate(CAUSES.items()):
        with connect(address) as client:
            send_line(client, line)
            read_to_the_end(client)
        word, kind = program.told("died", number)
        assert word == cause
        lines = program.wait_logged(f"exited cause={cause.replace('(', '.').replace(')', '.')} ")
        assert "cpu=" in lines[0]
        assert "peak_memory=" in lines[0]
        with board_of(program.pid) as board:
            slot = board.snapshot().slots[0]
        assert (slot.last_exit, str(slot.last_cause)) == (kind, cause)


THREADED = """
    from tests.support.app import *
    import prefork

    def busy():
        time.sleep(1000)

    threading.Thread(target=busy, name="poller", daemon=True).start()
    try:
        serve(Echo, workers=1, fork_check={check!r})
    except prefork.BootError as error:
        tell("refused", str(error))
"""


def test_threads_of_the_master_are_named_once(start: Callable[..., Program]) -> None:
    """fork_check = warn names each thread and where it was started to run, in one line however often is forked."""
    program = start(THREADED.format(check="warn"))
    address = program.address()
    os.kill(program.worker(), signal.SIGKILL)
    ask(address)
    lines = program.logged("has other threads")
    assert len(lines) == 1
    assert "poller (busy at" in lines[0]
    assert "program.py:5)" in lines[0]


def test_threads_of_the_master_can_be_refused(start: Callable[..., Program]) -> None:
    """fork_check = error refuses to fork from a process with other threads, naming them."""
    program = start(THREADED.format(check="error"))
    assert "poller (busy at" in program.told("refused")
    assert program.wait() == 0
    assert program.logged("spawned") == []


def test_threads_of_the_master_can_be_passed_over(start: Callable[..., Program]) -> None:
    """fork_check = off says nothing."""
    program = start(THREADED.format(check="off"))
    program.address()
    assert program.logged("thread") == []


def test_boot_failures_take_ever_longer(start: Callable[..., Program]) -> None:
    """Between two tries of a worker that cannot boot there is at least the back-off."""
    program = start(FRAGILE.format(deed="1 / 0", settings=""))
    program.address()
    broken(program)
    took = Stopwatch()
    wait_until(lambda: len(program.all_told("booting")) >= 4, "four tries")
    assert took.seconds >= 0.1 + 0.2 + 0.4 - 0.05
