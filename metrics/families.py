"""What a scrape shows: the Prometheus families of a pool, out of one reading of it (pure).

The names, the help and the order are those of ``names.METRICS``; here each name gets its values.
``reading.py`` says what a reading is, and ``collector.py`` makes it.

A worker can write anything into its words of the scoreboard, and Prometheus refuses a whole scrape
for one negative counter. So every word is clipped at 0 before it is shown.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from prometheus_client.metrics_core import HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.samples import Sample

from prefork.metrics.names import METRICS, PARKED, TLS, Metric, Type
from prefork.metrics.processes import Facts, was_used
from prefork.metrics.reading import Columns, Reading, all_requests
from prefork.metrics.saturation import REASONS
from prefork.workers.answers import CLASSES, COUNTS, METHODS
from prefork.workers.cancel import CancelReason
from prefork.workers.scoreboard import (
    BOUNDS_NS,
    CANCELLED_FIELDS,
    HandshakeKind,
    PoolField,
    SlotField,
    Snapshot,
)
from prefork.workers.states import Rejection, ReloadState, WorkerState

Rows = Sequence[tuple[Any, ...]]
"""The samples of one metric: the labels' values, in the order of the table, and the number."""


class Histogram(msgspec.Struct, frozen=True):
    """counts: how many values are in each bucket, not cumulative. sum: of all, in seconds."""

    counts: tuple[int, ...]
    sum: float


Found = dict[str, Rows | Histogram]
"""What is shown, by the name of the metric."""


class SlotFamily(Family):
    """A family with a series for each slot, kept as rows.

    ``exposition`` writes the rows. prometheus_client's samples are made only for a reader that asks
    for them: making them is half of the time that a scrape of a thousand slots would take.
    """

    def __init__(self, metric: Metric, rows: Rows) -> None:
        super().__init__(_family_name(metric), metric.help, metric.type, metric.unit)
        self.metric = metric
        self.rows = rows
        del self.samples

    @functools.cached_property
    def samples(self) -> list[Sample]:  # type: ignore[override]  # there an attribute
        """The rows as prometheus_client has them."""
        return _samples(self.metric, self.rows)

    def head(self) -> Family:
        """Return the family without its series."""
        return Family(self.name, self.documentation, self.type, self.unit)


# --- from a reading to families


def families(reading: Reading) -> list[Family]:
    """Return the families of the scoreboard, the queues and the workers' processes, in order."""
    found = {
        **_pool(reading),
        **_workers(reading.snapshot),
        **_changes(reading.snapshot),
        **_queues(reading),
        **_requests(reading),
        **_tls(reading),
        **_parked(reading),
        **_slots(reading),
        **_processes(reading.facts),
    }
    return _in_order(found)


def memory_families(by_slot: Mapping[int, tuple[int, int]]) -> list[Family]:
    """Return the opt-in families. by_slot: unique and proportional bytes (USS, PSS)."""
    return _in_order(
        {
            "prefork_worker_unique_memory_bytes": [(n, one[0]) for n, one in by_slot.items()],
            "prefork_worker_proportional_memory_bytes": [(n, one[1]) for n, one in by_slot.items()],
        }
    )


def _pool(reading: Reading) -> Found:
    pool, description = reading.snapshot, reading.description
    tick_ns = pool[PoolField.TICK_NS]
    return {
        "prefork_build_info": [(description.version, description.python, 1)],
        "prefork_start_time_seconds": _one(reading.unix(pool[PoolField.STARTED_NS])),
        "prefork_last_tick_timestamp_seconds": _one(reading.unix(tick_ns)) if tick_ns else [],
        "prefork_config_last_reload_successful": _one(
            pool[PoolField.RELOAD_STATE] != ReloadState.FAILED
        ),
        "prefork_workers_needed": _one(round(reading.needed, 3)),
        "prefork_config_last_reload_success_timestamp_seconds": _one(
            _count(pool[PoolField.RELOAD_OK_SECONDS])
        ),
        "prefork_reloads_total": [
            ("ok", _count(pool[PoolField.RELOADS])),
            ("failed", _count(pool[PoolField.RELOADS_FAILED])),
        ],
    }


_STATES = (WorkerState.STARTING, WorkerState.IDLE, WorkerState.BUSY, WorkerState.RETIRING)


