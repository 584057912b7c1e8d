"""Draw the day of two autoscalers for docs/METRICS.md, and write its table: ``python -m docs.images.autoscaler``.

The load flows: in each second, requests arrive, wait, and are served as fast as the workers of all machines
can. Only the autoscalers decide. One follows ``prefork_workers_needed``, computed by the product's own code;
the other one follows CPU time. Nothing is random, so the same code gives the same files. A test compares them.
"""
# ruff: noqa: INP001 - a folder of pictures, not a package

from __future__ import annotations

import functools
import math
import re
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from docs.images.charts import BLUE, GREY_FILL, ORANGE, PALE, Axis, Panel, Point, chart
from prefork.metrics.demand import TARGET, Counts, Demand

HERE: Final = Path(__file__).parent
DOCUMENT: Final = HERE.parent / "METRICS.md"

HOUR: Final = 3600
DAY: Final = 24 * HOUR

WORKERS, CPUS = 4, 2
"""Of one machine."""

CPU_TIME: Final = 0.1
"""Seconds of CPU time of a request. It waits for as long, for a database."""

LOOK_EVERY: Final = 15
BOOT: Final = 45
"""Seconds from the decision for a machine until it serves."""

CALM: Final = 300
"""Seconds for which fewer machines must have been enough before one is given back."""

TOLERANCE: Final = 0.1
FEWEST: Final = 2
CPU_SPAN: Final = 30
"""Seconds that CPU time is averaged over."""

BURST: Final = (10 * HOUR, 10 * HOUR + 1200)
SLOW: Final = (18 * HOUR, 19 * HOUR)


def rate(at: int) -> float:
    """Return the requests that arrive per second: a wave with its peak in the afternoon, and a burst of four times as much."""
    wave = 60 - 40 * math.cos(2 * math.pi * (at - 2 * HOUR) / DAY)
    return wave * 4 if BURST[0] <= at < BURST[1] else wave


def service_time(at: int) -> float:
    """Return how long a request takes: for an hour in the evening the database is five times as slow."""
    return CPU_TIME * (6 if SLOW[0] <= at < SLOW[1] else 2)


class Fleet(msgspec.Struct):
    """All machines together, as totals. cpu: seconds of CPU time so far."""

    at: int = 0
    machines: int = FEWEST
    taken: float = 0.0
    busy: float = 0.0
    queued: float = 0.0
    cpu: float = 0.0

    def serve(self) -> float:
        """Let a second go by; return how long a request that arrives in it waits."""
        arrived, service = rate(self.at), service_time(self.at)
        most = self.machines * WORKERS / service
        served = min(most, self.queued + arrived)
        self.queued += arrived - served
        self.taken += served
        self.busy += served * service
        self.cpu += served * CPU_TIME
        self.at += 1
        return self.queued / most

    def counts(self) -> Counts:
        """Return what the metrics processes of all machines would have read, added up."""
        return Counts(self.at, round(self.taken), 0, self.busy, round(self.queued))


Wish = Callable[[Fleet], float]
"""Returns how many machines an autoscaler wants now; not rounded."""


def by_need() -> Wish:
    """Follow ``prefork_workers_needed``: as many machines as have that many workers."""
    demand = Demand()
    return lambda fleet: demand.update(fleet.counts(), 0.0) / WORKERS


