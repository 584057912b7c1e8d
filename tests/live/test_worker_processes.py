"""What /metrics says of live and dead workers, beside what /proc says of them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from prefork.metrics.collector import PoolCollector
from prefork.metrics.processes import PATIENCE, Processes, memory
from prefork.workers.scoreboard import PoolField, Scoreboard, SlotField
from prefork.workers.states import StartReason, Usage
from tests.support.board import board_of
from tests.support.clients import ask, read_to_the_end, send
from tests.support.processes import is_alive
from tests.support.server import Program, environment, serving
from tests.support.waiting import Stopwatch, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

AGREEMENT = 0.25
"""Seconds within which a gauge agrees with /proc."""

ROOM = 3.0
"""Seconds more for a machine with other things to do."""

Series = dict[tuple[str, tuple[str, ...]], float]


def scrape(pool: PoolCollector) -> Series:
    """Return all samples by name and values of the labels, sorted."""
    return {
        (one.name, tuple(sorted(one.labels.values()))): one.value
        for family in pool.collect()
        for one in family.samples
    }


def of_slots(series: Series, name: str) -> dict[int, float]:
    """Return one metric by slot."""
    return {
        int(next(word for word in labels if word.isdigit())): value
        for (found, labels), value in series.items()
        if found == f"prefork_worker_{name}"
    }


def totals(series: Series) -> Series:
    """Return what must never decrease."""
    endings = ("_total", "_bucket", "_count", "_sum")
    return {key: value for key, value in series.items() if key[0].endswith(endings)}


@contextlib.contextmanager
def child(code: str) -> Iterator[int]:
    """Run Python code that prints a line when it is done and then waits; give its pid."""
    program = f"import os, sys\n{code}\nprint('done', flush=True)\nsys.stdin.read()\n"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        # The line comes before the wait, and to begin the wait is a switch that is counted.
        there = psutil.Process(process.pid)
        wait_until(lambda: there.status() == psutil.STATUS_SLEEPING, "the code is not waiting")
        yield process.pid
        process.kill()


@contextlib.contextmanager
def board_with(pid: int, master: int) -> Iterator[Scoreboard]:
    """Give a scoreboard whose first slot has that process."""
    board = Scoreboard.create(2)
    board.set_pool(PoolField.MASTER_PID, master)
    board.occupy_slot(0, pid, StartReason.STARTED)
    try:
        yield board
    finally:
        board.close()


def usage_of(pid: int) -> Usage:
    """Collect a child that was killed; return what it has used, as the kernel reports it."""
    used = os.wait4(pid, 0)[2]
    return Usage(int(used.ru_utime * 1e9), int(used.ru_stime * 1e9), used.ru_nvcsw)


def test_facts_are_those_of_proc() -> None:
    """CPU time, memory, descriptors and switches of a worker are what psutil finds."""
    work = "held = [os.open('/dev/null', 0) for _ in range(40)]\nbig = bytearray(50 << 20)\nsum(range(10**7))"
    with child(work) as pid, board_with(pid, os.getpid()) as board:
        facts = Processes(board).facts(board.snapshot())
        process = psutil.Process(pid)
        cpu, switches = process.cpu_times(), process.num_ctx_switches()

        assert [*facts] == [0]
        assert facts[0].user == cpu.user > 0
        assert facts[0].system == cpu.system
        assert facts[0].fds == process.num_fds() > 40
        assert facts[0].resident == pytest.approx(process.memory_info().rss, rel=0.05)
        assert facts[0].resident > 50 << 20
        assert (facts[0].voluntary, facts[0].involuntary) == (
            switches.voluntary,
            switches.involuntary,
        )
        unique, proportional = memory(board.snapshot())[0]
        assert 50 << 20 < unique <= proportional <= process.memory_info().rss * 1.05


def test_totals_of_dead_workers_are_added() -> None:
    """To what the kernel says of the live worker comes what the slot's former ones have used."""
    with child("sum(range(10**6))") as pid, board_with(pid, os.getpid()) as board:
        alone = Processes(board).facts(board.snapshot())[0]
        for field, amount in (
            (SlotField.CPU_USER_NS, 3 * 10**9),
            (SlotField.CPU_SYSTEM_NS, 5 * 10**9),
            (SlotField.VOLUNTARY_SWITCHES, 1000),
            (SlotField.INVOLUNTARY_SWITCHES, 2000),
        ):
            board.count_slot(0, field, amount)
        both = Processes(board).facts(board.snapshot())[0]

        assert both.user == pytest.approx(alone.user + 3, abs=0.02)
        assert both.system == pytest.approx(alone.system + 5, abs=0.02)
        assert both.voluntary >= alone.voluntary + 1000
        assert both.involuntary >= alone.involuntary + 2000


