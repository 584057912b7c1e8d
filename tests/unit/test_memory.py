"""Memory: what is left, what a worker costs, and who died for want of it, from captured trees."""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING

import pytest

from prefork.workers.memory import CREDIT_TIME, Memory, OomAttribution, affordable

if TYPE_CHECKING:
    from pathlib import Path

MEGABYTE = 2**20


class Tree:
    """A captured /proc and /sys/fs/cgroup."""

    def __init__(self, root: Path) -> None:
        self.proc, self.mount = root / "proc", root / "cgroup"
        self.memory = Memory(self.proc, self.mount)
        self.write(self.proc / "self" / "cgroup", "")
        self.write(self.proc / "meminfo", "MemTotal: 9 kB\nMemAvailable: 102400 kB\n")

    @staticmethod
    def write(path: Path, text: str) -> None:
        """Write a file of the tree."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "ascii")

    def group(self, version: int, path: str, **files: object) -> None:
        """Put the process into a group with these files (dots written as two underscores)."""
        line = f"0::{path}\n" if version == 2 else f"4:memory:{path}\n"
        self.write(self.proc / "self" / "cgroup", line)
        self.files(version, path, **files)

    def files(self, version: int, path: str, **files: object) -> None:
        """Write files of a group."""
        home = self.mount / ("" if version == 2 else "memory") / path.lstrip("/")
        for name, text in files.items():
            self.write(home / name.replace("__", "."), f"{text}\n")


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Give a machine with 100 MiB available and no cgroup."""
    return Tree(tmp_path)


def test_machine_alone(tree: Tree) -> None:
    """Without a cgroup limit what is left is what the machine has available."""
    assert tree.memory.left() == 100 * MEGABYTE


def test_version_2_limit_counts_its_cache_as_free(tree: Tree) -> None:
    """memory.max less memory.current, and what only caches files comes back."""
    tree.group(
        2,
        "/a/b",
        memory__max=50 * MEGABYTE,
        memory__current=45 * MEGABYTE,
        memory__stat=f"anon 7\ninactive_file {3 * MEGABYTE}\nactive_file {2 * MEGABYTE}",
    )
    assert tree.memory.left() == 10 * MEGABYTE


def test_ancestors_bound_as_well(tree: Tree) -> None:
    """The tightest of a group and its ancestors holds; "max" is no limit."""
    tree.group(2, "/a/b", memory__max="max", memory__current=MEGABYTE)
    tree.files(2, "/a", memory__max=8 * MEGABYTE, memory__current=6 * MEGABYTE)

    assert tree.memory.left() == 2 * MEGABYTE


def test_version_1_limit(tree: Tree) -> None:
    """Version 1 has names of its own, totals for the hierarchy, and a huge number for no limit."""
    tree.group(
        1,
        "/x",
        memory__limit_in_bytes=20 * MEGABYTE,
        memory__usage_in_bytes=19 * MEGABYTE,
        memory__stat=f"inactive_file 1\ntotal_inactive_file {4 * MEGABYTE}",
    )
    tree.files(1, "/", memory__limit_in_bytes=2**63 - 4096, memory__usage_in_bytes=5)

    assert tree.memory.left() == 5 * MEGABYTE


@pytest.mark.parametrize("text", ["", "rubbish", "MemAvailable: many kB"])
def test_nothing_to_read_is_no_error(tree: Tree, text: str) -> None:
    """Where nothing tells, nothing is known."""
    tree.write(tree.proc / "meminfo", text)

    assert tree.memory.left() is None
    assert tree.memory.private(1) is None
    assert tree.memory.oom_kills() == 0


def test_private_memory_of_this_process() -> None:
    """Private memory grows by what this process writes, and is far less than shared pages and all."""
    before = Memory().private(os.getpid())
    # Of its own mapping: the heap may have as much left of what was freed before.
    with mmap.mmap(-1, 16 * MEGABYTE) as ballast:
        ballast.write(b"x" * (16 * MEGABYTE))
        after = Memory().private(os.getpid())

    assert before is not None
    assert after is not None
    assert 15 * MEGABYTE < after - before < 60 * MEGABYTE


@pytest.mark.parametrize(("version", "name"), [(2, "memory__events"), (1, "memory__oom_control")])
def test_oom_kills_are_the_innermost_groups(tree: Tree, version: int, name: str) -> None:
    """The group that the process is in tells; without one, the machine does."""
    tree.write(tree.proc / "vmstat", "nr_free_pages 8\noom_kill 5\n")
    assert tree.memory.oom_kills() == 5

    tree.group(version, "/a", **{name: "under_oom 0\noom_kill 2"})
    assert tree.memory.oom_kills() == 2


def test_witness_accuses_once_for_each_kill(tree: Tree) -> None:
    """Each kill of the kernel explains one death, also when two are collected one after the other, and not for long."""
    tree.group(2, "/a", memory__events="oom_kill 7")
    attribution = OomAttribution(tree.memory)
    assert not attribution.accuses(1.0)

    tree.files(2, "/a", memory__events="oom_kill 9")
    assert [attribution.accuses(2.0), attribution.accuses(2.1), attribution.accuses(2.2)] == [
        True,
        True,
        False,
    ]

    tree.files(2, "/a", memory__events="oom_kill 11")
    assert attribution.accuses(3.0)
    assert not attribution.accuses(3.0 + CREDIT_TIME + 0.1)


def test_what_is_left_is_divided_by_what_a_worker_costs(tree: Tree) -> None:
    """So many workers more as their private memory fits into what is left, less those that start."""
    rollup = "Rss: 9 kB\nPrivate_Clean: 24 kB\nPrivate_Dirty: 20456 kB\n"
    tree.write(tree.proc / "71" / "smaps_rollup", rollup)

    assert affordable(tree.memory, [71], 0) == 5
    assert affordable(tree.memory, [71], 2) == 3
    assert affordable(tree.memory, [71], 9) == 0


def test_young_worker_is_taken_for_a_megabyte(tree: Tree) -> None:
    """A worker that has hardly touched anything, or cannot be looked at, is taken to need a megabyte."""
    assert affordable(tree.memory, [71], 0) == 100
    assert affordable(tree.memory, [], 0) == 100


def test_unknown_memory_bounds_nothing(tree: Tree) -> None:
    """Where nothing tells what is left, growth is not bounded by it."""
    tree.write(tree.proc / "meminfo", "")

    assert affordable(tree.memory, [71], 0) is None