def _workers(pool: Snapshot) -> Found:
    states = Counter(one.state for one in pool.slots)
    busy = states[WorkerState.BUSY]
    taking = busy + states[WorkerState.IDLE]
    return {
        "prefork_workers": [(state.name.lower(), states[state]) for state in _STATES],
        "prefork_workers_target": _one(_count(pool[PoolField.TARGET])),
        "prefork_workers_min": _one(_count(pool[PoolField.FLOOR])),
        "prefork_workers_max": _one(_count(pool[PoolField.CEILING]) or len(pool.slots)),
        "prefork_usable_cpus": _one(_count(pool[PoolField.USABLE_CPUS])),
        "prefork_pool_utilization_ratio": _one(busy / taking if taking else 0),
        "prefork_pool_saturated": [
            (cause.name.lower(), int(pool.saturation is cause)) for cause in REASONS
        ],
    }


def _changes(pool: Snapshot) -> Found:
    scaled = (
        ("up", "signal", PoolField.SCALED_UP_BY_SIGNAL),
        ("down", "signal", PoolField.SCALED_DOWN_BY_SIGNAL),
        ("up", "load", PoolField.SCALED_UP_BY_LOAD),
        ("down", "load", PoolField.SCALED_DOWN_BY_LOAD),
        ("up", "box", PoolField.SCALED_UP_BY_BOX),
        ("down", "box", PoolField.SCALED_DOWN_BY_BOX),
    )
    boots = Histogram(_clipped(pool.boots), _seconds(pool[PoolField.BOOT_NS]))
    return {
        "prefork_max_workers_reached_total": _one(_count(pool[PoolField.CEILING_REACHED])),
        "prefork_growth_refused_total": _one(_count(pool[PoolField.GROWTH_REFUSED])),
        "prefork_scale_events_total": [
            (direction, source, _count(pool[field])) for direction, source, field in scaled
        ],
        "prefork_worker_starts_total": [
            (reason.value, _count(count)) for reason, count in pool.starts.items()
        ],
        "prefork_worker_exits_total": [
            (kind.value, _count(count)) for kind, count in pool.exits.items()
        ],
        "prefork_worker_start_duration_seconds": boots,
        "prefork_spawn_failures_total": _one(_count(pool[PoolField.SPAWN_FAILURES])),
        "prefork_hook_failures_total": _one(_count(pool[PoolField.HOOK_FAILURES])),
        "prefork_listeners_closed": _one(_count(pool[PoolField.LISTENERS_CLOSED])),
        "prefork_metrics_process_restarts_total": _one(_count(pool[PoolField.METRICS_STARTS] - 1)),
    }


def _queues(reading: Reading) -> Found:
    names = {one.inode: one.name for one in reading.description.listeners}
    known = [(names[inode], queue) for inode, queue in reading.queues.items() if inode in names]
    words = reading.words
    return {
        "prefork_listen_queue_length": _by_listener((name, one.depth) for name, one in known),
        "prefork_listen_queue_limit": _by_listener((name, one.limit) for name, one in known),
        "prefork_socket_receive_queue_bytes": _by_listener(
            (name, one.bytes) for name, one in known
        ),
        "prefork_socket_receive_drops_total": _by_listener(
            (name, one.drops) for name, one in known
        ),
        "prefork_accept_errors_total": _one(sum(words[SlotField.ACCEPT_FAILURES])),
        "prefork_datagrams_truncated_total": _one(sum(words[SlotField.TRUNCATED])),
        "prefork_memory_returned_bytes_total": _one(sum(words[SlotField.RETURNED_BYTES])),
    }


def _by_listener(values: Iterable[tuple[str, int | None]]) -> Rows:
    """Return a row for each name.

    Listeners of one address (SO_REUSEPORT) are added up: a series that appears twice is an error.
    """
    sums: Counter[str] = Counter()
    for name, value in values:
        if value is not None:
            sums[name] += value
    return [*sums.items()]


