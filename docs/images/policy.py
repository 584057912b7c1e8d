"""Draw the pictures of docs/POLICY.md and write its tables: ``python -m docs.images.policy``.

Everything comes out of the policy's own code and of the simulator, with fixed seeds: the same code
gives the same files. A test compares them.
"""
# ruff: noqa: INP001, S311 - a folder of pictures, not a package; dice of a simulation, no secrets

from __future__ import annotations

import bisect
import functools
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from docs.images.charts import (
    BLUE,
    BLUE_FILL,
    GREEN,
    GREY_FILL,
    ORANGE,
    PALE,
    Axis,
    Panel,
    Point,
    chart,
)
from docs.images.markdown import filled, table
from prefork.master.master import LOOK_INTERVAL
from prefork.master.pool_size import LOOK_PAUSE
from prefork.workers.pool.spares import GROWTH_CALM, GROWTH_CAP, WINDOW
from prefork.workers.settings import Settings
from tests.support.simulator import (
    Machine,
    Record,
    Sample,
    Simulator,
    burst,
    by_hash,
    constant,
    exponential,
    in_turn,
    lognormal,
    poisson,
    quantile,
    square_wave,
    wait_in_one_queue,
    wait_in_own_queues,
)

HERE = Path(__file__).parent
DOCUMENT = HERE.parent / "POLICY.md"

# --- what is simulated

STEP_AT = 0.2
STEP = Settings(workers=2, max_children=32, min_spare=1, max_spare=4)
STEP_BOOTS = (0.01, 0.1, 0.5, 1.0, 2.0)

WAVE = Settings(workers=2, max_children=40, min_spare=2, max_spare=4)
WAVE_RATES, WAVE_HALF, WAVE_END = (4.0, 60.0), 40.0, 160.0

STEADY_BUSY = 10
STEADY_BEGIN, STEADY_END = 40.0, 280.0
STEADY_BANDS = ((1, 2), (2, 4), (4, 8))
SHOWN_BAND = (2, 4)

QUEUE_WORKERS, QUEUE_SERVICE, QUEUE_REQUESTS = 8, 0.1, 100_000
QUEUE_LOADS = (0.7, 0.9)
SHOWN_PART = 1e-3
"""Of the requests; less is chance, in so short a simulation."""
WAYS = ("one shared queue", "own queues, in turn", "own queues, by hash")
SERVICES = {
    "exponential": exponential(QUEUE_SERVICE),
    "lognormal, sigma 1": lognormal(QUEUE_SERVICE, 1.0),
}


@functools.cache
def step(boot: float = Machine.boot) -> Record:
    """Have 40 clients come at once and stay, at a pool of two idle workers."""
    arrivals = burst(random.Random(1), 40, constant(1000.0), STEP_AT)
    return Simulator(STEP, arrivals, Machine(boot=boot)).run(STEP_AT + 80.0)


@functools.cache
def small_burst() -> Record:
    """Have 40 requests of 0.2 s come at once, and look for a while after."""
    arrivals = burst(random.Random(1), 40, constant(0.2), STEP_AT)
    return Simulator(STEP, arrivals).run(1.0)


@functools.cache
def wave() -> Record:
    """Have load jump up and down again."""
    arrivals = square_wave(random.Random(5), WAVE_RATES, lognormal(0.25, 1.0), WAVE_HALF, WAVE_END)
    return Simulator(WAVE, arrivals).run(WAVE_END)


@functools.cache
def steady(min_spare: int, max_spare: int) -> Record:
    """Have independent clients come at a rate that never changes."""
    settings = Settings(workers=2, max_children=64, min_spare=min_spare, max_spare=max_spare)
    arrivals = poisson(random.Random(3), STEADY_BUSY, exponential(1.0), STEADY_END)
    return Simulator(settings, arrivals).run(STEADY_END)