def by_cpu() -> Wish:
    """Follow CPU time: the machines should use TARGET of their CPUs."""
    before: deque[tuple[int, float]] = deque([(0, 0.0)], maxlen=1 + CPU_SPAN // LOOK_EVERY)

    def wish(fleet: Fleet) -> float:
        before.append((fleet.at, fleet.cpu))
        at, cpu = before[0]
        used = (fleet.cpu - cpu) / (max(1, fleet.at - at) * fleet.machines * CPUS)
        return fleet.machines * used / TARGET

    return wish


class Scaler:
    """What Kubernetes' HorizontalPodAutoscaler does by default with what it is told (pure)."""

    def __init__(self, wish: Wish) -> None:
        self._wish = wish
        self._wishes: deque[int] = deque(maxlen=CALM // LOOK_EVERY)
        self._coming: deque[tuple[int, int]] = deque()

    def look(self, fleet: Fleet) -> None:
        """Take machines into service that have booted; order or give back machines where it is time."""
        while self._coming and self._coming[0][0] <= fleet.at:
            fleet.machines += self._coming.popleft()[1]
        if fleet.at % LOOK_EVERY:
            return
        has = fleet.machines + sum(count for _, count in self._coming)
        wanted = self._wish(fleet)
        whole = max(FEWEST, has if abs(wanted / has - 1) <= TOLERANCE else math.ceil(wanted))
        self._wishes.append(whole)
        if whole > has:
            self._coming.append((fleet.at + BOOT, min(whole - has, max(4, has))))
        elif not self._coming:
            fleet.machines = min(fleet.machines, max(self._wishes))


class Record(msgspec.Struct, frozen=True):
    """A day. machines: at each minute. waits: seconds, of each second's requests. hours: machines times hours."""

    machines: list[Point]
    waits: list[float]
    hours: float

    @property
    def minutes_of_waiting(self) -> float:
        """For how many minutes a request waited for more than a second."""
        return sum(wait > 1 for wait in self.waits) / 60


@functools.cache
def day(name: str) -> Record:
    """Have an autoscaler look after the machines for a day. name: of one of WISHES."""
    fleet, scaler = Fleet(machines=4), Scaler(WISHES[name]())
    machines: list[Point] = []
    waits: list[float] = []
    hours = 0.0
    for second in range(DAY):
        scaler.look(fleet)
        waits.append(fleet.serve())
        hours += fleet.machines / HOUR
        if second % 60 == 0:
            machines.append((second / HOUR, fleet.machines))
    return Record(machines, waits, hours)


WISHES: Final[dict[str, Callable[[], Wish]]] = {
    "`prefork_workers_needed`": by_need,
    "CPU time": by_cpu,
}


def table() -> str:
    """Say what the day costs."""
    lines = [
        "| the autoscaler follows | machine hours | longest wait | minutes with waits of more than 1 s |"
    ]
    lines.append("| --- | --- | --- | --- |")
    for name in WISHES:
        found = day(name)
        cells = [f"{found.hours:.0f}", _length(max(found.waits)), f"{found.minutes_of_waiting:.0f}"]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines)


def _length(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def document(text: str) -> str:
    """Return the document with the table brought up to date."""
    between = re.compile(r"(?<=<!-- autoscaler -->\n).*?(?=<!-- /autoscaler -->)", re.DOTALL)
    return between.sub(lambda _: f"\n{table()}\n\n", text)


def picture() -> str:
    """Draw the day."""
    ticks = [3.0 * n for n in range(9)]
    bare = Axis(0, 24, ticks, lambda _: "")
    hours = Axis(0, 24, ticks, lambda x: f"{x:.0f}:00")
    came = Panel(
        56, 78, 680, 60, bare, Axis(0, 400, (0, 200, 400)), "requests that arrive, per second"
    )
    came.area([(minute / 60, rate(minute * 60)) for minute in range(1440)], GREY_FILL)
    pool = Panel(56, 178, 680, 150, bare, Axis(0, 40, (0, 10, 20, 30, 40)), "machines of 4 workers")
    wait = Panel(
        56,
        368,
        680,
        110,
        hours,
        Axis(0, 300, (0, 100, 200, 300)),
        "seconds that a request waits (cut at 300)",
    )
    for name, colour in zip(WISHES, (BLUE, ORANGE), strict=True):
        found = day(name)
        pool.steps(found.machines, colour)
        minutes = [max(found.waits[60 * n : 60 * n + 60]) for n in range(1440)]
        wait.steps([(n / 60, min(300.0, longest)) for n, longest in enumerate(minutes)], colour)
    pool.label((1, 34), "follows prefork_workers_needed", BLUE)
    pool.label((1, 28), "follows CPU time", ORANGE)
    pool.label((16.3, 36), "slow database", PALE, "middle")
    came.label((10.5, 330), "burst", PALE)
    return chart(
        "A day of two autoscalers",
        "The autoscaler that follows CPU time gives machines back while the database is slow, and requests wait.",
        522,
        (came, pool, wait),
    )


PICTURE: Final = HERE / "autoscaler.svg"


def main() -> None:
    """Write the table and the picture."""
    DOCUMENT.write_text(document(DOCUMENT.read_text("utf-8")), "utf-8")
    PICTURE.write_text(picture(), "utf-8")


if __name__ == "__main__":
    main()
