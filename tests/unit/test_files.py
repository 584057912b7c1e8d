"""Files are told apart by device and inode, so that no successor's file is taken for one's own."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from prefork.workers.files import identity_of, is_still, unlink_if_still

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
