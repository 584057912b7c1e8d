"""The status of a pool: all that people and programs want to know, as one value for JSON (pure).

``/status`` serves it, the status page draws it, ``prefork status`` and ``prefork top`` show it. A
worker can write anything into the shared memory, so whatever stands there, a status comes out and
nothing is raised.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from prefork.metrics.description import ListenerDescription, PoolDescription
from prefork.metrics.kernel import Queue
from prefork.metrics.saturation import REASONS, REMEDIES
from prefork.workers.answers import CLASSES, COUNTS, METHODS
from prefork.workers.cancel import CancelReason
from prefork.workers.scoreboard import (
    BOUNDS_NS,
    CANCELLED_FIELDS,
    MOST_IN_PROGRESS,
    HandshakeKind,
    PoolField,
    SlotField,
    SlotSnapshot,
    Snapshot,
)
from prefork.workers.settings import LONGEST
from prefork.workers.states import (
    READY,
    Phase,
    Rejection,
    ReloadState,
    SaturationCause,
    WorkerState,
)

LETTERS: Final = {"gone": ".", "starting": "S", "idle": "_", "busy": "B", "retiring": "R"}
"""One letter for each state of a slot: a pool fits into a line of text."""

HUNG_AFTER: Final = 10.0
"""Seconds since its last tick after which a master counts as hung; it ticks every half second."""

LONGEST_QUIET_NS: Final = int(LONGEST * 1e9)
"""The longest time without ticks that is believed: that of the longest ``boot_timeout``."""


def status(
    snapshot: Snapshot,
    description: PoolDescription,
    now_ns: int,
    *,
    queues: Mapping[int, Queue] | None = None,
) -> dict[str, Any]:
    """Return the status. It goes through ``json.dumps()``, and never raises.

    now_ns: CLOCK_MONOTONIC. queues: by the inode of a listener. All times in the status are
    seconds; an age or an instant is seconds ago. Texts are those of the description, which are
    printable.
    """
    return {
        "name": description.name,
        "version": description.version,
        "python": description.python,
        "pid": _count(snapshot[PoolField.MASTER_PID]),
        "uptime": _ago(now_ns, snapshot[PoolField.STARTED_NS]) or 0.0,
        "phase": snapshot.phase.name.lower(),
        "generation": _count(snapshot[PoolField.GENERATION]),
        "ready": is_ready(snapshot),
        "last_tick": last_tick(snapshot, now_ns),
        **_workers(snapshot),
        **_requests(snapshot),
        **_events(snapshot),
        "saturation": _saturation(snapshot),
        "tls": _tls(snapshot, description),
        "parked": _parked(snapshot),
        "listeners": [_listener(one, queues or {}) for one in description.listeners],
        "slots": [_slot(one, now_ns) for one in snapshot.slots],
        "settings": dict(description.settings),
        "metrics": description.metrics,
        "agent": description.agent,
    }


def is_ready(snapshot: Snapshot) -> bool:
    """Return whether the pool should get traffic: it serves, its listeners are open, and enough workers are ready."""
    needed = snapshot[PoolField.NEEDED]
    if snapshot[PoolField.LISTENERS_CLOSED]:
        return False
    return snapshot.phase is Phase.SERVING and 0 < needed <= snapshot.count(*READY)


def last_tick(snapshot: Snapshot, now_ns: int) -> float:
    """Return how many seconds ago the master's last tick was; before the first, its start.

    A master that loads new code in place cannot tick until the code serves. The time that it has for
    that does not count (QUIET_UNTIL_NS), or each slow reload would look like a master that hangs.
    """
    ticked = snapshot[PoolField.TICK_NS] or snapshot[PoolField.STARTED_NS]
    if ticked > 0:
        ticked = max(ticked, min(snapshot[PoolField.QUIET_UNTIL_NS], ticked + LONGEST_QUIET_NS))
    return _ago(now_ns, ticked) or 0.0


# --- parts of the whole


def _workers(snapshot: Snapshot) -> dict[str, Any]:
    ready, busy = snapshot.count(*READY), snapshot.count(WorkerState.BUSY)
    room = len(snapshot.slots)
    return {
        "workers": {
            "floor": _count(snapshot[PoolField.FLOOR]),
            "target": _count(snapshot[PoolField.TARGET]),
            "max": min(_count(snapshot[PoolField.CEILING]) or room, room),
            "needed": _count(snapshot[PoolField.NEEDED]),
            "starting": snapshot.count(WorkerState.STARTING),
            "idle": snapshot.count(WorkerState.IDLE),
            "busy": busy,
            "retiring": snapshot.count(WorkerState.RETIRING),
            "ready": ready,
        },
        "usable_cpus": _count(snapshot[PoolField.USABLE_CPUS]) or None,
        "utilization": busy / ready if ready else 0.0,
        "scoreboard": "".join(LETTERS[_word(one.state)] for one in snapshot.slots),
    }


def _requests(snapshot: Snapshot) -> dict[str, Any]:
    slots = snapshot.slots
    cancellations = {
        reason.value: _total(slots, field)
        for reason, field in zip(CancelReason, CANCELLED_FIELDS, strict=True)
    }
    requests = {
        "ok": sum(_count(one.ok) for one in slots),
        "error": _total(slots, SlotField.ERRORS),
        "rejected": _total(slots, SlotField.REJECTED),
        "client_timeout": _total(slots, SlotField.CLIENT_TIMEOUTS),
        "cancelled": sum(cancellations.values()),
        "timeout": _total(slots, SlotField.TIMEOUTS),
        "aborted": _total(slots, SlotField.ABORTED),
    }
    return {
        "requests": {
            **requests,
            "total": sum(requests.values()),
            "in_progress": sum(_in_progress(one) for one in slots),
        },
        "rejections": _rejections(slots),
        "cancellations": cancellations,
        "responses": _answers(slots),
        "slow_requests": _count(snapshot[PoolField.SLOW_REQUESTS]),
        "durations": _histogram(slots, SlotField.DURATIONS, SlotField.BUSY_NS),
        "queue_waits": _histogram(slots, SlotField.QUEUE_WAITS, SlotField.QUEUE_WAIT_NS),
    }


def _rejections(slots: Iterable[SlotSnapshot]) -> dict[str, int]:
    """Return the rejected requests by reason."""
    sums: Counter[Rejection] = Counter()
    for one in slots:
        sums.update(one.rejections)
    return {reason.value: _count(sums[reason]) for reason in Rejection}


def _answers(slots: Sequence[SlotSnapshot]) -> dict[str, dict[str, int]]:
    """Return the answers of HTTP by method and class of the status; {} in a pool without any."""
    counts = iter(_total(slots, SlotField.ANSWERS + place) for place in range(COUNTS))
    found = {method: {status: next(counts) for status in CLASSES} for method in METHODS}
    return {method: classes for method, classes in found.items() if any(classes.values())}


def _events(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "starts": {reason.value: _count(n) for reason, n in snapshot.starts.items()},
        "exits": {kind.value: _count(n) for kind, n in snapshot.exits.items()},
        "ceiling_reached": _count(snapshot[PoolField.CEILING_REACHED]),
        "growth_refused": _count(snapshot[PoolField.GROWTH_REFUSED]),
        "spawn_failures": _count(snapshot[PoolField.SPAWN_FAILURES]),
        "hook_failures": _count(snapshot[PoolField.HOOK_FAILURES]),
        "reloads": _count(snapshot[PoolField.RELOADS]),
        "reloads_failed": _count(snapshot[PoolField.RELOADS_FAILED]),
        "reload_state": _reload_state(snapshot[PoolField.RELOAD_STATE]).name.lower(),
    }


def _saturation(snapshot: Snapshot) -> dict[str, Any] | None:
    """Return for how long the pool has not kept up, why, and what to do; None while it keeps up."""
    cause = snapshot.saturation
    if cause is SaturationCause.NONE:
        return None
    return {
        "cause": cause.name.lower(),
        "seconds": _count(snapshot[PoolField.SATURATED_NS]) / 1e9,
        "reason": REASONS[cause],
        "remedy": REMEDIES[cause],
    }


def _tls(snapshot: Snapshot, description: PoolDescription) -> dict[str, Any] | None:
    """Return the handshakes, and the certificates with the Unix times of their ends; None without TLS."""
    slots = snapshot.slots
    counts = {
        kind.name.lower(): _total(slots, SlotField.TLS_HANDSHAKES + kind) for kind in HandshakeKind
    }
    failed = _rejections(slots)[Rejection.TLS]
    if not description.certificates and not failed and not any(counts.values()):
        return None
    return {
        "handshakes": {**counts, "failed": failed},
        "handshake_seconds": _total(slots, SlotField.TLS_HANDSHAKE_NS) / 1e9,
        "certificates": [{"file": one.file, "ends": one.ends} for one in description.certificates],
    }


def _parked(snapshot: Snapshot) -> dict[str, int] | None:
    """Return the counts of the lot; None in a pool that has none."""
    if not snapshot[PoolField.LOT_STARTS]:
        return None
    return {
        "now": _count(snapshot[PoolField.PARKED]),
        "parked": _count(snapshot[PoolField.PARKED_TOTAL]),
        "resumed": _count(snapshot[PoolField.RESUMED_TOTAL]),
        "evicted": _count(snapshot[PoolField.PARKED_EVICTED]),
        "timed_out": _count(snapshot[PoolField.PARKED_TIMED_OUT]),
        "left": _count(snapshot[PoolField.PARKED_LEFT]),
        "stopped": _count(snapshot[PoolField.PARKED_CLOSED]),
        "lost": _count(snapshot[PoolField.PARKED_LOST]),
        "refused": _total(snapshot.slots, SlotField.PARK_FAILURES),
    }


def _word(state: WorkerState) -> str:
    return state.name.lower()


def _slot(one: SlotSnapshot, now_ns: int) -> dict[str, Any]:
    lives = one.state is not WorkerState.GONE
    errors, rejected = _count(one[SlotField.ERRORS]), _count(one[SlotField.REJECTED])
    client_timeouts = _count(one[SlotField.CLIENT_TIMEOUTS])
    cancelled = sum(_count(one[field]) for field in CANCELLED_FIELDS)
    timeouts, aborted = _count(one[SlotField.TIMEOUTS]), _count(one[SlotField.ABORTED])
    return {
        "slot": one.slot,
        "pid": _count(one[SlotField.PID]) if lives else 0,
        "generation": _count(one[SlotField.GENERATION]),
        "state": _word(one.state),
        "age": _ago(now_ns, one[SlotField.SPAWNED_NS]) if lives else None,
        "request_age": _ago(now_ns, one[SlotField.REQUEST_NS]) if lives else None,
        "requests": _count(one.ok)
        + (errors + rejected + client_timeouts + cancelled + timeouts + aborted),
        "errors": errors,
        "rejected": rejected,
        "client_timeouts": client_timeouts,
        "cancelled": cancelled,
        "timeouts": timeouts,
        "aborted": aborted,
        "busy": _count(one[SlotField.BUSY_NS]) / 1e9,
        "spawns": _count(one[SlotField.SPAWNS]),
        "last_exit": None if one.last_cause is None else str(one.last_cause),
    }


def _histogram(
    slots: Iterable[SlotSnapshot], buckets: SlotField, sum_ns: SlotField
) -> dict[str, Any]:
    columns = zip(*(one.histogram(buckets) for one in slots), strict=True)
    counts = [sum(map(_count, column)) for column in columns]
    return {
        "bounds": [bound / 1e9 for bound in BOUNDS_NS],
        "counts": counts or [0] * (len(BOUNDS_NS) + 1),
        "sum": _total(slots, sum_ns) / 1e9,
    }


def _listener(one: ListenerDescription, queues: Mapping[int, Queue]) -> dict[str, Any]:
    queue = queues.get(one.inode)
    return {
        "name": one.name,
        "kind": one.kind,
        "depth": queue.depth if queue else None,
        "limit": queue.limit if queue else None,
        "bytes": queue.bytes if queue else None,
        "drops": queue.drops if queue else None,
    }


# --- words that may be anything


def _count(word: int) -> int:
    return max(0, word)


def _total(slots: Iterable[SlotSnapshot], field: int) -> int:
    return sum(_count(one[field]) for one in slots)


def _in_progress(one: SlotSnapshot) -> int:
    # In a slot without a worker stands what its last worker has left.
    if one.state is WorkerState.GONE:
        return 0
    return min(_count(one.in_progress), MOST_IN_PROGRESS)


def _ago(now_ns: int, then_ns: int) -> float | None:
    """Return the seconds since an instant; 0 for one in the future, None for none."""
    return max(0, now_ns - then_ns) / 1e9 if then_ns > 0 else None


def _reload_state(word: int) -> ReloadState:
    return ReloadState(word) if word in ReloadState._value2member_map_ else ReloadState.NONE
