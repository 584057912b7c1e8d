"""A scrape of a pool: whatever stands in its memory it can be read, and no total falls."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.exposition import choose_encoder as clients_choose_encoder
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as read_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as read_text

from prefork.metrics import collector
from prefork.metrics.collector import MemoryCollector, PoolCollector
from prefork.metrics.description import CertificateDescription, ListenerDescription, PoolDescription
from prefork.metrics.exposition import choose_encoder
from prefork.metrics.families import families, memory_families
from prefork.metrics.kernel import Queue
from prefork.metrics.names import METRICS, Type
from prefork.metrics.processes import Facts
from prefork.workers.scoreboard import PoolField, Scoreboard, SlotField
from prefork.workers.slot_writer import Outcome
from prefork.workers.states import ExitKind
from tests.support.scrapes import (
    SLOTS,
    Samples,
    busy_pool,
    pen,
    reading,
    registry,
    samples,
    scoreboard,
    spawn,
    value,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


OPENMETRICS = "application/openmetrics-text; version=1.0.0"
WORD = st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 20)


@pytest.fixture
def board() -> Iterator[Scoreboard]:
    """Give a scoreboard of three slots."""
    with scoreboard() as made:
        yield made


def test_families_come_in_the_order_of_the_table(board: Scoreboard) -> None:
    """A scrape shows every metric of the table that needs not be asked for, and no other, in its order."""
    board.set_pool(PoolField.MASTER_PID, os.getpid())
    pool = PoolDescription(certificates=(CertificateDescription("a.pem", 5.0),))
    board.description.write(pool.to_text())
    shown = list(PoolCollector(board).collect())
    names = [
        family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
        for family in shown
    ]

    assert names == [name for name, metric in METRICS.items() if not metric.opt_in]


def test_families_are_what_the_table_says(board: Scoreboard) -> None:
    """Type, unit, help and labels of everything that is shown are those of the table."""
    board.set_pool(PoolField.MASTER_PID, os.getpid())
    board.set_pool(PoolField.TICK_NS, 1)
    board.set_pool(PoolField.LOT_STARTS, 1)
    for slot in range(SLOTS):
        spawn(board, slot, os.getpid())
        with pen(board, slot) as writer:
            writer.count_answer(0)
    pool = PoolDescription(
        listeners=(ListenerDescription("x", inode=5),),
        certificates=(CertificateDescription("a.pem", 5.0),),
    )
    made = reading(board, pool, {5: Queue(1, 2, 3, 4)}, {0: Facts(1.0, 2.0, 3, 4, 5, 6)})
    master = [one for one in PoolCollector(board).collect() if not one.name.startswith("prefork")]
    shown = [*families(made), *memory_families({0: (1, 2)}), *master]
    endings = {"counter": "_total", "info": "_info"}
    by_name = {family.name + endings.get(family.type, ""): family for family in shown}

    assert by_name.keys() == METRICS.keys()
    for name, metric in METRICS.items():
        family = by_name[name]
        assert (family.type, family.unit) == (metric.type.value, metric.unit)
        assert family.documentation == metric.help
        assert family.samples, f"{name} shows nothing"
        for sample in family.samples:
            assert sample.labels.keys() - {"le"} == set(metric.labels)
            if metric.type is not Type.HISTOGRAM:
                assert sample.name == name


def test_costly_metrics_are_collected_apart(board: Scoreboard) -> None:
    """Unique and proportional memory are in a collector of their own, of the workers that live."""
    spawn(board, 1, os.getpid())
    spawn(board, 2, 2**40)
    found = samples(MemoryCollector(board).collect())
    unique, shared = (
        "prefork_worker_unique_memory_bytes",
        "prefork_worker_proportional_memory_bytes",
    )

    assert {name for name, _ in found} == {unique, shared}
    assert value(found, shared, slot="1") >= value(found, unique, slot="1") > 0
    assert len(found) == 2


@pytest.mark.parametrize("error", [UnboundLocalError, IndexError, ValueError])
def test_master_that_is_just_ending(
    board: Scoreboard, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """prometheus_client stumbles over a process of which /proc has only half: the rest of the scrape is whole."""

    def stumble() -> None:
        raise error

    pool = PoolCollector(board)
    monkeypatch.setattr(pool._master, "collect", stumble)
    names = {name for name, _ in samples(pool.collect())}

    assert {"prefork_build_info", "python_info"} <= names
    assert not {name for name in names if name.startswith("process_")}


# --- totals


STEPS = st.lists(
    st.tuples(
        st.integers(0, SLOTS - 1),
        st.sampled_from(
            ["ok", "error", "rejected", "client_timeout", "dies", "hangs", "spawns", "begins"]
        ),
    ),
    max_size=30,
)


@given(STEPS)
def test_requests_are_the_sum_of_their_outcomes(steps: list[tuple[int, str]]) -> None:
    """At rest every request is under one outcome, in one slot's total and, unless its worker died, in one bucket."""
    with scoreboard() as board:
        for slot in range(SLOTS):
            spawn(board, slot)
        for slot, step in steps:
            _take_step(board, slot, step)
        found = samples(PoolCollector(board).collect())

    outcomes = ("ok", "error", "rejected", "client_timeout", "timeout", "aborted")
    by_outcome = {word: value(found, "prefork_requests_total", outcome=word) for word in outcomes}
    words = [step for _, step in steps]
    assert [by_outcome[word] for word in outcomes[:4]] == [
        words.count(word) for word in outcomes[:4]
    ]
    total = sum(by_outcome.values())
    by_slot = [
        number for (name, _), number in found.items() if name == "prefork_worker_requests_total"
    ]
    assert total == sum(by_slot)
    lost = by_outcome["timeout"] + by_outcome["aborted"]
    assert value(found, "prefork_request_duration_seconds_count") == total - lost


