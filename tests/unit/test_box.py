"""A pool that follows its machine or container: what is allowed, when it counts, and what a whole master does."""

from __future__ import annotations

import logging
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.master.box import FALL, RISE, Following, MemoryUse, allowed, follow
from prefork.master.box_watch import BoxWatch
from prefork.serving import _fitting
from prefork.workers.machine import Usable
from prefork.workers.pool.table import Table
from prefork.workers.scoreboard import PoolField
from prefork.workers.settings import Settings
from tests.support.staged import StagedMaster, become_ready

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

MIB = 1 << 20


def sizes(begin: int, looks: Iterable[int]) -> list[int]:
    """Return what the pool follows after each look, one a second."""
    following, found = Following(begin), []
    for look in looks:
        following = follow(following, look)
        found.append(following.size)
    return found


def moves(begin: int, looks: Iterable[int]) -> int:
    """Return how often the pool moves in these seconds."""
    found = [begin, *sizes(begin, looks)]
    return sum(one != another for one, another in pairwise(found))


# --- hysteresis


def test_more_is_followed_after_a_few_looks() -> None:
    """More CPUs count when RISE looks in a row have seen them, and then at once in full."""
    assert sizes(2, [8] * (RISE + 2)) == [2] * (RISE - 1) + [8] * 3


def test_fewer_are_followed_when_they_have_lasted() -> None:
    """Fewer CPUs count when FALL looks in a row have seen no more."""
    assert sizes(8, [2] * (FALL + 1)) == [8] * (FALL - 1) + [2] * 2