@functools.cache
def waits(load: float, service: str) -> dict[str, list[float]]:
    """Return the waits of the same requests at three kinds of pools, in order of length."""
    dice = random.Random(11)
    rate = load * QUEUE_WORKERS / QUEUE_SERVICE
    arrivals = poisson(dice, rate, SERVICES[service], QUEUE_REQUESTS / rate)
    choices = (in_turn(QUEUE_WORKERS), by_hash(dice, QUEUE_WORKERS))
    own = [wait_in_own_queues(arrivals, QUEUE_WORKERS, choose) for choose in choices]
    shared = wait_in_one_queue(arrivals, QUEUE_WORKERS)
    return dict(zip(WAYS, map(sorted, (shared, *own)), strict=True))


# --- what is told in words


def rules() -> str:
    """Say the rules of workers/pool/spares.py with their numbers."""
    calm = "one second" if GROWTH_CALM == 1 else f"{GROWTH_CALM:g} s"
    lines = [
        "- The pool has between `workers` and `max_children` workers. Workers that are starting count as idle.",
        "- **It grows at once** when fewer than `min_spare` workers are idle. While no request waits, it adds as many as the",
        f"  reserve lacks. While requests wait, it adds 1, then 2, 4, 8 and so on, never more than {GROWTH_CAP} at once. After {calm}",
        "  without growth, counted from when the last step was ready, the step size falls back to 1. The workers of a step have",
        "  to be ready and busy before the next step, so that slow imports cause no storm of forks.",
        "- **When it looks.** The master looks when a worker becomes ready, and when an idle worker takes a request, for requests",
        f"  at most every {LOOK_PAUSE * 1000:g} ms. It looks every {LOOK_INTERVAL:g} s in any case.",
        f"- **It shrinks slowly.** If more than `max_spare` workers were idle in each of the last {WINDOW} whole seconds, at the",
        "  worst moment of each second, one idle worker is asked to leave. It is one of the oldest generation. The next one",
        "  follows a second later at the earliest. A busy worker is never asked. Without `max_spare` the limit is twice",
        "  `min_spare`.",
        f"- Each growth starts the {WINDOW} seconds again. The pool adds no worker for which memory has no room.",
    ]
    return "\n".join(lines)


def step_table() -> str:
    """Say how long the way up takes."""
    cells = [
        _length(step(boot).first(lambda one: one.busy == 32, STEP_AT) - STEP_AT)
        for boot in STEP_BOOTS
    ]
    boots = [_length(boot) for boot in STEP_BOOTS]
    return table(["a worker boots in", *boots], [[f"{STEP.max_children} are busy after", *cells]])


def steady_table() -> str:
    """Say what a band of idle workers costs and saves where load does not change."""
    rows = []
    for least, most in STEADY_BANDS:
        record = steady(least, most)
        minutes = (STEADY_END - STEADY_BEGIN) / 60
        changes = len(record.resizes(STEADY_BEGIN)) / minutes
        waited = [one.wait for one in record.served if one.arrived >= STEADY_BEGIN]
        part = sum(wait > 0 for wait in waited) / len(waited)
        rows.append(
            [
                f"{least}, {most}",
                f"{record.mean(lambda one: one.wanted, STEADY_BEGIN, STEADY_END):.0f}",
                f"{changes:.1f}",
                f"{part:.2%}",
            ]
        )
    head = [
        "`min_spare`, `max_spare`",
        "mean size",
        "changes of size a minute",
        "requests that waited",
    ]
    return table(head, rows)


def queue_table() -> str:
    """Say what the shared queue saves."""
    rows = []
    for service in SERVICES:
        for load in QUEUE_LOADS:
            tails = [quantile(ordered, 0.99) for ordered in waits(load, service).values()]
            factors = [f"{_length(tail)} ({tail / tails[0]:.0f} times)" for tail in tails[1:]]
            rows.append([service, f"{load:.0%}", _length(tails[0]), *factors])
    return table(["service times", "load", *WAYS], rows)


def machine() -> str:
    """Say what the simulator takes for granted."""
    usual = Machine()
    return (
        f"It assumes that a fork takes {_length(usual.fork)}, that a worker boots in {_length(usual.boot)} unless stated otherwise,\n"
        f"and that the master reacts within {usual.reaction * 1000:g} ms."
    )


