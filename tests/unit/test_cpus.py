"""Counting usable CPUs, with trees as the kernel shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from prefork.workers.cpus import usable_cpus

if TYPE_CHECKING:
    from pathlib import Path


class Tree:
    """A captured ``/proc`` and ``/sys/fs/cgroup``."""

    def __init__(self, folder: Path) -> None:
        self.proc = folder / "proc"
        self.cgroups = folder / "cgroup"
        (self.proc / "self").mkdir(parents=True)
        self.cgroups.mkdir()

    def member_of(self, *lines: str) -> None:
        """Write ``/proc/self/cgroup``."""
        (self.proc / "self" / "cgroup").write_text("".join(f"{line}\n" for line in lines))

    def v2(self, path: str, content: str, mount: str = "") -> None:
        """Write a ``cpu.max``."""
        folder = self.cgroups / mount / path.strip("/")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cpu.max").write_text(content + "\n")

    def v1(self, path: str, quota: int, period: int, mount: str = "cpu,cpuacct") -> None:
        """Write a ``cpu.cfs_quota_us`` and its period."""
        folder = self.cgroups / mount / path.strip("/")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        (folder / "cpu.cfs_period_us").write_text(f"{period}\n")

    def count(self, affinity: int = 64) -> int:
        """Count in this tree."""
        return usable_cpus(self.proc, self.cgroups, affinity).count


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Give an empty tree."""
    return Tree(tmp_path)


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
    (tree.cgroups.parent / "cpu.max").write_text("50000 100000\n")
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
    assert usable_cpus(tree.proc, tree.cgroups, 8).reason == "cgroup quota 1.5, affinity 8"
    tree.v2("app", "max 100000")
    assert usable_cpus(tree.proc, tree.cgroups, 8).reason == "affinity 8, no lower cgroup quota"


def test_here() -> None:
    """This machine has at least one CPU."""
    assert usable_cpus().count >= 1
