"""What the master decides about the metrics process, with invented records, and what it does, with invented processes."""

from __future__ import annotations

import errno
import logging
import os
import signal
from typing import TYPE_CHECKING

import pytest

from prefork.master.metrics_main import LEAVE
from prefork.master.supervised import (
    BOOT_BOUND,
    FAILURE_CAP,
    SILENCE,
    START_INTERVAL,
    Act,
    Record,
    decide,
)
from prefork.workers.scoreboard import PoolField
from tests.support.fake_system import FakeProcess
from tests.support.staged import TICK, StagedMaster

if TYPE_CHECKING:
    from collections.abc import Iterator


# --- what is decided


def test_first_start_is_at_once() -> None:
    """A record of nothing asks for a start."""
    assert decide(Record(), 0.0) is Act.START


def test_one_that_has_run_is_replaced_at_once() -> None:
    """One that gave signs of life for longer than the interval is started again the moment it ended."""
    ended = Record().started(10.0).heard(10.3).heard(15.0).ended()
    assert decide(ended, 15.1) is Act.START


def test_never_two_starts_within_the_interval() -> None:
    """One that ends soon after its start has to wait for the rest of the interval."""
    ended = Record().started(10.0).heard(10.1).ended()
    assert decide(ended, 10.0 + START_INTERVAL - 0.01) is Act.NOTHING
    assert decide(ended, 10.0 + START_INTERVAL) is Act.START


def test_failures_before_the_first_sign_lengthen_the_pause() -> None:
    """In a row of failures the starts come ever more seldom, up to the cap; a sign of life ends the row."""
    record, now, pauses = Record(), 0.0, []
    for _ in range(15):
        began = now
        record = record.started(now).ended()
        while decide(record, now) is not Act.START:
            now += 0.125
        pauses.append(now - began)
    assert pauses[0] == pytest.approx(START_INTERVAL, abs=0.2)
    assert pauses == sorted(pauses)  # an eighth of a second is exact
    assert pauses[-1] == pytest.approx(FAILURE_CAP, abs=0.2)
    assert record.started(now).heard(now).ended().failures == 0


def test_silence_is_judged_by_the_last_sign() -> None:
    """One that has been silent for too long is killed, once, and one in its boot gets the longer bound."""
    booting = Record().started(10.0)
    assert decide(booting, 10.0 + BOOT_BOUND - 0.01) is Act.NOTHING
    assert decide(booting, 10.0 + BOOT_BOUND) is Act.KILL
    well = booting.heard(100.0)
    assert decide(well, 100.0 + SILENCE - 0.01) is Act.NOTHING
    assert decide(well, 100.0 + SILENCE) is Act.KILL


# --- what is done


class Staged(StagedMaster):
    """A master with two workers and a metrics process."""

    def __init__(self) -> None:
        super().__init__(workers=2, max_children=2, metrics="127.0.0.1:0")

    @property
    def process(self) -> FakeProcess | None:
        """The metrics process that runs now."""
        pid = self.pool.board.pool(PoolField.METRICS_PID)
        return self.system.processes[pid] if pid else None

    def give_sign_of_life(self) -> None:
        """Do what the metrics process does every second."""
        os.eventfd_write(self.master.metrics._beat, 1)

    def live(self, seconds: float) -> Iterator[float]:
        """Have it give signs of life for a while (a part of a play)."""
        end = self.now + seconds
        while self.now < end:
            self.give_sign_of_life()
            yield 1.0


@pytest.fixture(name="staged")
def _staged(caplog: pytest.LogCaptureFixture) -> Iterator[Staged]:
    """Give such a master."""
    caplog.set_level(logging.DEBUG, "prefork")
    staged = Staged()
    yield staged
    staged.close()


def events(log: pytest.LogCaptureFixture) -> list[str]:
    """Return the names of the events of the metrics process."""
    facts = [record.facts for record in log.records]
    return [fact["event"] for fact in facts if fact["subject"].startswith("metrics")]