def _take_step(board: Scoreboard, slot: int, step: str) -> None:
    with pen(board, slot) as writer:
        match step:
            case "ok" | "error" | "rejected" | "client_timeout":
                writer.account(Outcome[step.upper()], 5)
            case "begins":
                writer.words[SlotField.REQUEST_NS] = 1
            case "dies":
                board.vacate_slot(slot, ExitKind.KILLED, 1)
            case "hangs":
                board.vacate_slot(slot, ExitKind.REQUEST_TIMEOUT, 1)
            case "spawns":
                spawn(board, slot)


@given(STEPS)
def test_totals_never_decrease(steps: list[tuple[int, str]]) -> None:
    """However workers come, serve and go, no total and no bucket is ever less than in the scrape before."""
    with scoreboard() as board:
        pool = PoolCollector(board)
        before: Samples = {}
        for slot, step in steps:
            _take_step(board, slot, step)
            after = _totals(pool)
            assert {key for key, number in before.items() if after.get(key, -1) < number} == set()
            before = after


def _totals(pool: PoolCollector) -> Samples:
    shown = samples(pool.collect())
    return {
        key: number
        for key, number in shown.items()
        if key[0].startswith("prefork_")
        and key[0].endswith(("_total", "_bucket", "_count", "_sum"))
    }


def test_error_is_good_for_no_moment(board: Scoreboard) -> None:
    """Seen between a worker's two stores for a request that failed, the number of good ones does not fall afterwards."""
    pool = PoolCollector(board)
    with pen(board, 0) as writer:
        writer.account(Outcome.OK, 1)
        writer.words[SlotField.DURATIONS] += 1
        between = value(samples(pool.collect()), "prefork_requests_total", outcome="ok")
        writer.words[SlotField.ERRORS] += 1
        after = value(samples(pool.collect()), "prefork_requests_total", outcome="ok")
        writer.account(Outcome.OK, 1)
        later = value(samples(pool.collect()), "prefork_requests_total", outcome="ok")

    assert (between, after, later) == (2, 2, 2)


