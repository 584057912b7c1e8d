"""Which fault strikes when. Everything here is pure: the same seed gives the same schedule.

A run is a sequence of episodes, each with a pool of its own. An episode is a sequence of rounds: some
seconds of faults, then a rest in which everything must come back to normal. Faults are spread over three
lanes. A lane does one fault after the other; the lanes go on side by side.
"""

from __future__ import annotations

import random
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator


class Lane(Enum):
    """A row of faults, one after the other; the value is the mean time between two of them, in seconds."""

    WORKERS = 0.35
    MASTER = 1.6
    AROUND = 2.4


class Temper(Enum):
    """How hard a run is: only in a fierce one do shortages meet reloads."""

    CALM = "calm"
    FIERCE = "fierce"


class Kind(NamedTuple):
    """A kind of fault. weight: how often it is drawn, in relation to the others of its lane."""

    name: str
    lane: Lane
    weight: int
    temper: Temper = Temper.CALM


KINDS: Final = (
    # What happens to workers.
    Kind("worker_killed", Lane.WORKERS, 30),
    Kind("worker_crashed", Lane.WORKERS, 14),
    Kind("worker_asked_to_leave", Lane.WORKERS, 10),
    Kind("worker_stopped_for_a_moment", Lane.WORKERS, 8),
    Kind("worker_stopped_for_long", Lane.WORKERS, 2),
    Kind("worker_gets_junk_signals", Lane.WORKERS, 10),
    Kind("newborn_gets_a_signal", Lane.WORKERS, 6),
    Kind("worker_without_descriptors", Lane.WORKERS, 6),
    Kind("accept_fails", Lane.WORKERS, 3),
    Kind("worker_is_slowed", Lane.WORKERS, 3),
    Kind("all_workers_killed", Lane.WORKERS, 2),
    # What happens to the master, and what it is asked to do.
    Kind("master_stopped", Lane.MASTER, 6),
    Kind("resizing_storm", Lane.MASTER, 8),
    Kind("dump_storm", Lane.MASTER, 4),
    Kind("reload_good", Lane.MASTER, 10),
    Kind("upgrade_good", Lane.MASTER, 4),
    Kind("reload_twice", Lane.MASTER, 4),
    Kind("reload_with_kills", Lane.MASTER, 4),
    Kind("reload_broken", Lane.MASTER, 10),
    Kind("reload_cannot_boot", Lane.MASTER, 4),
    Kind("boot_fails_for_a_while", Lane.MASTER, 6),
    Kind("master_without_descriptors", Lane.MASTER, 4),
    Kind("no_more_processes", Lane.MASTER, 4),
    Kind("fork_fails", Lane.MASTER, 3),
    Kind("master_calls_fail", Lane.MASTER, 3),
    Kind("everything_frozen", Lane.MASTER, 2),
    # What happens around the pool.
    Kind("metrics_process_killed", Lane.AROUND, 8),
    Kind("metrics_process_stopped", Lane.AROUND, 3),
    Kind("log_unread", Lane.AROUND, 4),
    Kind("disk_full", Lane.AROUND, 3),
    Kind("metrics_under_attack", Lane.AROUND, 4),
    # Shortages and stops in the middle of a reload, and code that fails behind the exec.
    Kind("reload_without_descriptors", Lane.MASTER, 8, Temper.FIERCE),
    Kind("reload_without_processes", Lane.MASTER, 6, Temper.FIERCE),
    Kind("reload_with_failing_calls", Lane.MASTER, 5, Temper.FIERCE),
    Kind("reload_with_files_cut_short", Lane.MASTER, 3, Temper.FIERCE),
    Kind("reload_while_stopped", Lane.MASTER, 5, Temper.FIERCE),
    Kind("reload_fails_behind_exec", Lane.MASTER, 5, Temper.FIERCE),
    Kind("stopped_behind_failed_exec", Lane.MASTER, 4, Temper.FIERCE),
    Kind("killed_all_while_boot_fails", Lane.MASTER, 5, Temper.FIERCE),
)


class Event(NamedTuple):
    """One fault. at: seconds since the round began. draw: the seed of the choices that the fault makes itself."""

    at: float
    kind: str
    lane: Lane
    draw: int


class Round(NamedTuple):
    """Some seconds of faults, sorted by time."""

    seconds: float
    events: tuple[Event, ...]


class Ending(Enum):
    """How an episode ends the pool."""

    TERM = "term"
    INT = "int"
    TERM_TWICE = "term_twice"
    QUIT = "quit"
    KILL = "kill"


class Sink(Enum):
    """Where the log of the pool goes."""

    PIPE = "pipe"
    """Read at once: nothing of it may be missing."""
    LAZY_PIPE = "lazy pipe"
    """Left unread for seconds by ``log_unread``."""
    CLOSED_PIPE = "closed pipe"
    """Read at once, and closed before the end."""


class Plan(NamedTuple):
    """One episode: its settings, its rounds, its end."""

    seed: int
    number: int
    temper: Temper
    workers: int
    max_children: int
    min_spare: int
    sink: Sink
    rounds: tuple[Round, ...]
    ending: Ending


def plan(
    seed: int, number: int, seconds: float, temper: Temper, round_seconds: float = 30.0
) -> Plan:
    """Return the episode of this number in the run of this seed.

    seconds: of faults, the rests between the rounds not counted.
    """
    dice = random.Random(f"{seed}/{number}/{temper.value}")
    workers = dice.randint(3, 4)
    sink = dice.choices(list(Sink), [3, 2, 1])[0]
    kinds = [
        kind
        for kind in KINDS
        if kind.temper in (Temper.CALM, temper)
        and (kind.name != "log_unread" or sink is Sink.LAZY_PIPE)
    ]
    count = max(1, round(seconds / round_seconds))
    return Plan(
        seed=seed,
        number=number,
        temper=temper,
        workers=workers,
        max_children=workers + dice.randint(2, 4),
        min_spare=dice.choice([1, 1, 2]),
        sink=sink,
        rounds=tuple(_round(dice, seconds / count, kinds) for _ in range(count)),
        ending=dice.choices(list(Ending), [5, 2, 1, 1, 1])[0],
    )


def _round(dice: random.Random, seconds: float, kinds: list[Kind]) -> Round:
    events = [event for lane in Lane for event in _events(dice, lane, seconds, kinds)]
    return Round(seconds, tuple(sorted(events, key=lambda event: event.at)))


def _events(dice: random.Random, lane: Lane, seconds: float, kinds: list[Kind]) -> Iterator[Event]:
    kinds = [kind for kind in kinds if kind.lane is lane]
    weights = [kind.weight for kind in kinds]
    at = dice.expovariate(1 / lane.value)
    while at < seconds:
        (kind,) = dice.choices(kinds, weights)
        yield Event(at, kind.name, lane, dice.getrandbits(32))
        at += dice.expovariate(1 / lane.value)
