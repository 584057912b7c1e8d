"""What must hold at every moment, whatever is done to the pool: judgments over samples, all of them pure.

Each invariant has a bound, and each bound has a reason beside it. The bounds are those of the project's
documents, widened where the machine is shared: the harness, its clients and the pool have two cores together.
"""

from __future__ import annotations

import re
from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence


class Invariant(Enum):
    """The invariants, in words."""

    I1 = "never more live workers than max_children"
    I2 = "never fewer workers than are to be kept, but for a moment"
    I3 = "a connection is made at once"
    I4 = "each loss is explained, and few workers die with a request that nobody has read"
    I5 = "somebody is always answered, and at rest everybody at once"
    I6 = "the dead are collected"
    I7 = "the master lives, with the same pid"
    I8 = "totals never fall, and requests add up"
    I9 = "the metrics tell what /proc tells"
    I10 = "the master holds no descriptor more than its workers need"
    I11 = "the master's memory does not grow"
    I12 = "the master looks around"
    I13 = "an idle pool uses no processor"
    I14 = "at most two generations live, and one more for each reload that failed late"
    I15 = "the log has whole lines, one exit for each worker, and no traceback of prefork's own"
    I16 = "nothing is left after the end"


class Promise(Enum):
    """What a fault may suspend for a while."""

    SIZE = "the pool has its workers"
    ANSWER = "somebody is answered"
    REAP = "the dead are collected"
    TICK = "the master looks around"
    SCRAPE = "/metrics answers"
    LOSS = "no request is lost"


Unexcused: TypeAlias = "Callable[[float, float, Promise], float]"
"""``unexcused(since, now, promise)``: for how many seconds a promise has been broken without an excuse."""


class Breach(NamedTuple):
    """An invariant that did not hold. at: when, on the monotonic clock."""

    invariant: Invariant
    at: float
    what: str


SHORT_FOR: Final = 2.0
"""I2, seconds. A replacement takes 0.25 s on an idle machine; a retry after a failed boot or fork comes within 1 s."""

CONNECTED_IN: Final = 1.0
"""I3, seconds. The kernel completes a connection without the server; what is over that is the machine's load."""

UNREAD_SHARE: Final = 0.02
"""I4. A worker notes a request some 50 µs after taking it, and has it for 5 ms: one kill in a hundred falls between."""

SILENT_FOR: Final = 3.0
"""I5, seconds without an answer to any client. Every worker may have a hung request, which ends after 3 s at most."""

LONE_IN: Final = 1.0
"""I5, seconds for a lone request at rest: 0.5 s for a lost wake-up, and the machine's load."""

DEAD_FOR: Final = 1.0
"""I6, seconds from a death to its collection, the time not counted in which the master was stopped or in an exec."""

GROWN_BY: Final = 8 << 20
"""I11, bytes of private memory over a whole episode. New images differ by 1 to 3 MiB."""

TICK_AGE: Final = 2.0
"""I12, seconds. The master looks around every 0.5 s."""

IDLE_SHARE: Final = 0.2
"""I13, of one core, for master and workers together. It is 0.01 on an idle machine; a loop that spins is at 1."""

SCRAPED_IN: Final = 2.5
"""I9, seconds in which /metrics must have answered. A metrics process that died is replaced once a second at most."""

LEFT_FOR: Final = 2.0
"""I16, seconds from the end of the master to that of its last process."""


# --- the children of the master ------------------------------------------------------------------


class Role(Enum):
    """What a child of the master is, as its title says."""

    WORKER = "worker"
    METRICS = "metrics"
    NEWBORN = "newborn"
    """It has the title of its master still."""
    OTHER = "other"
    """Another program, such as the trial of a reload."""


class Child(NamedTuple):
    """A child of the master. started: in clock ticks since boot; with the pid it identifies the process for ever."""

    pid: int
    started: int
    role: Role
    is_dead: bool


class Sample(NamedTuple):
    """The master and its children at one moment.

    master: its state in /proc, "" if it is gone. is_away: it is stopped, or in an exec.
    """

    at: float
    master: str
    is_away: bool
    children: tuple[Child, ...]

    @property
    def is_over(self) -> bool:
        """Whether the master is gone, or dead."""
        return self.master in ("", "Z", "X")


