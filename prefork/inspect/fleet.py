"""Several pools as rows for ``prefork status URL...`` and ``top URL...``, those first that need attention (pure)."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from prefork.inspect import humanize
from prefork.inspect.remote import ANSWER_TIME, Document, Seen
from prefork.workers.text import escaped


class Need(enum.IntEnum):
    """How much a pool needs attention. Rows with a lower number come first."""

    NO_ANSWER = 0
    HUNG = 1
    NOT_READY = 2
    SATURATED = 3
    RELOAD_FAILED = 4
    NONE = 5

    @property
    def is_ready(self) -> bool:
        """Whether such a pool should get traffic."""
        return self > Need.NOT_READY


class Row(msgspec.Struct, frozen=True):
    """One pool. The texts are cells of the table, ``-`` for a value that is not known.

    where: ``Url.where``. state: what the pool does, in words. utilization: the share of ready workers that are
    busy. rate: requests per second, None before the second answer.
    """

    where: str
    need: Need
    state: str
    name: str = humanize.NONE
    busy: str = humanize.NONE
    queue: str = humanize.NONE
    p99: str = humanize.NONE
    failed: str = humanize.NONE
    up: str = humanize.NONE
    utilization: float = 0.0
    rate: float | None = None
    busy_workers: int = 0
    ready_workers: int = 0


HEADINGS: Final = ("host", "pool", "busy", "queue", "req/s", "p99", "failed", "up", "state")
"""The columns; the state is the last one, because its words can be long."""

NARROWEST_STATE: Final = 20
"""Characters of the column of states, at least; less would break nearly every state in the middle."""


def row(
    where: str, before: Seen | None, now: Seen | None, at: float, *, patience: float = ANSWER_TIME
) -> Row:
    """Return the row of one host.

    before, now: the last two results. at: this moment, monotonic seconds. patience: seconds after which an
    answer is too old to be shown, as when the thread waits for a resolver.
    """
    if now is None:
        return Row(where, Need.NO_ANSWER, "no answer yet")
    if now.document is None:
        return Row(where, Need.NO_ANSWER, f"no answer: {escaped(now.failure)}")
    if at - now.at > patience:
        silent = humanize.duration(at - now.at)
        return Row(where, Need.NO_ANSWER, f"no answer for {silent}")
    return _row(where, before, now, now.document)


def _row(where: str, before: Seen | None, now: Seen, found: Document) -> Row:
    earlier = None if before is None else before.document
    said = _said(found)
    need = _need(found, said)
    workers, requests = found.workers, found.requests
    state = humanize.condition(said)
    if need is Need.SATURATED and "saturated" not in state:
        state = f"{state}, saturated"
    return Row(
        where=where,
        need=need,
        state=f"{state}, the last reload failed" if found.reload_state == "failed" else state,
        name=found.name or humanize.NONE,
        busy=f"{humanize.count(workers.busy)}/{humanize.count(workers.ready)}",
        queue=_queue(found),
        p99=_p99(earlier, found),
        failed=humanize.count(requests.error + requests.timeout + requests.aborted),
        up=humanize.duration(found.uptime),
        utilization=min(1.0, workers.busy / workers.ready) if workers.ready else 0.0,
        rate=_rate(before, now),
        busy_workers=workers.busy,
        ready_workers=workers.ready,
    )


def _said(found: Document) -> dict[str, Any]:
    """Return the document as humanize reads one."""
    return {
        "phase": found.phase,
        "ready": found.ready,
        "last_tick": found.last_tick,
        "reload_state": found.reload_state,
        "workers": {"idle": found.workers.idle, "busy": found.workers.busy},
        "listeners": [{"kind": one.kind, "depth": one.depth} for one in found.listeners],
    }


def _need(found: Document, said: dict[str, Any]) -> Need:
    if humanize.is_hung(said):
        return Need.HUNG
    if not found.ready or found.phase != "serving":
        return Need.NOT_READY
    if found.is_saturated or humanize.clients_in_vain(said):
        return Need.SATURATED
    return Need.RELOAD_FAILED if found.reload_state == "failed" else Need.NONE


def _queue(found: Document) -> str:
    known = [one.depth for one in found.listeners if one.depth is not None]
    return humanize.count(sum(known)) if known else humanize.NONE


def _p99(earlier: Document | None, found: Document) -> str:
    """Return the latency of the time between the two answers; since the start where there is no earlier one."""
    bounds, counts = found.durations.bounds, found.durations.counts
    if earlier is not None and earlier.durations.bounds == bounds:
        counts = [max(0, n - m) for n, m in zip(counts, earlier.durations.counts, strict=True)]
    longest = bounds[-1] if bounds else 0.0
    return humanize.latency(humanize.quantile(0.99, bounds, counts), longest)


def _rate(before: Seen | None, now: Seen) -> float | None:
    if before is None or before.document is None or now.document is None or now.at <= before.at:
        return None
    more = now.document.requests.total - before.document.requests.total
    return max(0, more) / (now.at - before.at)


def in_order(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with those first that need attention, and among equals the busiest first."""
    return sorted(rows, key=lambda one: (one.need, -one.utilization, one.where))


def cells(one: Row) -> tuple[str, ...]:
    """Return the cells of a row, in the order of HEADINGS."""
    rate = humanize.rate(one.rate)
    return (
        *(one.where, one.name, one.busy, one.queue),
        *(rate, one.p99, one.failed, one.up, one.state),
    )


def summary(rows: Sequence[Row]) -> str:
    """Return one line about all pools."""
    well = sum(one.need.is_ready for one in rows)
    said = [f"{well} of {len(rows)} pools ready"]
    busy, ready = (
        sum(one.busy_workers for one in rows),
        sum(one.ready_workers for one in rows),
    )
    said.append(f"{humanize.count(busy)} of {humanize.count(ready)} workers busy")
    rates = [one.rate for one in rows if one.rate is not None]
    if rates:
        said.append(f"{humanize.rate(sum(rates))} req/s")
    return ", ".join(said)


def state_lines(state: str, room: int) -> list[str]:
    """Return a state broken into lines between its words. room: characters of a line."""
    return humanize.wrapped(state.split(), room, gap=" ")


def as_lines(rows: Sequence[Row], width: int | None) -> list[str]:
    """Return the rows as text, in order, with every word of their states.

    width: of the terminal, in characters. A state that does not fit goes on below itself, or stands on a
    line of its own where there is no room beside the other columns. None: no terminal, so that each pool
    has one line.
    """
    table = [HEADINGS, *(cells(one) for one in in_order(rows))]
    sizes = [max(map(len, column)) for column in [*zip(*table, strict=True)][:-1]]
    begin = sum(sizes) + 2 * len(sizes)
    lines = [summary(rows), ""]
    for *others, state in table:
        head = "".join(f"{cell:<{size}}  " for cell, size in zip(others, sizes, strict=True))
        if width is None:
            lines.append(head + state)
        elif width - begin >= NARROWEST_STATE:
            first, *more = state_lines(state, width - begin)
            lines += [head + first, *(" " * begin + one for one in more)]
        else:
            lines += [head.rstrip(), *(f"  {one}" for one in state_lines(state, width - 2))]
    return lines
