"""Kills because of low memory: each one that the kernel has counted explains one death, and not for long."""

from __future__ import annotations

import msgspec

from prefork.workers.machine import Memory
from prefork.workers.pool.oom import CREDIT_TIME, OomAttribution


class Counted(Memory, frozen=True):
    """A memory whose count of kills a test sets."""

    kills: list[int] = msgspec.field(default_factory=lambda: [7])

    def oom_kills(self) -> int:
        """Return the count."""
        return self.kills[0]


def test_kills_before_the_pool_explain_nothing() -> None:
    """What the kernel had counted when the pool began is no worker's."""
    assert not OomAttribution(Counted()).explains(1.0)


def test_each_kill_explains_one_death() -> None:
    """Two kills explain two deaths, also when the deaths are looked at one after the other; a third has no cause."""
    memory = Counted()
    attribution = OomAttribution(memory)
    memory.kills[0] += 2

    assert [attribution.explains(now) for now in (2.0, 2.1, 2.2)] == [True, True, False]


def test_kill_explains_a_death_only_for_a_while() -> None:
    """A kill that fits no worker for CREDIT_TIME was another process'."""
    memory = Counted()
    attribution = OomAttribution(memory)
    memory.kills[0] += 2

    assert attribution.explains(3.0)
    assert not attribution.explains(3.0 + CREDIT_TIME + 0.1)
