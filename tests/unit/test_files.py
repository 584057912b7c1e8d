"""Files are told apart by device and inode, so that no successor's file is taken for one's own."""

from __future__ import annotations

import ast
import fcntl
import os
import socket
import stat
from typing import TYPE_CHECKING

import pytest

from prefork.workers.files import (
    binding_with_mode,
    identity_of,
    is_still,
    lock,
    unlink_if_still,
)
from tests.support.package import SOURCES

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Make a file."""
    made = tmp_path / "file"
    made.write_text("first")
    made.chmod(0o640)
    return made


def replace(path: Path) -> None:
    """Put another file at the same path, while the first one still exists under another name."""
    path.rename(path.with_name("elsewhere"))
    path.write_text("second")


def test_path_and_descriptor_of_one_file_are_the_same(path: Path) -> None:
    """A file is the same one by its path, by another name and by a descriptor."""
    identity = identity_of(path)
    os.link(path, path.with_name("link"))

    assert is_still(str(path), identity)
    assert is_still(path.with_name("link"), identity)
    with path.open() as file:
        assert is_still(file.fileno(), identity)


def test_another_file_at_the_path_is_not_the_same(path: Path) -> None:
    """A path that was taken over by another file, is gone, or leads there only by a link, does not count."""
    identity = identity_of(path)
    replace(path)
    assert not is_still(path, identity)
    path.unlink()
    assert not is_still(path, identity)
    path.symlink_to("elsewhere")
    assert not is_still(path, identity)


def test_descriptor_that_was_used_again_is_not_the_same(path: Path) -> None:
    """The number of a closed descriptor leads to another file, or to none."""
    with path.open() as file:
        fd, identity = file.fileno(), identity_of(file.fileno())
        reader, writer = os.pipe()
        os.dup2(reader, fd)
        assert not is_still(fd, identity)
    os.close(reader)
    assert not is_still(reader, identity)
    os.close(writer)


def test_only_the_same_file_is_removed(path: Path) -> None:
    """A successor's file stays; one's own goes, and its mode comes back; a path that is gone is no error."""
    identity = identity_of(path)
    assert unlink_if_still(path, identity) == 0o640
    assert unlink_if_still(path, identity) is None
    path.write_text("successor")
    other = identity_of(path.parent)
    assert unlink_if_still(path, other) is None
    assert path.read_text() == "successor"


# --- locks and modes


def test_reader_of_a_file_cannot_keep_it_locked(path: Path) -> None:
    """A lock that a process takes without the permission to write keeps nobody from locking the file."""
    with path.open() as reading, path.open("r+") as writing:
        fcntl.flock(reading, fcntl.LOCK_EX)
        assert lock(writing.fileno())


def test_lock_belongs_to_one_description(path: Path) -> None:
    """A file is locked once, also within a process; flock() sees it; closing it releases it."""
    with path.open("r+") as first:
        assert lock(first.fileno())
        with path.open("r+") as second:
            assert not lock(second.fileno())
            with pytest.raises(BlockingIOError):
                fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with path.open("r+") as third:
        assert lock(third.fileno())


@pytest.mark.parametrize("mode", [0o660, 0o600, 0o777, 0o666])
def test_socket_is_bound_with_its_mode(tmp_path: Path, mode: int) -> None:
    """The file of a Unix socket has its mode from its first moment, and the umask is as before."""
    path = tmp_path / "socket"
    before = os.umask(0o027)
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            with binding_with_mode(sock, mode):
                sock.bind(str(path))
            assert stat.S_IMODE(path.lstat().st_mode) == mode
            assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
        path.unlink()


def test_nothing_changes_the_mode_of_a_path() -> None:
    """No module calls chmod(): another user could have put a link in the place of a file by then."""
    callers = [
        name
        for name, tree in SOURCES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in ("chmod", "lchmod")
    ]
    assert callers == []
