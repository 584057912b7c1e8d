"""What ``prefork top`` shows, computed from two looks at a pool (pure): no clock, terminal or colours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from prefork.inspect import humanize

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class ProcessUsage(msgspec.Struct, frozen=True):
    """What the kernel reports about one worker; None for what it does not report.

    cpu: seconds of processor time so far. memory: bytes.
    """

    cpu: float | None = None
    memory: int | None = None


class Look(msgspec.Struct, frozen=True):
    """One look at a pool.

    at: monotonic seconds. status: as ``prefork.metrics.status.status()`` returns it. usage: by pid.
    """

    at: float
    status: Mapping[str, Any]
    usage: Mapping[int, ProcessUsage] = msgspec.field(default_factory=dict)


class SlotRow(msgspec.Struct, frozen=True):
    """One slot.

    Rates and shares are those of the time between the two looks, None at the first look.

    rate: requests per second. busy: the share of the time with a request in hand. cpu: processors
    in use, so that 1.0 is one whole processor. age, request_age: seconds.
    """

    slot: int
    pid: int
    generation: int
    state: str
    request_age: float | None
    age: float | None
    requests: int
    rate: float | None
    busy: float | None
    cpu: float | None
    memory: int | None
    spawns: int
    last_exit: str | None


class View(msgspec.Struct, frozen=True):
    """The content of the whole screen.

    Rates, shares and latencies are those of the time between the two looks. At the first look there
    is no such time: rates are None, latencies are those since the start, and ``busy`` is the share
    of the workers that are busy at this moment. parked: the counts of the lot; None in a pool that
    has none.
    """

    name: str | None
    pid: int
    uptime: float
    generation: int
    condition: str
    is_well: bool
    saturation: str | None
    rate: float | None
    p50: str
    p99: str
    in_progress: int
    total: int
    busy: float
    workers: Mapping[str, int]
    usable_cpus: int | None
    scoreboard: str
    listeners: Sequence[Mapping[str, Any]]
    parked: Mapping[str, int] | None
    resumed_rate: float | None
    rows: Sequence[SlotRow]
    failed: Sequence[tuple[str, int]]
    exits: Sequence[tuple[str, int]]
    events: Sequence[tuple[str, int]]


def view(before: Look | None, now: Look) -> View:
    """Return what to show. before: the previous look, None at the first one."""
    status = now.status
    rows = _rows(before, now)
    return View(
        name=status["name"],
        pid=status["pid"],
        uptime=status["uptime"],
        generation=status["generation"],
        condition=humanize.condition(status),
        is_well=bool(status["ready"]) and not humanize.is_hung(status),
        saturation=_saturation(status),
        rate=_rate(before, now, _total(before), _total(now)),
        **_latencies(before, now),
        in_progress=status["requests"]["in_progress"],
        total=status["requests"]["total"],
        busy=_utilization(before, status, rows),
        workers=status["workers"],
        usable_cpus=status.get("usable_cpus"),
        scoreboard=status["scoreboard"],
        listeners=status["listeners"],
        parked=status["parked"],
        resumed_rate=_rate(before, now, _resumed(before), _resumed(now)),
        rows=rows,
        failed=humanize.nonzero(
            {
                key.replace("_", " "): status["requests"][key]
                for key in (
                    "error",
                    "rejected",
                    "client_timeout",
                    "cancelled",
                    "timeout",
                    "aborted",
                )
            }
            | {"slow": status["slow_requests"]}
        ),
        exits=humanize.nonzero(status["exits"]),
        events=humanize.nonzero(
            {
                "ceiling reached": status["ceiling_reached"],
                "growth refused": status["growth_refused"],
                "spawn failures": status["spawn_failures"],
                "hook failures": status["hook_failures"],
                "reloads failed": status["reloads_failed"],
            }
        ),
    )


def _saturation(status: Mapping[str, Any]) -> str | None:
    """Return why the pool cannot keep up and what to do; None while it keeps up."""
    found = status["saturation"]
    if found is None:
        return None
    return f"for {humanize.duration(found['seconds'])}, {found['reason']}: {found['remedy']}"


def _rows(before: Look | None, now: Look) -> list[SlotRow]:
    earlier = {} if before is None else {one["slot"]: one for one in before.status["slots"]}
    return [
        _row(before, now, earlier.get(one["slot"]), one)
        for one in now.status["slots"]
        if one["pid"] or one["spawns"]
    ]


def _row(
    before: Look | None, now: Look, was: Mapping[str, Any] | None, one: Mapping[str, Any]
) -> SlotRow:
    usage = now.usage.get(one["pid"], ProcessUsage())
    used = ProcessUsage() if before is None else before.usage.get(one["pid"], ProcessUsage())
    busy = _rate(before, now, _busy_seconds(was), _busy_seconds(one)) if one["pid"] else None
    return SlotRow(
        slot=one["slot"],
        pid=one["pid"],
        generation=one["generation"],
        state=one["state"],
        request_age=one["request_age"],
        age=one["age"],
        requests=one["requests"],
        rate=_rate(before, now, was["requests"] if was else None, one["requests"]),
        # The share can pass 1: the times of the threads of one worker are added up, and the words
        # of a slot are not read at one instant.
        busy=None if busy is None else min(1.0, busy),
        cpu=_rate(before, now, used.cpu, usage.cpu),
        memory=usage.memory,
        spawns=one["spawns"],
        last_exit=one["last_exit"],
    )


def _busy_seconds(one: Mapping[str, Any] | None) -> float | None:
    """Return the seconds with a request in hand, with those of the present request.

    The scoreboard adds a request's time when it has ended. Without the present request a worker
    that handles one long request would look idle for minutes, and then busy for minutes at once.
    """
    return None if one is None else one["busy"] + (one["request_age"] or 0.0)


def _total(look: Look | None) -> float | None:
    return None if look is None else look.status["requests"]["total"]


def _resumed(look: Look | None) -> float | None:
    parked = None if look is None else look.status["parked"]
    return None if parked is None else parked["resumed"]


def _rate(before: Look | None, now: Look, was: float | None, is_now: float | None) -> float | None:
    """Return the increase per second between two looks, None where one of the values is missing.

    A decrease counts as 0. A worker that dies in a request causes one, because the seconds of the
    present request go with it.
    """
    if before is None or was is None or is_now is None or now.at <= before.at:
        return None
    return max(0.0, is_now - was) / (now.at - before.at)


def _latencies(before: Look | None, now: Look) -> dict[str, str]:
    histogram = now.status["durations"]
    bounds, counts = histogram["bounds"], histogram["counts"]
    if before is not None:
        earlier = before.status["durations"]["counts"]
        counts = [max(0, n - m) for n, m in zip(counts, earlier, strict=True)]
    return {
        f"p{share}": humanize.latency(humanize.quantile(share / 100, bounds, counts), bounds[-1])
        for share in (50, 99)
    }


def _utilization(before: Look | None, status: Mapping[str, Any], rows: Sequence[SlotRow]) -> float:
    shares = [row.busy for row in rows if row.busy is not None]
    if before is None or not shares:
        return float(status["utilization"])
    return sum(shares) / len(shares)
