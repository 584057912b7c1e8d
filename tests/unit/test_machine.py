"""What this machine allows, read from captured trees as the kernel shows them: CPUs and memory."""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING

import pytest

from prefork.workers.machine import Memory, affordable, usable_cpus

if TYPE_CHECKING:
    from pathlib import Path

MEGABYTE = 2**20


class Tree:
    """A captured ``/proc`` and ``/sys/fs/cgroup``."""

    def __init__(self, folder: Path) -> None:
        self.proc, self.mount = folder / "proc", folder / "cgroup"
        self.mount.mkdir()
        self.memory = Memory(self.proc, self.mount)
        self.member_of()
        self.write(self.proc / "meminfo", "MemTotal: 9 kB\nMemAvailable: 102400 kB\n")

    @staticmethod
    def write(path: Path, text: str) -> None:
        """Write a file of the tree."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "ascii")

    def member_of(self, *lines: str) -> None:
        """Write ``/proc/self/cgroup``."""
        self.write(self.proc / "self" / "cgroup", "".join(f"{line}\n" for line in lines))

    def v2(self, path: str, content: str, mount: str = "") -> None:
        """Write a ``cpu.max``."""
        self.write(self.mount / mount / path.strip("/") / "cpu.max", f"{content}\n")

    def v1(self, path: str, quota: int, period: int, mount: str = "cpu,cpuacct") -> None:
        """Write a ``cpu.cfs_quota_us`` and its period."""
        folder = self.mount / mount / path.strip("/")
        self.write(folder / "cpu.cfs_quota_us", f"{quota}\n")
        self.write(folder / "cpu.cfs_period_us", f"{period}\n")

    def count(self, affinity: int = 64) -> int:
        """Count the CPUs in this tree."""
        return usable_cpus(self.proc, self.mount, affinity).count

    def memory_group(self, version: int, path: str, **files: object) -> None:
        """Put the process into a memory group with these files (dots written as two underscores)."""
        self.member_of(f"0::{path}" if version == 2 else f"4:memory:{path}")
        self.memory_files(version, path, **files)

    def memory_files(self, version: int, path: str, **files: object) -> None:
        """Write files of a memory group."""
        home = self.mount / ("" if version == 2 else "memory") / path.lstrip("/")
        for name, text in files.items():
            self.write(home / name.replace("__", "."), f"{text}\n")


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Give a machine with 100 MiB available and no group."""
    return Tree(tmp_path)


# --- CPUs


def test_no_cgroups_leave_the_affinity(tree: Tree) -> None:
    """Where nothing limits, and nothing can be read, the affinity counts."""
    assert tree.count(affinity=3) == 3
    tree.member_of("0::/")
    assert tree.count(affinity=3) == 3


@pytest.mark.parametrize(
    ("count", "content"),
    [
        (2, "200000 100000"),
        (2, "150000 100000"),
        (1, "50000 100000"),
        (1, "1000 100000"),
        (64, "max 100000"),
        (64, "garbage"),
        (64, ""),
        (64, "0 0"),
    ],
)
def test_v2_quota_is_rounded_up(tree: Tree, count: int, content: str) -> None:
    """A quota of one and a half CPUs is worth two workers; less than one is worth one."""
    tree.member_of("0::/app")
    tree.v2("app", content)
    assert tree.count() == count


def test_quota_above_the_affinity_changes_nothing(tree: Tree) -> None:
    """The smaller of the two holds."""
    tree.member_of("0::/app")
    tree.v2("app", "800000 100000")
    assert tree.count(affinity=2) == 2


def test_ancestors_limit_too(tree: Tree) -> None:
    """A slice of systemd may have the quota, the service below it none of its own."""
    tree.member_of("0::/system.slice/app.service/worker")
    tree.v2("system.slice/app.service/worker", "max 100000")
    tree.v2("system.slice/app.service", "500000 100000")
    tree.v2("system.slice", "300000 100000")
    assert tree.count() == 3