def test_an_hour_of_a_quota_that_flaps() -> None:
    """A quota that changes from second to second moves nothing; one that changes each ten seconds moves the pool up once."""
    hour = 3600

    assert moves(2, [2, 8] * (hour // 2)) == 0
    assert moves(8, [2, 8] * (hour // 2)) == 0
    assert moves(2, ([2] * 10 + [8] * 10) * (hour // 20)) == 1
    assert moves(4, [4 + (second % 3) for second in range(hour)]) == 0


@given(st.integers(1, 9), st.lists(st.integers(1, 9), max_size=60))
def test_pool_moves_only_to_what_was_seen(begin: int, looks: Sequence[int]) -> None:
    """The number is one that a look of the last FALL has allowed, or the one before; a limit that stays is followed in the end."""
    before = begin
    for at, size in enumerate(sizes(begin, looks)):
        assert size in {before, *looks[max(0, at - FALL + 1) : at + 1]}
        before = size
    assert sizes(begin, [*looks, *[5] * FALL])[-1] == 5


# --- memory


def test_memory_bounds_how_far_the_number_rises() -> None:
    """Workers are added for new CPUs as far as each fits below the limit with a tenth of it left."""
    memory = MemoryUse(limit=1000 * MIB, used=500 * MIB, private=100 * MIB, live=4)

    assert allowed(4, 16, None, is_tight=False) == 16
    assert allowed(4, 16, memory, is_tight=False) == 8
    assert allowed(4, 6, memory, is_tight=False) == 6


def test_memory_lowers_the_number_only_when_its_limit_has_fallen() -> None:
    """A pool that fills its memory stays as it is; one whose limit was lowered becomes as small as the limit asks for."""
    memory = MemoryUse(limit=600 * MIB, used=590 * MIB, private=100 * MIB, live=4)

    assert allowed(4, 4, memory, is_tight=False) == 4
    assert allowed(4, 4, memory, is_tight=True) == 3
    assert MemoryUse(100 * MIB, 900 * MIB, 100 * MIB, 4).fits == 1


@given(st.integers(1, 2**40), st.integers(0, 2**40), st.integers(MIB, 2**32), st.integers(0, 64))
def test_number_that_fits_is_a_fixed_point(limit: int, used: int, private: int, live: int) -> None:
    """When as many workers live as fit, that many fit: the pool does not swing."""
    fits = MemoryUse(limit, used, private, live).fits
    then = MemoryUse(limit, used + (fits - live) * private, private, fits)

    assert then.fits in ({fits, fits + 1} if fits > 1 else {1})


# --- looking


class Machine:
    """What the machine says, and how often it was asked for the memory of a worker."""

    def __init__(self) -> None:
        self.cpus = 4
        self.bytes: int | None = 1000 * MIB
        self.walks = 0

    def usable(self) -> Usable:
        """Return the CPUs."""
        return Usable(self.cpus, f"affinity {self.cpus}")

    def limit(self) -> int | None:
        """Return the limit."""
        return self.bytes

    def used(self, _limit: int) -> int:
        """Return what is used."""
        return 500 * MIB

    def private(self, _pid: int) -> int:
        """Return what a worker has."""
        self.walks += 1
        return 100 * MIB


class OneReady(Table):
    """A table in which one worker is ready."""

    @property
    def ready_pids(self) -> list[int]:
        """The pid of a worker that nobody asks for."""
        return [4711]

    def __len__(self) -> int:
        return 4


def test_one_look_a_second_and_memory_only_when_it_matters() -> None:
    """The machine is looked at once a second, and the pages of a worker are walked only while CPUs ask for more workers."""
    machine = Machine()
    watch = BoxWatch(4, OneReady(9), memory=machine, cpus=machine.usable)  # type: ignore[arg-type]
    moved = [watch.look(now / 10) for now in range(100)]

    assert (len(watch.following.looks), machine.walks, any(moved)) == (10, 0, False)
    machine.cpus = 16
    assert [watch.look(100.0 + second) for second in range(RISE)] == [False] * (RISE - 1) + [True]
    assert (watch.following.size, machine.walks, watch.cpus) == (8, RISE, 16)
    assert watch.reason == "affinity 16, memory limit 1000M"


def test_lower_memory_limit_makes_the_pool_smaller() -> None:
    """A memory limit that has fallen since the master began lets the number fall."""
    machine = Machine()
    watch = BoxWatch(4, OneReady(9), memory=machine, cpus=machine.usable)  # type: ignore[arg-type]
    machine.bytes = 450 * MIB

    assert [watch.look(float(second)) for second in range(FALL)][-1]
    assert watch.following.size == 3


# --- a whole master


@pytest.fixture(name="machine")
def _machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    """Give a machine whose CPUs the test decides about, and no memory limit."""
    machine = Machine()
    monkeypatch.setattr("prefork.workers.settings.usable_cpus", machine.usable)
    monkeypatch.setattr("prefork.master.box_watch.usable_cpus", machine.usable)
    monkeypatch.setattr("prefork.workers.machine.MOUNT", tmp_path)
    monkeypatch.setattr("prefork.workers.machine.Memory.limit", lambda _self: None)
    return machine


def seconds_of(stage: StagedMaster, seconds: int) -> Iterator[float]:
    """Let time go by, with every worker ready at once."""
    for _ in range(2 * seconds):
        become_ready(stage.pool)
        yield 0.5


def test_floor_follows_the_cpus(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    """With workers = auto the pool grows and shrinks with the CPUs, calls the hook, counts, and logs one line each time."""
    caplog.set_level(logging.INFO, "prefork")
    stage = StagedMaster()

    def play() -> Iterator[float]:
        yield from stage.boot()
        machine.cpus = 6
        yield from seconds_of(stage, RISE + 2)
        assert stage.pool.table.count_ready() == 6
        machine.cpus = 3
        yield from seconds_of(stage, FALL - 2)
        assert stage.pool.table.count_ready() == 6
        yield from seconds_of(stage, 5)
        assert stage.pool.board.pool(PoolField.FLOOR) == 3
        assert stage.pool.board.pool(PoolField.USABLE_CPUS) == 3
        assert stage.pool.board.pool(PoolField.SCALED_UP_BY_BOX) == 2
        assert stage.pool.board.pool(PoolField.SCALED_DOWN_BY_BOX) == 3

    stage.run(play())
    stage.close()
    assert stage.hooks("pool_resized") == [[4, 6, "box"], [6, 3, "box"]]
    lines = [one.facts for one in caplog.records if one.facts["event"] == "resized"]  # type: ignore[attr-defined]
    assert [line["reason"] for line in lines] == ["affinity 6", "affinity 3"]


def test_ceiling_follows_the_cpus(machine: Machine) -> None:
    """A ceiling that was not given moves with the CPUs, within the slots that the pool began with."""
    machine.cpus = 60
    stage = StagedMaster(min_spare=1)

    def ceiling() -> int:
        return stage.pool.board.pool(PoolField.CEILING)

    def play() -> Iterator[float]:
        yield from stage.boot()
        yield from seconds_of(stage, 2)
        assert ceiling() == 120
        machine.cpus = 10
        yield from seconds_of(stage, FALL + 2)
        assert ceiling() == 40
        assert stage.pool.board.pool(PoolField.TARGET) <= 40
        machine.cpus = 200
        yield from seconds_of(stage, RISE + 2)
        assert ceiling() == 120

    stage.run(play())
    stage.close()


@pytest.mark.parametrize("given", [{}, {"max_children": 40}])
def test_ceiling_that_follows_is_nothing_to_warn_of(
    machine: Machine, caplog: pytest.LogCaptureFixture, given: dict[str, int]
) -> None:
    """After a reload the scoreboard keeps its slots; the log says so only where another ``max_children`` was given."""
    machine.cpus = 4
    fitted = _fitting(Settings(**given), SimpleNamespace(pool=SimpleNamespace(slots=60)))  # type: ignore[arg-type]

    assert (fitted.max_children, fitted.workers) == (60, 4)
    assert "workers" in fitted.automatic
    assert ("stays until a restart" in caplog.text) is bool(given)


def test_what_was_given_stays(machine: Machine) -> None:
    """A number of workers that was given does not follow, nor does a max_children, nor a floor that an operator has moved."""
    given, ordered = StagedMaster(workers=4), StagedMaster(max_children=9)
    machine.cpus = 12

    def play(stage: StagedMaster, floor: int) -> Iterator[float]:
        yield from stage.boot()
        if floor == 3:
            stage.master._size.move_floor(-1, "TTOU")
        yield from seconds_of(stage, RISE + 2)
        assert stage.pool.board.pool(PoolField.FLOOR) == floor
        assert stage.pool.board.pool(PoolField.CEILING) == stage.pool.table.size

    given.run(play(given, 4))
    ordered.run(play(ordered, 3))
    given.close()
    ordered.close()
