"""How many workers load asks for: fast up, slow down, never beyond its bounds."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from prefork.workers.pool.spares import GROWTH_CALM, GROWTH_CAP, WINDOW, Load, Spares, follow_load
from prefork.workers.settings import Settings

pytestmark = pytest.mark.once  # arithmetic: values in, values out

NOW = 1000.0
SETTINGS = Settings(workers=2, max_children=64, min_spare=2, max_spare=4)
FLOOR = 2

any_load = st.builds(
    Load,
    idle=st.integers(0, 70),
    starting=st.integers(0, 70),
    waiting=st.booleans(),
    affordable=st.none() | st.integers(0, 70),
    oom_killed=st.integers(0, 3),
)


def follow(spares: Spares, now: float = NOW, **load: int) -> Spares:
    """Decide for a load; nobody starts and somebody waits unless said so."""
    usual = {"idle": 0, "starting": 0, "waiting": True}
    return follow_load(spares, Load(**{**usual, **load}), FLOOR, SETTINGS, now)


def calm(spares: Spares, idle: int, seconds: float, now: float = NOW) -> Spares:
    """Let this many seconds pass in which this many workers are idle, beside what leaves."""
    size = spares.size
    for tick in range(int(seconds * 4)):
        spares = follow(spares, now + tick / 4, idle=idle - (size - spares.size))
    return spares


def test_fixed_pool_has_the_size_of_its_floor() -> None:
    """Without min_spare the floor is the size, whatever the load was or is."""
    fixed = Settings(workers=2, max_children=64)

    assert follow_load(Spares(40, step=8), Load(0, 0), 3, fixed, NOW) == Spares(3)


def test_growth_doubles_from_tick_to_tick() -> None:
    """While nobody is idle, 1, 2, 4, 8, 16, 32 workers are added, up to the ceiling."""
    spares, sizes = Spares(FLOOR), []
    for tick in range(8):
        spares = follow(spares, NOW + tick * 0.1)
        sizes.append(spares.size)

    assert sizes == [3, 5, 9, 17, 33, 64, 64, 64]
    assert spares.at_ceiling


def test_reserve_is_filled_up_while_nobody_waits() -> None:
    """Without a queue as many are added as are missing in the reserve, and no doubling."""
    doubling = replace(Spares(8), step=8, grown_at=NOW)

    assert follow(doubling, waiting=False).size == 10
    assert follow(doubling, idle=1, waiting=False).size == 9


def test_growth_doubles_through_slow_boots() -> None:
    """The calm begins when the last step is ready, however long it took to boot."""
    grown = follow(follow(Spares(FLOOR)), NOW + 0.1)
    for tick in range(10):
        grown = follow(grown, NOW + 0.2 + tick * 0.4, starting=2)

    assert follow(grown, NOW + 4.3).step == 4


def test_growth_is_never_more_than_the_cap_at_once() -> None:
    """However long the growth lasts, one step adds GROWTH_CAP workers at most."""
    roomy = Settings(workers=2, max_children=1000, min_spare=1)
    spares, steps = Spares(2), []
    for tick in range(12):
        grown = follow_load(spares, Load(0, 0, waiting=True), 2, roomy, NOW + tick * 0.1)
        steps.append(grown.size - spares.size)
        spares = grown

    assert max(steps) == GROWTH_CAP
    assert steps[-3:] == [GROWTH_CAP] * 3


def test_growth_begins_with_one_again_after_a_calm() -> None:
    """A second without growth, and the next growth is by one."""
    grown = follow(follow(Spares(FLOOR)), NOW + 0.1)

    assert grown.step == 2
    assert follow(grown, NOW + 0.1 + GROWTH_CALM).step == 1


def test_starting_workers_count_as_idle() -> None:
    """As long as enough workers start, no more are added: slow imports cause no storm of forks."""
    assert follow(Spares(4), starting=2).size == 4
    assert follow(Spares(4), idle=1, starting=1).size == 4
    assert follow(Spares(4), idle=1).size == 5


def test_ceiling_is_noted_until_the_pool_has_shrunk() -> None:
    """at_ceiling says that more were wanted than max_children; a moment's calm at the ceiling does not end it."""
    full = follow(Spares(64))

    assert full.at_ceiling
    assert full.size == 64
    assert follow(full, NOW + 1, idle=2).at_ceiling
    assert not calm(full, idle=9, seconds=WINDOW + 2).at_ceiling


