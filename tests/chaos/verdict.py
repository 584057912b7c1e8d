"""Which fault explains which loss, and the table of a run.

The rule is strict. A lost request is explained only by a fault that was inflicted on the very worker that had
the request, while it had the request. A worker has one request at a time, so each such fault explains one
loss at most. What no fault explains is *unexplained*, and the run fails.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from time import monotonic
from typing import TYPE_CHECKING, Final, NamedTuple

from tests.chaos.invariants import Breach, Invariant, Promise

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


class Outcome(Enum):
    """What became of a request, as its client saw it."""

    ANSWERED = "answered"
    ENDED_AS_ASKED = "ended as asked"
    """It asked for an error or for the death of its worker, and got no answer."""
    REFUSED = "refused"
    RESET = "reset"
    CUT = "cut off"
    """The connection was closed before the whole answer had come."""
    SILENCE = "no answer to a datagram"
    """The worker that had taken the datagram is gone."""
    LATE = "late"
    WRONG = "wrong bytes"


GOOD: Final = frozenset({Outcome.ANSWERED, Outcome.ENDED_AS_ASKED})

_BY_DEATH: Final = frozenset({Outcome.RESET, Outcome.CUT, Outcome.SILENCE})
"""What a client sees when its worker dies. A dead worker explains nothing else."""


class Harm(NamedTuple):
    """A fault that may end a worker. begin, end: when it was inflicted, on the monotonic clock."""

    pid: int
    what: str
    begin: float
    end: float


class Excuse(NamedTuple):
    """A while in which promises are suspended, because of a fault. end: infinite while the fault goes on."""

    what: str
    promises: frozenset[Promise]
    begin: float
    end: float


class Loss(NamedTuple):
    """A request that was not answered as it should be.

    taker: the worker that had it, 0 if none had noted it. begin, end: when it was sent, when it was lost.
    """

    listener: str
    ask: str
    outcome: Outcome
    taker: int
    begin: float
    end: float
    detail: str = ""


class Drop(NamedTuple):
    """Datagrams that the kernel has dropped because the queue of the UDP socket was full.

    begin, end: the two looks at the kernel's counter between which it has risen by ``count``.
    """

    begin: float
    end: float
    count: int


class Judged(NamedTuple):
    """A loss and the fault that explains it, "" if none does."""

    loss: Loss
    because: str


SLACK: Final = 0.25
"""Seconds between what the harness notes and what happens: it notes a kill just before or after the signal."""

NOTICED: Final = 0.75
"""Seconds within which a client learns that its worker is dead, on a machine that is shared."""

DEAD_IN: Final = 5.0
"""Seconds within which a worker dies of a signal that ends it: it may be stopped, frozen or traced meanwhile."""


def explain(
    losses: Sequence[Loss],
    harms: Sequence[Harm],
    excuses: Sequence[Excuse],
    patience: float,
    drops: Sequence[Drop] = (),
) -> list[Judged]:
    """Find the fault that explains each loss.

    patience: seconds that a client waits before its request is late. drops: explain a loss for each
    dropped datagram. While no worker lives, clients that misbehave can fill the queue.
    """
    used: set[Harm] = set()
    dropped = {drop: drop.count for drop in drops}
    judged: dict[int, str] = {}
    # Those of which the worker is known come first: nothing else can explain them.
    for number in sorted(range(len(losses)), key=lambda n: (losses[n].taker == 0, losses[n].end)):
        loss = losses[number]
        judged[number] = _by_excuse(loss, excuses, patience)
        if not judged[number] and loss.outcome in _BY_DEATH:
            fitting = [harm for harm in harms if harm not in used and _fits(loss, harm)]
            if fitting:
                harm = min(fitting, key=lambda harm: harm.end)
                used.add(harm)
                judged[number] = harm.what if loss.taker else f"{harm.what}{UNREAD}"
            elif drop := next(
                (one for one in dropped if dropped[one] and _was_dropped(loss, one)), None
            ):
                dropped[drop] -= 1
                judged[number] = "dropped by the kernel"
    return [Judged(loss, judged[number]) for number, loss in enumerate(losses)]


UNREAD: Final = " (before it was read)"
"""What is added to the explanation of a loss whose worker nobody knows."""


def _fits(loss: Loss, harm: Harm) -> bool:
    if loss.taker not in (0, harm.pid):
        return False
    if loss.outcome is Outcome.SILENCE and not loss.taker:  # its client has waited to the end
        return loss.begin - SLACK <= harm.end and harm.begin <= loss.end
    after = DEAD_IN if loss.taker else NOTICED
    return harm.begin - SLACK <= loss.end <= harm.end + after and loss.begin - after <= harm.end


def _was_dropped(loss: Loss, drop: Drop) -> bool:
    is_silence = loss.outcome is Outcome.SILENCE and loss.listener == "udp" and not loss.taker
    return is_silence and drop.begin - SLACK <= loss.begin <= drop.end + SLACK


def _by_excuse(loss: Loss, excuses: Iterable[Excuse], patience: float) -> str:
    for excuse in excuses:
        overlap = min(loss.end, excuse.end) - max(loss.begin, excuse.begin)
        if overlap <= 0 or loss.outcome is Outcome.WRONG:
            continue
        if Promise.LOSS in excuse.promises:
            return excuse.what
        late = loss.outcome is Outcome.LATE and Promise.ANSWER in excuse.promises
        if late and loss.end - loss.begin - overlap < patience / 2:
            return excuse.what
    return ""


def unexcused(since: float, now: float, promise: Promise, excuses: Iterable[Excuse]) -> float:
    """Return for how many seconds a promise has been broken without an excuse (pure).

    since: when it was last kept. An excuse that has ended meanwhile begins the count anew at its end.
    """
    for excuse in excuses:
        if promise in excuse.promises and excuse.begin <= now:
            since = max(since, excuse.end)
    return max(0.0, now - since)


class Ledger:
    """What the harness has done so far. Any thread may write and read it."""

    def __init__(self) -> None:
        self.harms: list[Harm] = []
        self.excuses: list[Excuse] = []
        self.let_go: set[int] = set()
        """Workers that were asked to leave behind the master's back. That excuses no loss."""
        self.drops: list[Drop] = []
        self.events: list[tuple[float, float, str]] = []
        """Each fault with its begin and end."""
        self.faults: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self._lock = threading.Lock()

    def did(self, kind: str, begun: float) -> None:
        """Count a fault."""
        with self._lock:
            self.faults[kind] += 1
            self.events.append((begun, monotonic(), kind))

    def around(self, begin: float, end: float) -> str:
        """Name the faults of a while, for people."""
        names = [kind for one, other, kind in self.events if one < end and other > begin - 1]
        return f"[{', '.join(dict.fromkeys(names))}]"

    def could_not(self, kind: str) -> None:
        """Count a fault that could not be arranged here."""
        with self._lock:
            self.skipped[kind] += 1

    def harm(self, pid: int, what: str, seconds: float = 0.0) -> None:
        """Note that a worker is ended now, or by something that begins now and takes so long."""
        now = monotonic()
        with self._lock:
            self.harms.append(Harm(pid, what, now, now + seconds))

    @contextmanager
    def excuse(self, what: str, *promises: Promise, grace: float) -> Iterator[None]:
        """Suspend promises during the block and for ``grace`` seconds afterwards."""
        begun = Excuse(what, frozenset(promises), monotonic(), math.inf)
        with self._lock:
            self.excuses.append(begun)
        try:
            yield
        finally:
            with self._lock:
                self.excuses.remove(begun)
                self.excuses.append(begun._replace(end=monotonic() + grace))

    def recent_excuses(self, since: float) -> list[Excuse]:
        """Return the excuses that had not ended at that time."""
        with self._lock:
            return [excuse for excuse in self.excuses if excuse.end >= since]


