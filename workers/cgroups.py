"""Where a process stands in the control groups, version 1 and 2: files to read, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import msgspec

PROC = Path("/proc")
MOUNT = Path("/sys/fs/cgroup")

_MOUNTS: dict[int, dict[str, tuple[str, ...]]] = {
    1: {"cpu": ("cpu", "cpu,cpuacct"), "memory": ("memory",)},
    2: {"cpu": ("", "unified"), "memory": ("", "unified")},
}


class Group(msgspec.Struct, frozen=True):
    """One directory that bounds this process, itself or an ancestor. version: 1 or 2."""

    version: int
    directory: Path

    def text(self, name: str) -> str:
        """Return the text of one of its files, "" where there is none."""
        return read(self.directory / name)

    def number(self, name: str) -> int | None:
        """Return the number in one of its files; None where there is none ("max")."""
        text = self.text(name).strip()
        return int(text) if text.isascii() and text.isdigit() else None

    def table(self, name: str) -> dict[str, int]:
        """Return a file of lines of a word and a number."""
        words = (line.split() for line in self.text(name).splitlines())
        return {pair[0]: int(pair[1]) for pair in words if len(pair) == 2 and pair[1].isdigit()}


def groups(controller: str, proc: Path = PROC, mount: Path = MOUNT) -> Iterator[Group]:
    """Yield the groups of this process that may bound a resource, innermost first.

    controller: "cpu" or "memory". proc, mount: where to look (tests give captured trees).
    """
    for line in read(proc / "self" / "cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            yield from _upwards(2, controller, path, mount)
        elif controller in controllers.split(","):
            yield from _upwards(1, controller, path, mount)


def _upwards(version: int, controller: str, path: str, mount: Path) -> Iterator[Group]:
    # In a container without a cgroup namespace the path is the host's and does not exist here;
    # the mounted root then is the container's own cgroup. So absent directories are passed over.
    inner = PurePosixPath("/", *(part for part in PurePosixPath(path).parts if part != ".."))
    for name in _MOUNTS[version][controller]:
        for level in (inner, *inner.parents):
            directory = mount / name / level.relative_to("/")
            if directory.is_dir():
                yield Group(version, directory)


def read(path: Path) -> str:
    """Return the text of a small file, "" when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
