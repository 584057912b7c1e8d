"""What a program starts before it serves: after any number of reloads there is as much of it as at the start."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.clients import ask, connect, read_to_the_end, send_line
from tests.support.processes import is_alive, live_children_of
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.server import Program

PROGRAM = """
    import multiprocessing, signal, subprocess, tempfile, time
    from multiprocessing import shared_memory
    from tests.support.app import *
    import prefork

    def sleeps():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        time.sleep(1000)

    class Using(TellingRun):
        manager_answers = lambda self: shared["count"]
        folder_is_there = lambda self: os.path.isdir(folder.name)

    if __name__ == "__main__":
        tempfile.tempdir = os.getcwd()
        folder = tempfile.TemporaryDirectory(prefix="ours-")
        memory = shared_memory.SharedMemory(create=True, size=100, name="{name}-%d" % time.time_ns())
        manager = multiprocessing.Manager()
        shared = manager.dict(count=7)
        helper = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        daemon = multiprocessing.Process(target=sleeps, daemon=True)
        daemon.start()
        multiprocessing.get_context("forkserver").Process(target=sleeps, daemon=True).start()
        plain = multiprocessing.Process(target=sleeps)
        plain.start()
        exec(open("more").read())
        serve(Using, prefork.PreForkingTCPServer, workers=1, graceful_timeout=5)
        plain.terminate()
        helper.terminate()
        helper.wait()
        memory.close()
        memory.unlink()
"""


def memory_of(folder: Path) -> list[Path]:
    """Return the pieces of shared memory of the program in a folder."""
    return [*Path("/dev/shm").glob(f"{name_for(folder)}-*")]


def name_for(folder: Path) -> str:
    """Return how the names of its shared memory begin: the folders of two runs differ in the parent."""
    return f"{folder.parent.name}-{folder.name}"


class Census:
    """What there is of a program: its children, its folders and its shared memory."""

    def __init__(self, program: Program, folder: Path) -> None:
        self._program = program
        self._folder = folder

    def count(self) -> tuple[int, int, int]:
        """Return the numbers of children, folders and pieces of shared memory."""
        folders = [*self._folder.glob("ours-*"), *self._folder.glob("pymp-*")]
        return len(live_children_of(self._program.pid)), len(folders), len(memory_of(self._folder))

    def wait_for(self, count: tuple[int, int, int]) -> None:
        """Wait until there is this much."""
        wait_until(lambda: self.count() == count, lambda: f"{count}, there is {self.count()}")


@pytest.fixture
def program(start: Callable[..., Program], tmp_path: Path) -> Iterator[Program]:
    """Give the program, ready to serve."""
    (tmp_path / "more").write_text("")
    for left in memory_of(tmp_path):  # by a run that failed
        left.unlink()
    started = start(PROGRAM.format(name=name_for(tmp_path)))
    started.address()
    yield started
    for left in memory_of(tmp_path):
        left.unlink()


def reload(program: Program, times: int) -> None:
    """Have it reload, for the nth time."""
    program.signal(signal.SIGHUP)
    program.wait_logged("master reloaded", times=times)


def test_reloads_leave_no_more_than_one_start(program: Program, tmp_path: Path) -> None:
    """Managers, helpers, shared memory and temporary folders are as many after reloads as before, and none after the end.

    A request that outlives the exec still reaches the manager and finds the folder.
    """
    census = Census(program, tmp_path)
    first = census.count()
    # The worker, the manager, two processes, the helper, the tracker of shared memory, and the fork
    # server, which has a folder, too.
    assert first == (7, 3, 1)
    late = "(time.sleep(1.2), self.manager_answers(), self.folder_is_there())[1:]"
    with connect(program.address()) as client:
        send_line(client, late)
        program.told("busy")
        reload(program, 1)
        assert read_to_the_end(client).endswith("(7, True)")
    census.wait_for(first)
    reload(program, 2)
    census.wait_for(first)
    assert ask(program.address(), "self.manager_answers()").endswith(" 7")
    assert program.stop() == 0
    program.wait_silent()
    census.wait_for((0, 0, 0))


def test_trial_that_fails_leaves_nothing(program: Program, tmp_path: Path) -> None:
    """What a trial has started ends with it, and the live processes stay."""
    census = Census(program, tmp_path)
    first, children = census.count(), live_children_of(program.pid)
    (tmp_path / "more").write_text("raise SystemExit(3)")
    program.signal(signal.SIGHUP)
    program.wait_logged("reload failed")
    census.wait_for(first)
    assert all(map(is_alive, children))
    assert program.stop() == 0


def test_stop_in_the_middle_of_a_reload_leaves_nothing(program: Program, tmp_path: Path) -> None:
    """TERM while workers of the old code still serve ends what either image has started."""
    with connect(program.address()) as client:
        send_line(client, "time.sleep(1.5)")
        program.told("busy")
        program.signal(signal.SIGHUP)
        program.wait_logged("continues with new code")
        assert program.stop() == 0
    program.wait_silent()
    Census(program, tmp_path).wait_for((0, 0, 0))
