"""The policy through hours of invented load: fast up, slow down, calm between; and that the simulator is right."""

from __future__ import annotations

import functools
import itertools
import random
from typing import TYPE_CHECKING

import pytest

from docs.images import policy as pictures
from prefork.workers.pool.spares import GROWTH_CALM, WINDOW
from prefork.workers.settings import Settings
from tests.support.simulator import (
    Arrival,
    Machine,
    Simulator,
    burst,
    constant,
    exponential,
    lognormal,
    pareto,
    poisson,
    quantile,
    square_wave,
    wait_in_one_queue,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.simulator import Record

pytestmark = [
    pytest.mark.once,  # arithmetic in virtual time
    pytest.mark.simulated_hours,
]

SEEDS = (1, 2)
FIXED = Settings(workers=8, max_children=8)
FOLLOWING = Settings(workers=2, max_children=16, min_spare=1, max_spare=3)

HEAVY = pareto(0.1, alpha=1.5, most=10.0)
LOADS: dict[str, Callable[[random.Random], list[Arrival]]] = {
    "poisson": lambda dice: poisson(dice, 40, exponential(0.3), 24),
    "heavy tail": lambda dice: poisson(dice, 90, HEAVY, 24),
    "bursts": lambda dice: [
        arrival
        for at in range(0, 24, 8)
        for arrival in burst(dice, dice.randint(20, 40), lognormal(0.5, 1.0), at)
    ],
    "square wave": lambda dice: square_wave(dice, (2, 90), lognormal(0.2, 1.5), 6, 24),
}
"""All of them too much for the ceiling now and then."""


@functools.cache
def followed(load: str, seed: int) -> tuple[int, Record]:
    """Have a pool follow a load to its end and for a while after; return how many came, and what was seen."""
    arrivals = LOADS[load](random.Random(seed))
    return len(arrivals), Simulator(FOLLOWING, arrivals).run(arrivals[-1].at + 35)


def any_load(test: Callable[[str, int], None]) -> Callable[[str, int], None]:
    """Run a test with each load, of each seed."""
    by_seed = pytest.mark.parametrize("seed", SEEDS)(test)
    return pytest.mark.parametrize("load", LOADS)(by_seed)


# --- the simulator itself


@pytest.mark.parametrize("seed", SEEDS)
def test_fixed_pool_is_the_textbook_queue(seed: int) -> None:
    """Through master, policy and events a pool of a fixed size gives each request the wait of a few lines of arithmetic."""
    arrivals = poisson(random.Random(seed), 75, HEAVY, 30)
    seen = sorted(Simulator(FIXED, arrivals).run(60).served)

    assert [one.wait for one in seen] == pytest.approx(wait_in_one_queue(arrivals, 8))
    assert [one.ended - one.began for one in seen] == pytest.approx([it.service for it in arrivals])
    assert max(one.wait for one in seen) > 0.1


@pytest.mark.parametrize("load", pictures.QUEUE_LOADS)
def test_part_that_waits_is_what_theory_says(load: float) -> None:
    """Of memoryless requests Erlang's part waits in one queue; in queues of their own as many as the load says."""
    shared, _, own = pictures.waits(load, "exponential").values()
    waiting = pictures.erlang_c(pictures.QUEUE_WORKERS, load)
    mean = waiting * pictures.QUEUE_SERVICE / (pictures.QUEUE_WORKERS * (1 - load))

    assert sum(wait > 0 for wait in shared) / len(shared) == pytest.approx(waiting, rel=0.04)
    assert sum(shared) / len(shared) == pytest.approx(mean, rel=0.15)
    assert sum(wait > 0 for wait in own) / len(own) == pytest.approx(load, rel=0.04)


@any_load
def test_samples_agree_with_the_requests(load: str, seed: int) -> None:
    """Little's law: what waits and what is busy on average is the sum of all waits and services over time."""
    came, record = followed(load, seed)
    end = record.samples[-1].at + 1
    waits = sum(one.wait for one in record.served)
    services = sum(one.ended - one.began for one in record.served)

    assert len(record.served) == came
    assert record.mean(lambda one: one.queue, 0, end) == pytest.approx(waits / end)
    assert record.mean(lambda one: one.busy, 0, end) == pytest.approx(services / end)
    assert waits > 0


@any_load
def test_nobody_waits_while_a_worker_is_idle(load: str, seed: int) -> None:
    """The shared queue wastes nothing: it is empty as long as anybody is idle."""
    _, record = followed(load, seed)

    assert all(one.queue == 0 or one.idle == 0 for one in record.samples)


# --- what the policy promises, whatever comes


@any_load
def test_bounds_hold_through_any_load(load: str, seed: int) -> None:
    """At no instant more workers live than max_children, or are wanted than that or fewer than the floor."""
    _, record = followed(load, seed)
    most, floor = FOLLOWING.max_children, FOLLOWING.workers

    assert max(one.live for one in record.samples) == most
    assert all(0 <= one.busy <= one.ready <= one.live <= most for one in record.samples)
    assert all(floor <= one.wanted <= most for one in record.samples)


def test_workers_that_leave_count_until_they_have_left() -> None:
    """A burst that comes while workers are slow to leave gets no more than there is room for beside them."""
    settings = Settings(workers=1, max_children=4, min_spare=1, max_spare=1)
    dice, again = random.Random(1), 1.0 + WINDOW + 5
    bursts = [*burst(dice, 8, constant(0.5), 1.0), *burst(dice, 8, constant(0.5), again)]
    record = Simulator(settings, bursts, Machine(leave=60.0)).run(again + 5)

    assert record.retirements
    assert record.at(again + 1).wanted == 4
    assert max(one.live for one in record.samples) == 4


@any_load
def test_one_worker_a_second_leaves_at_most(load: str, seed: int) -> None:
    """The size falls by one, a second apart at least, and no sooner than the window after growth."""
    _, record = followed(load, seed)
    resizes = record.resizes()
    falls = [at for at, change in resizes if change < 0]

    assert {change for _, change in resizes if change < 0} == {-1}
    assert all(later - at >= 1.0 for at, later in itertools.pairwise(falls))
    assert all(later - at >= 0.999 for at, later in itertools.pairwise(record.retirements))
    for (at, change), (later, following) in itertools.pairwise(resizes):
        assert not (change > 0 > following) or later - at >= WINDOW


# --- up at once


@pytest.mark.parametrize("seed", SEEDS)
def test_step_to_the_ceiling_takes_less_than_a_second(seed: int) -> None:
    """From one idle worker to 32 busy ones it takes under a second where workers boot in 10 ms."""
    settings = Settings(workers=1, max_children=32, min_spare=1, max_spare=4)
    arrivals = burst(random.Random(seed), 40, constant(60), at=1.0)
    record = Simulator(settings, arrivals, Machine(boot=0.010)).run(5)

    assert record.first(lambda one: one.busy == 32) - arrivals[0].at < 0.2


@pytest.mark.parametrize("boot", [0.01, GROWTH_CALM, 2.0, 5.0])
def test_growth_doubles_however_slow_the_boots(boot: float) -> None:
    """Five steps of 1, 2, 4, 8, 16 workers lead to 32, each as long as a boot; the calm does not cut in."""
    settings = Settings(workers=1, max_children=32, min_spare=1, max_spare=4)
    arrivals = burst(random.Random(1), 40, constant(1000), at=1.0)
    record = Simulator(settings, arrivals, Machine(boot=boot)).run(200)

    assert record.first(lambda one: one.busy == 32) - arrivals[0].at < 5 * boot + 0.3


@pytest.mark.parametrize("seed", SEEDS)
def test_slow_boots_cause_no_storm_of_forks(seed: int) -> None:
    """With boots of 2 s no more workers boot at once than are ready, and a short queue forks no more than it has requests."""
    settings = Settings(workers=2, max_children=64, min_spare=1, max_spare=4)
    dice = random.Random(seed)
    long = Simulator(settings, burst(dice, 60, constant(60), at=1.0), Machine(boot=2.0)).run(30)
    short = Simulator(settings, burst(dice, 6, constant(3), at=1.0), Machine(boot=2.0)).run(30)

    assert all(one.live - one.ready <= one.ready for one in long.samples)
    assert len(short.spawns) <= 4


@pytest.mark.parametrize("requests", [2, 3, 6, 9, 12, 17, 33])
def test_small_burst_gets_no_big_pool(requests: int) -> None:
    """A burst is followed by half as many workers more than it has requests at most, not by a doubling for nobody."""
    settings = Settings(workers=2, max_children=64, min_spare=1, max_spare=4)
    record = Simulator(settings, burst(random.Random(7), requests, constant(60), at=1.0)).run(30)

    assert max(one.busy for one in record.samples) == requests
    assert max(one.wanted for one in record.samples) <= 1.5 * requests + 1


# --- down slowly, calm between


def test_square_wave_is_followed_up_at_once_and_down_slowly() -> None:
    """Each jump is met at once; after each fall the size stays for the window, and then goes back towards the low load."""
    record, half, end = pictures.wave(), pictures.WAVE_HALF, pictures.WAVE_END
    for jump in (half, 3 * half):
        waits = [one.wait for one in record.served if jump <= one.arrived < jump + half]
        assert quantile(waits, 0.99) < 0.05
        assert record.at(jump + 5).wanted >= 2 * record.at(jump - 0.1).wanted
    fall = 2 * half
    high = record.at(fall).wanted
    assert record.at(fall + WINDOW / 2).wanted >= high - 2
    assert record.at(3 * half - 0.1).wanted < high / 2
    assert end == 4 * half


@pytest.mark.parametrize("seed", SEEDS)
def test_steady_load_makes_no_flapping(seed: int) -> None:
    """Under Poisson load of a constant rate the size changes a few times a minute, and next to nobody waits."""
    settings = Settings(workers=2, max_children=64, min_spare=2, max_spare=4)
    arrivals = poisson(random.Random(seed), 5, exponential(2.0), 160)
    record = Simulator(settings, arrivals).run(160)
    waited = [one for one in record.served if one.arrived >= 40 and one.wait > 0]

    assert len(record.resizes(40)) / 2 <= 10
    assert sum(at >= 40 for at in record.spawns) / 2 <= 6
    assert len(waited) < len(record.served) / 200


def test_even_load_changes_nothing() -> None:
    """Requests that come evenly keep the size where it is once it fits, for good."""
    arrivals = [Arrival(number / 20, 0.33) for number in range(20 * 60)]
    settings = Settings(workers=2, max_children=40, min_spare=2, max_spare=4)
    record = Simulator(settings, arrivals).run(60)

    assert record.resizes(begin=30) == []
    assert 7 + 2 <= record.samples[-1].wanted <= 7 + 4


@pytest.mark.parametrize("busy", [30, 36])
def test_ceiling_is_told_once_not_again_and_again(busy: int) -> None:
    """A pool that stands at its ceiling says so when it comes there, not each time its last worker becomes busy."""
    settings = Settings(workers=2, max_children=40, min_spare=2, max_spare=4)
    arrivals = poisson(random.Random(3), busy / 0.5, exponential(0.5), 90)
    record = Simulator(settings, arrivals).run(90)

    assert 1 <= len(record.ceilings) <= 4


# --- one queue for all, and what the document tells


@pytest.mark.parametrize("service", pictures.SERVICES)
@pytest.mark.parametrize("load", pictures.QUEUE_LOADS)
def test_shared_queue_has_the_short_tail(load: float, service: str) -> None:
    """With one queue for all, the p99 of the wait is a fifth of that with a hashed queue for each, and a third of that in turn."""
    shared, in_turn, by_hash = (
        quantile(one, 0.99) for one in pictures.waits(load, service).values()
    )

    assert by_hash > 5 * shared  # 7 to 13 times were found
    assert in_turn > 3 * shared  # 4 to 11


def test_document_is_current() -> None:
    """The rules and figures of POLICY.md are what the code and the simulator give; the module in docs/images writes them."""
    text = pictures.DOCUMENT.read_text("utf-8")

    assert text == pictures.document(text), "out of date: python -m docs.images.policy"
    assert all(f"<!-- /{name} -->" in text for name in pictures.TABLES)


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_picture_is_current(name: str) -> None:
    """Each picture of POLICY.md is what is drawn now, is linked, and is small."""
    drawn = (pictures.HERE / name).read_text("utf-8")

    assert drawn == pictures.PICTURES[name](), "out of date: python -m docs.images.policy"
    assert len(drawn) < 30_000
    assert f"](images/{name})" in pictures.DOCUMENT.read_text("utf-8")
