"""The limits of a worker's process: what is read, what is refused before the bind, and what is set."""

from __future__ import annotations

import os
import resource
from typing import Any, get_args

import pytest

from prefork.usable import refuse_unusable
from prefork.workers import process_limits
from prefork.workers.errors import SettingsError
from prefork.workers.process_limits import (
    LEAST_DESCRIPTORS,
    UNLIMITED,
    LimitName,
    ProcessLimits,
    read_limits,
    shown_limits,
)
from prefork.workers.settings import ROWS, Settings
from prefork.workers.units import shown_size


class Kernel:
    """Stands in for the kernel: what this process has, and whether it may have more."""

    def __init__(self, *, hard: int = 4096, niceness: int = 0, may: bool = False) -> None:
        self.limit = (min(1024, hard) if hard >= 0 else 1024, hard)
        self.niceness = niceness
        self.may = may
        self.asked = 0

    def getrlimit(self, _number: int) -> tuple[int, int]:
        """Return the one limit that there is."""
        return self.limit

    def setrlimit(self, _number: int, wanted: tuple[int, int]) -> None:
        """Refuse as the kernel does, in Python's words."""
        self.asked += 1
        hard = self.limit[1]
        if not self.may and hard != UNLIMITED and not 0 <= wanted[1] <= hard:
            raise ValueError("not allowed to raise maximum limit")
        self.limit = wanted

    def getpriority(self, _which: int, _who: int) -> int:
        """Return the niceness."""
        return self.niceness

    def setpriority(self, _which: int, _who: int, value: int) -> None:
        """Refuse a lower one."""
        self.asked += 1
        if value < self.niceness and not self.may:
            raise PermissionError
        self.niceness = value


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Kernel:
    """Replace the calls of the module by those of an invented kernel."""
    invented = Kernel(**getattr(request, "param", {}))
    for name in ("getrlimit", "setrlimit"):
        monkeypatch.setattr(resource, name, getattr(invented, name))
    for name in ("getpriority", "setpriority"):
        monkeypatch.setattr(os, name, getattr(invented, name))
    monkeypatch.setattr(process_limits, "_address_space", lambda: 100 << 20)
    monkeypatch.setattr(process_limits, "_oom_score_adj", lambda: 7)
    return invented


def refusal(**values: Any) -> SettingsError:
    """Return the error with which a start refuses these values."""
    with pytest.raises(SettingsError) as caught:
        refuse_unusable(values, lambda key: f"flag --{key}")
    return caught.value


# --- values


@pytest.mark.parametrize(
    ("raw", "limits"),
    [
        ("nofile=1024", {"nofile": 1024}),
        ("as=2G,core=0", {"as": 2**31, "core": 0}),
        ("AS=1.5G  nproc=unlimited", {"as": 3 * 2**29, "nproc": UNLIMITED}),
        ({"fsize": "64K", "nofile": 99}, {"fsize": 65536, "nofile": 99}),
        ({"stack": "unlimited"}, {"stack": UNLIMITED}),
        ("", {}),
        ({}, {}),
    ],
)
def test_limits_are_read(raw: object, limits: dict[str, int]) -> None:
    """A text of pairs and a table give the same limits, and the shown text reads as the same limits."""
    row = ROWS["limits"]

    assert row.converted(raw, "prefork.toml") == limits
    assert read_limits(shown_limits(limits)) == limits


@pytest.mark.parametrize(
    "raw",
    [
        *("nofile", "nofile=", "nofile=many", "nofile=-1", "files=3", "cpu=5", "nofile=1 nofile=2"),
        *(
            {"nofile": True},
            {"nofile": None},
            {"nofile": -2},
            {"nofile": 2**63},
            {7: 7},
            ["nofile"],
            7,
        ),
    ],
)
def test_limits_that_cannot_be(raw: object) -> None:
    """What is no limit of setrlimit(), or no number, is refused with the names of the limits."""
    with pytest.raises(SettingsError) as caught:
        Settings(limits=raw)  # type: ignore[arg-type]

    assert all(name in caught.value.allowed for name in get_args(LimitName))


def test_each_name_is_one_of_the_kernel() -> None:
    """Python knows each limit by the name that the setting has for it."""
    for name in get_args(LimitName):
        assert hasattr(resource, f"RLIMIT_{name.upper()}")


def test_nothing_is_set_by_default() -> None:
    """A worker without these settings makes no call for them; one with any of them has them all in one record."""
    assert Settings(workers=1).process_limits is None
    assert Settings(workers=1, nice=5).process_limits == ProcessLimits({}, 5, None)
    assert Settings(workers=1, oom_score_adj=0).process_limits == ProcessLimits({}, None, 0)


# --- refused before the bind


def test_hard_limit_that_cannot_be_raised(kernel: Kernel) -> None:
    """A limit above the hard limit is refused where the kernel refuses it, with the hard limit and the remedy."""
    error = refusal(limits={"nofile": 5000})

    assert (error.key, error.value) == ("limits", "nofile=5000")
    assert "flag --limits" in str(error)
    assert "at most 4096" in error.allowed
    assert "CAP_SYS_RESOURCE" in error.allowed
    assert refusal(limits={"nofile": UNLIMITED}).value == "nofile=unlimited"
    assert kernel.limit == (1024, 4096)


@pytest.mark.parametrize("kernel", [{"may": True}, {"hard": UNLIMITED}], indirect=True)
def test_question_changes_nothing(kernel: Kernel) -> None:
    """Where the kernel allows a higher limit, the start goes on, and the limit of the master is as before."""
    before = kernel.limit

    refuse_unusable({"limits": {"nofile": 5000}, "nice": 3}, str)

    assert kernel.limit == before
    assert kernel.niceness == 0


def test_step_down_is_not_tried(kernel: Kernel) -> None:
    """What every process may do is not tried in the master: it could not be taken back."""
    refuse_unusable({"limits": {"nofile": 4096, "core": 0}, "nice": 0, "oom_score_adj": 7}, str)

    assert kernel.asked == 0


def test_lower_niceness_needs_a_privilege(kernel: Kernel) -> None:
    """A niceness below that of the master is refused where the kernel refuses it."""
    error = refusal(nice=-5)

    assert "CAP_SYS_NICE" in error.allowed
    assert kernel.niceness == 0


@pytest.mark.parametrize("kernel", [{"may": True}], indirect=True)
def test_lower_niceness_with_the_privilege(kernel: Kernel) -> None:
    """With the privilege the niceness is taken, and that of the master is as before."""
    refuse_unusable({"nice": -5}, str)

    assert (kernel.asked, kernel.niceness) == (2, 0)


@pytest.mark.usefixtures("kernel")
def test_workers_are_killed_before_the_master() -> None:
    """Workers that the kernel would spare longer than the master are refused."""
    assert "at least 7" in refusal(oom_score_adj=6).allowed


@pytest.mark.usefixtures("kernel")
def test_limits_below_what_a_worker_needs() -> None:
    """An address space that is full from the beginning, and hardly any descriptors, are refused."""
    assert f"more than {shown_size(100 << 20)}" in refusal(limits={"as": 50 << 20}).allowed
    assert str(LEAST_DESCRIPTORS) in refusal(limits={"nofile": LEAST_DESCRIPTORS - 1}).allowed
