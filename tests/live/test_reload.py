"""Reload: new code is tried, taken over in place, and rolled out; whatever goes wrong, somebody serves."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

from prefork.inspect.find import find_pool
from prefork.workers.scoreboard import PoolField, SlotField
from prefork.workers.states import ReloadState, WorkerState
from tests.support.board import board_of
from tests.support.clients import ask, connect, read_to_the_end, send_line
from tests.support.load import Load
from tests.support.ports import free_port
from tests.support.processes import fds_of, is_alive, pipes_of
from tests.support.reloadable import Reloadable
from tests.support.sampling import ChildrenWatch
from tests.support.waiting import CEILING, Stopwatch, let_pass, stays, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.clients import Address
    from tests.support.server import Program

ADDRESSES = {
    "tcp": {},
    "tcp, port given": {"address": ("127.0.0.1", "port")},
    "ipv6": {"address": ("::1", 0)},
    "unix": {"base": "PreForkingUnixStreamServer", "address": "{folder}/socket"},
    "abstract": {"base": "PreForkingUnixStreamServer", "address": "\0prefork-reload-{pid}"},
}


def filled(how: dict[str, object], folder: Path) -> dict[str, object]:
    """Put a port, a pid or a folder where it is asked for."""
    address = how.get("address")
    if address == ("127.0.0.1", "port"):
        return {**how, "address": ("127.0.0.1", free_port())}
    if isinstance(address, str):
        return {**how, "address": address.format(pid=os.getpid(), folder=folder)}
    return how


class DatagramLoad:
    """Clients that each send a datagram, wait for its answer, and send the next, until the block ends."""

    def __init__(self, address: Address, clients: int) -> None:
        self.answered = self.lost = 0
        self._address = address
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._ask_on) for _ in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _ask_on(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(10)
            while not self._stopping.is_set():
                client.sendto(b"x", self._address)
                try:
                    client.recv(100)
                    self.answered += 1
                except TimeoutError:
                    self.lost += 1


@pytest.mark.parametrize(
    "kind",
    [
        "tcp",
        # What becomes of the kernel's sockets is the same for every interpreter.
        *(pytest.param(kind, marks=pytest.mark.once) for kind in ADDRESSES if kind != "tcp"),
    ],
)
def test_reload_under_load_loses_nothing(
    reloadable: Callable[..., Reloadable], tmp_path: Path, kind: str
) -> None:
    """New code takes over under load without one failed request, in the same process, at the same address."""
    server = reloadable(**filled(ADDRESSES[kind], tmp_path))
    program, address = server.program, server.address
    with board_of(program.pid) as board, ChildrenWatch(program.pid) as watch:
        with Load(address, clients=6) as load:
            for version in ("2", "3", "4"):
                server.write(version=version)
                server.reload(board)
                assert server.version()[0] == version
        assert load.lost == {}
        assert load.verdicts["refused"] == 0
        assert load.answered > 100
        assert board.pool(PoolField.MASTER_PID) == program.pid
        assert board.pool(PoolField.GENERATION) == 3
    assert watch.most <= 6 + 1  # the trial is a child, too
    assert program.all_told("on_reload") == [program.pid] * 3
    assert program.stop() == 0
    sys.stdout.write(f"{kind}: {load.answered} requests through 3 reloads\n")


DATAGRAMS = """
    from tests.support.app import *
    import prefork
    serve(EchoDatagram, prefork.PreForkingUDPServer, workers=2, max_children=4, pause=0.002)