def _requests(reading: Reading) -> Found:
    words = reading.words
    in_hand = zip(words[SlotField.IN_PROGRESS], words[SlotField.REQUEST_NS], strict=True)
    cancelled = [
        (reason.value, sum(words[field]))
        for reason, field in zip(CancelReason, CANCELLED_FIELDS, strict=True)
    ]
    outcomes = {
        "ok": reading.good,
        "error": sum(words[SlotField.ERRORS]),
        "rejected": sum(words[SlotField.REJECTED]),
        "client_timeout": sum(words[SlotField.CLIENT_TIMEOUTS]),
        "cancelled": sum(count for _, count in cancelled),
        "timeout": sum(words[SlotField.TIMEOUTS]),
        "aborted": sum(words[SlotField.ABORTED]),
    }
    return {
        "prefork_requests_total": [*outcomes.items()],
        "prefork_rejected_requests_total": _rejections(words),
        "prefork_http_responses_total": _answers(words),
        "prefork_requests_cancelled_total": cancelled,
        "prefork_request_duration_seconds": _summed(words, SlotField.DURATIONS, SlotField.BUSY_NS),
        "prefork_requests_in_progress": _one(sum(many or since > 0 for many, since in in_hand)),
        "prefork_slow_requests_total": _one(_count(reading.snapshot[PoolField.SLOW_REQUESTS])),
        "prefork_request_queue_wait_seconds": _summed(
            words, SlotField.QUEUE_WAITS, SlotField.QUEUE_WAIT_NS
        ),
    }


def _rejections(words: Columns) -> Rows:
    """Return the rejected requests by reason; what nothing else has counted is verify_request()'s."""
    counts = {
        reason: sum(words[SlotField.REJECTIONS + place]) for place, reason in enumerate(Rejection)
    }
    counts[Rejection.VERIFY] = 0
    others = sum(counts.values())
    counts[Rejection.VERIFY] = max(0, sum(words[SlotField.REJECTED]) - others)
    return [(reason.value, count) for reason, count in counts.items()]


def _answers(words: Columns) -> Rows:
    """Return the answers of HTTP by method and class of the status: all classes of each method that has one."""
    rows: list[tuple[str, str, int]] = []
    counts = iter(sum(words[SlotField.ANSWERS + place]) for place in range(COUNTS))
    for method in METHODS:
        row = [(method, status, next(counts)) for status in CLASSES]
        if any(count for _, _, count in row):
            rows += row
    return rows


_HANDSHAKES = (
    ("TLSv1.2", "full", HandshakeKind.TLS_1_2),
    ("TLSv1.2", "resumed", HandshakeKind.TLS_1_2_RESUMED),
    ("TLSv1.3", "full", HandshakeKind.TLS_1_3),
    ("TLSv1.3", "resumed", HandshakeKind.TLS_1_3_RESUMED),
)


def _tls(reading: Reading) -> Found:
    """Return what there is to say of TLS: no series in a pool that has none."""
    words, certificates = reading.words, reading.description.certificates
    done = [
        (version, result, sum(words[SlotField.TLS_HANDSHAKES + kind]))
        for version, result, kind in _HANDSHAKES
    ]
    failed = sum(words[SlotField.REJECTIONS + tuple(Rejection).index(Rejection.TLS)])
    if not certificates and not failed and not any(count for _, _, count in done):
        return {name: [] for name in TLS}
    return {
        "prefork_tls_handshakes_total": [*done, ("none", "failed", failed)],
        "prefork_tls_handshake_seconds_total": _one(sum(words[SlotField.TLS_HANDSHAKE_NS]) / 1e9),
        "prefork_tls_certificate_days_left": [
            (one.file, round((one.ends - reading.now) / 86_400, 3)) for one in certificates
        ],
    }


_PARKED_CLOSED = {
    "evicted": PoolField.PARKED_EVICTED,
    "timed_out": PoolField.PARKED_TIMED_OUT,
    "left": PoolField.PARKED_LEFT,
    "stopped": PoolField.PARKED_CLOSED,
    "lost": PoolField.PARKED_LOST,
}


def _parked(reading: Reading) -> Found:
    """Return what there is to say of the lot: no series in a pool that has none."""
    pool = reading.snapshot
    if not pool[PoolField.LOT_STARTS]:
        return {name: [] for name in PARKED}
    closed = [(reason, _count(pool[field])) for reason, field in _PARKED_CLOSED.items()]
    refused = sum(reading.words[SlotField.PARK_FAILURES])
    return {
        "prefork_parked_connections": _one(_count(pool[PoolField.PARKED])),
        "prefork_connections_parked_total": _one(_count(pool[PoolField.PARKED_TOTAL])),
        "prefork_connections_resumed_total": _one(_count(pool[PoolField.RESUMED_TOTAL])),
        "prefork_parked_connections_closed_total": [*closed, ("refused", refused)],
        "prefork_lot_restarts_total": _one(_count(pool[PoolField.LOT_STARTS] - 1)),
    }


