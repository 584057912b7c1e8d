"""Finding running masters: what is one, what only looks like one, and which is meant."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import struct
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.inspect import find
from prefork.inspect.find import (
    NoPoolError,
    NoSignalsError,
    RunningPool,
    SeveralPoolsError,
    Survey,
    look_around,
)
from prefork.workers import system
from prefork.workers.scoreboard import MAGIC, VERSION, Header, Scoreboard
from tests.support.boards import occupy, scoreboard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


HERE = os.getpid()
WORD = st.integers(-(2**63), 2**63 - 1)


@contextlib.contextmanager
def pools_of(pid: int) -> Iterator[list[RunningPool]]:
    """Look around and give the pools of one process: others may run on this machine."""
    survey = look_around()
    try:
        yield [pool for pool in survey.pools if pool.pid == pid]
    finally:
        survey.close()


@contextlib.contextmanager
def memfd(content: bytes, *, size: int | None = None, sealed: bool = True) -> Iterator[None]:
    """Hold a memfd that bears the scoreboard's name, and may have its seals."""
    fd = os.memfd_create("prefork-scoreboard", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.write(fd, content)
        if size is not None:
            os.ftruncate(fd, size)
        if sealed:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        yield
    finally:
        os.close(fd)


def header(**words: int) -> bytes:
    """Return the first words of a scoreboard of two slots, this process its master, some words replaced."""
    with scoreboard(2) as board:
        values = board.words[:8].tolist()
    for name, value in words.items():
        values[Header[name.upper()]] = value
    return struct.pack("9q", *values, HERE)


def size_of(slots: int) -> int:
    """Return the size of a scoreboard's memory."""
    with scoreboard(slots) as board:
        return os.fstat(board.fd).st_size


# --- what is a master


def test_master_is_found_by_its_scoreboard() -> None:
    """The process whose pid stands in a scoreboard that it has open is a master; all about it can be read."""
    with scoreboard(3, name="shop") as board, pools_of(HERE) as pools:
        (pool,) = pools
        occupy(board, 1, 4711)
        assert pool.name == "shop"
        assert str(pool) == f"{HERE} shop tcp://127.0.0.1:9000"
        assert pool.status()["scoreboard"] == "._."
        assert not pool.has_stopped()


def test_scoreboard_is_mapped_for_reading() -> None:
    """Nothing that a reader does can change it."""
    with scoreboard() as _, pools_of(HERE) as pools:
        (pool,) = pools
        with pytest.raises(TypeError):
            pool.board.words[0] = 1
        with pytest.raises(OSError, match=r"Permission denied|Bad file descriptor"):
            os.pwrite(pool.board.fd, b"x", 0)


def test_process_with_the_scoreboard_of_another_is_no_master() -> None:
    """Workers and the metrics process have the descriptor, too."""
    with scoreboard(master=1), pools_of(HERE) as pools:
        assert pools == []


def test_descriptors_of_one_memory_are_one_pool() -> None:
    """A duplicated descriptor makes no second pool; two pools of one program are two."""
    with scoreboard(name="one") as board, scoreboard(name="two"):
        again = os.dup(board.fd)
        try:
            with pools_of(HERE) as pools:
                assert sorted(str(pool.name) for pool in pools) == ["one", "two"]
        finally:
            os.close(again)


@pytest.mark.parametrize(
    ("content", "size", "sealed"),
    [
        (b"", None, True),
        (b"\0" * 64, None, True),
        (b"rubbish" * 1000, None, True),
        (struct.pack("q", MAGIC), None, True),
        (header(), None, True),
        (header(), size_of(2), False),
        (header(slots=-1), 69_632, True),
        (header(slots=2**62), size_of(2), True),
        (header(slots=5000), size_of(5000), True),
        (header(version=VERSION + 1), size_of(2), True),
        (header(slots=0), size_of(0), True),
    ],
)
def test_rubbish_of_the_same_name_is_passed_over(
    content: bytes, size: int | None, *, sealed: bool
) -> None:
    """Empty, short, of another layout, of impossible size, or such that its owner could end the reader with SIGBUS."""
    with memfd(content, size=size, sealed=sealed), pools_of(HERE) as pools:
        assert pools == []


@given(st.lists(WORD, min_size=8, max_size=8), st.integers(0, 2**20))
def test_random_headers_are_passed_over(words: list[int], size: int) -> None:
    """Whatever eight words begin a memory of whatever size, a look neither fails nor believes them."""
    words[Header.MAGIC] = MAGIC
    with memfd(struct.pack("9q", *words, HERE), size=max(72, size)), pools_of(HERE) as pools:
        assert pools == []


@given(st.text(max_size=200))
def test_whatever_a_pool_says_of_itself(about: str) -> None:
    """Nonsense is nothing said, and no name can steer a terminal or begin a line."""
    with scoreboard(name="x") as board:
        board.set_about(about)
        with pools_of(HERE) as pools:
            (pool,) = pools
            assert str(pool).isprintable()
            assert pool.status()["scoreboard"] == "...."


def test_name_is_escaped() -> None:
    """A name from shared memory is shown, not obeyed."""
    with scoreboard(name="\x1b[2J\nroot") as _, pools_of(HERE) as pools:
        assert pools[0].name == "\\x1b[2J\\nroot"


@pytest.mark.processes
def test_processes_and_descriptors_that_vanish() -> None:
    """What ends or is closed in the middle of a look is passed over."""
    over = threading.Event()

    def come_and_go() -> None:
        while not over.is_set():
            with memfd(header(), size=size_of(2)):
                pass
            subprocess.run(["true"], check=True)

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        for _ in range(15):
            look_around().close()
    finally:
        over.set()
        thread.join()


def test_nothing_is_held_after_a_look() -> None:
    """Descriptors of pools that are not wanted are closed (the fixture of all tests looks for them)."""
    with scoreboard(name="one"), scoreboard(name="two"), memfd(b"rubbish"):
        before = len(os.listdir("/proc/self/fd"))
        with find.find_pool("two") as pool:
            # The process, the memory, and what mmap keeps of it.
            assert len(os.listdir("/proc/self/fd")) == before + 3
            assert pool.name == "two"
        with pytest.raises(SeveralPoolsError):
            find.find_pool(str(HERE))
        assert len(os.listdir("/proc/self/fd")) == before


# --- which is meant


@pytest.fixture
def survey() -> Iterator[Callable[..., Survey]]:
    """``survey(pid=name, …)`` is a look around that has found these pools (``_4711="shop"``)."""
    with contextlib.ExitStack() as stack:

        def make(forbidden: tuple[int, ...] = (), **names: str | None) -> Survey:
            pools = []
            for pid, name in names.items():
                board = stack.enter_context(scoreboard(name=name))
                attached = Scoreboard.attach(os.dup(board.fd))
                pool = RunningPool(int(pid[1:]), board.fd, system.hold_process(HERE), attached)
                pools.append(stack.enter_context(pool))
            return Survey(pools, list(forbidden), [])

        yield make


def test_lone_pool_needs_no_name(survey: Callable[..., Survey]) -> None:
    """With one pool running it is that one; a name or pid that is not its own is still refused."""
    alone = survey(_4711="shop")
    assert find._chosen(alone, None, None).pid == 4711
    assert find._chosen(alone, "shop", None).pid == 4711
    assert find._chosen(alone, None, "shop").pid == 4711
    assert find._chosen(alone, "4711", None).pid == 4711
    with pytest.raises(
        NoPoolError, match=r"no running pool is called shoe; there are:\n +4711  shop"
    ):
        find._chosen(alone, "shoe", None)


def test_several_pools_have_to_be_told_apart(survey: Callable[..., Survey]) -> None:
    """The list names pid, name and listeners of each; pid, name or both decide."""
    several = survey(_4711="shop", _4712="shop", _4713=None, _4714="4711")
    with pytest.raises(SeveralPoolsError) as refused:
        find._chosen(several, None, None)
    assert str(refused.value).splitlines() == [
        "several pools are running; say which, by its pid or name:",
        "     4711  shop             tcp://127.0.0.1:9000",
        "     4712  shop             tcp://127.0.0.1:9000",
        "     4713  -                tcp://127.0.0.1:9000",
        "     4714  4711             tcp://127.0.0.1:9000",
    ]
    with pytest.raises(SeveralPoolsError):
        find._chosen(several, "shop", None)
    assert find._chosen(several, "4711", None).pid == 4711
    assert find._chosen(several, None, "4711").pid == 4714
    assert find._chosen(several, "4712", "shop").pid == 4712


def test_no_pool_at_all(survey: Callable[..., Survey]) -> None:
    """One line says so."""
    with pytest.raises(NoPoolError) as refused:
        find._chosen(survey(), None, None)
    assert str(refused.value) == "no pool is running"


@pytest.mark.parametrize(
    ("pid", "reason"),
    [
        (2**22 + 1, "there is no process 4194305"),
        (HERE, f"process {HERE} is not the master of a pool"),
    ],
)
def test_process_that_is_no_master(survey: Callable[..., Survey], pid: int, reason: str) -> None:
    """What stands behind the pid instead is said."""
    with pytest.raises(NoPoolError) as refused:
        find._chosen(survey(), str(pid), None)
    assert str(refused.value) == reason


def test_child_of_a_master_names_its_master(survey: Callable[..., Survey]) -> None:
    """Whoever asks for a worker, as ps showed it, is told the pid that is needed."""
    parent = os.getppid()
    with pytest.raises(NoPoolError, match=f"{HERE} belongs to a pool; its master is {parent}$"):
        find._chosen(survey(**{f"_{parent}": "shop"}), str(HERE), None)


def test_masters_of_others_are_told(
    survey: Callable[..., Survey], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where permission is missing the message says whose master it is, title escaped."""
    monkeypatch.setattr(find, "_title", lambda _pid: b"prefork: master [\x1bshop] tcp://:80")
    with pytest.raises(NoPoolError) as refused:
        find._chosen(survey(forbidden=(1,)), None, None)
    assert "no permission to look at process 1" in str(refused.value)
    assert "(prefork: master [\\x1bshop] tcp://:80): it belongs to root" in str(refused.value)


# --- signals


def test_signal_that_nobody_takes_is_not_sent() -> None:
    """TTIN would stop the program, USR1 end it, where serve_forever() runs in a thread and handles neither."""
    with scoreboard() as _, pools_of(HERE) as pools:
        for number in (signal.SIGTTIN, signal.SIGUSR1):
            with pytest.raises(NoSignalsError, match=f"{HERE} does not take {number.name}"):
                pools[0].send(number)


def test_signal_that_is_taken_arrives() -> None:
    """With a handler installed it is sent."""
    arrived: list[int] = []
    before = signal.signal(signal.SIGTTIN, lambda number, _frame: arrived.append(number))
    try:
        with scoreboard() as _, pools_of(HERE) as pools:
            pools[0].send(signal.SIGTTIN)
        assert arrived == [signal.SIGTTIN]
    finally:
        signal.signal(signal.SIGTTIN, before)


def test_signal_that_is_blocked_is_sent() -> None:
    """A master that is about to exec in place blocks its signals and handles them afterwards."""
    with scoreboard() as _, pools_of(HERE) as pools:
        with pytest.raises(NoSignalsError):
            pools[0].send(signal.SIGURG)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGURG})
        try:
            pools[0].send(signal.SIGURG)
            assert signal.SIGURG in signal.sigpending()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGURG})


def test_pool_that_was_closed_has_stopped() -> None:
    """The program may go on; its scoreboard is gone, and what was read stays readable."""
    with contextlib.ExitStack() as life:
        life.enter_context(scoreboard(name="shop"))
        with find.find_pool(str(HERE)) as pool:
            assert not pool.has_stopped()
            life.close()
            assert pool.has_stopped()
            assert not pool.has_ended()
            assert pool.name == "shop"