def test_memory_bounds_growth() -> None:
    """No more workers are added than the memory that is left can bear; the rest is counted."""
    spares = replace(Spares(FLOOR), step=4, grown_at=NOW)

    bounded = follow(spares, affordable=3)
    assert (bounded.size, bounded.refused) == (FLOOR + 3, 5)
    refused = follow(spares, affordable=0)
    assert (refused.size, refused.refused) == (FLOOR, 8)
    assert follow(refused, NOW + 1, affordable=100).refused == 0


def test_who_was_killed_for_want_of_memory_is_not_put_back() -> None:
    """The size falls with each worker that the kernel had to kill, down to the floor."""
    assert follow(Spares(10), idle=3, oom_killed=4).size == 6
    assert follow(Spares(10), idle=3, oom_killed=40).size == FLOOR


def test_shrinking_needs_a_surplus_over_the_whole_window() -> None:
    """A worker leaves only when more than max_spare were idle in each of WINDOW seconds."""
    spares = calm(Spares(10), idle=8, seconds=WINDOW)
    assert spares.size == 10

    assert calm(Spares(10), idle=8, seconds=WINDOW + 0.5).size == 9


def test_one_busy_moment_puts_shrinking_off() -> None:
    """A single tick without surplus within the window keeps the pool as it is for as long again."""
    spares = calm(Spares(10), idle=8, seconds=WINDOW - 0.5)
    spares = follow(spares, NOW + WINDOW - 0.5, idle=4)

    assert calm(spares, idle=8, seconds=WINDOW - 1, now=NOW + WINDOW - 0.25).size == 10


def test_shrinking_goes_one_by_one_down_to_max_spare() -> None:
    """After the window at most one worker leaves each second, until max_spare are idle."""
    sizes = [calm(Spares(12), idle=12, seconds=WINDOW + 1 + n).size for n in range(12)]

    assert all(before - after in (0, 1) for before, after in itertools.pairwise(sizes))
    assert sizes[0] >= 11
    assert sizes[-1] == SETTINGS.max_spare


def test_floor_is_kept() -> None:
    """However idle the pool, its size does not fall below the floor; a raised floor holds at once."""
    spares = calm(Spares(FLOOR + 4), idle=60, seconds=60)

    assert spares.size == FLOOR
    assert follow_load(Spares(2), Load(9, 0), 5, SETTINGS, NOW).size == 5


@given(st.lists(st.tuples(st.floats(0.001, 2), any_load), max_size=60), st.integers(1, 64))
def test_no_load_whatever_breaks_a_bound(history: list[tuple[float, Load]], floor: int) -> None:
    """Through any history the size stays between floor and max_children, and moves down by one at most, and by the killed."""
    spares, now = Spares(floor), NOW
    for pause, load in history:
        now += pause
        before, spares = spares, follow_load(spares, load, floor, SETTINGS, now)
        assert floor <= spares.size <= SETTINGS.max_children
        assert -1 - load.oom_killed <= spares.size - before.size <= GROWTH_CAP
        assert spares.refused >= 0


@pytest.mark.parametrize(("min_spare", "max_spare", "most"), [(3, None, 6), (3, 3, 3), (1, 9, 9)])
def test_most_spare_is_twice_min_spare_unless_said(
    min_spare: int, max_spare: int | None, most: int
) -> None:
    """Without max_spare a pool keeps at most twice min_spare idle workers."""
    settings = Settings(workers=2, min_spare=min_spare, max_spare=max_spare)

    assert settings.most_spare == most