"""


def test_datagrams_under_reload(start: Callable[..., Program]) -> None:
    """A UDP server answers each datagram of several clients through its reloads."""
    program = start(DATAGRAMS)
    address = program.address()
    with board_of(program.pid) as board, DatagramLoad(address, clients=3) as load:
        for count in (1, 2, 3):
            program.signal(signal.SIGHUP)
            wait_until(lambda n=count: board.pool(PoolField.RELOADS) == n, "a reload")
    assert load.lost == 0
    assert load.answered > 50


BROKEN = {
    "syntax": ("def", "SyntaxError"),
    "exception": ("1 / 0", "ZeroDivisionError"),
    "exit": ("sys.exit(0)", "without serving"),
    "hard exit": ("os._exit(0)", "without serving"),
    "killed": ("os.kill(os.getpid(), 9)", "died of SIGKILL"),
    "hangs": ("time.sleep(1000)", "not loaded within"),
    "workers too many": ("", "workers = 99"),
}


def test_broken_code_leaves_everything_as_it_is(reloadable: Callable[..., Reloadable]) -> None:
    """Whatever is wrong with the new code, the same workers serve on, and the reason is in the log and on the scoreboard."""
    server = reloadable(boot_timeout=4.0)
    program = server.program
    workers = program.wait_workers(3)
    with board_of(program.pid) as board, Load(server.address, clients=2) as load:
        for line, reason in BROKEN.values():
            server.write(
                first=line, settings="{'workers': 99}" if not line else "{'boot_timeout': 4.0}"
            )
            server.reload(board, fails=True)
            assert reason in board.reload_report.read()
            program.wait_logged(reason)
            wait_until(
                lambda: board.pool(PoolField.RELOAD_STATE) == ReloadState.FAILED,
                "the state says so",
            )
        assert program.workers() == workers
        server.write(first="", version="2", settings="{}")
        server.reload(board)
        assert board.reload_report.read() == ""
    assert load.lost == {}
    assert server.version() == ("2", 1)


def test_settings_that_cannot_follow_are_refused(reloadable: Callable[..., Reloadable]) -> None:
    """No workers, or an address for the metrics that somebody has: refused by the trial, everything goes on."""
    server = reloadable()
    with board_of(server.program.pid) as board, socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        for settings, reason in (
            ({"workers": 0}, "cannot be reloaded to serve without workers"),
            ({"metrics_address": taken}, "in use"),
            ({"metrics_address": "nowhere at all"}, "metrics"),
            ({"agent_address": taken}, "in use"),
        ):
            server.write(settings=repr(settings))
            server.reload(board, fails=True)
            assert reason in board.reload_report.read()
    assert server.version() == ("1", 0)


def test_socket_path_that_is_no_text_is_handed_over(
    reloadable: Callable[..., Reloadable], tmp_path: Path
) -> None:
    """A Unix path is bytes: one that is no UTF-8 is reloaded as any other."""
    path = os.fsdecode(os.fsencode(tmp_path) + b"/s\xff")
    server = reloadable(base="PreForkingUnixStreamServer", address=path)
    server.address = path
    with board_of(server.program.pid) as board:
        server.write(version="2")
        server.reload(board)
    assert server.version() == ("2", 1)


def test_state_that_cannot_be_handed_over_whole_fails_the_reload(
    reloadable: Callable[..., Reloadable],
) -> None:
    """Where the state for the new code does not fit, the reload fails before the exec; the pool serves and reloads later."""
    server = reloadable()
    program = server.program
    workers = program.wait_workers(3)
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, ({}, resource.RLIM_INFINITY))"
    server.write(hook="import resource; " + limit.format(1000), version="2")
    with board_of(program.pid) as board, Load(server.address, clients=2) as load:
        server.reload(board, fails=True)
        assert "the state for the new code cannot be written" in board.reload_report.read()
        assert program.workers() == workers
        assert server.version() == ("1", 0)
        server.write(hook="import resource; " + limit.format("resource.RLIM_INFINITY"))
        server.reload(board)
    assert load.lost == {}
    assert server.version() == ("2", 1)


def test_new_code_whose_workers_do_not_boot_leaves_the_old_ones(
    reloadable: Callable[..., Reloadable],
) -> None:
    """When the first new worker fails, the old generation serves on; the next reload makes it good."""
    server = reloadable()
    program = server.program
    workers = program.wait_workers(3)
    with board_of(program.pid) as board, Load(server.address, clients=2) as load:
        server.write(version="2", init="raise LookupError('no database')")
        server.reload(board, fails=True)
        assert "LookupError: no database" in board.reload_report.read()
        assert workers <= program.workers()
        assert server.version() == ("1", 0)
        server.write(init="")
        server.reload(board)
    assert load.lost == {}
    assert server.version() == ("2", 2)
    assert not workers & program.workers()


def test_worker_that_ends_after_a_failed_roll_is_replaced_under_the_new_generation(
    reloadable: Callable[..., Reloadable],
) -> None:
    """After a roll that failed, the old workers keep their generation, and a replacement has that of its code."""
    server = reloadable(workers=1)
    program = server.program
    (worker,) = program.wait_workers(1)
    with board_of(program.pid) as board:
        server.write(version="2", init="import os\nif not os.path.exists('mended'): 1 / 0")
        server.reload(board, fails=True)
        assert server.version() == ("1", 0)
        program.wait_logged("has only the new code.* generation=1")
        server.write(mended="")
        os.kill(worker, signal.SIGKILL)
        program.wait_logged(r"worker slot=\d gen=1 pid=\d+ ready")
        assert server.version() == ("2", 1)
        server.reload(board)
        assert server.version() == ("2", 2)


def test_failed_roll_leaves_the_size_of_the_pool(reloadable: Callable[..., Reloadable]) -> None:
    """New code whose workers do not start changes no number of workers, and is not said to be ready."""
    server = reloadable(workers=4, max_children=9)
    program = server.program
    workers = program.wait_workers(4)
    with board_of(program.pid) as board:
        server.write(settings=repr({"workers": 2, "max_children": 9}), init="1 / 0")
        server.reload(board, fails=True)
        stays(lambda: program.workers() >= workers, "the old workers", span=0.3)
        assert board.pool(PoolField.FLOOR) == 4
        assert "resized" not in program.log
        assert (
            len(program.logged(r"master pid=\d+ ready")) == 1
        )  # no hook when_ready() of such code
        server.write(init="")
        server.reload(board)
        program.wait_workers(2)
        assert board.pool(PoolField.FLOOR) == 2
        program.wait_logged(r"master pid=\d+ ready", times=2)


def test_smaller_size_of_new_code_counts_when_its_first_worker_is_ready(
    reloadable: Callable[..., Reloadable],
) -> None:
    """A reload that also lowers ``workers`` retires no worker before one of the new code is ready."""
    server = reloadable(workers=4, max_children=9)
    program = server.program
    program.wait_workers(4)
    with board_of(program.pid) as board:
        server.write(settings=repr({"workers": 2, "max_children": 9}))
        server.reload(board)
    program.wait_workers(2)
    program.wait_logged(r"worker slot=\d gen=0 pid=\d+ exited")
    log = program.log
    first_ready = re.search(r"worker slot=\d gen=1 pid=\d+ ready", log)
    first_exit = re.search(r"worker slot=\d gen=0 pid=\d+ exited", log)
    resized = re.search(r"master resized old=4 new=2 why=reload", log)
    assert first_ready is not None
    assert first_exit is not None
    assert resized is not None
    assert first_ready.start() < resized.start() < first_exit.start()


def test_reload_asked_for_during_a_reload_is_one_more(
    reloadable: Callable[..., Reloadable],
) -> None:
    """Fifty HUPs during a reload mean one more afterwards; never more than two generations live."""
    server = reloadable()
    program = server.program
    with board_of(program.pid) as board:
        program.signal(signal.SIGHUP)
        program.wait_logged("reload requested")
        for _ in range(50):
            program.signal(signal.SIGHUP)
        generations: set[int] = set()

        def done() -> bool:
            live = [one for one in board.snapshot().slots if one[SlotField.PID]]
            generations.add(len({one[SlotField.GENERATION] for one in live}))
            return board.pool(PoolField.RELOADS) >= 2

        wait_until(done, "two reloads")
        stays(lambda: board.pool(PoolField.RELOADS) == 2, "a third reload", span=0.6)
        assert max(generations) <= 2


@pytest.mark.parametrize("turn", range(6))
def test_stop_at_any_moment_of_a_reload(reloadable: Callable[..., Reloadable], turn: int) -> None:
    """A TERM at whatever moment of a reload, also within the exec, is obeyed: exit 0, nothing left, no request lost."""
    server = reloadable()
    with Load(server.address, clients=2, until_refused=True) as load:
        server.program.signal(signal.SIGHUP)
        let_pass(random.Random(turn).uniform(0.0, 0.9))  # the moment is what the test varies
        server.program.terminate()
        assert server.program.wait() == 0
    assert load.lost == {}
    server.program.wait_silent()


def test_storm_of_terms_during_an_exec(reloadable: Callable[..., Reloadable]) -> None:
    """TERM upon TERM through trial, exec and start of the new code kills nobody by default: the pool stops in order."""
    server = reloadable()
    program = server.program
    server.write(first="time.sleep(0.3)")
    program.signal(signal.SIGHUP)
    program.wait_logged("new code passed its trial")
    storm = Stopwatch()
    while not program.logged("phase changed old=serving"):
        assert storm.seconds < CEILING
        program.terminate()
        let_pass(0.001)  # hundreds, not millions
    assert program.wait() == 0
    program.wait_silent()


def test_storm_of_signals_during_reloads(reloadable: Callable[..., Reloadable]) -> None:
    """Signals that rain through trial and exec kill nobody, and those that scale count as ever."""
    server = reloadable()
    program = server.program
    with board_of(program.pid) as board, Load(server.address, clients=2) as load:
        for _ in range(3):
            done = board.pool(PoolField.RELOADS)
            program.signal(signal.SIGHUP)
            rain = [signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR1, signal.SIGWINCH]
            storm = Stopwatch()
            while board.pool(PoolField.RELOADS) == done:
                assert storm.seconds < CEILING
                for number in rain:
                    program.signal(number)
                let_pass(0.002)  # thousands, not millions
    assert load.lost == {}
    assert program.popen.poll() is None
    assert program.stop() == 0


def test_reloads_leave_descriptors_memory_and_children_as_they_were(
    reloadable: Callable[..., Reloadable],
) -> None:
    """After ten reloads the master has as many descriptors and workers as before, and about as much memory."""
    server = reloadable()
    program = server.program
    with board_of(program.pid) as board:
        server.reload(board)
        before, memory = len(fds_of(program.pid)), resident(program.pid)
        for _ in range(10):
            server.reload(board)
        wait_until(lambda: len(fds_of(program.pid)) == before, lambda: f"{fds_of(program.pid)}")
        assert resident(program.pid) < memory + 4_000_000
        program.wait_workers(3)
        assert board.pool(PoolField.RELOADS) == 11


def resident(pid: int) -> int:
    """Return the resident memory of a process in bytes."""
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def test_counters_go_on(reloadable: Callable[..., Reloadable]) -> None:
    """No total of the scoreboard falls through reloads, and every request is counted once."""
    server = reloadable()
    with board_of(server.program.pid) as board:

        def served() -> int:
            return sum(one.ok for one in board.snapshot().slots)

        seen = 0
        for round_ in range(1, 4):
            for _ in range(20):
                ask(server.address)
            server.reload(board)
            wait_until(lambda n=round_: served() == 20 * n, lambda: f"{served()} served")
            assert served() >= seen
            seen = served()
        assert board.pool(PoolField.STARTED_NS) > 0


def test_worker_that_dies_in_the_gap_is_replaced(reloadable: Callable[..., Reloadable]) -> None:
    """A worker killed while the program is run again is collected by the new image and replaced."""
    server = reloadable(boot_timeout=10.0)
    program = server.program
    server.write(first="time.sleep(0.5)")
    with board_of(program.pid) as board:
        program.signal(signal.SIGHUP)
        program.wait_logged("new code passed its trial")
        victim = program.worker()
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: board.pool(PoolField.RELOADS) == 1, "reloaded")
    program.wait_logged(rf"pid={victim} exited cause=killed.SIGKILL.")
    assert victim not in program.wait_workers(3)


def test_changed_settings_are_read_again_and_named(reloadable: Callable[..., Reloadable]) -> None:
    """A reload follows the settings, says which have changed, and keeps max_children with a word."""
    server = reloadable()
    program = server.program
    with board_of(program.pid) as board:
        server.write(settings="{'workers': 2, 'max_children': 9, 'slow_request': 3.0}")
        server.reload(board)
        program.wait_workers(2)
        program.wait_logged("setting changed key=workers old=3 new=2")
        program.wait_logged("setting changed key=slow_request old=- new=3s")
        program.wait_logged("max_children stays until a restart max_children=6 wanted=9")
        program.signal(signal.SIGTTIN)
        program.wait_workers(3)
        server.reload(board)  # what a signal has changed stays, as long as the setting does
        assert len(program.wait_workers(3)) == 3


LISTENERS = """
    from tests.support.app import *
    import prefork

    log_to_stderr()

    class Server(prefork.PreForkingTCPServer):
        workers = 2
        max_children = 4

        def when_ready(self):
            announce(*servers)

    addresses = eval(open("addresses").read())
    servers = [Server(tuple(one), Run) for one in addresses]
    prefork.serve(*servers)