def _summed(words: Columns, counts: SlotField, sum_ns: SlotField) -> Histogram:
    return Histogram(tuple(map(sum, words.histogram(counts))), sum(words[sum_ns]) / 1e9)


def _slots(reading: Reading) -> Found:
    words = reading.words
    pids, spawns = words[SlotField.PID], words[SlotField.SPAWNS]
    used = [one.slot for one in reading.snapshot.slots if was_used(one)]
    live = [slot for slot in used if pids[slot]]
    generations, spawned_ns = words[SlotField.GENERATION], words[SlotField.SPAWNED_NS]
    return {
        "prefork_worker_info": [(slot, pids[slot], generations[slot], 1) for slot in live],
        "prefork_worker_up": [(slot, int(pids[slot] > 0)) for slot in used],
        "prefork_worker_start_time_seconds": [
            (slot, reading.unix(spawned_ns[slot])) for slot in live
        ],
        "prefork_worker_requests_total": _of_used(used, all_requests(words)),
        "prefork_worker_restarts_total": [(slot, max(0, spawns[slot] - 1)) for slot in used],
        "prefork_worker_busy_seconds_total": _of_used(
            used, [word / 1e9 for word in words[SlotField.BUSY_NS]]
        ),
    }


def _of_used(used: Sequence[int], values: Sequence[float]) -> Rows:
    return [(slot, values[slot]) for slot in used]


def _processes(facts: Mapping[int, Facts]) -> Found:
    cpu: list[tuple[Any, ...]] = []
    switches: list[tuple[Any, ...]] = []
    for slot, one in facts.items():
        cpu += (slot, "user", one.user), (slot, "system", one.system)
        switches += (slot, "voluntary", one.voluntary), (slot, "involuntary", one.involuntary)
    return {
        "prefork_worker_cpu_seconds_total": cpu,
        "prefork_worker_resident_memory_bytes": [
            (slot, one.resident) for slot, one in facts.items() if one.resident is not None
        ],
        "prefork_worker_open_fds": [
            (slot, one.fds) for slot, one in facts.items() if one.fds is not None
        ],
        "prefork_worker_context_switches_total": switches,
    }


# --- words that may be anything


def _count(word: int) -> int:
    return max(0, word)


def _seconds(nanoseconds: int) -> float:
    return _count(nanoseconds) / 1e9


def _clipped(words: tuple[int, ...]) -> tuple[int, ...]:
    return words if min(words) >= 0 else tuple(map(_count, words))


# --- into objects of prometheus_client


def _one(value: float) -> Rows:
    return [(value,)]


def _in_order(found: Found) -> list[Family]:
    return [_family(METRICS[name], found[name]) for name in METRICS if name in found]


def _family(metric: Metric, content: Rows | Histogram) -> Family:
    if isinstance(content, Histogram):
        return _histogram(metric, content)
    if metric.labels[:1] == ("slot",):
        return SlotFamily(metric, content)
    return family_of(metric, content)


_ENDINGS = {Type.COUNTER: "_total", Type.INFO: "_info"}


def _family_name(metric: Metric) -> str:
    """Return the name of a family: that of its samples without the ending that says its type."""
    return metric.name.removesuffix(_ENDINGS.get(metric.type, ""))


def family_of(metric: Metric, rows: Rows) -> Family:
    """Return a family of the table with these rows."""
    family = Family(_family_name(metric), metric.help, metric.type, metric.unit)
    family.samples = _samples(metric, rows)
    return family


def _samples(metric: Metric, rows: Rows) -> list[Sample]:
    return [
        Sample(metric.name, dict(zip(metric.labels, map(str, row[:-1]), strict=True)), row[-1])
        for row in rows
    ]


def _histogram(metric: Metric, content: Histogram) -> Family:
    bounds = [repr(bound / 1e9) for bound in BOUNDS_NS] + ["+Inf"]
    buckets = [*zip(bounds, itertools.accumulate(content.counts), strict=True)]
    family = HistogramMetricFamily(metric.name, metric.help, unit=metric.unit)
    family.add_metric([], buckets, content.sum)
    return family
