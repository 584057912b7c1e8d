"""The table of metrics: its names are good ones, its help says every word that a label can have."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from docs import tables
from prefork.metrics.names import METRICS, Metric, Type
from prefork.metrics.saturation import REASONS
from prefork.workers.states import ExitKind, Rejection, StartReason, WorkerState
from tests.support.server import environment

pytestmark = pytest.mark.once  # a table

ALL = pytest.mark.parametrize("metric", METRICS.values(), ids=lambda metric: metric.name)

OURS = [metric for metric in METRICS.values() if metric.name.startswith("prefork_")]


@ALL
def test_name_tells_type_and_unit(metric: Metric) -> None:
    """A name ends as Prometheus asks: _total for counters alone, _info, and before that its base unit."""
    name = metric.name

    assert re.fullmatch(r"(prefork|process|python)_[a-z_]*[a-z]", name)
    assert name.endswith("_total") == (metric.type is Type.COUNTER)
    if metric.type is Type.INFO:
        assert name.endswith("_info")
    assert metric.unit in {"", "seconds", "bytes", "ratio"}
    if metric.unit:
        assert name.removesuffix("_total").endswith(f"_{metric.unit}")
    else:
        assert not re.search(r"_(seconds|bytes|ratio)(_total)?$", name)


@ALL
def test_labels_are_bounded(metric: Metric) -> None:
    """A pid is in the info alone, no histogram has a label, and what is told by worker is told by its slot first."""
    assert len(set(metric.labels)) == len(metric.labels)
    assert not {"le", "quantile"} & set(metric.labels)
    assert ("pid" in metric.labels) == (metric.name == "prefork_worker_info")
    if metric.type is Type.HISTOGRAM:
        assert metric.labels == ()
    if "slot" in metric.labels:
        assert metric.labels[0] == "slot"
        assert metric.name.startswith("prefork_worker_")


@ALL
def test_help_is_a_sentence(metric: Metric) -> None:
    """The help is one piece of plain text that Markdown and the exposition show alike."""
    assert metric.help == metric.help.strip()
    assert metric.help.endswith(".")
    assert not set("|\n\\`") & set(metric.help)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "prefork_workers",
            [one.name.lower() for one in WorkerState if one is not WorkerState.GONE],
        ),
        ("prefork_worker_exits_total", [kind.value for kind in ExitKind]),
        ("prefork_worker_starts_total", [reason.value for reason in StartReason]),
        ("prefork_pool_saturated", [cause.name.lower() for cause in REASONS]),
        (
            "prefork_requests_total",
            ["ok", "error", "rejected", "client_timeout", "timeout", "aborted"],
        ),
        ("prefork_rejected_requests_total", [reason.value for reason in Rejection]),
    ],
)
def test_help_lists_the_words(name: str, words: list[str]) -> None:
    """What a label may say stands in the help: somebody who writes a query needs no source."""
    assert [word for word in words if not re.search(rf"\b{word}\b", METRICS[name].help)] == []


def test_docs_show_all() -> None:
    """The table of the documentation has one line for each metric, in order, and says what has to be asked for."""
    lines = tables.metrics().splitlines()[2:]

    assert [line.split("`")[1] for line in lines] == [*METRICS]
    assert {line.count(" | ") for line in lines} == {4}
    asked_for = {line.split("`")[1] for line in lines if "asked for" in line}
    assert asked_for == {metric.name for metric in OURS if metric.opt_in}


def test_sampled_metrics_say_so() -> None:
    """The help of the queue waits says that not every request is in it."""
    assert "Sampled" in METRICS["prefork_request_queue_wait_seconds"].help


@pytest.mark.processes
def test_names_cost_nothing() -> None:
    """Whoever needs the names (documents, commands) loads no library for it."""
    program = "import sys, prefork.metrics.names; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(),
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout.split()

    assert not {"prometheus_client", "psutil"} & set(loaded)
