"""A snapshot as Prometheus families: every word in its place, none negative, no total that falls."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import choose_encoder as clients_choose_encoder
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as read_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as read_text

from prefork.metrics import collector
from prefork.metrics.collector import (
    Columns,
    MemoryCollector,
    PoolCollector,
    Reading,
    families,
    memory_families,
)
from prefork.metrics.description import ListenerDescription, PoolDescription
from prefork.metrics.exposition import choose_encoder
from prefork.metrics.kernel import Queue
from prefork.metrics.names import METRICS, Type
from prefork.metrics.processes import Facts
from prefork.workers.scoreboard import BOUNDS_NS, BUCKETS, PoolField, Scoreboard, SlotField
from prefork.workers.slot_writer import Outcome, SlotWriter
from prefork.workers.states import ExitKind, Order, ReloadState, StartReason, WorkerState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from prometheus_client.metrics_core import Metric as Family

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
WORD = st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 20)
SLOTS = 3
NOTHING_SAID = PoolDescription()


Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@contextlib.contextmanager
def scoreboard(slots: int = SLOTS) -> Iterator[Scoreboard]:
    """Make a scoreboard and give it back."""
    board = Scoreboard.create(slots)
    try:
        yield board
    finally:
        board.close()


@pytest.fixture
def board() -> Iterator[Scoreboard]:
    """Give a scoreboard of three slots."""
    with scoreboard() as made:
        yield made


@contextlib.contextmanager
def pen(board: Scoreboard, slot: int) -> Iterator[SlotWriter]:
    """Give a worker's pen; its view must go before the map is closed."""
    writer = SlotWriter(board, slot)
    view = writer.words
    try:
        yield writer
    finally:
        view.release()


def reading(
    board: Scoreboard,
    description: PoolDescription = NOTHING_SAID,
    queues: Mapping[int, Queue] | None = None,
    facts: Mapping[int, Facts] | None = None,
    to_unix_ns: int = 0,
) -> Reading:
    """Read a scoreboard without asking the system for anything."""
    snapshot = board.snapshot()
    words = Columns(snapshot.slots)
    return Reading(
        snapshot=snapshot,
        words=words,
        description=description,
        queues=queues or {},
        facts=facts or {},
        good=words.good(),
        to_unix_ns=to_unix_ns,
    )


def samples(found: Iterable[Family]) -> Samples:
    """Return all samples by name and labels; none is there twice."""
    listed = [
        ((one.name, frozenset(one.labels.items())), one.value)
        for family in found
        for one in family.samples
    ]
    assert len(dict(listed)) == len(listed)
    return dict(listed)


def value(found: Samples, name: str, **labels: str) -> float:
    """Return one sample."""
    return found[name, frozenset(labels.items())]


def registry(*collectors: Any) -> CollectorRegistry:
    """Register collectors as the metrics process does."""
    made = CollectorRegistry(auto_describe=False, support_collectors_without_names=True)
    for one in collectors:
        made.register(one)
    return made


def spawn(board: Scoreboard, slot: int, pid: int = 1) -> None:
    """Put a worker into a slot, idle."""
    board.prepare_slot(slot, 0, 0)
    board.occupy_slot(slot, pid, StartReason.STARTED)
    board.words[board.slot_at(slot) + SlotField.STATE] = WorkerState.IDLE


# --- the table


def test_families_come_in_the_order_of_the_table(board: Scoreboard) -> None:
    """A scrape shows every metric of the table that needs not be asked for, and no other, in its order."""
    board.set_pool(PoolField.MASTER_PID, os.getpid())
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
    for slot in range(SLOTS):
        spawn(board, slot, os.getpid())
    pool = PoolDescription(listeners=(ListenerDescription("x", inode=5),))
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


