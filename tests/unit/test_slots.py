"""The claim of a master on the directory of metrics: nothing that workers leave there misleads it."""

from __future__ import annotations

import fcntl
import os
import signal
from typing import TYPE_CHECKING

import pytest

from prefork.metrics import slots

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def owner(tmp_path: Path) -> Path:
    """Return the path of the file that names the master."""
    return tmp_path / "prefork-master"


def test_claim_names_this_process(tmp_path: Path, owner: Path) -> None:
    """A directory is claimed once, and again by the same process; files of an earlier master are removed."""
    (tmp_path / "counter_1.db").touch()
    assert slots._claim(str(tmp_path)) == 0
    assert owner.read_text().split()[0] == str(os.getpid())
    assert not (tmp_path / "counter_1.db").exists()
    (tmp_path / "counter_1.db").touch()
    assert slots._claim(str(tmp_path)) == 0
    assert (tmp_path / "counter_1.db").exists()


def test_lock_of_a_reader_holds_up_nothing(tmp_path: Path, owner: Path) -> None:
    """A worker that may read the file cannot keep a master from starting or reloading."""
    owner.write_text("1 1")
    with owner.open() as reading:
        fcntl.flock(reading, fcntl.LOCK_EX)
        assert slots._claim(str(tmp_path)) == 0


@pytest.mark.processes
def test_lock_of_another_master_is_waited_for_in_bounds(
    tmp_path: Path, owner: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that may write to the file and keeps it locked makes the claim fail, and never hang."""
    monkeypatch.setattr(slots, "LOCK_TIME", 0.05)
    owner.touch()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        with owner.open("r+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            os.write(writer, b"x")
            signal.pause()
    os.close(writer)
    os.read(reader, 1)
    os.close(reader)
    try:
        with pytest.raises(BlockingIOError, match="locked"):
            slots._claim(str(tmp_path))
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.parametrize("kind", ["link", "hard link", "fifo", "folder"])
def test_file_that_is_no_claim_is_refused(tmp_path: Path, owner: Path, kind: str) -> None:
    """A link, a fifo or a folder in the place of the claim is refused, and no other file is written to."""
    victim = tmp_path / "victim"
    victim.write_text("content")
    {
        "link": lambda: owner.symlink_to(victim),
        "hard link": lambda: owner.hardlink_to(victim),
        "fifo": lambda: os.mkfifo(owner),
        "folder": owner.mkdir,
    }[kind]()
    with pytest.raises(OSError, match=r"regular file|symbolic|director"):
        slots._claim(str(tmp_path))
    assert victim.read_text() == "content"


@pytest.mark.skipif(os.getuid() != 0, reason="needs files of another user")
def test_claim_of_another_user_means_nothing_to_root(tmp_path: Path, owner: Path) -> None:
    """A worker of another user cannot name itself as the master of root's directory."""
    owner.write_text(f"{os.getppid()} {slots._started(os.getppid())}")
    assert slots._claim(str(tmp_path)) == os.getppid()
    os.chown(owner, 65534, 65534)
    assert slots._claim(str(tmp_path)) == 0
    assert owner.stat().st_uid == 0