TABLES: dict[str, Callable[[], str]] = {
    "rules": rules,
    "step": step_table,
    "steady": steady_table,
    "queues": queue_table,
    "machine": machine,
}
"""Name of each pair of markers ``<!-- name -->``, ``<!-- /name -->`` in POLICY.md, and what stands between."""


def document(text: str) -> str:
    """Return the document with everything that is generated brought up to date."""
    return filled(text, TABLES)


def _length(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s".replace(".0 s", " s")


# --- what is drawn


def _curve(record: Record, what: Callable[[Sample], float], begin: float = 0.0) -> list[Point]:
    """Return the points of a curve whose time begins at an instant."""
    return [(max(0.0, one.at - begin), what(one)) for one in record.since(begin)]


def _per_bin(arrivals: list[float], width: float) -> list[Point]:
    """Return the rate of arrivals in each bin."""
    counts: dict[int, int] = dict.fromkeys(range(int(max(arrivals) / width) + 2), 0)
    for at in arrivals:
        counts[int(at / width)] += 1
    return [(number * width, count / width) for number, count in counts.items()]


def _two_panels(x: Axis, arrivals: Axis, workers: Axis) -> tuple[Panel, Panel]:
    """Return one panel for what comes, and below it one for the pool."""
    bare = Axis(x.least, x.most, x.ticks, lambda _: "")
    return (
        Panel(56, 78, 680, 60, bare, arrivals, "requests that arrive, per second"),
        Panel(56, 178, 680, 230, x, workers, "workers"),
    )


def draw_burst() -> str:
    """Draw the way up."""
    record = small_burst()
    x = Axis(
        STEP_AT - 0.1,
        STEP_AT + 0.6,
        [STEP_AT + tick / 10 for tick in range(-1, 7)],
        lambda x: f"{1000 * (x - STEP_AT):.0f}",
        "milliseconds",
    )
    came, pool = _two_panels(x, Axis(0, 600, (0, 300, 600)), Axis(0, 36, (0, 8, 16, 24, 32)))
    came.area(_per_bin([one.arrived for one in record.served], 0.02), GREY_FILL)
    pool.area(_curve(record, lambda one: one.busy), BLUE_FILL)
    pool.steps(_curve(record, lambda one: one.queue), PALE, "3 3")
    pool.steps(_curve(record, lambda one: one.wanted), ORANGE)
    pool.label((STEP_AT + 0.4, 33.2), "size", ORANGE)
    pool.label((STEP_AT + 0.15, 18), "busy", BLUE, "middle")
    pool.label((STEP_AT + 0.15, 9), "waiting requests", PALE, "middle")
    return chart(
        "A burst: 40 requests of 0.2 s within 0.1 s, at two idle workers",
        "The size doubles step by step to the ceiling of 32 while requests wait.",
        464,
        (came, pool),
    )


def draw_wave() -> str:
    """Draw load that jumps up and down."""
    record = wave()
    x = Axis(0, WAVE_END, [20.0 * tick for tick in range(9)], title="seconds")
    came, pool = _two_panels(x, Axis(0, 80, (0, 40, 80)), Axis(0, 40, (0, 10, 20, 30, 40)))
    came.area(_per_bin([one.arrived for one in record.served], 1.0), GREY_FILL)
    pool.area(_curve(record, lambda one: one.busy), BLUE_FILL)
    pool.steps(_curve(record, lambda one: one.wanted), ORANGE)
    pool.label((WAVE_HALF * 1.5, 36), "size", ORANGE, "middle")
    pool.label((WAVE_HALF * 1.5, 6), "busy", BLUE, "middle")
    return chart(
        "Load that jumps: up at once, down slowly",
        "The size follows a jump of load from 4 to 60 requests a second at once and comes down one by one.",
        464,
        (came, pool),
    )


def draw_steady() -> str:
    """Draw load that does not change."""
    record, length = steady(*SHOWN_BAND), STEADY_END - STEADY_BEGIN
    x = Axis(0, length, [60.0 * tick for tick in range(5)], lambda x: f"{x / 60:g}", "minutes")
    pool = Panel(56, 78, 680, 240, x, Axis(0, 36, (0, 10, 20, 30)), "workers")
    pool.area(_curve(record, lambda one: one.busy, STEADY_BEGIN), BLUE_FILL)
    pool.steps(_curve(record, lambda one: one.wanted, STEADY_BEGIN), ORANGE)
    least, most = SHOWN_BAND
    pool.label((4, 33), f"size, with min_spare = {least} and max_spare = {most}", ORANGE)
    pool.label((length / 2, 4), f"busy, {STEADY_BUSY} on average", BLUE, "middle")
    return chart(
        "Load that does not change: the size stays above its peaks",
        "Independent requests keep 10 workers busy on average; the size changes seldom.",
        374,
        (pool,),
    )


def draw_queues() -> str:
    """Draw how long requests wait in one queue and in a queue for each worker."""
    panels = []
    for number, (load, most) in enumerate(zip(QUEUE_LOADS, (2.5, 7.5), strict=True)):
        x = Axis(0, most, [most / 5 * tick for tick in range(6)], title="seconds")
        y = Axis(SHOWN_PART, 1, (SHOWN_PART, 1e-2, 0.1, 1), lambda y: f"{100 * y:g} %", is_log=True)
        title = f"load {load:.0%}: requests that wait longer than"
        panel = Panel(64 + 356 * number, 86, 308, 250, x, y, title)
        tails = waits(load, "exponential").values()
        for ordered, colour in zip(tails, (ORANGE, GREEN, BLUE), strict=True):
            panel.line([*_tail(ordered, most)], colour)
        for law in (_erlang_tail(load), _lone_tail(load)):
            points = [(most * tick / 200, law(most * tick / 200)) for tick in range(201)]
            panel.line([point for point in points if point[1] >= SHOWN_PART], PALE, 1.2, "2 3")
        panels.append(panel)
    names = [*zip(reversed(WAYS), (BLUE, GREEN, ORANGE), strict=True), ("dotted: in theory", PALE)]
    for (name, colour), height in zip(names, (0.7, 0.45, 0.29, 0.185), strict=True):
        panels[1].label((3.6, height), name, colour)
    return chart(
        "One accept queue for all workers, or one for each",
        "With one shared queue one request in a hundred waits a small part of what it does with own queues.",
        398,
        panels,
    )


def _tail(ordered: list[float], most: float) -> Iterator[Point]:
    """Yield for some lengths which part of the waits is longer."""
    for tick in range(201):
        length = most * tick / 200
        part = 1 - bisect.bisect_right(ordered, length) / len(ordered)
        if part < SHOWN_PART:
            return
        yield length, part


def erlang_c(workers: int, load: float) -> float:
    """Return which part of memoryless requests waits in one queue. load: of one worker, 0 to 1."""
    offered, blocked = workers * load, 1.0
    for count in range(1, workers + 1):
        blocked = offered * blocked / (count + offered * blocked)
    return blocked / (1 - load * (1 - blocked))


def _erlang_tail(load: float) -> Callable[[float], float]:
    waiting = erlang_c(QUEUE_WORKERS, load)
    return lambda at: waiting * math.exp(-QUEUE_WORKERS * (1 - load) * at / QUEUE_SERVICE)


def _lone_tail(load: float) -> Callable[[float], float]:
    return lambda at: load * math.exp(-(1 - load) * at / QUEUE_SERVICE)


PICTURES: dict[str, Callable[[], str]] = {
    "policy-burst.svg": draw_burst,
    "policy-wave.svg": draw_wave,
    "policy-steady.svg": draw_steady,
    "policy-queues.svg": draw_queues,
}


def main() -> None:
    """Write everything."""
    for name, draw in PICTURES.items():
        (HERE / name).write_text(draw(), encoding="utf-8")
    DOCUMENT.write_text(document(DOCUMENT.read_text("utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
