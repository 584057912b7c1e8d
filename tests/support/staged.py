"""A pool, or a whole master, over invented processes: a test says what the workers do and how time goes by."""

from __future__ import annotations

import contextlib
import gc
import os
from typing import TYPE_CHECKING, Any
from unittest import mock

from prefork.host.clock import Clock
from prefork.master.master import Caller, Master
from prefork.master.signals import SignalCounts, handled
from prefork.master.wakeup import Wakeup
from prefork.workers.pool.pool import Pool
from prefork.workers.pool.spares import Spares
from prefork.workers.pool.views import Plan
from prefork.workers.scoreboard import SlotField
from prefork.workers.settings import Settings
from prefork.workers.slot_writer import SlotWriter
from prefork.workers.spec import WorkerSpec
from prefork.workers.states import Order, StartReason, WorkerState
from tests.support.fake_system import FakeSystem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prefork.workers.pool.handle import Handle
    from prefork.workers.pool.table import PoolState

BEGIN = 1000.0
"""The first instant of everything staged, in seconds on the master's clock."""


class Stage:
    """Invented processes, the hooks that were called for them, and the time."""

    def __init__(self) -> None:
        self.system = FakeSystem()
        self.now = BEGIN
        self.pause = 0.0
        """Seconds that go by until the next tick."""
        self.called: list[tuple[Any, ...]] = []
        """Each hook that was called: its name, and what it was given."""
        self.on_hook: Callable[..., object] = lambda *_call: None
        """What the hooks of the program do."""

    def spec(self, settings: Settings, wake: int = -1) -> WorkerSpec:
        """Make the spec of workers that serve nothing."""
        return WorkerSpec(
            settings=settings,
            listeners=[],
            wake=wake,
            credentials=None,
            title=("", ""),
            hooks=self._hook,
            enter=lambda _side: None,
            metrics_dir=None,
        )

    def _hook(self, name: str, *arguments: Any) -> bool:
        self.called.append((name, *arguments))
        self.on_hook(name, *arguments)
        return True

    def hooks(self, name: str) -> list[tuple[Any, ...]]:
        """Return what a hook was given, call by call."""
        return [arguments for one, *arguments in self.called if one == name]


class StagedPool(Stage):
    """A pool over invented processes."""

    def __init__(
        self, workers: int = 4, stage: Stage | None = None, previous: PoolState | None = None
    ) -> None:
        super().__init__()
        if stage is not None:
            self.system, self.now = stage.system, stage.now
        settings = Settings(workers=workers, max_children=workers)
        self.pool = Pool(self.spec(settings), previous=previous, system=self.system)

    # --- what the master does

    def apply(self, **plan: Any) -> None:
        """Carry out a plan."""
        usual = {"spares": Spares(self.pool.table.size)}
        self.pool.apply(Plan(**{**usual, **plan}), self.now)

    def spawn(self, count: int, reason: StartReason = StartReason.STARTED) -> None:
        """Have workers forked."""
        self.apply(starts=(reason,) * count)

    def ready(self, count: int) -> None:
        """Have workers forked that become ready."""
        self.spawn(count)
        self.become_ready()
        self.pool.note_ready(self.now)

    def reap(self) -> None:
        """Have the workers collected that have ended."""
        self.pool.deaths.reap(self.now)

    # --- what the workers do

    def handle(self, slot: int) -> Handle:
        """Return what the master knows of a worker."""
        return self.pool.table[slot]

    def become_ready(self, *slots: int) -> None:
        """Have workers write that they are ready; all that still start without arguments."""
        become_ready(self.pool, *slots)

    def write_report(self, slot: int, text: str) -> None:
        """Have a worker write a stack dump, or its last words."""
        write_report(self.pool, slot, text)

    def end(self, slot: int, code: int | None = None, *, by: int | None = None) -> None:
        """Have a worker end: with an exit status, by a signal, or with its status taken by another."""
        self.system.end(self.handle(slot).info.pid, code, by=by)

    def received(self, slot: int) -> list[int]:
        """Return the signals that a worker was sent since the last call."""
        return self.system.received(self.handle(slot).info.pid)

    def close(self) -> None:
        """Leave nothing."""
        for slot in [*self.pool._descriptors.pipes]:
            self.pool._descriptors.close_pipes(slot)
        self.pool.close()
        self.system.close()