def test_pool_s_words_are_shown(board: Scoreboard) -> None:
    """Every word of the pool is shown under its name: no counter is mistaken for its neighbour."""
    plain = {
        "prefork_workers_target": PoolField.TARGET,
        "prefork_workers_min": PoolField.FLOOR,
        "prefork_max_workers_reached_total": PoolField.CEILING_REACHED,
        "prefork_growth_refused_total": PoolField.GROWTH_REFUSED,
        "prefork_spawn_failures_total": PoolField.SPAWN_FAILURES,
        "prefork_hook_failures_total": PoolField.HOOK_FAILURES,
        "prefork_slow_requests_total": PoolField.SLOW_REQUESTS,
        "prefork_config_last_reload_success_timestamp_seconds": PoolField.RELOAD_OK_SECONDS,
    }
    for number, field in enumerate(plain.values(), start=101):
        board.set_pool(field, number)
    scaled = (
        ("up", "signal", PoolField.SCALED_UP_BY_SIGNAL),
        ("down", "signal", PoolField.SCALED_DOWN_BY_SIGNAL),
        ("up", "load", PoolField.SCALED_UP_BY_LOAD),
        ("down", "load", PoolField.SCALED_DOWN_BY_LOAD),
    )
    for number, (_, _, field) in enumerate(scaled, start=201):
        board.set_pool(field, number)
    board.set_pool(PoolField.RELOADS, 5)
    board.set_pool(PoolField.RELOADS_FAILED, 2)
    board.set_pool(PoolField.METRICS_STARTS, 4)
    board.set_pool(PoolField.STARTED_NS, 10**9)
    board.set_pool(PoolField.TICK_NS, 3 * 10**9)
    for number, kind in enumerate(ExitKind, start=1):
        for _ in range(number):
            board.vacate_slot(0, kind, 1)
    for number, reason in enumerate(StartReason, start=1):
        for _ in range(number):
            board.occupy_slot(0, 1, reason)
    found = samples(families(reading(board, to_unix_ns=7 * 10**9)))

    assert {name: value(found, name) for name in plain} == {
        name: 101 + number for number, name in enumerate(plain)
    }
    for number, (direction, source, _) in enumerate(scaled, start=201):
        event = {"direction": direction, "source": source}
        assert value(found, "prefork_scale_events_total", **event) == number
    assert value(found, "prefork_reloads_total", result="ok") == 5
    assert value(found, "prefork_reloads_total", result="failed") == 2
    assert value(found, "prefork_metrics_process_restarts_total") == 3
    assert value(found, "prefork_start_time_seconds") == 8
    assert value(found, "prefork_last_tick_timestamp_seconds") == 10
    for number, kind in enumerate(ExitKind, start=1):
        assert value(found, "prefork_worker_exits_total", cause=kind.value) == number
    for number, reason in enumerate(StartReason, start=1):
        assert value(found, "prefork_worker_starts_total", reason=reason.value) == number


@pytest.mark.parametrize("state", ReloadState)
def test_failed_reload_is_shown(board: Scoreboard, state: ReloadState) -> None:
    """The gauge that an alert looks at is 0 after a reload that failed, and only then."""
    board.set_pool(PoolField.RELOAD_STATE, state)
    found = samples(families(reading(board)))

    assert value(found, "prefork_config_last_reload_successful") == (state != ReloadState.FAILED)


def test_workers_by_state(board: Scoreboard) -> None:
    """Workers are counted by state, and the utilisation is the busy ones among those that take requests."""
    empty = samples(families(reading(board)))
    for slot in range(SLOTS):
        spawn(board, slot)
    board.words[board.slot_at(0) + SlotField.REQUEST_NS] = 5
    two_idle = samples(families(reading(board)))
    board.give_order(1, Order.RETIRE)
    one_retires = samples(families(reading(board)))

    def states(found: Samples) -> dict[str, float]:
        words = ("starting", "idle", "busy", "retiring")
        return {word: value(found, "prefork_workers", state=word) for word in words}

    assert states(empty) == {"starting": 0, "idle": 0, "busy": 0, "retiring": 0}
    assert states(two_idle) == {"starting": 0, "idle": 2, "busy": 1, "retiring": 0}
    assert states(one_retires) == {"starting": 0, "idle": 1, "busy": 1, "retiring": 1}
    ratio = "prefork_pool_utilization_ratio"
    assert [value(one, ratio) for one in (empty, two_idle, one_retires)] == [0, 1 / 3, 1 / 2]


def test_build_info(board: Scoreboard) -> None:
    """Both versions are labels of a 1; before the master has told them they are empty."""
    told = samples(families(reading(board, PoolDescription(version="0.1.0", python="3.11.7"))))
    untold = samples(families(reading(board)))
    info = "prefork_build_info"

    assert value(told, info, version="0.1.0", python_version="3.11.7") == 1
    assert value(untold, info, version="", python_version="") == 1


