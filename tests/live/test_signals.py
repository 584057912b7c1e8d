"""What the master's signals do, and what the processes call themselves."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from prefork.inspect.find import find_pool
from prefork.workers.reports import REPORT_BYTES
from tests.support.clients import ask, connect, read_to_the_end, send, server_of
from tests.support.load import Load
from tests.support.processes import cpu_seconds, fds_of, title_of, zombies_of
from tests.support.server import serving
from tests.support.waiting import let_pass, stays, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.server import Program


def test_usr1_writes_every_stack_to_the_log_and_disturbs_nobody(
    start: Callable[..., Program],
) -> None:
    """USR1 logs the status and the stack of every worker, busy or idle; the request in hand goes on."""
    program = start("""
        from tests.support.app import *

        class Visible(Echo):
            def handle(self):
                self.visible_in_the_dump()
                super().handle()

            def visible_in_the_dump(self):
                tell("busy", os.getpid())
                self.rfile.readline()

        serve(Visible, workers=3)
    """)
    address = program.address()
    workers = program.wait_workers(3)
    with connect(address) as client:
        busy = program.told("busy")
        program.signal(signal.SIGUSR1)
        program.wait_logged("visible_in_the_dump")
        for pid in workers:
            program.wait_logged(rf"pid={pid} stacks")
        program.wait_logged("master.* status")
        client.sendall(b"go on\nunharmed\n")
        assert read_to_the_end(client) == f"{busy} unharmed"
    assert program.logged("write_stacks") == [], "what writes the dump is no part of it"
    assert program.workers() == workers


def test_dumps_do_no_harm_to_a_worker_that_computes(start: Callable[..., Program]) -> None:
    """Thousands of dumps of a worker under load cost nobody anything: none is of frames that change."""
    program = start(serving(workers=1))
    address = program.address()
    worker = program.worker()
    with Load(address, clients=3) as load:
        for _ in range(3000):
            os.kill(worker, signal.SIGUSR1)
            let_pass(0.0002)
    assert load.lost == {}
    assert load.answered > 100
    assert program.workers() == {worker}


def test_usr1_again_shows_the_present_stack_only(start: Callable[..., Program]) -> None:
    """A second dump shows where a worker is now, without the rest of a longer one before."""
    program = start("""
        from tests.support.app import *

        def deep(levels, then):
            if levels:
                return deep(levels - 1, then)
            tell("busy")
            then()

        class Deep(Run):
            def handle(self):
                deep(30, self.rfile.readline)
                super().handle()

        serve(Deep, workers=1)
    """)
    with connect(program.address()) as client:
        program.told("busy")
        program.signal(signal.SIGUSR1)
        program.wait_logged("in deep", times=25)
        client.sendall(b"go on\n'out again'\n")
        assert read_to_the_end(client).endswith("'out again'")
    before = len(program.logged("in deep"))
    program.signal(signal.SIGUSR1)
    program.wait_logged(" stacks", times=2)
    program.wait_logged("_wait|in run", times=2)
    assert len(program.logged("in deep")) == before


def test_dumps_without_end_go_over_nothing_of_others(start: Callable[..., Program]) -> None:
    """More stacks than a report has room for are cut: neighbour, pool and its description have no word of them."""
    program = start("""
        from tests.support.app import *
        import threading

        def deep(levels, then):
            if levels:
                return deep(levels - 1, then)
            then()

        class Deep(Echo):
            def handle(self):
                for _ in range(20):
                    threading.Thread(target=deep, args=(100, threading.Event().wait), daemon=True).start()
                deep(100, lambda: tell("busy", os.getpid()))
                signal.pause()

        serve(Deep, workers=2, pool_name="deep")
    """)
    address = program.address()
    program.wait_workers(2)
    with send(address, "") as _, find_pool(str(program.pid)) as pool:
        busy = program.told("busy")
        for _ in range(5):
            os.kill(busy, signal.SIGUSR1)
            let_pass(0.02)
        program.signal(signal.SIGUSR1)
        program.wait_logged(" stacks", times=2)
        reports = pool.reports()
        assert max(map(len, reports.values())) == REPORT_BYTES
        held = [fd for fd, what in fds_of(program.pid).items() if "prefork-report" in what]
        assert [os.stat(f"/proc/{program.pid}/fd/{fd}").st_size for fd in held] == [
            REPORT_BYTES
        ] * 2
        assert min(report.count("deep") for report in reports.values()) == 0
        shared = os.pread(pool.board.fd, os.fstat(pool.board.fd).st_size, 0)
        assert b"in deep" not in shared
        assert (pool.name, pool.board.reload_report.read()) == ("deep", "")


def test_winch_and_pipe_are_ignored_by_the_master(start: Callable[..., Program]) -> None:
    """Resizing a terminal, or a reader that is gone, neither ends nor changes anything."""
    program = start(serving(workers=2))
    address = program.address()
    workers = program.wait_workers(2)
    program.wait_logged(r"master pid=\d+ ready")
    before = program.log
    program.signal(signal.SIGWINCH)
    program.signal(signal.SIGPIPE)
    stays(lambda: program.workers() == workers, "the workers changed", span=0.1)
    ask(address)
    assert program.log == before


def test_process_titles_name_role_slot_pool_and_address(start: Callable[..., Program]) -> None:
    """A worker's title says worker, slot, the pool's name and the address; the master's says master."""
    program = start(serving(workers=2, pool_name="primes"))
    host, port = program.address()[:2]
    titles = sorted(title_of(pid) for pid in program.wait_workers(2))
    assert titles == [f"prefork: worker {slot} [primes] tcp://{host}:{port}" for slot in (0, 1)]