def test_metrics_process_is_no_worker(staged: Staged, caplog: pytest.LogCaptureFixture) -> None:
    """The metrics process is forked beside max_children workers, without a slot, and is ready with its first sign."""

    def play() -> Iterator[float]:
        yield from staged.boot()
        assert staged.system.batches == [2, 1]
        assert len(staged.pool.table) == 2
        assert events(caplog) == []
        yield from staged.live(3)
        assert events(caplog) == ["ready"]
        assert staged.process is not None
        staged.process.exits_on = LEAVE

    staged.run(play())
    assert staged.pool.board.pool(PoolField.METRICS_STARTS) == 1


def test_silent_metrics_process_is_replaced(
    staged: Staged, caplog: pytest.LogCaptureFixture
) -> None:
    """A metrics process that gives no sign of life any more is killed after SILENCE, and another one is forked at once."""

    def play() -> Iterator[float]:
        yield from staged.boot()
        yield from staged.live(5)
        first = staged.process
        assert first is not None
        silent_since = staged.now
        yield from staged.until(lambda: first.status)
        assert staged.now == pytest.approx(silent_since + SILENCE, abs=1.0 + 4 * TICK)
        yield from staged.until(lambda: staged.process not in (None, first))
        assert first.received == [signal.SIGKILL]
        assert first.collected

    staged.run(play())
    assert events(caplog)[:3] == ["ready", "gives no sign of life, killed", "exited"]
    assert staged.pool.board.pool(PoolField.METRICS_STARTS) == 2


def test_metrics_process_that_cannot_boot_is_one_line(
    staged: Staged, caplog: pytest.LogCaptureFixture
) -> None:
    """Metrics processes that die before their first sign are forked ever more seldom, and logged once."""
    ends: list[float] = []

    def play() -> Iterator[float]:
        yield from staged.boot()
        for _ in range(5):
            yield from staged.until(lambda: staged.process)
            assert staged.process is not None
            staged.system.end(staged.process.pid, 1)
            ends.append(staged.now)
            yield 0.0

    staged.run(play())
    assert events(caplog) == ["exited"]
    assert ends[-1] - ends[0] > 4 * START_INTERVAL - 0.5


def test_fork_of_metrics_that_fails_is_one_line(
    staged: Staged, caplog: pytest.LogCaptureFixture
) -> None:
    """While the metrics process cannot be forked the workers serve, and one line says so."""

    def play() -> Iterator[float]:
        staged.system.refuse_forks(number=errno.ENOMEM)
        yield 0.0
        staged.system.allow_forks()
        yield 0.2
        yield from staged.boot()
        staged.system.refuse_forks(number=errno.ENOMEM)
        yield from staged.until(lambda: len(staged.system.batches) > 5)
        assert staged.pool.table.count_ready() == 2
        staged.system.allow_forks()
        yield from staged.until(lambda: staged.process)

    staged.run(play())
    assert events(caplog) == ["fork failed, retrying"]


@pytest.mark.parametrize("obeys", [True, False])
def test_metrics_process_ends_last(staged: Staged, obeys: bool) -> None:
    """At a stop the metrics process answers until the last worker is gone; it is asked to leave, and killed if need be."""
    left_alone: list[bool] = []

    def play() -> Iterator[float]:
        yield from staged.boot()
        assert staged.process is not None
        staged.process.exits_on = LEAVE if obeys else None
        staged.on_hook = lambda name, *_: (
            left_alone.append(staged.process is not None and not staged.process.received)
            if name == "worker_died"
            else None
        )

    staged.run(play())
    assert left_alone == [True, True]
    (process,) = [one for one in staged.system.processes.values() if LEAVE in one.received]
    assert process.received == ([LEAVE] if obeys else [LEAVE, signal.SIGKILL])
    assert staged.system.alive == staged.system.uncollected == []
