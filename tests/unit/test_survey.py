"""Finding masters: what is a master, and what only looks like one."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.inspect.survey import look_around
from prefork.workers import proof
from prefork.workers.scoreboard import MAGIC, VERSION, Header, PoolField, Scoreboard
from tests.support.boards import HERE, memfd, occupy, pools_of, scoreboard

WORD = st.integers(-(2**63), 2**63 - 1)


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


def test_master_is_found_by_its_scoreboard() -> None:
    """A process that has a scoreboard with its own pid open is a master, and its pool can be read."""
    with scoreboard(3, name="shop") as board, pools_of(HERE) as pools:
        (pool,) = pools
        occupy(board, 1, 4711)
        assert pool.name == "shop"
        assert str(pool) == f"{HERE} shop tcp://127.0.0.1:9000"
        assert pool.status()["scoreboard"] == "._."
        assert not pool.has_stopped()


def test_scoreboard_is_mapped_for_reading() -> None:
    """A reader cannot change the scoreboard, through the mapping or the descriptor."""
    with scoreboard() as _, pools_of(HERE) as pools:
        (pool,) = pools
        with pytest.raises(TypeError):
            pool.board.words[0] = 1
        with pytest.raises(OSError, match=r"Permission denied|Bad file descriptor"):
            os.pwrite(pool.board.fd, b"x", 0)


def test_process_with_the_scoreboard_of_another_is_no_master() -> None:
    """A process that has the scoreboard of another master open, as workers do, is no master, whatever stands there."""
    board = Scoreboard.create(2)
    try:
        board.set_pool(PoolField.MASTER_PID, HERE)
        with scoreboard(), pools_of(HERE) as pools:
            assert [
                os.fstat(pool.board.fd).st_ino == os.fstat(board.fd).st_ino for pool in pools
            ] == [False]
    finally:
        board.close()


def test_lock_on_the_scoreboard_takes_no_turn() -> None:
    """A worker that locks the scoreboard keeps no command from changing the pool; another command does."""
    with scoreboard() as board, pools_of(HERE) as (pool,), pools_of(HERE) as (other,):
        fcntl.flock(board.fd, fcntl.LOCK_EX)
        assert pool.take_turn()
        assert not other.take_turn()
        pool.end_turn()
        assert other.take_turn()


def test_pid_in_the_scoreboard_hides_no_master() -> None:
    """A worker that writes another pid into the scoreboard does not hide the pool."""
    with scoreboard(master=1), pools_of(HERE) as pools:
        assert len(pools) == 1


@pytest.mark.parametrize(
    "forgery", ["open", "of another process", "of another scoreboard", "of another user"]
)
def test_proof_that_proves_nothing(forgery: str) -> None:
    """What says that this process is a master counts only if it is sealed, of this user, and about this process and scoreboard."""
    board, other = Scoreboard.create(2), Scoreboard.create(2)
    about = other if forgery == "of another scoreboard" else board
    pid = 1 if forgery == "of another process" else HERE
    held = os.memfd_create(proof.MEMFD_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.write(held, proof._content(pid, os.fstat(about.fd).st_ino))
        if forgery == "of another user":
            if os.getuid():
                pytest.skip("needs a file of another user")
            os.fchown(held, 65534, 65534)
        if forgery != "open":
            fcntl.fcntl(held, fcntl.F_ADD_SEALS, proof._SEALS)
        assert not proof.holds(held, board.fd, HERE, os.geteuid())
        inode = os.fstat(board.fd).st_ino
        with pools_of(HERE) as pools:
            assert inode not in {os.fstat(pool.board.fd).st_ino for pool in pools}
    finally:
        os.close(held)
        board.close()
        other.close()


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
    ids=[
        "empty",
        "zeros",
        "words",
        "magic-alone",
        "header-alone",
        "unsealed",
        "slots-negative",
        "slots-huge",
        "slots-too-many",
        "version-later",
        "slots-none",
    ],
)
def test_rubbish_of_the_same_name_is_passed_over(
    content: bytes, size: int | None, *, sealed: bool
) -> None:
    """A memfd that is empty, short, of another layout or size, or not sealed against shrinking is ignored."""
    with memfd(content, size=size, sealed=sealed), pools_of(HERE) as pools:
        assert pools == []


@pytest.mark.skipif(os.getuid() != 0, reason="needs a file of another user")
def test_scoreboard_of_another_user_is_no_pool_of_this_process() -> None:
    """A memory that another user has made, and that this process was handed, makes it no master."""
    with scoreboard() as board:
        with pools_of(HERE) as pools:
            assert len(pools) == 1
        os.fchown(board.fd, 65534, 65534)
        with pools_of(HERE) as pools:
            assert pools == []


@given(st.lists(WORD, min_size=8, max_size=8), st.integers(0, 2**20))
def test_random_headers_are_passed_over(words: list[int], size: int) -> None:
    """Random words at the beginning of a memory of any size make a survey neither fail nor find a pool."""
    words[Header.MAGIC] = MAGIC
    with memfd(struct.pack("9q", *words, HERE), size=max(72, size)), pools_of(HERE) as pools:
        assert pools == []


@pytest.mark.processes
def test_processes_and_descriptors_that_vanish() -> None:
    """A process that ends and a descriptor that is closed during a survey are ignored."""
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
