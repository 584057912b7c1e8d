"""When an idle worker gives memory back, and when it does not look."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from prefork.workers.scoreboard import Scoreboard, SlotField
from prefork.workers.slot_writer import IN_PROGRESS, REQUEST_NS, Outcome, SlotWriter
from prefork.workers.worker.trimming import GROWN, SHARE, Trimming, resident

if TYPE_CHECKING:
    from collections.abc import Iterator


class Bench:
    """A worker whose size the test says."""

    def __init__(self) -> None:
        self.board = Scoreboard.create(1)
        self.writer = SlotWriter(self.board, 0)
        self.size = 100 << 20
        self.looks = self.trims = 0
        self.kept = 0
        self.now = self.takes = 0.0
        self.trimming = Trimming(
            self.writer, self._look, self._trim, lambda: self.kept, self._clock
        )
        self.trimming.begin()

    def _clock(self) -> float:
        self.now += self.takes
        return self.now

    def _look(self) -> int:
        self.looks += 1
        return self.size

    def _trim(self) -> None:
        self.trims += 1
        self.size = 101 << 20

    def serve(self, growth: int = 0) -> None:
        """Serve a request that makes the worker grow, and be idle afterwards."""
        self.size += growth
        self.writer.account(Outcome.OK, 1)
        self.trimming.look()

    def word(self, field: SlotField) -> int:
        """Return a word of the slot."""
        return self.writer.words[field]

    def close(self) -> None:
        """Take everything down."""
        self.writer.detach()
        self.board.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    """Give one."""
    made = Bench()
    yield made
    made.close()


def test_heap_that_has_grown_is_trimmed_once(bench: Bench) -> None:
    """A worker that has grown since it was smallest trims its heap, and does so again only when it has grown again."""
    bench.serve(GROWN - 1)
    assert bench.trims == 0
    bench.serve(1)
    assert bench.trims == 1
    bench.serve()
    assert bench.trims == 1
    bench.serve(GROWN)
    assert bench.trims == 2


def test_worker_that_has_served_nothing_does_not_look(bench: Bench) -> None:
    """An idle worker that has served nothing since the last look, reads no file."""
    bench.serve()
    looks = bench.looks
    for _ in range(3):
        bench.trimming.look()
    assert bench.looks == looks


@pytest.mark.parametrize("word", [REQUEST_NS, IN_PROGRESS])
def test_heap_is_left_alone_during_a_request(bench: Bench, word: int) -> None:
    """While a request is in hand, also in a thread, nothing is trimmed."""
    bench.serve()
    bench.writer.account(Outcome.OK, 1)
    bench.writer.words[word] = 1
    bench.size += 2 * GROWN
    looks = bench.looks
    bench.trimming.look()
    assert (bench.looks, bench.trims) == (looks, 0)


def test_looks_take_a_small_share_of_the_time(bench: Bench) -> None:
    """However long a trim takes, looks take SHARE of a worker's time at most, and a look that is due comes later."""
    bench.takes = 0.05
    bench.serve(GROWN)
    bench.takes = 0.0
    bench.now += 0.05 / SHARE - 0.1
    bench.serve(GROWN)
    assert bench.trims == 1
    bench.now += 0.2
    bench.trimming.look()
    assert bench.trims == 2


def test_what_a_worker_says_of_its_memory(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker publishes what it has returned, what malloc() keeps besides that, and how many modules are new."""
    monkeypatch.setitem(sys.modules, "a_module_of_a_handler", ModuleType("a_module_of_a_handler"))
    bench.kept = 3 << 20
    bench.serve()
    assert (bench.word(SlotField.HEAP_KEPT), bench.word(SlotField.MODULES)) == (3 << 20, 1)
    bench.kept = 30 << 20
    bench.serve(21 << 20)
    assert (bench.trims, bench.word(SlotField.HEAP_KEPT)) == (1, 0)
    assert bench.word(SlotField.RETURNED_BYTES) == 20 << 20
    bench.kept = 10 << 20
    bench.serve()
    bench.kept = 14 << 20
    bench.serve()
    assert bench.word(SlotField.HEAP_KEPT) == 4 << 20
    bench.trimming.begin()
    assert bench.word(SlotField.HEAP_KEPT) == bench.word(SlotField.MODULES) == 0


def test_size_of_this_process_is_known() -> None:
    """The size of a process is that of its anonymous memory."""
    assert 1 << 20 < resident() < 1 << 32
