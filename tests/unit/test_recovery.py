"""A whole master over invented processes: whatever boots and deaths come, the pool is back a second after its cause ends."""

from __future__ import annotations

import itertools
import signal
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefork.workers.pool.failures import LONGEST_PAUSE, most_respawns
from prefork.workers.scoreboard import SlotField
from tests.support.staged import StagedMaster, become_ready, pen

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = 8
LOOK = 0.02
"""Seconds between two ticks."""

BOOT = 0.05
"""Seconds from a fork to ready, or to the failure."""

DEATHS = ("none", "one", "all", "crash", "request")
"""What happens to the workers in a span of time, at every look."""


class Trouble:
    """A pool whose boots and deaths a test decides; what it forked, and when."""

    def __init__(self, crash_loop: str = "retry") -> None:
        self.stage = StagedMaster(workers=SIZE, max_children=SIZE, crash_loop=crash_loop)
        self.boots_succeed = True
        self.forks: list[tuple[float, int]] = []

    def step(self) -> Iterator[float]:
        """Let workers boot or fail, and a tick go by."""
        stage = self.stage
        batches = len(stage.system.batches)
        for handle in stage.starting:
            if handle.info.pid in stage.system.alive and stage.now >= handle.spawned_at + BOOT:
                if self.boots_succeed:
                    become_ready(stage.pool, handle.slot)
                else:
                    stage.system.end(handle.info.pid, 3)
        yield LOOK
        forked = sum(stage.system.batches[batches:])
        if forked:
            self.forks.append((stage.now, forked))

    def let_pass(self, seconds: float, deaths: str = "none") -> Iterator[float]:
        """Let time go by, with deaths of workers that have booted."""
        end = self.stage.now + seconds
        while self.stage.now < end:
            self._kill(deaths)
            yield from self.step()

    def until_whole(self) -> Iterator[float]:
        """Let time go by until all workers are ready."""
        for _ in range(10_000):
            if self.stage.pool.table.count_ready() == SIZE:
                return
            yield from self.step()
        raise AssertionError("the pool is never whole again")

    def _kill(self, deaths: str) -> None:
        system = self.stage.system
        ready = [one for one in self.stage.pool.table if one.is_ready]
        for handle in ready if deaths == "all" else ready[:1]:
            if deaths != "none" and handle.info.pid in system.alive:
                if deaths == "request":
                    with pen(self.stage.pool, handle.slot) as writer:
                        writer.words[SlotField.REQUEST_NS] = 1
                system.end(
                    handle.info.pid, by=signal.SIGKILL if deaths != "crash" else signal.SIGSEGV
                )

    def most_forks_in_a_second(self) -> int:
        """Return how many workers were forked in the busiest second."""
        return max(
            (
                sum(count for at, count in self.forks if begin <= at < begin + 1)
                for begin, _ in self.forks
            ),
            default=0,
        )


SPANS = st.lists(
    st.tuples(st.floats(0.02, 3), st.sampled_from(DEATHS), st.booleans()), min_size=1, max_size=4
)


@settings(max_examples=settings.default.max_examples // 5)  # each one is a whole pool
@given(SPANS)
def test_pool_is_whole_a_second_after_boots_succeed(spans: list[tuple[float, str, bool]]) -> None:
    """After any sequence of failed boots and deaths the pool is at full size a second (and a boot) after they end."""
    trouble = Trouble()
    took = []

    def play() -> Iterator[float]:
        yield from trouble.until_whole()
        for seconds, deaths, boots_succeed in spans:
            trouble.boots_succeed = boots_succeed
            yield from trouble.let_pass(seconds, deaths)
        trouble.boots_succeed = True
        begun = trouble.stage.now
        yield from trouble.until_whole()
        took.append(trouble.stage.now - begun)

    try:
        trouble.stage.run(play())
    finally:
        trouble.stage.close()
    # A worker that fails just now has been forked before; then comes the pause, a try, and all the others.
    assert took[0] <= LONGEST_PAUSE + 3 * (BOOT + 2 * LOOK)
    assert trouble.most_forks_in_a_second() <= 2 * most_respawns(SIZE) + SIZE


@pytest.mark.parametrize(("size", "seconds"), [(8, 0.7), (8, 10.0)])
def test_workers_lost_together_while_boots_fail(size: int, seconds: float) -> None:
    """Eight workers lost in one moment while boots fail are one failure: the pool does not wait longer for them."""
    assert size == SIZE
    trouble = Trouble()
    took = []

    def play() -> Iterator[float]:
        yield from trouble.until_whole()
        yield from trouble.let_pass(2)
        trouble.boots_succeed = False
        yield from trouble.let_pass(LOOK, "all")
        yield from trouble.let_pass(seconds)
        trouble.boots_succeed = True
        begun = trouble.stage.now
        yield from trouble.until_whole()
        took.append(trouble.stage.now - begun)

    try:
        trouble.stage.run(play())
    finally:
        trouble.stage.close()
    assert took[0] <= LONGEST_PAUSE + 3 * (BOOT + 2 * LOOK)


def test_crashing_requests_end_no_pool() -> None:
    """Requests that kill their workers are no crash loop, however many come, and the pool is whole soon afterwards."""
    trouble = Trouble(crash_loop="exit")
    stage = trouble.stage

    def play() -> Iterator[float]:
        yield from trouble.until_whole()
        yield from trouble.let_pass(10, "request")
        assert stage.pool.failures.early_deaths == 0
        begun = stage.now
        yield from trouble.until_whole()
        assert stage.now - begun <= SIZE / most_respawns(SIZE) + 2 * (BOOT + 2 * LOOK)

    try:
        stage.run(play())
    finally:
        stage.close()
    assert len([*itertools.chain(stage.hooks("worker_died"))]) > 100
    assert trouble.most_forks_in_a_second() <= 2 * most_respawns(SIZE) + SIZE
