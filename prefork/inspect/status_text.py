"""A status as text for people: what ``prefork status`` prints (pure)."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from prefork.inspect import humanize

_INDENT: Final = " " * 11


def as_lines(status: dict[str, Any], width: int) -> list[str]:
    """Return a status in lines. width: the most characters of a line, except in the table of slots."""
    return [
        *_head(status),
        *_saturation(status, width),
        *_workers(status, width),
        *_requests(status, width),
        *_cancelled(status, width),
        *_responses(status, width),
        *_listeners(status),
        *_tls(status, width),
        *_parked(status, width),
        *_history(status, width),
        "",
        *_slots(status),
    ]


def _head(status: dict[str, Any]) -> list[str]:
    title = f"prefork {status['name']}" if status["name"] else "prefork"
    version = f"{status['version']}, Python {status['python']}" if status["version"] else ""
    parts = (
        f"pid {status['pid']}",
        f"up {humanize.duration(status['uptime'])}",
        f"generation {status['generation']}",
        version,
    )
    return [
        f"{title}: {humanize.condition(status)}",
        _INDENT + ", ".join(part for part in parts if part),
    ]


def _saturation(status: dict[str, Any], width: int) -> list[str]:
    found = status["saturation"]
    if found is None:
        return []
    text = f"for {humanize.duration(found['seconds'])}; {found['reason']}: {found['remedy']}"
    return _wrapped("saturated", text.split(), width, ends="")


def _workers(status: dict[str, Any], width: int) -> list[str]:
    workers = status["workers"]
    said = [f"{workers['busy']} busy", f"{workers['idle']} idle"]
    said += [f"{workers[key]} {key}" for key in ("starting", "retiring") if workers[key]]
    wanted = [f"{key} {workers[key]}" for key in ("floor", "target", "max")]
    wanted += humanize.cpus(status.get("usable_cpus"))
    board = status["scoreboard"].rstrip(".")
    free = len(status["scoreboard"]) - len(board)
    pieces = humanize.chunks(board, width - len(_INDENT))
    lines = [_line("" if number else "slots", piece) for number, piece in enumerate(pieces)]
    if free:
        unused = f"{free} unused"
        lines = [*lines[:-1], f"{lines[-1]} + {unused}"] if lines else [_line("slots", unused)]
    return [_line("workers", f"{', '.join(said)} ({', '.join(wanted)})"), *lines]


def _requests(status: dict[str, Any], width: int) -> list[str]:
    requests, histogram = status["requests"], status["durations"]
    said = [f"{requests['ok']} ok"]
    said += [
        f"{requests[key]} {key.replace('_', ' ')}"
        for key in ("error", "rejected", "client_timeout", "cancelled", "timeout", "aborted")
        if requests[key]
    ]
    said.append(f"{requests['in_progress']} in progress")
    if status["slow_requests"]:
        said.append(f"{status['slow_requests']} slow")
    return [*_wrapped("requests", said, width), _line("latency", _latencies(histogram))]


def _cancelled(status: dict[str, Any], width: int) -> list[str]:
    reasons = humanize.nonzero(status.get("cancellations", {}))
    said = [f"{count} {reason.replace('_', ' ')}" for reason, count in reasons]
    return _wrapped("cancelled", said, width)


def _latencies(histogram: dict[str, Any]) -> str:
    bounds, counts = histogram["bounds"], histogram["counts"]
    shown = [
        f"p{share:.0f} {humanize.latency(humanize.quantile(share / 100, bounds, counts), bounds[-1])}"
        for share in (50, 99)
    ]
    mean = histogram["sum"] / sum(counts) if sum(counts) else None
    return "  ".join([*shown, f"mean {humanize.duration(mean)}", "since the start"])


def _listeners(status: dict[str, Any]) -> list[str]:
    return [
        _line("" if number else "queue", f"{humanize.queue(one)}  {one['name']}")
        for number, one in enumerate(status["listeners"])
    ]


def _responses(status: dict[str, Any], width: int) -> list[str]:
    """Return the answers of HTTP by class of the status, of all methods together; nothing where there are none."""
    sums: Counter[str] = Counter()
    for classes in (status.get("responses") or {}).values():
        sums.update(classes)
    said = [f"{humanize.count(sums[name])} {name}" for name in sorted(sums)]
    return _wrapped("responses", said, width) if said else []


def _tls(status: dict[str, Any], width: int) -> list[str]:
    tls = status.get("tls")
    if tls is None:
        return []
    counts = dict(tls["handshakes"])
    failed = counts.pop("failed")
    resumed = sum(count for kind, count in counts.items() if kind.endswith("_resumed"))
    said = [f"{sum(counts.values())} handshakes", f"{resumed} resumed", f"{failed} failed"]
    ends = [f"{one['file']} until {humanize.day(one['ends'])}" for one in tls["certificates"]]
    return [*_wrapped("tls", said, width), *(_line("", end) for end in ends)]


def _parked(status: dict[str, Any], width: int) -> list[str]:
    parked = status.get("parked")
    if parked is None:
        return []
    said = [f"{parked['now']} now", f"{parked['resumed']} resumed"]
    return _wrapped("parked", [*said, *humanize.closed_while_parked(parked)], width)


def _history(status: dict[str, Any], width: int) -> list[str]:
    exits = [f"{n} {kind}" for kind, n in humanize.nonzero(status["exits"])]
    happened = {
        "ceiling reached": status["ceiling_reached"],
        "growth refused": status["growth_refused"],
        "spawn failures": status["spawn_failures"],
        "hook failures": status["hook_failures"],
        "reloads": status["reloads"],
        "reloads failed": status["reloads_failed"],
    }
    events = [f"{what}: {n}" for what, n in happened.items() if n]
    return [*_wrapped("exits", exits, width), *_wrapped("events", events, width)]


def _wrapped(name: str, parts: list[str], width: int, ends: str = ",") -> list[str]:
    """Return parts laid out behind a name. ends: what stands behind each part but the last."""
    rows = humanize.wrapped(
        [f"{part}{ends}" for part in parts[:-1]] + parts[-1:], width - len(_INDENT), gap=" "
    )
    return [_line("" if number else name, row) for number, row in enumerate(rows)]


def _line(name: str, text: str) -> str:
    return f"{name:<{len(_INDENT)}}{text}".rstrip()


_HEADINGS: Final = (
    *("slot", "pid", "gen", "state", "age", "requests", "not ok", "busy", "spawns", "last exit"),
)


def _slots(status: dict[str, Any]) -> list[str]:
    """Return the table of the slots that have ever had a worker."""
    rows = [_cells(one) for one in status["slots"] if one["pid"] or one["spawns"]]
    if not rows:
        return ["no worker yet"]
    widths = [max(map(len, column)) for column in zip(_HEADINGS, *rows, strict=True)]
    return ["  ".join(_aligned(row, widths)).rstrip() for row in (_HEADINGS, *rows)]


def _cells(one: dict[str, Any]) -> tuple[str, ...]:
    since = f" {humanize.duration(one['request_age'])}" if one["request_age"] is not None else ""
    failed = sum(
        one[key]
        for key in ("errors", "rejected", "client_timeouts", "cancelled", "timeouts", "aborted")
    )
    return (
        str(one["slot"]),
        str(one["pid"] or humanize.NONE),
        str(one["generation"]),
        one["state"] + since,
        humanize.duration(one["age"]),
        str(one["requests"]),
        str(failed),
        humanize.duration(one["busy"]),
        str(one["spawns"]),
        one["last_exit"] or humanize.NONE,
    )


def _aligned(row: tuple[str, ...], widths: list[int]) -> list[str]:
    texts = ("state", "last exit")
    return [
        f"{cell:<{width}}" if heading in texts else f"{cell:>{width}}"
        for cell, width, heading in zip(row, widths, _HEADINGS, strict=True)
    ]
