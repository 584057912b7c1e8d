"""The pid file: its lock decides, and no file of another owner is touched."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from prefork.cli.pidfile import PidFile
from prefork.workers.errors import PreforkError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """Where the pid file goes."""
    return tmp_path / "pid"


def test_holds_the_pid_while_it_is_held(path: Path) -> None:
    """The file has the pid while it is held, and is removed at the end."""
    with PidFile(str(path)):
        assert path.read_text() == f"{os.getpid()}\n"
    assert not path.exists()


def test_second_start_is_refused_and_the_first_undisturbed(path: Path) -> None:
    """A second holder is refused, and the error names the first one and the remedy."""
    with PidFile(str(path)):
        with pytest.raises(PreforkError) as caught, PidFile(str(path)):
            pass
        assert f"is held by the running process {os.getpid()}; stop that process" in str(
            caught.value
        )
        assert path.read_text() == f"{os.getpid()}\n"


def test_file_of_a_dead_process_is_taken_over(path: Path) -> None:
    """A file without a lock is taken over, whatever process has its pid now."""
    path.write_text("1\n")
    with PidFile(str(path)):
        assert path.read_text() == f"{os.getpid()}\n"


def test_another_file_at_the_path_stays(path: Path) -> None:
    """A file that has replaced the held one is not removed at the end."""
    with PidFile(str(path)):
        path.unlink()
        path.write_text("somebody's")
    assert path.read_text() == "somebody's"


def test_file_removed_meanwhile(path: Path) -> None:
    """A held file that was removed is no error at the end."""
    with PidFile(str(path)):
        path.unlink()


def test_symbolic_links_are_not_followed(path: Path) -> None:
    """A symbolic link is refused, and the file behind it stays as it is."""
    victim = path.with_name("victim")
    victim.write_text("precious")
    path.symlink_to(victim)
    with pytest.raises(SettingsError, match="symbolic link"), PidFile(str(path)):
        pass
    assert victim.read_text() == "precious"


def test_hard_links_and_devices_are_refused(path: Path) -> None:
    """A hard link and a fifo are refused."""
    victim = path.with_name("victim")
    victim.write_text("4711")
    path.hardlink_to(victim)
    with pytest.raises(SettingsError, match="not a regular file"), PidFile(str(path)):
        pass
    assert victim.read_text() == "4711"
    fifo = path.with_name("fifo")
    os.mkfifo(fifo)
    with pytest.raises(SettingsError, match="not a regular file"), PidFile(str(fifo)):
        pass


def test_files_with_other_content_are_left_alone(path: Path) -> None:
    """A file with other content than a pid is refused and stays as it is."""
    path.write_text("import prefork\n")
    with pytest.raises(SettingsError, match="something other than a pid"), PidFile(str(path)):
        pass
    assert path.read_text() == "import prefork\n"


def test_directory_that_is_not_there(path: Path) -> None:
    """The error for a missing directory names the source of the path."""
    with (
        pytest.raises(SettingsError, match="No such file or directory") as caught,
        PidFile(str(path / "deeper"), "flag --pidfile"),
    ):
        pass
    assert caught.value.source == "flag --pidfile"


@pytest.mark.processes
def test_children_neither_hold_nor_remove_it(path: Path) -> None:
    """A child neither keeps the lock nor removes the file."""
    reader, writer = os.pipe()
    with PidFile(str(path)) as held:
        child = os.fork()
        if child == 0:
            try:
                held.__exit__(None, None, None)  # as if the stack were unwound here
                os.close(writer)
                os.read(reader, 1)
            finally:
                os._exit(0)
        assert path.exists()
    assert not path.exists()
    with PidFile(str(path)):  # while the child lives
        assert path.read_text() == f"{os.getpid()}\n"
    os.close(writer)
    os.waitpid(child, 0)
    os.close(reader)
