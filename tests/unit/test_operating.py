"""docs/OPERATING.md: its picture and table have every timeout, and its example follows its own rules."""

from __future__ import annotations

import re
import tomllib

import pytest

from docs.images import timeouts
from prefork.workers.layers import Layer, merge
from prefork.workers.settings import ROWS, Settings

pytestmark = pytest.mark.once  # documents


def test_every_duration_is_in_picture_and_table() -> None:
    """Each setting that is a duration has one row in the table of the page, and its name in the picture."""
    durations = {row.key for row in ROWS.values() if row.about.metavar == "DURATION"}
    named = [timeout.key for timeout in timeouts.TIMEOUTS]

    assert sorted(named) == sorted(durations)
    picture = timeouts.picture()
    assert [key for key in durations if f">{key}<" not in picture] == []


def test_page_and_picture_are_current() -> None:
    """The table and the picture are what the module in docs/images makes; make docs writes them."""
    text = timeouts.DOCUMENT.read_text("utf-8")
    assert timeouts.document(text) == text, "run: make docs"
    assert timeouts.PICTURE.read_text("utf-8") == timeouts.picture(), "run: make docs"


def test_spans_lie_in_the_phases_that_they_bound() -> None:
    """Each span of the picture runs from left to right, and begins and ends within the picture."""
    for timeout in timeouts.TIMEOUTS:
        for begin, end in timeout.spans:
            assert 24 <= timeouts.PLACES[begin] < timeouts.PLACES[end] <= 736, timeout.key


def test_example_fits_together() -> None:
    """The values that the page shows are valid, and keep the rules that stand above them."""
    (example,) = re.findall(
        r"^```toml\n(.*?)^```$", timeouts.DOCUMENT.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    values, _ = merge([Layer(tomllib.loads(example), str)])
    settings = Settings(**values)
    client, proxy = 30, 25
    request, soft, slow = settings.request_timeout, settings.soft_timeout, settings.slow_request
    assert request is not None
    assert soft is not None
    assert slow is not None

    assert slow < soft < request < proxy < client
    assert settings.max_queue_wait is not None
    assert settings.max_queue_wait + request <= proxy
    assert settings.client_timeout is not None
    assert settings.client_timeout < request <= settings.graceful_timeout
    assert (
        settings.drain_delay + settings.graceful_timeout < 30
    )  # what the page gives the service manager
    assert settings.park_timeout > 60  # how long nginx keeps an idle connection