"""


def test_listeners_are_kept_added_and_drained(
    start: Callable[..., Program], tmp_path: Path
) -> None:
    """A reload keeps the sockets that are asked for again, binds new ones, and gives up others after their queue was served."""
    kept, given_up, added = (("127.0.0.1", free_port()) for _ in range(3))
    (tmp_path / "addresses").write_text(repr([kept, given_up]))
    program = start(LISTENERS)
    program.address()
    inode = sockets_of(program.pid)
    (tmp_path / "addresses").write_text(repr([kept, added]))
    with board_of(program.pid) as board:
        with connect(given_up) as first, connect(given_up) as second, connect(given_up) as queued:
            for client in (first, second, queued):
                send_line(client, "time.sleep(1.0) or 'served'")
            program.signal(signal.SIGHUP)
            for client in (first, second, queued):
                assert "served" in read_to_the_end(client)
        wait_until(lambda: board.pool(PoolField.RELOADS) == 1, "reloaded")
    assert ask(kept, "1")
    assert ask(added, "2")
    with pytest.raises(ConnectionRefusedError):
        connect(given_up)
    wait_until(lambda: len(sockets_of(program.pid)) == 2, "the kept socket and the added one")
    assert len(sockets_of(program.pid) & inode) == 1


def sockets_of(pid: int) -> set[str]:
    """Return the sockets of a process, each as the kernel names it."""
    return {link for link in fds_of(pid).values() if link.startswith("socket:")}


def test_address_that_cannot_be_added_is_refused_by_the_trial(
    start: Callable[..., Program], tmp_path: Path
) -> None:
    """A new address that somebody has already fails the reload before anything is given up."""
    kept = ("127.0.0.1", free_port())
    (tmp_path / "addresses").write_text(repr([kept]))
    program = start(LISTENERS)
    program.address()
    workers = program.wait_workers(2)
    with socket.socket() as other, board_of(program.pid) as board:
        other.bind(("127.0.0.1", 0))
        other.listen()
        (tmp_path / "addresses").write_text(repr([kept, other.getsockname()]))
        program.signal(signal.SIGHUP)
        wait_until(lambda: board.pool(PoolField.RELOADS_FAILED) == 1, "refused")
        assert "in use" in board.reload_report.read()
    assert program.workers() == workers
    assert ask(kept, "1")


def test_code_that_fails_only_after_the_exec_leaves_the_workers_serving(
    reloadable: Callable[..., Reloadable],
) -> None:
    """When the trial was good and the run is not, the old workers serve on; HUP runs corrected code at once."""
    server = reloadable()
    program = server.program
    # By itself the program would be run again after this pause, which is far longer than the test.
    patience = "import prefork.reloading.attempts as attempts; attempts.pause = lambda _: 1000.0"
    fails = "1 / (0 if not prefork.host.process.process.is_trial else 1)"
    server.write(first=f"{patience}\n{fails}")
    with board_of(program.pid) as board:
        workers = program.wait_workers(3)
        program.signal(signal.SIGHUP)
        program.wait_logged("the new code ended before it served")
        wait_until(
            lambda: board.pool(PoolField.RELOAD_STATE) == ReloadState.FAILED, "the state says so"
        )
        assert board.pool(PoolField.RELOADS_FAILED) == 1
        victim = min(workers)
        os.kill(victim, signal.SIGKILL)
        wait_until(
            lambda: victim not in {one[SlotField.PID] for one in board.snapshot().slots},
            "the dead is off the board",
        )
        with Load(server.address, clients=2) as load:
            wait_until(lambda: load.answered > 50, "they serve on")
            server.write(first="", version="2")
            program.signal(signal.SIGHUP)
            wait_until(lambda: board.pool(PoolField.RELOADS) == 1, "reloaded at last")
        assert load.lost == {}
    assert server.version() == ("2", 1)
    assert not workers & program.workers()
    assert program.stop() == 0


def test_master_without_an_application_has_stacks_dumped(
    reloadable: Callable[..., Reloadable],
) -> None:
    """USR1 to a master whose new code has failed after the exec has the workers write where they are now."""
    server = reloadable()
    program = server.program
    program.signal(signal.SIGUSR1)
    program.wait_logged(" stacks", times=3)
    server.write(first="1 / (0 if not prefork.host.process.process.is_trial else 1)")
    program.signal(signal.SIGHUP)
    program.wait_logged("the new code ended before it served")
    with find_pool(str(program.pid)) as pool, connect(server.address) as client:
        send_line(client, "sleep 60")
        wait_until(lambda: pool.snapshot().count(WorkerState.BUSY) == 1, "a busy worker")
        assert not any("in handle" in report for report in pool.reports().values())
        program.signal(signal.SIGUSR1)
        wait_until(
            lambda: sum("in handle" in report for report in pool.reports().values()) == 1,
            "the stack of its handler",
        )
    program.signal(signal.SIGQUIT)
    program.wait()
    program.wait_silent()


def test_master_without_an_application_can_be_stopped(
    reloadable: Callable[..., Reloadable],
) -> None:
    """TERM ends a master whose new code has failed after the exec, and its workers with it."""
    server = reloadable()
    program = server.program
    server.write(first="1 / (0 if not prefork.host.process.process.is_trial else 1)")
    program.signal(signal.SIGHUP)
    program.wait_logged("the new code ended before it served")
    program.terminate()
    program.wait()
    program.wait_silent()


def test_children_of_new_code_that_loads(reloadable: Callable[..., Reloadable]) -> None:
    """A child that new code forks before it serves ends as any child does, and hides no death of the master."""
    server = reloadable()
    program = server.program
    server.write(
        first="if not prefork.host.process.process.is_trial:\n"
        "    leaves = os.fork()\n"
        "    if leaves == 0: sys.exit(7)\n"
        "    tell('left', os.waitpid(leaves, 0)[1] >> 8)\n"
        "    stays = os.fork()\n"
        "    if stays == 0: signal.pause()\n"
        "    tell('stays', stays)\n"
    )
    with board_of(program.pid) as board:
        server.reload(board)
        worker = board.word(0, SlotField.PID)
    assert program.told("left") == 7
    child = program.told("stays")
    stdout = fds_of(program.pid)[1]
    assert not (pipes_of(child, os.O_WRONLY) & pipes_of(worker, os.O_RDONLY)) - {stdout}
    os.kill(child, signal.SIGKILL)
    assert program.stop() == 0


def test_trial_ends_with_its_master(reloadable: Callable[..., Reloadable]) -> None:
    """When the master is killed, a trial whose code hangs while it is loaded ends, too."""
    server = reloadable()
    program = server.program
    hangs = "open('hangs', 'w').write(str(os.getpid())), time.sleep(600)"
    server.write(first=f"if prefork.on_trial(): {hangs}")
    program.signal(signal.SIGHUP)
    path = server.folder / "hangs"
    wait_until(lambda: path.exists() and path.read_text() != "", "a trial that hangs")
    trial = int(path.read_text())
    program.signal(signal.SIGKILL)
    program.wait()
    wait_until(lambda: not is_alive(trial), "the trial has ended")
    os.waitpid(trial, 0)  # this process has adopted it


def test_worker_that_starts_during_a_trial_has_nothing_of_it(
    reloadable: Callable[..., Reloadable],
) -> None:
    """A worker forked while a trial runs holds no descriptor of the trial."""
    server = reloadable(boot_timeout=3.0)
    program = server.program
    server.write(first="time.sleep(1000)")
    with board_of(program.pid) as board:
        victim = board.word(0, SlotField.PID)
        program.signal(signal.SIGHUP)
        wait_until(
            lambda: any("prefork-trial" in link for link in fds_of(program.pid).values()), "a trial"
        )
        os.kill(victim, signal.SIGKILL)
        ready = WorkerState.IDLE
        wait_until(
            lambda: board.word(0, SlotField.PID) not in (0, victim) and board.state(0) is ready,
            "a new worker",
        )
        assert board.pool(PoolField.RELOADS_FAILED) == 0  # the trial still runs
        links = fds_of(board.word(0, SlotField.PID)).values()
        assert not [link for link in links if "prefork-trial" in link or "pidfd" in link]
        wait_until(lambda: board.pool(PoolField.RELOADS_FAILED) == 1, "the end of the trial")


def test_environment_and_folder_are_those_of_the_start(
    reloadable: Callable[..., Reloadable], tmp_path: Path
) -> None:
    """New code finds the folder and the environment in which the program was started, and no variable of ours."""
    look = (
        "tell('place', [os.getcwd(), sorted(k for k in os.environ if 'PREFORK' in k), "
        "os.environ.get('MARK')]) if not prefork.host.process.process.is_trial else None\n"
        "os.environ['MARK'] = 'x'; os.chdir('/')\nopen = lambda p: __import__('io').open("
        f"{str(tmp_path)!r} + '/' + p)\n"
    )
    server = reloadable()
    server.write(first=look)
    with board_of(server.program.pid) as board:
        server.reload(board)
        server.reload(board)
    assert server.program.told("place", 1) == [str(tmp_path), [], None]


def test_busy_worker_of_the_old_generation_finishes_its_request(
    reloadable: Callable[..., Reloadable],
) -> None:
    """A long request that began before a reload is answered by the code that it began with."""
    server = reloadable()
    with connect(server.address) as client, board_of(server.program.pid) as board:
        send_line(client, "sleep 2")
        server.reload(board)
        assert read_to_the_end(client).endswith("sleep 2")


@pytest.mark.parametrize(
    "settings", [{"workers": 6, "max_children": 6}, {"workers": 1, "max_children": 1}]
)
def test_pool_without_room_reloads_one_by_one(
    reloadable: Callable[..., Reloadable], settings: dict[str, int]
) -> None:
    """In a pool at max_children an old worker leaves before a new one starts, and no request is lost."""
    server = reloadable(**settings)
    program = server.program
    with board_of(program.pid) as board, Load(server.address, clients=3) as load:
        server.write(version="2")
        server.reload(board)
    assert load.lost == {}
    assert server.version() == ("2", 1)