def test_histograms_are_cumulative(board: Scoreboard) -> None:
    """Buckets count all that took no longer, the last one counts everything, and sum and count fit them."""
    spawn(board, 0)
    with pen(board, 0) as writer, pen(board, 2) as other:
        for duration in (1, BOUNDS_NS[0], BOUNDS_NS[0] + 1, 2 * BOUNDS_NS[-1]):
            writer.account(Outcome.OK, duration)
        other.account(Outcome.ERROR, BOUNDS_NS[3])
        other.words[SlotField.QUEUE_WAITS + 1] = 4
        other.words[SlotField.QUEUE_WAIT_NS] = 8_000_000
    board.note_ready(0, BOUNDS_NS[5], BOUNDS_NS[5])
    found = samples(families(reading(board)))

    def histogram(name: str) -> list[float]:
        bounds = [*(str(bound / 1e9) for bound in BOUNDS_NS), "+Inf"]
        return [value(found, f"{name}_bucket", le=bound) for bound in bounds]

    requests = "prefork_request_duration_seconds"
    assert histogram(requests) == [2, 3, 3, *[4] * 10, 5]
    assert value(found, f"{requests}_count") == 5
    assert value(found, f"{requests}_sum") == pytest.approx(20.012000002)
    waits = "prefork_request_queue_wait_seconds"
    assert histogram(waits) == [0, *[4] * (BUCKETS - 1)]
    assert value(found, f"{waits}_sum") == 0.008
    boots = "prefork_worker_start_duration_seconds"
    assert histogram(boots) == [*[0] * 5, *[1] * (BUCKETS - 5)]
    assert value(found, f"{boots}_sum") == BOUNDS_NS[5] / 1e9


def test_queues_are_shown_by_listener(board: Scoreboard) -> None:
    """Each listener has what the kernel tells of it; those of one name are added up, unknown ones left out."""
    listeners = (
        ListenerDescription("tcp://127.0.0.1:1", inode=1),
        ListenerDescription("udp://127.0.0.1:1", inode=2),
        ListenerDescription("tcp://127.0.0.1:1", inode=3),
        ListenerDescription("unix:/gone", inode=4),
    )
    queues = {1: Queue(3, 10), 3: Queue(4, 10), 2: Queue(bytes=500, drops=9), 77: Queue(1, 1)}
    found = samples(families(reading(board, PoolDescription(listeners=listeners), queues)))
    shown = {
        (name, dict(labels)["listener"]): number
        for (name, labels), number in found.items()
        if "listener" in dict(labels)
    }

    assert shown == {
        ("prefork_listen_queue_length", "tcp://127.0.0.1:1"): 7,
        ("prefork_listen_queue_limit", "tcp://127.0.0.1:1"): 20,
        ("prefork_socket_receive_queue_bytes", "udp://127.0.0.1:1"): 500,
        ("prefork_socket_receive_drops_total", "udp://127.0.0.1:1"): 9,
    }


def test_slots_are_shown_once_they_were_used(board: Scoreboard) -> None:
    """A slot has its series from its first worker on: an empty one keeps its totals and loses the rest."""
    spawn(board, 1, 4711)
    with pen(board, 1) as writer:
        writer.account(Outcome.OK, 10**9)
        writer.account(Outcome.ERROR, 10**9)
        writer.words[SlotField.REQUEST_NS] = 1
    live = samples(families(reading(board, to_unix_ns=5 * 10**9)))
    board.vacate_slot(1, ExitKind.KILLED, 1)
    dead = samples(families(reading(board)))
    board.prepare_slot(1, 6, 0)
    board.occupy_slot(1, 4712, StartReason.RESPAWNED)
    again = samples(families(reading(board)))

    for found in (live, dead, again):
        slots = {dict(labels).get("slot", "1") for _, labels in found}
        assert slots == {"1"}
    assert value(live, "prefork_worker_info", slot="1", pid="4711", generation="0") == 1
    assert value(live, "prefork_worker_start_time_seconds", slot="1") == 5
    assert not {"prefork_worker_info", "prefork_worker_start_time_seconds"} & {n for n, _ in dead}
    assert value(again, "prefork_worker_info", slot="1", pid="4712", generation="6") == 1
    shown = ("up", "requests_total", "restarts_total", "busy_seconds_total")
    assert [
        [value(found, f"prefork_worker_{name}", slot="1") for name in shown]
        for found in (live, dead, again)
    ] == [[1, 2, 0, 2], [0, 3, 0, 2], [1, 3, 1, 2]]