def test_stopped_master_goes_on_where_it_was(start: Callable[..., Program]) -> None:
    """While the master is stopped its workers serve; continued, it replaces those who died meanwhile."""
    program = start(serving(workers=3))
    address = program.address()
    workers = program.wait_workers(3)
    program.signal(signal.SIGSTOP)
    os.kill(min(workers), signal.SIGKILL)
    wait_until(lambda: zombies_of(program.pid), "the death of a worker")
    for _ in range(20):
        assert server_of(address) in workers
    program.signal(signal.SIGCONT)
    wait_until(lambda: program.workers() - workers, "the dead worker replaced", ceiling=5)
    assert program.workers() > workers - {min(workers)}


def test_nobody_is_insisted_on_whose_threads_go_on(start: Callable[..., Program]) -> None:
    """A worker with threads that is in a call of C gives no stacks for USR1, and finishes its request."""
    program = start(serving("TellingRun", workers=1))
    thread = "threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()"
    long_call = "__import__('hashlib').pbkdf2_hmac('sha256', b'', b'', 5_000_000)"
    with send(program.address(), f"[{thread}, {long_call}, 7][-1]") as client:
        worker = program.told("busy")
        wait_until(lambda: cpu_seconds(worker) > 0.2, "a worker in its long call")
        program.signal(signal.SIGUSR1)
        program.wait_logged(" stacks state=busy")
        wait_until(lambda: "(no answer)" in program.log, "the whole entry")
        assert read_to_the_end(client).endswith(" 7")
    assert program.logged("exited cause=") == []


def test_deadlines_stand_still_while_the_master_is_stopped(start: Callable[..., Program]) -> None:
    """A retiring worker is not killed for time in which the master itself did not run."""
    program = start(serving("TellingRun", workers=1, graceful_timeout=1.6))
    with send(program.address(), "time.sleep(2.6)") as client:
        busy = program.told("busy")
        program.terminate()
        program.wait_logged("asked to leave")  # the last act of that tick
        program.signal(signal.SIGSTOP)
        let_pass(2.0)
        program.signal(signal.SIGCONT)
        assert read_to_the_end(client) == f"{busy} None"
    assert program.wait() == 0


def test_handlers_that_c_code_has_installed_are_put_back(start: Callable[..., Program]) -> None:
    """A handler of ``faulthandler`` works again after serve_forever(), and in a child that a hook forks."""
    program = start(
        """
        from tests.support.app import *
        import faulthandler, prefork

        reports = {who: open(who, "w") for who in ("child", "after")}
        faulthandler.register(signal.SIGUSR1, file=reports["after"])

        def when_ready(server):
            if os.fork() == 0:
                os.kill(os.getpid(), signal.SIGUSR1)
                reports["child"].write("alive")
                reports["child"].close()
                os._exit(0)
            announce(server)

        class Server(prefork.PreForkingTCPServer):
            workers = 1

        Server.when_ready = when_ready
        log_to_stderr()
        with Server(LOOPBACK, Echo) as server:
            server.serve_forever()
        tell("handler", signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL)
        before = os.path.getsize("after")
        os.kill(os.getpid(), signal.SIGUSR1)
        tell("dumped", os.path.getsize("after") > before)
        """
    )
    program.address()
    folder = program.stderr_path.parent
    wait_until(lambda: (folder / "child").read_text() == "alive", "the child outlives its USR1")
    assert "most recent call first" in (folder / "after").read_text()
    program.signal(signal.SIGTERM)
    assert program.told("handler") is True
    assert program.told("dumped") is True
    assert program.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("end", "status"), [("sys.exit(7)", 7), ("server.shutdown()", 0)])
def test_handler_of_the_program_has_its_turn_after_the_stop(
    start: Callable[..., Program], number: signal.Signals, end: str, status: int
) -> None:
    """The program's own TERM or INT handler runs after the graceful stop: it cleans up, and may choose the exit status."""
    program = start(
        f"""
        from tests.support.app import *
        import prefork

        def clean_up(number, frame):
            tell("cleaned up", [number, server.active_children is not None and len(server.active_children)])
            {end}

        signal.signal(signal.SIGTERM, clean_up)
        signal.signal(signal.SIGINT, clean_up)
        log_to_stderr()
        Server = type("Server", (prefork.PreForkingTCPServer,), {{"workers": 2, "when_ready": announce}})
        with Server(LOOPBACK, TellingRun) as server:
            server.serve_forever()
        """
    )
    with send(program.address(), "time.sleep(0.5) or 7") as client:
        program.told("busy")
        program.signal(number)
        assert read_to_the_end(client).endswith(" 7")
    assert program.told("cleaned up") == [number, 0]
    assert program.wait() == status
    assert "Traceback" not in program.log
