"""What a scrape shows of a reading: every word in its place, and none negative."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec
import pytest

from prefork.metrics.description import CertificateDescription, ListenerDescription, PoolDescription
from prefork.metrics.exposition import choose_encoder
from prefork.metrics.families import families
from prefork.metrics.kernel import Queue
from prefork.metrics.processes import Facts
from prefork.workers.answers import CLASSES, place_of
from prefork.workers.scoreboard import (
    BOUNDS_NS,
    BUCKETS,
    HandshakeKind,
    PoolField,
    Scoreboard,
    SlotField,
)
from prefork.workers.slot_writer import Outcome
from prefork.workers.states import ExitKind, Order, Rejection, ReloadState, StartReason
from tests.support.scrapes import (
    SLOTS,
    Samples,
    busy_pool,
    pen,
    reading,
    samples,
    scoreboard,
    spawn,
    value,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client.metrics_core import Metric as Family


OPENMETRICS = "application/openmetrics-text; version=1.0.0"


@pytest.fixture
def board() -> Iterator[Scoreboard]:
    """Give a scoreboard of three slots."""
    with scoreboard() as made:
        yield made


def test_pool_s_words_are_shown(board: Scoreboard) -> None:
    """Every word of the pool is shown under its name: no counter is mistaken for its neighbour."""
    plain = {
        "prefork_workers_target": PoolField.TARGET,
        "prefork_workers_min": PoolField.FLOOR,
        "prefork_workers_max": PoolField.CEILING,
        "prefork_usable_cpus": PoolField.USABLE_CPUS,
        "prefork_max_workers_reached_total": PoolField.CEILING_REACHED,
        "prefork_growth_refused_total": PoolField.GROWTH_REFUSED,
        "prefork_spawn_failures_total": PoolField.SPAWN_FAILURES,
        "prefork_hook_failures_total": PoolField.HOOK_FAILURES,
        "prefork_listeners_closed": PoolField.LISTENERS_CLOSED,
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
        ("up", "box", PoolField.SCALED_UP_BY_BOX),
        ("down", "box", PoolField.SCALED_DOWN_BY_BOX),
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


def test_requests_in_hand_are_added_up(board: Scoreboard) -> None:
    """Workers with threads say how many requests they have in hand, the others have one or none."""
    for slot, (since, many) in enumerate([(5, 0), (5, 4), (0, 0)]):
        spawn(board, slot)
        board.words[board.slot_at(slot) + SlotField.REQUEST_NS] = since
        board.words[board.slot_at(slot) + SlotField.IN_PROGRESS] = many

    assert value(samples(families(reading(board))), "prefork_requests_in_progress") == 5


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


def test_tls_is_shown_where_it_is_used(board: Scoreboard) -> None:
    """Handshakes by version and result, their time, and the days that each certificate has left."""
    words = board.words[board.slot_at(0) : board.slot_at(1)]
    words[SlotField.TLS_HANDSHAKES + HandshakeKind.TLS_1_3_RESUMED] = 5
    words[SlotField.TLS_HANDSHAKE_NS] = 2_500_000_000
    words[SlotField.REJECTIONS + tuple(Rejection).index(Rejection.TLS)] = 3
    words[SlotField.REJECTED] = 4
    pool = PoolDescription(certificates=(CertificateDescription("a.pem", 86_400 * 9.5),))
    made = msgspec.structs.replace(reading(board, pool), now=86_400.0)
    found = samples(families(made))

    name = "prefork_tls_handshakes_total"
    assert value(found, name, version="TLSv1.3", result="resumed") == 5
    assert value(found, name, version="TLSv1.2", result="full") == 0
    assert value(found, name, version="none", result="failed") == 3
    assert value(found, "prefork_tls_handshake_seconds_total") == 2.5
    assert value(found, "prefork_tls_certificate_days_left", file="a.pem") == 8.5
    name = "prefork_rejected_requests_total"
    assert (value(found, name, reason="tls"), value(found, name, reason="verify")) == (3, 1)
    words.release()


def test_answers_of_http_are_counted_apart(board: Scoreboard) -> None:
    """Answers by method and class of the status: all classes of a method that has answers, no series of another."""
    for slot, method, status in ((0, "GET", "200 OK"), (1, "GET", "204"), (2, "FETCH", "503 No")):
        with pen(board, slot) as writer:
            writer.count_answer(place_of(method, status))
    found = samples(families(reading(board)))
    name = "prefork_http_responses_total"
    assert [value(found, name, method="GET", status=one) for one in CLASSES] == [2, 0, 0, 0]
    assert [value(found, name, method="OTHER", status=one) for one in CLASSES] == [0, 0, 0, 1]
    assert not any(dict(labels).get("method") == "POST" for _, labels in found)