def test_facts_are_shown_by_slot(board: Scoreboard) -> None:
    """What the kernel says of a process has its slot; memory and descriptors are missing where it says nothing."""
    facts = {0: Facts(1.5, 2.5, 3, 4, 5, 6), 2: Facts(7.0, 8.0, 9, 10)}
    found = samples(families(reading(board, facts=facts)))
    shown = {
        (name.removeprefix("prefork_worker_"), *sorted(dict(labels).values())): number
        for (name, labels), number in found.items()
        if dict(labels).get("slot")
    }

    assert shown == {
        ("cpu_seconds_total", "0", "user"): 1.5,
        ("cpu_seconds_total", "0", "system"): 2.5,
        ("cpu_seconds_total", "2", "user"): 7,
        ("cpu_seconds_total", "2", "system"): 8,
        ("context_switches_total", "0", "voluntary"): 3,
        ("context_switches_total", "0", "involuntary"): 4,
        ("context_switches_total", "2", "voluntary"): 9,
        ("context_switches_total", "2", "involuntary"): 10,
        ("resident_memory_bytes", "0"): 5,
        ("open_fds", "0"): 6,
    }


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


def test_requests_in_hand_are_added_up(board: Scoreboard) -> None:
    """Workers with threads say how many requests they have in hand, the others have one or none."""
    for slot, (since, many) in enumerate([(5, 0), (5, 4), (0, 0)]):
        spawn(board, slot)
        board.words[board.slot_at(slot) + SlotField.REQUEST_NS] = since
        board.words[board.slot_at(slot) + SlotField.IN_PROGRESS] = many

    assert value(samples(families(reading(board))), "prefork_requests_in_progress") == 5


# --- totals


STEPS = st.lists(
    st.tuples(
        st.integers(0, SLOTS - 1),
        st.sampled_from(["ok", "error", "rejected", "dies", "hangs", "spawns", "begins"]),
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

    outcomes = ("ok", "error", "rejected", "timeout", "aborted")
    by_outcome = {word: value(found, "prefork_requests_total", outcome=word) for word in outcomes}
    words = [step for _, step in steps]
    assert [by_outcome[word] for word in ("ok", "error", "rejected")] == [
        words.count(word) for word in ("ok", "error", "rejected")
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
            case "ok" | "error" | "rejected":
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


# --- words that nobody should have written


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


# --- the whole


def busy_pool(board: Scoreboard) -> None:
    """Fill a scoreboard as a busy pool would."""
    board.set_pool(PoolField.MASTER_PID, os.getpid())
    board.set_pool(PoolField.TICK_NS, time.monotonic_ns())
    listener = ListenerDescription('unix:/a "\\b', "stream", "unix", 1)
    description = PoolDescription(version="1", python="3", listeners=(listener,))
    board.description.write(description.to_text())
    for slot in range(board.slots):
        spawn(board, slot, 2**40 + slot)
        with pen(board, slot) as writer:
            for bucket in range(BUCKETS):
                writer.words[SlotField.DURATIONS + bucket] = 1000 * slot + bucket
                writer.words[SlotField.QUEUE_WAITS + bucket] = 10 * slot + bucket
            writer.words[SlotField.BUSY_NS] = 123_456_789 * slot


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


def cost_of(call: Callable[[], object], tries: int = 15) -> float:
    """Return the least CPU seconds of several tries."""
    least = float("inf")
    for _ in range(tries):
        began = time.process_time()
        call()
        least = min(least, time.process_time() - began)
    return least


def test_scrape_of_a_thousand_slots_is_quick() -> None:
    """What the scoreboard says of a thousand busy slots becomes text in 20 ms of CPU (40 here, for slow machines)."""
    with scoreboard(1000) as board:
        busy_pool(board)
        facts = {slot: Facts(1.5, 2.5, 300, 400, 5_000_000, 60) for slot in range(1000)}

        class Quick:
            """The pure part: the facts of the processes are measured by themselves."""

            def collect(self) -> list[Family]:
                return families(reading(board, facts=facts))

        encode, _ = choose_encoder(OPENMETRICS)
        text = encode(Quick())  # type: ignore[arg-type]

        assert text.count(b'slot="999"') == 12
        assert cost_of(lambda: encode(Quick())) < 0.04  # type: ignore[arg-type]
