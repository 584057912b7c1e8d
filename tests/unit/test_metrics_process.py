"""What the master decides about the metrics process, with invented records and instants."""

from __future__ import annotations

import pytest

from prefork.master.metrics_process import (
    BOOT_BOUND,
    FAILURE_CAP,
    SILENCE,
    START_INTERVAL,
    Act,
    Record,
    decide,
)


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
