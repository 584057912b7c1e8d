"""The text of a scrape says what prometheus_client's own encoders say, and takes less time."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import exposition as client
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as read_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as read_text
from prometheus_client.samples import Exemplar

from prefork.metrics.collector import PoolCollector
from prefork.metrics.exposition import choose_encoder
from prefork.metrics.families import SlotFamily
from prefork.metrics.names import METRICS, Type
from tests.support.boards import scoreboard

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.once  # text

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
FORMATS = pytest.mark.parametrize(
    ("accept", "read"),
    [("", read_text), (OPENMETRICS, read_openmetrics)],
    ids=["text", "openmetrics"],
)


VALUE = st.integers(0, 2**53) | st.floats(min_value=0, allow_nan=False)
SLOT_METRICS = [metric for metric in METRICS.values() if "slot" in metric.labels]
OWN_WORDS = st.sampled_from(["user", "system", "voluntary", "0", "17"])


class Given:
    """A registry of what a test gives it."""

    def __init__(self, families: list[Family]) -> None:
        self.families = families

    def collect(self) -> list[Family]:
        """Return it."""
        return self.families


@st.composite
def own_families(draw: st.DrawFn) -> Family:
    """Give a family of the pool's slots."""
    metric = draw(st.sampled_from(SLOT_METRICS))
    words = [OWN_WORDS] * (len(metric.labels) - 1)
    slots = draw(st.lists(st.integers(0, 4095), max_size=5, unique=True))
    value = st.just(1) if metric.type is Type.INFO else VALUE
    return SlotFamily(metric, [(slot, *draw(st.tuples(*words)), draw(value)) for slot in slots])


@FORMATS
@given(st.lists(own_families(), max_size=4, unique_by=lambda one: one.name))
def test_slots_read_the_same(
    accept: str, read: Callable[[str], object], families: list[Family]
) -> None:
    """Names, labels, values, types, units and help of the slots read the same as prometheus_client's text."""
    encode, content_type = choose_encoder(accept)
    reference, expected_type = client.choose_encoder(accept)
    ours = encode(Given(families)).decode()  # type: ignore[arg-type]
    theirs = reference(Given(families)).decode()  # type: ignore[arg-type]

    assert content_type == expected_type
    assert list(read(ours)) == list(read(theirs))  # type: ignore[call-overload]
    assert comments_of(ours) == comments_of(theirs)


def comments_of(text: str) -> list[str]:
    """Return the lines that say what the families are."""
    return [line for line in text.splitlines() if line[:1] == "#"]


def users_families() -> list[Family]:
    """Give families as users have them: any value and label, exemplars, timestamps, ages, rare types."""
    gauge = Family("user_gauge", 'help with "quotes", \\ and\na line', "gauge")
    for value in (math.inf, -math.inf, math.nan, -1.5, 1e300, 0.1 + 0.2, 7):
        gauge.add_sample("user_gauge", {"label": f'{value} "\\\n'}, value)
    created = Family("user_a", "A counter with its age.", "counter")
    created.add_sample("user_a_total", {}, 1)
    created.add_sample("user_a_created", {}, 1.5e9)
    dated = Family("user_b", "", "gauge")
    dated.add_sample("user_b", {"x": "y"}, 1, timestamp=1.5e9)
    traced = Family("user_c", "", "histogram")
    for bound in ("1.0", "+Inf"):
        exemplar = Exemplar({"trace": "7"}, 0.5, 1.5e9)
        traced.add_sample("user_c_bucket", {"le": bound}, 1, exemplar=exemplar)
    traced.add_sample("user_c_count", {}, 1)
    traced.add_sample("user_c_sum", {}, 0.5)
    states = Family("user_d", "", "stateset")
    states.add_sample("user_d", {"user_d": "on"}, 1)
    summary = Family("user_e", "", "summary")
    summary.add_sample("user_e_count", {}, 3)
    summary.add_sample("user_e_sum", {}, 4.5)
    queue = Family("user_f", "", "gaugehistogram")
    for name in ("user_f_bucket", "user_f_gcount", "user_f_gsum"):
        queue.add_sample(name, {"le": "+Inf"} if name.endswith("bucket") else {}, 2)
    return [gauge, created, dated, traced, states, summary, queue]


@FORMATS
def test_all_but_slots_is_left_to_the_client(accept: str, read: object) -> None:
    """What users count, and the pool's own without slots, is written by prometheus_client itself, to the byte."""
    with scoreboard(1) as board:
        own = [one for one in PoolCollector(board).collect() if not isinstance(one, SlotFamily)]
    given = Given([*own, *users_families()])

    assert len(own) > 20
    assert choose_encoder(accept)[0](given) == client.choose_encoder(accept)[0](given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "accept",
    [
        "",
        "*/*",
        "text/plain",
        "text/plain; version=1.0.0; escaping=allow-utf-8",
        "text/plain; version=1.0.0; escaping=dots",
        "application/openmetrics-text; version=1.0.0; escaping=values",
        "application/openmetrics-text; version=0.0.1; charset=utf-8, text/plain;q=0.5",
        "application/openmetrics-text, text/plain",
        "nonsense; ; =, ,",
    ],
)
def test_negotiation_is_the_client_s(accept: str) -> None:
    """What a scraper accepts decides as in prometheus_client, names in other escapings included."""
    families = Given([SlotFamily(METRICS["prefork_worker_up"], [(3, 1)])])
    encode, content_type = choose_encoder(accept)
    reference, expected = client.choose_encoder(accept)
    read = read_openmetrics if "openmetrics" in content_type else read_text
    ours, theirs = encode(families), reference(families)  # type: ignore[arg-type]

    assert content_type == expected
    assert list(read(ours.decode())) == list(read(theirs.decode()))


def cost_of(call: Callable[[], object]) -> float:
    """Return the least CPU seconds of several tries."""
    least = math.inf
    for _ in range(9):
        began = time.process_time()
        call()
        least = min(least, time.process_time() - began)
    return least


@FORMATS
def test_it_is_quicker(accept: str, read: object) -> None:
    """The lines of many slots are written in less than half of the time that prometheus_client takes."""
    metric = METRICS["prefork_worker_cpu_seconds_total"]
    rows = [(slot, mode, 1.5) for slot in range(1000) for mode in ("user", "system")]
    encode, reference = choose_encoder(accept)[0], client.choose_encoder(accept)[0]
    ours = cost_of(lambda: encode(Given([SlotFamily(metric, rows)])))  # type: ignore[arg-type]
    theirs = cost_of(lambda: reference(Given([SlotFamily(metric, rows)])))  # type: ignore[arg-type]

    assert ours < theirs / 2