@dataclass
class Findings:
    """What the checks of an episode have found. Any thread may add to it."""

    checks: Counter[Invariant] = field(default_factory=Counter)
    breaches: list[Breach] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def check(self, found: Iterable[Breach], *checked: Invariant) -> None:
        """Note what a look has found, and which invariants it has checked."""
        broken = list(found)
        with self._lock:
            self.breaches += broken
            self.checks.update(checked)


@dataclass
class Result:
    """What an episode, or several of them, came to."""

    seconds: float = 0.0
    episodes: int = 0
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    by_listener: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    explained: Counter[str] = field(default_factory=Counter)
    unexplained: list[str] = field(default_factory=list)
    checks: Counter[Invariant] = field(default_factory=Counter)
    breaches: list[str] = field(default_factory=list)

    @property
    def requests(self) -> int:
        """How many requests were made."""
        return self.outcomes.total()

    @property
    def is_good(self) -> bool:
        """Whether nothing is unexplained and nothing broken."""
        return not self.unexplained and not self.breaches

    def add(self, other: Result) -> None:
        """Add what another episode came to."""
        self.seconds += other.seconds
        self.episodes += other.episodes
        for mine, theirs in (
            (self.outcomes, other.outcomes),
            (self.by_listener, other.by_listener),
            (self.faults, other.faults),
            (self.skipped, other.skipped),
            (self.explained, other.explained),
            (self.checks, other.checks),
        ):
            mine.update(theirs)  # type: ignore[arg-type]
        self.unexplained += other.unexplained
        self.breaches += other.breaches

    def take(
        self,
        outcomes: Counter[Outcome],
        by_listener: Counter[str],
        ledger: Ledger,
        findings: Findings,
    ) -> None:
        """Add the counts of an episode."""
        self.outcomes.update(outcomes)
        self.by_listener.update(by_listener)
        self.faults.update(ledger.faults)
        self.skipped.update(ledger.skipped)
        self.checks.update(findings.checks)

    def note_losses(
        self, judged: Iterable[Judged], where: str, began: float, ledger: Ledger
    ) -> None:
        """Sort losses into those that a fault explains and those that none does.

        began: when the episode did, on the monotonic clock. ledger: names the faults around a loss.
        """
        for loss, because in judged:
            if because:
                self.explained[because] += 1
            else:
                self.unexplained.append(
                    f"{where}, at {loss.end - began:.1f} s: {loss.listener} {loss.ask}: "
                    f"{loss.outcome.value}, worker {loss.taker or 'unknown'}, after "
                    f"{loss.end - loss.begin:.2f} s {loss.detail} "
                    f"{ledger.around(loss.begin, loss.end)}"
                )

    def note_breaches(
        self, breaches: Iterable[Breach], where: str, began: float, ledger: Ledger
    ) -> None:
        """Note what was broken."""
        self.breaches += [
            f"{where}, at {one.at - began:.1f} s: {one.invariant.name}: {one.what} "
            f"{ledger.around(one.at, one.at)}"
            for one in breaches
        ]