@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
def test_v1_quota(tree: Tree, mount: str) -> None:
    """Version 1 names the controller in the line and mounts it in a folder of its own."""
    tree.member_of("5:cpu,cpuacct:/docker/0123", "4:memory:/docker/0123", "0::/")
    tree.v1("docker/0123", 250_000, 100_000, mount)
    assert tree.count() == 3


def test_v1_without_a_limit(tree: Tree) -> None:
    """A quota of -1 is none."""
    tree.member_of("5:cpu,cpuacct:/docker/0123")
    tree.v1("docker/0123", -1, 100_000)
    assert tree.count() == 64


def test_container_without_a_cgroup_namespace(tree: Tree) -> None:
    """The path is the host's and is not here; what is mounted as the root is the container's own."""
    tree.member_of("5:cpu,cpuacct:/docker/0123456789abcdef")
    tree.v1("", 200_000, 100_000)
    assert tree.count() == 2


def test_path_outside_the_namespace(tree: Tree) -> None:
    """A path that climbs out of the namespace is not followed out of the mount."""
    tree.member_of("0::/../../other")
    tree.v2("", "100000 100000")
    (tree.mount.parent / "cpu.max").write_text("50000 100000\n")
    assert tree.count() == 1


def test_hybrid_mount(tree: Tree) -> None:
    """With both versions mounted, version 2 lives in ``unified``."""
    tree.member_of("1:cpu:/", "0::/app")
    tree.v2("app", "400000 100000", mount="unified")
    assert tree.count() == 4


def test_reason_says_what_bounds(tree: Tree) -> None:
    """The words are fit for one log line."""
    tree.member_of("0::/app")
    tree.v2("app", "150000 100000")
    assert usable_cpus(tree.proc, tree.mount, 8).reason == "cgroup quota 1.5, affinity 8"
    tree.v2("app", "max 100000")
    assert usable_cpus(tree.proc, tree.mount, 8).reason == "affinity 8, no lower cgroup quota"


def test_here() -> None:
    """This machine has at least one CPU."""
    assert usable_cpus().count >= 1


# --- memory


def test_machine_alone(tree: Tree) -> None:
    """Without a cgroup limit what is left is what the machine has available."""
    assert tree.memory.left() == 100 * MEGABYTE


def test_version_2_limit_counts_its_cache_as_free(tree: Tree) -> None:
    """memory.max less memory.current, and what only caches files comes back."""
    tree.memory_group(
        2,
        "/a/b",
        memory__max=50 * MEGABYTE,
        memory__current=45 * MEGABYTE,
        memory__stat=f"anon 7\ninactive_file {3 * MEGABYTE}\nactive_file {2 * MEGABYTE}",
    )
    assert tree.memory.left() == 10 * MEGABYTE


def test_ancestors_bound_as_well(tree: Tree) -> None:
    """The tightest of a group and its ancestors holds; "max" is no limit."""
    tree.memory_group(2, "/a/b", memory__max="max", memory__current=MEGABYTE)
    tree.memory_files(2, "/a", memory__max=8 * MEGABYTE, memory__current=6 * MEGABYTE)

    assert tree.memory.left() == 2 * MEGABYTE


def test_version_1_limit(tree: Tree) -> None:
    """Version 1 has names of its own, totals for the hierarchy, and a huge number for no limit."""
    tree.memory_group(
        1,
        "/x",
        memory__limit_in_bytes=20 * MEGABYTE,
        memory__usage_in_bytes=19 * MEGABYTE,
        memory__stat=f"inactive_file 1\ntotal_inactive_file {4 * MEGABYTE}",
    )
    tree.memory_files(1, "/", memory__limit_in_bytes=2**63 - 4096, memory__usage_in_bytes=5)

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

    tree.memory_group(version, "/a", **{name: "under_oom 0\noom_kill 2"})
    assert tree.memory.oom_kills() == 2


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
