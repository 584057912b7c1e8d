"""Workers that cannot boot: reported at the start, contained and retried later."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.support.clients import ask
from tests.support.load import Load
from tests.support.processes import cpu_seconds
from tests.support.waiting import Stopwatch, stays, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.server import Program

FAILING = """
    from tests.support.app import *
    import prefork

    def worker_init(self, worker):
        {deed}

    try:
        serve(Echo, workers=3, boot_timeout=0.4, worker_init=worker_init)
    except prefork.BootError as error:
        tell("refused", [str(error), error.report])
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        tell("no children")
"""

DEEDS = {
    "raises": ("raise LookupError('no database')", "LookupError: no database"),
    "exits": ("sys.exit(3)", "SystemExit: 3"),
    "ends": ("os._exit(9)", ""),
    "is killed": ("os.kill(os.getpid(), signal.SIGKILL)", ""),
    "hangs": ("time.sleep(1000)", ""),
    "hangs deaf": ("signal.pthread_sigmask(0, signal.valid_signals()); time.sleep(1000)", ""),
}


@pytest.mark.parametrize("deed", DEEDS)
def test_first_generation_that_cannot_boot_ends_the_server(
    start: Callable[..., Program], deed: str
) -> None:
    """When no first worker becomes ready, serve_forever() raises BootError with the reason, and leaves nothing."""
    line, report = DEEDS[deed]
    watch = Stopwatch()
    program = start(FAILING.format(deed=line))
    message, told = program.told("refused")
    assert message
    assert report in told
    program.told("no children")
    assert program.wait() == 0
    assert watch.seconds < 15  # and not the seconds without end of those that hang
    assert program.all_told("address") == []
    assert program.all_told("left") == []
    program.wait_silent()


def test_report_of_a_boot_error_is_the_traceback(start: Callable[..., Program]) -> None:
    """A BootError names the cause, and its report shows the application's frames alone; the log has it once."""
    program = start(FAILING.format(deed="raise LookupError('no database')"))
    message, report = program.told("refused")
    assert message.endswith("no worker became ready: LookupError: no database")
    assert report.startswith("Traceback")
    assert "in worker_init" in report
    assert "life.py" not in report
    program.wait()
    assert program.log.count("LookupError: no database") == 1


def test_report_of_a_boot_error_is_the_traceback_alone(start: Callable[..., Program]) -> None:
    """Stacks that were dumped before a boot failed are no part of its report."""
    deed = "signal.raise_signal(signal.SIGUSR1); raise LookupError('no database')"
    program = start(FAILING.format(deed=deed))
    _, report = program.told("refused")
    assert report.startswith("Traceback")
    assert report.endswith("LookupError: no database")


LATER = """
    from tests.support.app import *

    def worker_init(self, worker):
        if os.path.exists("broken"):
            tell("failed", worker.slot)
            {deed}

    serve(Echo, workers=3, boot_timeout=1.0, worker_init=worker_init)
"""


@pytest.mark.parametrize("deed", ["1 / 0", "os._exit(3)"])
def test_later_boot_failures_back_off_and_recover(start: Callable[..., Program], deed: str) -> None:
    """A worker that cannot be replaced is retried ever more slowly; the others serve; then all is well again."""
    program = start(LATER.format(deed=deed))
    address = program.address()
    workers = program.wait_workers(3)
    broken = program.stderr_path.parent / "broken"
    broken.touch()
    before, watch = cpu_seconds(program.pid), Stopwatch()
    os.kill(min(workers), signal.SIGKILL)
    with Load(address, clients=2) as load:
        stays(lambda: program.popen.poll() is None, "the server has ended", span=1.5, poll=0.05)
    assert load.lost == {}
    assert load.answered > 100
    assert 2 <= len(program.all_told("failed")) <= 8, (
        "a failing worker is retried, but with back-off"
    )
    assert (cpu_seconds(program.pid) - before) / watch.seconds < 0.2
    assert workers - {min(workers)} <= program.workers()
    broken.unlink()
    program.wait_workers(3)
    program.wait_logged(r"worker slot=\d+ gen=\d+ pid=\d+ ready", times=4)
    assert program.stop() == 0


