"""Signals at the edges of a server's life: none of the table ends it, stops it or is lost."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest

from prefork.host.stopping import STOPS
from tests.support.waiting import let_pass

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.server import Program

LOADING = """
from tests.support.app import *
import prefork, subprocess
tell("loading")
while not os.path.exists("go"):
    time.sleep(0.005)
"""
"""Goes on when there is a file named go."""

OTHERS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU)


@pytest.fixture
def run(start: Callable[..., Program], tmp_path: Path) -> Callable[..., Program]:
    """``run(source)`` starts ``prefork run`` of an application with a handler Echo."""

    def start_run(source: str, **options: Any) -> Program:
        (tmp_path / "app.py").write_text(source)
        arguments = ["-m", "prefork", "app.py:Echo", "-b", "127.0.0.1:0", "-w", "1"]
        return start(None, arguments=arguments, **options)

    return start_run


@pytest.mark.parametrize("number", OTHERS)
def test_signal_while_the_program_is_loaded(
    run: Callable[..., Program], tmp_path: Path, number: signal.Signals
) -> None:
    """A signal that is no stop neither ends nor stops a server that loads, and is answered in the log."""
    program = run(LOADING)
    program.told("loading")
    program.signal(number)
    (tmp_path / "go").touch()
    program.wait_logged("master.* ready")
    answer = {
        signal.SIGHUP: "reload requested signal=SIGHUP",
        signal.SIGUSR2: "reload requested signal=SIGUSR2",
        signal.SIGUSR1: "master status",
    }.get(number, f"order has no effect order={number.name} phase=starting")
    program.wait_logged(answer)
    program.wait_workers(1)
    assert program.stop() == 0


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 0), (signal.SIGQUIT, 0), (signal.SIGINT, 130)]
)
def test_stop_while_the_program_is_loaded(
    run: Callable[..., Program], number: signal.Signals, code: int
) -> None:
    """TERM, QUIT and INT end a server that loads, with its exit code and without a traceback."""
    program = run(LOADING)
    program.told("loading")
    program.signal(number)
    assert program.wait() == code
    assert program.log.strip() == ""


def test_stop_that_the_program_swallows(run: Callable[..., Program], tmp_path: Path) -> None:
    """TERM ends a server although its program catches the exception that was to leave it."""
    program = run("""
from tests.support.app import *
try:
    tell("loading")
    while True:
        time.sleep(0.005)
except BaseException:
    pass
""")
    program.told("loading")
    program.terminate()
    assert program.wait() == 0


@pytest.mark.parametrize("number", [*OTHERS, signal.SIGTERM, signal.SIGQUIT])
def test_signal_in_the_last_moments(
    run: Callable[..., Program], tmp_path: Path, number: signal.Signals
) -> None:
    """Signals without a pause from the stop to the end of the process leave its exit status 0."""
    program = run("""
from tests.support.app import *
import atexit
atexit.register(time.sleep, 0.1)
""")
    program.wait_logged("master.* ready")
    program.terminate()
    while program.popen.poll() is None:
        program.signal(number)
        let_pass(0.0003)
    assert program.wait() == 0
    assert "Traceback" not in program.log


def test_ignored_hup_stays_ignored(run: Callable[..., Program], tmp_path: Path) -> None:
    """Under nohup a HUP has no effect from the start to the end, and programs that are started ignore it."""
    program = run(LOADING, before=["nohup"])
    program.told("loading")
    program.signal(signal.SIGHUP)
    (tmp_path / "go").touch()
    program.wait_logged("master.* ready")
    program.signal(signal.SIGHUP)
    program.settle()
    assert program.logged("reload requested") == []
    assert program.logged("ignores signals.*SIGHUP")
    assert program.stop() == 0


def test_programs_that_the_application_starts(run: Callable[..., Program], tmp_path: Path) -> None:
    """What an application starts while it loads, first and after a reload, has no control signal blocked or ignored."""
    program = run(
        LOADING
        + """
show = ["grep", "-E", "Sig(Blk|Ign)", "/proc/self/status"]
tell("masks", subprocess.run(show, capture_output=True, text=True).stdout.split()[1::2])
"""
    )
    (tmp_path / "go").touch()
    program.wait_logged("master.* ready")
    program.signal(signal.SIGHUP)
    program.wait_logged("master reloaded")
    controls = sum(1 << (number - 1) for number in (*OTHERS, *STOPS))
    told = program.all_told("masks")
    assert len(told) == 2
    assert [(int(blocked, 16), int(ignored, 16) & controls) for blocked, ignored in told] == [
        (0, 0)
    ] * 2
    assert program.stop() == 0


def test_stop_as_serving_begins(start: Callable[..., Program]) -> None:
    """TERM is obeyed when it comes just as serve_forever() installs its handlers."""
    program = start("""
        from tests.support.app import *
        real = signal.set_wakeup_fd

        def set_wakeup_fd(fd, **how):
            was = real(fd, **how)
            if fd >= 0 and os.getpid() == master:
                os.kill(master, signal.SIGTERM)
            return was

        signal.set_wakeup_fd, master = set_wakeup_fd, os.getpid()
        signal.signal(signal.SIGTERM, lambda *_: tell("program", "handled"))
        serve(Echo, workers=1)
    """)
    program.wait()
    assert program.popen.returncode == 0
