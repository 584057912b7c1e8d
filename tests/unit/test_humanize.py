"""Numbers as short text: their form, and their greatest width."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefork.inspect import humanize

BOUNDS = [0.1, 0.2, 0.4]
COUNTS = st.lists(st.integers(0, 2**40), min_size=4, max_size=4)


@pytest.mark.parametrize(
    ("share", "counts", "seconds"),
    [
        (0.5, [10, 0, 0, 0], 0.05),
        (0.5, [0, 10, 0, 0], 0.15),
        (0.99, [99, 1, 0, 0], 0.1),
        (1.0, [99, 1, 0, 0], 0.2),
        (0.5, [0, 0, 0, 1], float("inf")),
        (0.5, [0, 0, 0, 0], None),
    ],
)
def test_quantile(share: float, counts: list[int], seconds: float | None) -> None:
    """A quantile is interpolated evenly within its bucket."""
    assert humanize.quantile(share, BOUNDS, counts) == (
        seconds if seconds is None else pytest.approx(seconds)
    )


@given(COUNTS, st.floats(0, 1), st.floats(0, 1))
def test_quantile_grows_with_its_share(counts: list[int], one: float, other: float) -> None:
    """Quantiles do not fall with the share, and lie within the buckets that are not empty."""
    low, high = (humanize.quantile(share, BOUNDS, counts) for share in sorted((one, other)))
    if not sum(counts):
        assert low is None
        assert high is None
        return
    assert low is not None
    assert high is not None
    assert 0 <= low <= high


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.0, "0s"),
        (0.00004, "0.0ms"),
        (0.0042, "4.2ms"),
        (0.0123, "12ms"),
        (0.9994, "999ms"),
        (0.9996, "1.0s"),
        (9.94, "9.9s"),
        (12.3, "12s"),
        (99.4, "99s"),
        (100, "2m"),
        (59.4 * 60, "59m"),
        (3600, "1h00m"),
        (3 * 3600 + 20 * 60, "3h20m"),
        (11 * 3600, "11h"),
        (26 * 3600, "1d02h"),
        (400 * 86_400, "400d"),
    ],
)
def test_duration(seconds: float | None, text: str) -> None:
    """A duration has about two figures and the unit that fits."""
    assert humanize.duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, "-"),
        (0, "0"),
        (9999, "9999"),
        (12_345, "12.3k"),
        (456_789, "457k"),
        (99_960, "100k"),
        (999_600, "1.0M"),
        (10**14, "100T"),
        (10**18, "many"),
    ],
)
def test_count(number: float | None, text: str) -> None:
    """A number is exact up to four figures, and has three figures and a unit above."""
    assert humanize.count(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(None, "-"), (640, "640"), (65_536, "64K"), (38 << 20, "38M"), (1288490189, "1.2G")],
)
def test_size(number: int | None, text: str) -> None:
    """A size has binary units, as --max-memory takes them."""
    assert humanize.size(number) == text


@given(st.floats(0, 2**63 / 1e9))
def test_durations_stay_short(seconds: float) -> None:
    """No duration is longer than 6 characters."""
    assert len(humanize.duration(seconds)) <= 7


@given(st.integers(0, 2**63))
def test_numbers_stay_short(number: int) -> None:
    """No number is longer than 5 characters."""
    assert len(humanize.count(number)) <= 5
    assert len(humanize.rate(float(number))) <= 5
    assert len(humanize.size(number)) <= 5


@pytest.mark.parametrize(
    ("listener", "text"),
    [
        ({"depth": 3, "limit": 1024, "bytes": None, "drops": None}, "3/1024"),
        ({"depth": None, "limit": None, "bytes": 4096, "drops": 0}, "4KB"),
        ({"depth": None, "limit": None, "bytes": 0, "drops": 17}, "0 B, 17 dropped"),
        ({"depth": None, "limit": None, "bytes": None, "drops": None}, "-"),
    ],
)
def test_queue(listener: dict[str, Any], text: str) -> None:
    """A queue has depth and limit for streams, bytes and drops for datagrams, and a dash where nothing is known."""
    assert humanize.queue(listener) == text


@given(st.lists(st.text("ab", min_size=1, max_size=30), max_size=20), st.integers(10, 60))
def test_wrapped_words_are_all_there(parts: list[str], width: int) -> None:
    """Wrapped lines keep all words, and only a single long word makes a line wider than the width."""
    lines = humanize.wrapped(parts, width)
    assert "  ".join(lines).split("  ") == (parts or [""])
    assert all(len(line) <= width or "  " not in line for line in lines)


QUEUED = [
    {"kind": "stream", "depth": 3},
    {"kind": "stream", "depth": None},
    {"kind": "datagram", "depth": 9},
]
"""Listeners as a status has them: three clients wait in the first."""


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "serving, ready"),
        ({"ready": False}, "serving, not ready"),
        ({"ready": False, "phase": "not_ready"}, "not ready"),
        ({"ready": False, "phase": "draining"}, "draining"),
        ({"last_tick": 12.0}, "HUNG for 12s (serving)"),
        ({"reload_state": "rolling"}, "serving, ready, reloading"),
        ({"reload_state": "failed"}, "serving, ready"),
        (
            {"workers": {"busy": 2, "idle": 0}, "listeners": QUEUED},
            "serving, ready, saturated (3 waiting)",
        ),
        ({"workers": {"busy": 1, "idle": 1}, "listeners": QUEUED}, "serving, ready"),
    ],
)
def test_condition(changes: dict[str, Any], text: str) -> None:
    """The condition names the phase and the readiness, and a hung master before all else."""
    status = {"phase": "serving", "ready": True, "last_tick": 0.4, "reload_state": "none"}
    status |= {"workers": {"busy": 1, "idle": 0}, "listeners": []}
    status |= changes
    assert humanize.condition(status) == text


def test_what_has_happened_comes_by_frequency() -> None:
    """Nonzero numbers are sorted by frequency, and zeros are left out."""
    assert humanize.nonzero({"a": 0, "c": 2, "b": 2, "d": 5}) == [("d", 5), ("b", 2), ("c", 2)]


def test_latency_beyond_the_histogram() -> None:
    """A latency above the last bound of its histogram is shown as larger than that bound."""
    assert humanize.latency(float("inf"), 10.0) == ">10s"
    assert humanize.latency(None, 10.0) == "-"
    assert humanize.latency(0.012, 10.0) == "12ms"