class ChildrenJudge:
    """Holds I1, I2, I6 and I7 over samples of the master's children."""

    def __init__(self, max_children: int) -> None:
        self.most = 0
        self.workers: int | None = None
        """How many workers lived at the last look; None before the first one."""
        self.away_at = 0.0
        """When the master was last seen stopped or in an exec."""
        self._max_children = max_children
        self._roles: dict[tuple[int, int], Role] = {}
        self._unsettled: deque[tuple[float, list[tuple[int, int]]]] = deque()
        self._dead_since: dict[tuple[int, int], float] = {}
        self._reported: set[tuple[int, int]] = set()
        self._short_since = 0.0
        self._is_gone = False

    def take(self, sample: Sample, floor: int, unexcused: Unexcused) -> Iterator[Breach]:
        """Judge a sample. floor: how many workers are to be kept."""
        if sample.is_away:
            self.away_at = sample.at
        if sample.is_over:
            if not self._is_gone:
                self._is_gone = True
                yield Breach(Invariant.I7, sample.at, "the master is gone")
            return
        self._learn(sample)
        yield from self._not_too_many(sample)
        yield from self._not_too_few(sample, floor, unexcused)
        yield from self._collected(sample, unexcused)

    def _learn(self, sample: Sample) -> None:
        """Note what each child is. A newborn one is what it becomes."""
        for child in sample.children:
            one = child.pid, child.started
            if self._roles.get(one, Role.NEWBORN) is Role.NEWBORN:
                self._roles[one] = child.role

    def _not_too_many(self, sample: Sample) -> Iterator[Breach]:
        alive = [(child.pid, child.started) for child in sample.children if not child.is_dead]
        self._unsettled.append((sample.at, alive))
        while self._unsettled and self._unsettled[0][0] < sample.at - 1.5:
            at, seen = self._unsettled.popleft()
            workers = sum(self._roles[one] is Role.WORKER for one in seen)
            self.most = max(self.most, workers)
            if workers > self._max_children:
                yield Breach(Invariant.I1, at, f"{workers} workers, of {self._max_children}")

    def _not_too_few(self, sample: Sample, floor: int, unexcused: Unexcused) -> Iterator[Breach]:
        workers = sum(
            self._roles[child.pid, child.started] is Role.WORKER and not child.is_dead
            for child in sample.children
        )
        self.workers = workers
        if workers >= floor or sample.is_away or not self._short_since:
            self._short_since = sample.at
        elif unexcused(self._short_since, sample.at, Promise.SIZE) > SHORT_FOR:
            self._short_since = sample.at  # once for each so long
            yield Breach(Invariant.I2, sample.at, f"{workers} workers, of {floor}")

    def _collected(self, sample: Sample, unexcused: Unexcused) -> Iterator[Breach]:
        dead = {(child.pid, child.started) for child in sample.children if child.is_dead}
        self._dead_since = {one: self._dead_since.get(one, sample.at) for one in dead}
        for one, since in self._dead_since.items():
            late = unexcused(max(since, self.away_at), sample.at, Promise.REAP)
            if late > DEAD_FOR and one not in self._reported:
                self._reported.add(one)
                role = self._roles[one].value
                yield Breach(Invariant.I6, sample.at, f"{role} {one[0]} is dead for {late:.1f} s")


# --- the metrics ---------------------------------------------------------------------------------


Values = dict[str, float]
"""The samples of /metrics: each name with its labels, and its value."""


def total(values: Mapping[str, float], name: str, *labels: str) -> float:
    """Return the sum of the samples of a metric that have these labels, such as ``state="idle"``."""
    return sum(
        value
        for key, value in values.items()
        if (key == name or key.startswith(f"{name}{{")) and all(label in key for label in labels)
    )