def shortened(texts: Sequence[str], most: int = 40) -> list[str]:
    """Return the first of many texts, and how many more there are."""
    more = len(texts) - most
    return [*texts[:most], f"... and {more} more"] if more > 0 else list(texts)


def table(result: Result) -> str:
    """Return the result as text for people."""
    first = (
        f"{result.episodes} episodes, {result.seconds:.0f} s, {result.requests} requests, "
        f"{result.faults.total()} faults, {result.explained.total()} losses explained, "
        f"{len(result.unexplained)} unexplained, {result.checks.total()} checks, "
        f"{len(result.breaches)} breaches"
    )
    lines = [first]
    for title, counts in (
        ("requests", {key.value: n for key, n in result.outcomes.items()}),
        ("by listener", result.by_listener),
        ("faults", result.faults),
        ("faults that could not be arranged here", result.skipped),
        ("losses explained by", result.explained),
        ("checks", {f"{key.name} {key.value}": n for key, n in result.checks.items()}),
    ):
        lines += ["", f"{title}:"] if counts else []
        lines += [
            f"  {n:>9}  {name}" for name, n in sorted(counts.items(), key=lambda one: -one[1])
        ]
    for title, texts in (("UNEXPLAINED", result.unexplained), ("BROKEN", result.breaches)):
        lines += ["", f"{title}:"] if texts else []
        lines += [f"  {text}" for text in shortened(texts)]
    return "\n".join(lines)