TICK = 0.005
"""Seconds that a tick of a staged master takes, whatever it waits for."""


class StagedClock(Clock):
    """A clock that a test moves."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        super().__init__()

    def now(self) -> float:
        """Return the instant that the test has reached."""
        return self._stage.now

    def waited(self, length: float) -> None:
        """Let as much time go by as the test wants, whatever the master had to wait for."""
        del length
        self._stage.now += max(TICK, self._stage.pause)


class StagedMaster(Stage):
    """A whole master over invented processes: it ticks without waiting, and time goes by as the test says.

    ``run(play())`` runs it. The play is a generator. Every tick resumes it, and what it has done is
    what the master sees in that tick. It yields the seconds that go by between that tick and the
    next, a TICK at least. When the play ends, the master is asked to stop.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.pids: list[set[int]] = []
        """What was published as ``active_children``, tick by tick, without repetitions."""
        self.obedient = True
        """Whether workers leave when they are asked to."""
        self._wakeup = Wakeup()
        self._play: Iterator[float] | None = None
        self._signals = SignalCounts()
        self.master = Master(
            # The workers are invented: threads of the test are no danger to them.
            self.spec(Settings(**{"fork_check": "off", **settings}), self._wakeup.workers_fd),
            self._wakeup,
            Caller(self._service_actions, self._publish_pids, poll_interval=0.0),
            signals=self._signals,
            system=self.system,
            clock=StagedClock(self),
        )
        self.pool = self.master.pool

    def run(self, play: Iterator[float]) -> None:
        """Run the master until it stops. Raises what ``serve_forever()`` would."""
        self._play = play
        # The tests have frozen their heap, and to count what is frozen takes longer than a whole run.
        counted = mock.patch.object(gc, "get_freeze_count", return_value=1)
        with counted, handled(self._signals, self._wakeup):
            self.master.run()

    def boot(self) -> Iterator[float]:
        """Have every worker that is forked become ready (a part of a play)."""
        yield 0.0
        while any(not handle.is_ready for handle in self.pool.table):
            become_ready(self.pool)
            yield 0.0

    def until(self, fact: Callable[[], object], step: float = 0.0) -> Iterator[float]:
        """Let time go by until something is so (a part of a play)."""
        for _ in range(10_000):
            if fact():
                return
            yield step
        raise AssertionError("it never came to that")

    @property
    def starting(self) -> list[Handle]:
        """The workers that are not ready yet."""
        return [handle for handle in self.pool.table if not handle.is_ready]

    def write_report(self, slot: int, text: str) -> None:
        """Have a worker write a stack dump, or its last words."""
        write_report(self.pool, slot, text)

    def pid(self, slot: int) -> int:
        """Return the pid of the worker in a slot."""
        return self.pool.table[slot].info.pid

    def close(self) -> None:
        """Leave nothing."""
        self.master.close()
        self._wakeup.close()
        self.system.close()

    def _service_actions(self) -> None:
        if self.obedient:
            self._obey()
        self.pause = 0.0
        if self._play is not None:
            try:
                self.pause = next(self._play)
            except StopIteration:
                self._play = None
                self.master.ask_shutdown()
        self.master.collect()

    def _obey(self) -> None:
        board = self.pool.board
        for handle in self.pool.table:
            is_asked = board.word(handle.slot, SlotField.ORDER) != Order.SERVE
            if is_asked and handle.info.pid in self.system.alive:
                self.system.end(handle.info.pid, 0)

    def _publish_pids(self, pids: set[int]) -> None:
        if not self.pids or self.pids[-1] != pids:
            self.pids.append(pids)


def become_ready(pool: Pool, *slots: int) -> None:
    """Have workers write that they are ready; all that still start without arguments."""
    starting = [handle.slot for handle in pool.table if not handle.is_ready]
    for slot in slots or starting:
        with pen(pool, slot) as writer:
            writer.become(WorkerState.IDLE)


def write_report(pool: Pool, slot: int, text: str) -> None:
    """Have a worker write a stack dump, or its last words."""
    os.write(pool.table[slot].pipes.report, text.encode() + b"\0")


@contextlib.contextmanager
def pen(pool: Pool, slot: int) -> Iterator[SlotWriter]:
    """Give a worker's pen."""
    writer = SlotWriter(pool.board, slot)
    try:
        yield writer
    finally:
        writer.detach()