class ScrapeJudge:
    """Holds I8, I9 (that there is an answer at all), I12 and I14 over scrapes of /metrics."""

    def __init__(self, now: float) -> None:
        self._highest: Values = {}
        self._answered_at = now
        self._reloads = 0.0
        self._failed = self._failed_before = 0.0
        """Failed reloads at the last reload that succeeded, and at the one before."""

    def take_none(self, at: float, unexcused: Unexcused) -> Iterator[Breach]:
        """Judge a scrape that failed."""
        if unexcused(self._answered_at, at, Promise.SCRAPE) > SCRAPED_IN:
            self._answered_at = at
            yield Breach(Invariant.I9, at, f"/metrics has not answered for {SCRAPED_IN:g} s")

    def take(
        self, at: float, wall: float, values: Values, away_at: float, unexcused: Unexcused
    ) -> Iterator[Breach]:
        """Judge a scrape.

        wall: the Unix time just before it was asked for. away_at: when the master was last seen stopped or
        in an exec.
        """
        self._answered_at = at
        for key, value in values.items():
            if _is_total(key):
                if value < self._highest.get(key, 0.0):
                    yield Breach(Invariant.I8, at, f"{key} fell to {value} of {self._highest[key]}")
                self._highest[key] = value
        age = wall - values.get("prefork_last_tick_timestamp_seconds", wall)
        if unexcused(max(at - age, away_at), at, Promise.TICK) > TICK_AGE:
            yield Breach(Invariant.I12, at, f"the last tick is {age:.1f} s old")
        generations = set(
            re.findall(r'prefork_worker_info\{.*generation="(\d+)"', "\n".join(values))
        )
        if len(generations) > self._most_generations(values):
            yield Breach(Invariant.I14, at, f"generations {sorted(generations)}")

    def _most_generations(self, values: Values) -> int:
        """Return how many generations may live.

        A reload that fails late, when the master has the new code already, leaves the old workers in place.
        Workers that end after that have the new generation, and the next reload may fail late, too.
        """
        failed = total(values, "prefork_reloads_total", 'result="failed"')
        succeeded = total(values, "prefork_reloads_total", 'result="ok"')
        if succeeded != self._reloads:
            self._reloads = succeeded
            self._failed, self._failed_before = failed, self._failed
        return 2 + int(failed - self._failed_before)


def _is_total(key: str) -> bool:
    name = key.partition("{")[0]
    return name.endswith(("_total", "_count", "_bucket", "_sum"))


# --- a rest --------------------------------------------------------------------------------------


class Rest(NamedTuple):
    """Everything about a pool to which nothing is done and of which nothing is asked.

    workers: live ones, as /proc shows them. taken: requests in the journal. fds, private: the master's
    descriptors and bytes of private memory. share: of a core, used by all its processes. lone: for each
    listener the seconds that a single request took. status: ``prefork status --json``, {} if it failed.
    """

    at: float
    workers: int
    zombies: int
    values: Values
    taken: int
    fds: int
    private: int
    share: float
    lone: dict[str, float]
    status: dict[str, object]


class Baseline(NamedTuple):
    """What the master holds at its start. per_worker: descriptors for each worker more."""

    workers: int
    fds: int
    per_worker: int
    private: int


ROUND: Final = 16
"""Datagrams of a round, whose counts a killed worker takes with it."""

_ORDERLY: Final = (
    "retired",
    "scaled_down",
    "reloaded",
    "max_requests",
    "max_lifetime",
    "max_memory",
)


def judge_rest(rest: Rest, baseline: Baseline) -> Iterator[Breach]:
    """Judge a rest: I5, I6, I8, I9, I10, I11, I13."""
    yield from _adds_up(rest)
    yield from _tells_the_truth(rest)
    expected = baseline.fds + baseline.per_worker * (rest.workers - baseline.workers)
    if rest.fds != expected:
        text = f"{rest.fds} descriptors with {rest.workers} workers, {expected} expected"
        yield Breach(Invariant.I10, rest.at, text)
    if rest.private - baseline.private > GROWN_BY:
        text = f"{baseline.private >> 10} KiB at the start, {rest.private >> 10} KiB now"
        yield Breach(Invariant.I11, rest.at, text)
    if rest.share > IDLE_SHARE:
        yield Breach(Invariant.I13, rest.at, f"{rest.share:.2f} of a core")
    for listener, seconds in rest.lone.items():
        if seconds > LONE_IN:
            yield Breach(Invariant.I5, rest.at, f"a lone request to {listener}: {seconds:.2f} s")
    if rest.zombies:
        yield Breach(Invariant.I6, rest.at, f"{rest.zombies} zombies at rest")