def test_instants_do_not_tremble(board: Scoreboard) -> None:
    """The time of the start is the same in every scrape, until somebody sets the clock."""
    board.set_pool(PoolField.STARTED_NS, time.monotonic_ns())
    pool = PoolCollector(board)
    instants = {value(samples(pool.collect()), "prefork_start_time_seconds") for _ in range(20)}

    assert len(instants) == 1
    assert abs(instants.pop() - time.time()) < 60


def test_set_clock_is_followed(board: Scoreboard, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the clock was set by more than a second, instants are told in the new time."""
    board.set_pool(PoolField.STARTED_NS, time.monotonic_ns())
    pool = PoolCollector(board)
    before = value(samples(pool.collect()), "prefork_start_time_seconds")
    real = time.time_ns
    monkeypatch.setattr(collector.time, "time_ns", lambda: real() + 3600 * 10**9)
    after = value(samples(pool.collect()), "prefork_start_time_seconds")

    assert after - before == pytest.approx(3600, abs=60)


# --- words that may be anything


def scribbles(fields: type[SlotField | PoolField], words: int) -> st.SearchStrategy[dict[int, int]]:
    """Give words for a record: some of the named ones, some anywhere."""
    return st.dictionaries(
        st.sampled_from([*fields]) | st.integers(0, words - 1), WORD, max_size=40
    )


@given(
    st.lists(scribbles(SlotField, 64), min_size=2, max_size=2),
    scribbles(PoolField, 120),
    st.text(max_size=20),
)
@example([{SlotField.SPAWNS: 1, SlotField.PID: -5}, {SlotField.SPAWNS: -1}], {}, "{")
@example([{}, {}], {PoolField.MASTER_PID: 2**62}, '{"version": "\\ud83d"}')
def test_scribbled_words_disturb_nothing(
    slots: list[dict[int, int]], pool_words: dict[int, int], text: str
) -> None:
    """For any words whatsoever a scrape comes out in both formats, can be read, and counts nothing below zero."""
    with scoreboard(2) as board:
        for slot, words in enumerate(slots):
            for at, word in words.items():
                board.words[board.slot_at(slot) + at] = word
        for at, word in pool_words.items():
            board.set_pool(at, word)
        board.description.write(text)
        pool = registry(PoolCollector(board), MemoryCollector(board))
        for accept, read in (("", read_text), (OPENMETRICS, read_openmetrics)):
            for choose in (choose_encoder, clients_choose_encoder):
                encode, _ = choose(accept)
                shown = samples(read(encode(pool).decode()))
                negative = {key for key, number in shown.items() if number < 0}
                assert negative == set()
        facts = {0: Facts(0.0, 0.0, 0, 0)}
        assert min(samples(families(reading(board, facts=facts))).values()) >= 0


@given(st.integers(0, 2**32), st.integers(1, 4))
def test_random_bytes_disturb_nothing(seed: int, slots: int) -> None:
    """Random bytes over all records, and in the place of the master's text, give a scrape that can be read."""
    with scoreboard(slots) as board:
        start = 8 * 8
        size = board.slot_at(slots) * 8 - start
        os.pwrite(board.fd, random.Random(seed).randbytes(size), start)
        os.pwrite(board.fd, random.Random(~seed).randbytes(500), board.description.start)
        text = generate_latest(registry(PoolCollector(board))).decode()

        assert min(samples(read_text(text)).values()) >= 0


@pytest.mark.processes
def test_promtool_is_content(board: Scoreboard) -> None:
    """Debian's promtool finds nothing to say about names, types and help."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian's package prometheus)")
    busy_pool(board)
    pool = registry(PoolCollector(board), MemoryCollector(board))
    encode, _ = choose_encoder("")
    done = subprocess.run(
        [promtool, "check", "metrics"],
        input=encode(pool),
        capture_output=True,
        timeout=60,
        check=False,
    )

    assert (done.stdout + done.stderr, done.returncode) == (b"", 0)