def test_worker_that_vanishes_takes_no_total_with_it() -> None:
    """Between the end of a worker and the moment its totals are the slot's, the last ones seen stay."""
    with child("sum(range(10**7))") as pid, board_with(pid, os.getpid()) as board:
        processes = Processes(board)
        before = processes.facts(board.snapshot())[0]
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        gone = processes.facts(board.snapshot())[0]
        board.count_slot(0, SlotField.CPU_USER_NS, int(before.user * 1e9) + 10**9)
        after = processes.facts(board.snapshot())[0]

        assert before.user > 0
        assert (gone.user, gone.system) == (before.user, before.system)
        assert (gone.voluntary, gone.involuntary) == (before.voluntary, before.involuntary)
        assert (gone.resident, gone.fds) == (None, None)
        assert after.user == pytest.approx(before.user + 1)
        assert memory(board.snapshot()) == {}


def test_totals_on_their_way_are_waited_for() -> None:
    """A scrape that finds a worker just collected, whose totals are not in its slot yet, shows them all the same."""
    with child("sum(range(10**7))") as pid, board_with(pid, os.getpid()) as board:
        snapshot = board.snapshot()
        before = Processes(board).facts(snapshot)[0]
        os.kill(pid, signal.SIGKILL)
        carrying = threading.Timer(PATIENCE / 5, board.carry_over, (0, usage_of(pid)))
        carrying.start()
        after = Processes(board).facts(snapshot)[0]  # one that has no memory of earlier scrapes
        carrying.join()

        assert after.user >= before.user > 0
        assert after.system >= before.system
        assert after.voluntary >= before.voluntary


def test_end_of_a_worker_is_seen_when_no_time_is_left() -> None:
    """A worker that has ended after the snapshot takes no total with it, although another slot has used up the time."""
    with child("sum(range(10**7))") as pid, board_with(2**30, os.getpid()) as board:
        board.occupy_slot(1, pid, StartReason.STARTED)
        snapshot = board.snapshot()
        before = Processes(board).facts(snapshot)[1]
        os.kill(pid, signal.SIGKILL)
        board.carry_over(1, usage_of(pid))
        after = Processes(board).facts(snapshot)[1]  # one that has no memory of earlier scrapes

        assert after.user >= before.user > 0
        assert after.voluntary >= before.voluntary


def test_slot_whose_total_is_not_known_has_none() -> None:
    """A metrics process that has just started shows no total of a slot while a part of it is found nowhere."""
    with child("sum(range(10**7))") as pid, board_with(pid, os.getpid()) as board:
        processes = Processes(board)
        os.kill(pid, signal.SIGKILL)
        usage = usage_of(pid)
        assert processes.facts(board.snapshot()) == {}

        board.carry_over(0, usage)
        assert processes.facts(board.snapshot())[0].user == usage.user_ns / 1e9 > 0


def test_pids_that_are_no_process_hold_up_no_scrape() -> None:
    """However many slots name a process that is gone, one scrape waits PATIENCE and a moment for all of them."""
    board = Scoreboard.create(200)
    try:
        for slot in range(200):
            board.occupy_slot(slot, 2**30 + slot, StartReason.STARTED)
        watch = Stopwatch()
        assert Processes(board).facts(board.snapshot()) == {}
        assert watch.seconds < PATIENCE + 2.0
    finally:
        board.close()


def test_strangers_are_not_shown() -> None:
    """A pid that is not a child of the master, however it came into the slot, is nobody's."""
    with child("sum(range(10**7))") as pid, board_with(pid, master=1) as board:
        facts = Processes(board).facts(board.snapshot())[0]

        assert (facts.user, facts.system, facts.resident, facts.fds) == (0, 0, None, None)