def _adds_up(rest: Rest) -> Iterator[Breach]:
    values = rest.values
    requests = total(values, "prefork_requests_total")
    by_slot = total(values, "prefork_worker_requests_total")
    if requests != by_slot:
        yield Breach(Invariant.I8, rest.at, f"{requests:.0f} requests, {by_slot:.0f} by slot")
    exits = total(values, "prefork_worker_exits_total")
    bad = exits - sum(
        total(values, "prefork_worker_exits_total", f'cause="{cause}"') for cause in _ORDERLY
    )
    if not rest.taken - ROUND * bad <= requests <= rest.taken + bad:
        text = f"{requests:.0f} requests counted, {rest.taken} taken, {bad:.0f} workers lost"
        yield Breach(Invariant.I8, rest.at, text)
    if busy := total(values, "prefork_requests_in_progress"):
        yield Breach(Invariant.I8, rest.at, f"{busy:.0f} requests in progress at rest")


def _tells_the_truth(rest: Rest) -> Iterator[Breach]:
    gauge = total(rest.values, "prefork_workers")
    if gauge != rest.workers:
        yield Breach(Invariant.I9, rest.at, f"{gauge:.0f} workers told, {rest.workers} in /proc")
    told = rest.status.get("workers")
    ready = told.get("ready") if isinstance(told, dict) else None
    if ready != rest.workers:
        yield Breach(Invariant.I9, rest.at, f"status: {ready} ready, of {rest.workers}")


# --- the log and the end -------------------------------------------------------------------------


_LINE = re.compile(
    r"\d{4}-\d\d-\d\dT[\d:.]+Z (DEBUG|INFO|WARNING|ERROR|CRITICAL) +\S|    |prefork: "
)
_FRAME = re.compile(r'^ +File "([^"]+)", line \d+, in ')
_OWN = re.compile(r"/(prefork|workers|metrics)/")


def judge_log(lines: Sequence[str], at: float, *, is_whole: bool) -> Iterator[Breach]:
    """Judge the log of an episode: I15. is_whole: all that was written could be read."""
    torn = [line for line in lines if line and not _LINE.match(line)]
    if torn:
        yield Breach(Invariant.I15, at, f"{len(torn)} torn lines, such as {torn[0][:120]!r}")
    for line in own_tracebacks(lines):
        yield Breach(Invariant.I15, at, f"a traceback that ends in prefork: {line.strip()[:160]}")
    if is_whole:
        born = sorted(_pids(lines, r"pid=(\d+) spawned"))
        ended = sorted(_pids(lines, r"worker .*pid=(\d+) exited cause="))
        if born != ended:
            odd = sorted(set(born) ^ set(ended))
            text = f"{len(born)} workers spawned, {len(ended)} exits; such as {odd[:5]}"
            yield Breach(Invariant.I15, at, text)


def judge_deaths(lines: Sequence[str], at: float, known: Collection[int]) -> Iterator[Breach]:
    """Judge the deaths that the log tells of: a worker that died of itself or by a signal is one of the known."""
    for line in lines:
        found = re.search(
            r"worker .*pid=(\d+) exited cause=((?:killed|exited|oom_killed)\S*)", line
        )
        if found and int(found[1]) not in known:
            yield Breach(Invariant.I4, at, f"worker {found[1]} ended by {found[2]}, for no reason")


def own_tracebacks(lines: Sequence[str]) -> Iterator[str]:
    """Yield the last line of each traceback whose innermost frame is in prefork's own files."""
    own = False
    for line in lines:
        if frame := _FRAME.match(line):
            own = _OWN.search(frame[1]) is not None and "/tests/" not in frame[1]
        elif own and re.match(r" +\w[\w.]*(Error|Exception|Interrupt|Exit)\b", line):
            if not re.search(r"Too many open files|harness wants", line):
                yield line
            own = False


def _pids(lines: Sequence[str], pattern: str) -> Iterator[int]:
    for line in lines:
        if found := re.search(pattern, line):
            yield int(found[1])