def test_worker_that_hangs_while_it_boots_is_killed(start: Callable[..., Program]) -> None:
    """A replacement that hangs at boot is killed at boot_timeout and tried again; the others serve meanwhile."""
    program = start(LATER.format(deed="time.sleep(1000)"))
    address = program.address()
    workers = program.wait_workers(3)
    broken = program.stderr_path.parent / "broken"
    broken.touch()
    os.kill(min(workers), signal.SIGKILL)
    program.told("failed")
    assert int(ask(address).split()[0]) in workers
    broken.unlink()
    program.wait_logged("boot_timeout")
    program.wait_logged(r"worker slot=\d+ gen=\d+ pid=\d+ ready", times=4)
    program.wait_workers(3)


def test_one_bad_first_worker_does_not_hold_back_the_rest(
    start: Callable[..., Program], tmp_path: Path
) -> None:
    """When some of the first workers are ready, one that dies at its boot is retried, not fatal."""
    program = start("""
        from tests.support.app import *

        def worker_init(self, worker):
            if worker.slot == 2:
                for _ in range(500):
                    if os.path.exists("others"):
                        break
                    time.sleep(0.01)
                if not os.path.exists("tried"):
                    open("tried", "w").close()
                    os._exit(1)

        def worker_ready(self, worker):
            open("others", "w").close()

        serve(Echo, workers=3, worker_init=worker_init, worker_ready=worker_ready)
    """)
    program.address()
    program.wait_workers(3)
    assert (tmp_path / "tried").exists()
    assert len(program.wait_logged("exited cause=")) == 1


def test_stop_is_obeyed_during_a_back_off(start: Callable[..., Program]) -> None:
    """A TERM during the pause between two tries ends the server at once."""
    program = start(LATER.format(deed="1 / 0"))
    program.address()
    workers = program.wait_workers(3)
    (program.stderr_path.parent / "broken").touch()
    os.kill(min(workers), signal.SIGKILL)
    program.told("failed", 3)
    watch = Stopwatch()
    assert program.stop() == 0
    assert watch.seconds < 3.0  # far below graceful_timeout


def test_dead_before_ready_does_not_delay_the_replacement_of_others(
    start: Callable[..., Program],
) -> None:
    """After the reason has gone, the pool is whole again within the pause then in force."""
    program = start(LATER.format(deed="1 / 0"))
    program.address()
    workers = program.wait_workers(3)
    broken = program.stderr_path.parent / "broken"
    broken.touch()
    for worker in sorted(workers)[:2]:
        os.kill(worker, signal.SIGKILL)
    program.told("failed", 2)
    broken.unlink()
    wait_until(lambda: len(program.workers()) == 3, "three workers", ceiling=10)


@pytest.mark.parametrize("where", ["class", "object"])
def test_worker_init_may_change_how_requests_are_served(
    start: Callable[..., Program], where: str
) -> None:
    """A step that worker_init() puts on the server, or a socket that it wraps, is used from the first request on."""
    program = start(f"""
        from tests.support.app import *
        import prefork

        class Wrapped(socket.socket):
            def accept(self):
                request, address = super().accept()
                request.sendall(b"wrapped ")
                return request, address

        def worker_init(self, worker):
            self.socket = Wrapped(fileno=self.socket.detach())
            self.verify_request = lambda request, address: not request.sendall(b"verified ")

        class Server(prefork.PreForkingTCPServer):
            pass

        if "{where}" == "class":
            Server.worker_init = worker_init
            serve(Echo, base=Server, workers=1)
        else:
            log_to_stderr()
            with Server(LOOPBACK, Echo) as server:
                server.worker_init = worker_init.__get__(server)
                server.workers, server.when_ready = 1, lambda: announce(server)
                server.serve_forever()
    """)
    assert ask(program.address()) == f"wrapped verified {program.worker()} hello"


def test_server_whose_own_code_raises_is_reported(start: Callable[..., Program]) -> None:
    """What a look at the server raises is a boot failure with its traceback, and not the master's end."""
    program = start("""
        from tests.support.app import *
        import prefork

        class Server(prefork.PreForkingTCPServer):
            @property
            def verify_request(self):
                raise LookupError("no list of friends")

        try:
            serve(Echo, base=Server, workers=2)
        except prefork.BootError as error:
            tell("refused", error.report)
    """)
    assert "LookupError: no list of friends" in program.told("refused")
    assert program.wait() == 0
