"""Numbers and states as short text for people (pure).

A pool may run for months, and its counters may have any size. Therefore each function has a widest
result, which does not grow with the number. ``-`` stands for a value that is not known.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from prefork.metrics.status import HUNG_AFTER

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

NONE: Final = "-"


def is_hung(status: Mapping[str, Any]) -> bool:
    """Return whether the master counts as hung: its last tick was more than HUNG_AFTER seconds ago."""
    return bool(status["last_tick"] > HUNG_AFTER)


def condition(status: Mapping[str, Any]) -> str:
    """Return what the pool does and whether it should get traffic, in a few words: ``serving, ready``."""
    phase = str(status["phase"]).replace("_", " ")
    if is_hung(status):
        return f"HUNG for {duration(status['last_tick'])} ({phase})"
    if status["phase"] != "serving":
        return phase
    words = [phase, "ready" if status["ready"] else "not ready"]
    if status["reload_state"] in ("trying", "rolling"):
        words.append("reloading")
    if waiting := clients_in_vain(status):
        words.append(f"saturated ({waiting} waiting)")
    return ", ".join(words)


def clients_in_vain(status: Mapping[str, Any]) -> int:
    """Return how many clients wait while every worker is busy; 0 where a worker is free.

    The number is of this moment. The log of the pool has a line when this lasts.
    """
    workers = status["workers"]
    if workers["idle"] or not workers["busy"]:
        return 0
    return sum(one["depth"] or 0 for one in status["listeners"] if one["kind"] == "stream")


def quantile(share: float, bounds: Sequence[float], counts: Sequence[int]) -> float | None:
    """Return an estimate of a quantile of a histogram; None while the histogram is empty.

    share: 0 to 1. bounds: upper bounds of the buckets. counts: one for each bound and one more for
    what is above the last one, not cumulative. Values are taken as spread evenly within a bucket.
    The result is infinity where the quantile is above the last bound, because nothing is known
    beyond.
    """
    total = sum(counts)
    if total <= 0:
        return None
    rank, below, lower = share * total, 0, 0.0
    for bound, count in zip(bounds, counts, strict=False):
        if count and below + count >= rank:
            return lower + (bound - lower) * (rank - below) / count
        below, lower = below + count, bound
    return float("inf")


def latency(seconds: float | None, longest: float) -> str:
    """Return an estimated latency as text, ``>10s`` above ``longest``, the last bound of the histogram."""
    if seconds is None:
        return NONE
    return f">{duration(longest)}" if seconds == float("inf") else duration(seconds)


def duration(seconds: float | None) -> str:
    """Return a length of time in at most 6 characters: ``3.2ms``, ``45ms``, ``1.5s``, ``12m``, ``3h20m``, ``12d``."""
    if seconds is None:
        return NONE
    if seconds == 0:
        return "0s"
    if seconds < 0.9995:
        return f"{seconds * 1000:.1f}ms" if seconds < 0.00995 else f"{seconds * 1000:.0f}ms"
    if seconds < 99.5:
        return f"{seconds:.1f}s" if seconds < 9.95 else f"{seconds:.0f}s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes}m"
    return (
        _two_units(minutes, 60, "h", "m")
        if minutes < 24 * 60
        else _two_units(minutes // 60, 24, "d", "h")
    )


def _two_units(number: int, size: int, large: str, small: str) -> str:
    whole, rest = divmod(number, size)
    return f"{whole}{large}{rest:02}{small}" if whole < 10 else f"{whole}{large}"


def count(number: float | None) -> str:
    """Return a number in at most 5 characters: ``987``, ``12.3k``, ``4.6M``."""
    if number is None:
        return NONE
    if number < 9999.5:
        return f"{number:.0f}"
    for unit in ("k", "M", "G", "T"):
        number /= 1000
        if number < 99.95:
            return f"{number:.1f}{unit}"
        if number < 999.5:
            return f"{number:.0f}{unit}"
    return f"{number:.0f}T" if number < 9999.5 else "many"


def rate(number: float | None) -> str:
    """Return a number per second in at most 5 characters; small ones have one decimal."""
    if number is None:
        return NONE
    return f"{number:.1f}" if 0 < number < 9.95 else count(number)


def percent(share: float | None) -> str:
    """Return a share of 1 in percent."""
    return NONE if share is None else f"{share * 100:.0f}%"


def size(number: int | None) -> str:
    """Return a number of bytes in at most 5 characters: ``640K``, ``38M``, ``1.2G``."""
    if number is None:
        return NONE
    if number < 1000:
        return f"{number}"
    amount = float(number)
    for unit in ("K", "M", "G", "T", "P"):
        amount /= 1024
        if amount < 9.95 and unit not in "KM":
            return f"{amount:.1f}{unit}"
        if amount < 999.5:
            return f"{amount:.0f}{unit}"
    return "many"


def queue(listener: Mapping[str, Any]) -> str:
    """Return what waits at a listener.

    Connections and how many may wait: ``3/1024``. Bytes of datagrams: ``4K``. Datagrams that the
    kernel has dropped, if any: ``4K, 17 dropped``.
    """
    parts = []
    if listener["depth"] is not None:
        limit = listener["limit"]
        parts.append(f"{listener['depth']}" if limit is None else f"{listener['depth']}/{limit}")
    if listener["bytes"] is not None:
        parts.append(
            f"{size(listener['bytes'])}B" if listener["bytes"] >= 1000 else f"{listener['bytes']} B"
        )
    if listener["drops"]:
        parts.append(f"{listener['drops']} dropped")
    return ", ".join(parts) or NONE


def closed_while_parked(parked: Mapping[str, int]) -> list[str]:
    """Return why the pool has closed idle connections, with the numbers: ``17 evicted``.

    Clients that left, and the connections that a stop closed, are not among them.
    """
    reasons = ("evicted", "timed_out", "lost", "refused")
    return [f"{count(parked[key])} {key.replace('_', ' ')}" for key in reasons if parked[key]]


def day(instant: float) -> str:
    """Return the day of an instant (Unix time), in UTC; ``-`` for one that has no place in the calendar."""
    try:
        return f"{datetime.fromtimestamp(instant, UTC):%Y-%m-%d}"
    except (ValueError, OverflowError, OSError):
        return "-"


def cpus(found: int | None) -> list[str]:
    """Return the CPUs that a pool counts, as a part of a line; nothing in a pool that counts none."""
    return [f"{found} CPU{'s' * (found > 1)}"] if found else []


def nonzero(numbers: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return the pairs whose number is not 0, the largest number first."""
    return sorted(((key, n) for key, n in numbers.items() if n), key=lambda one: (-one[1], one[0]))


def wrapped(parts: Sequence[str], width: int, indent: str = "", gap: str = "  ") -> list[str]:
    """Return words laid out in lines of at most ``width`` characters; a longer word gets a line of its own."""
    lines: list[str] = []
    line = ""
    for part in parts:
        if line and len(indent) + len(line) + len(gap) + len(part) > width:
            lines.append(indent + line)
            line = part
        else:
            line = f"{line}{gap}{part}" if line else part
    return [*lines, indent + line] if line else lines


def chunks(text: str, width: int) -> list[str]:
    """Return a text cut into pieces of ``width`` characters; the last one may be shorter."""
    return [text[at : at + width] for at in range(0, len(text), width)]