def test_descriptors_are_counted_without_privilege() -> None:
    """A process of nobody's can tell how many descriptors a worker of root's has, which psutil cannot."""
    if os.geteuid() != 0:
        pytest.skip("only root can become nobody")
    with child("held = [os.open('/dev/null', 0) for _ in range(40)]") as pid:
        if Path(f"/proc/{pid}/fd").stat().st_size == 0:
            pytest.skip("the size of /proc/PID/fd is their number since Linux 6.2")
        program = (
            "import os, sys\n"
            "from prefork.metrics.processes import _live\n"
            "os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
            "print(_live(int(sys.argv[1]), int(sys.argv[2])).fds)\n"
        )
        told = subprocess.run(
            [sys.executable, "-c", program, str(pid), str(os.getpid())],
            env=environment(),
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout

        assert int(told) == len(os.listdir(f"/proc/{pid}/fd"))


def test_totals_never_decrease_through_kill_9(start: Callable[..., Program]) -> None:
    """While workers are killed again and again in the middle of their work, no total of any slot falls, and none is lost."""
    program = start(serving("TellingRun", workers=2))
    address = program.address()
    killed: dict[int, float] = {}
    with board_of(program.pid) as board:
        pool = PoolCollector(board)
        before = totals(scrape(pool))
        for turn in range(6):
            ask(address, "sum(range(3 * 10**6))")
            with send(address, "time.sleep(60)") as client:
                victim = program.told("busy", 2 * turn + 1)
                killed[victim] = sum(psutil.Process(victim).cpu_times()[:2])
                os.kill(victim, signal.SIGKILL)
                while is_alive(victim) or victim in program.workers():
                    before = assert_no_fall(before, totals(scrape(pool)))
                read_to_the_end(client)
            before = assert_no_fall(before, totals(scrape(pool)))
        expected = (6, 6, 6, 12, 6)
        wait_until(lambda: counted(scrape(pool)) == expected, lambda: str(counted(scrape(pool))))
        series = scrape(pool)
        before = assert_no_fall(before, totals(series))

        assert len(killed) == 6
        cpu = sum(
            value
            for (name, _), value in series.items()
            if name == "prefork_worker_cpu_seconds_total"
        )
        assert cpu >= sum(killed.values()) > 0


def counted(series: Series) -> tuple[float, ...]:
    """Return killed workers, aborted and good requests, and the slots' requests and restarts."""
    return (
        series["prefork_worker_exits_total", ("killed",)],
        series["prefork_requests_total", ("aborted",)],
        series["prefork_requests_total", ("ok",)],
        sum(of_slots(series, "requests_total").values()),
        sum(of_slots(series, "restarts_total").values()),
    )


def assert_no_fall(before: Series, after: Series) -> Series:
    """Fail when a total is less than before, or is not there any more."""
    fallen = {key: (value, after.get(key)) for key, value in before.items()}
    assert {key: two for key, two in fallen.items() if two[1] is None or two[1] < two[0]} == {}
    return after


def test_gauges_agree_with_proc(start: Callable[..., Program]) -> None:
    """Within 0.25 s of a change the scrape shows the descriptors and memory that /proc shows, and who is in which slot."""
    program = start(serving("Run", workers=2))
    address = program.address()
    with board_of(program.pid) as board:
        pool = PoolCollector(board)
        grow = "setattr(os, 'kept', (bytearray(30 << 20), [os.dup(0) for _ in range(25)]))"
        pid = int(ask(address, grow).split()[0])
        slot = slots_by_pid(pool)[pid]
        process = psutil.Process(pid)
        watch = Stopwatch()

        def agree() -> bool:
            series = scrape(pool)
            resident = process.memory_info().rss
            assert resident > 30 << 20
            return (
                of_slots(series, "open_fds")[slot] == process.num_fds()
                and abs(of_slots(series, "resident_memory_bytes")[slot] - resident) < 1 << 20
            )

        wait_until(agree, "descriptors and memory are as in /proc")
        assert watch.seconds < AGREEMENT + ROOM

        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: pid not in program.workers(), "it is collected")
        workers = program.wait_workers(2)
        watch = Stopwatch()
        wait_until(lambda: slots_by_pid(pool).keys() == workers, "the new one is in its slot")
        assert watch.seconds < AGREEMENT + ROOM


def slots_by_pid(pool: PoolCollector) -> dict[int, int]:
    """Return which worker is in which slot, as the info says."""
    return {
        int(one.labels["pid"]): int(one.labels["slot"])
        for family in pool.collect()
        for one in family.samples
        if one.name == "prefork_worker_info"
    }


def test_master_is_shown(start: Callable[..., Program]) -> None:
    """process_* are the master's; a master that is gone leaves the rest of the scrape whole."""
    program = start(serving(workers=1))
    program.address()
    with board_of(program.pid) as board:
        pool = PoolCollector(board)
        series = scrape(pool)
        master = psutil.Process(program.pid)
        began = master.create_time()
        open_fds = master.num_fds()
        ticked = series["prefork_last_tick_timestamp_seconds", ()]
        program.stop()
        gone = scrape(pool)

        assert series["process_start_time_seconds", ()] == pytest.approx(began, abs=2)
        assert series["process_open_fds", ()] == open_fds
        assert abs(ticked - time.time()) < 60
        assert not {name for name, _ in gone if name.startswith("process_")}
        assert {name for name, _ in series} - {name for name, _ in gone} <= {
            *(name for name, _ in series if name.startswith("process_")),
            "prefork_worker_info",
            "prefork_worker_start_time_seconds",
            "prefork_worker_resident_memory_bytes",
            "prefork_worker_open_fds",
            "prefork_listen_queue_length",
            "prefork_listen_queue_limit",
        }


def test_dead_master_that_nobody_has_collected_disturbs_nothing() -> None:
    """A zombie has only half of what there is of a process: the scrape is whole but for process_*."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    try:
        wait_until(lambda: not is_alive(pid), "it is a zombie")
        with board_with(pid, pid) as board:
            series = scrape(PoolCollector(board))

        assert ("prefork_worker_up", ("0",)) in series
        assert any(name == "python_info" for name, _ in series)
    finally:
        os.waitpid(pid, 0)
