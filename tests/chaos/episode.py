"""One episode: a pool, its clients, its faults, its rests, its end, and what all of it came to."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final

from tests.chaos import service
from tests.chaos.clients import PATIENCE, AskingDatagrams, Book, Client, StreamClient, Vandal
from tests.chaos.faults import Faults
from tests.chaos.invariants import (
    LEFT_FOR,
    UNREAD_SHARE,
    Breach,
    Invariant,
    Promise,
    judge_deaths,
    judge_log,
)
from tests.chaos.observe import Journal, Repeating
from tests.chaos.pool import DATAGRAMS, GRACEFUL_TIMEOUT, Pool
from tests.chaos.rest import Rests
from tests.chaos.schedule import Ending, Lane, Sink
from tests.chaos.verdict import UNREAD, Findings, Ledger, Result, explain
from tests.chaos.watch import Watch
from tests.support.clients import can_bind
from tests.support.groups import FREEZE, NO_MORE_PROCESSES, group_with

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.chaos.schedule import Event, Plan, Round
    from tests.support.groups import Group, Switch

ASKING: Final = {"tcp": 3, "tcp2": 2, "unix": 2, "udp": 2, "unixgram": 2}
"""How many clients each listener has."""

VANDALS: Final = 2

SIGNALS: Final = {
    Ending.TERM: (signal.SIGTERM,),
    Ending.INT: (signal.SIGINT,),
    Ending.TERM_TWICE: (signal.SIGTERM, signal.SIGTERM),
    Ending.QUIT: (signal.SIGQUIT,),
    Ending.KILL: (signal.SIGKILL,),
}

GRACEFUL: Final = (Ending.TERM, Ending.INT)
"""The endings that lose no request."""


class Episode:
    """Runs a plan in a folder of its own."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self._plan = plan
        self._folder = folder
        self._round_number = 0
        self._began = time.monotonic()
        self._ledger = Ledger()
        self._findings = Findings()
        self._resources = ExitStack()

    def run(self) -> Result:
        """Run it to its end and return what it came to. Whatever happens, no process is left."""
        with self._resources:
            self._set_up()
            try:
                for number, one in enumerate(self._plan.rounds, 1):
                    self._round_number = number
                    self._round(one)
                    self._close_gates()
                    if self._watch.over.is_set():
                        break
                    self._rests.look()
                else:
                    self._end()
            finally:
                self._end_clients()
            return self._result()

    def progress(self) -> str:
        """Return a line about what has been done so far."""
        book: Book | None = getattr(self, "_book", None)
        return (
            f"round {self._round_number}: {book.outcomes.total() if book else 0} requests, "
            f"{self._ledger.faults.total()} faults, {len(self._findings.breaches)} breaches"
        )

    # Beginning

    def _set_up(self) -> None:
        keep = self._resources
        self._journal = Journal(self._folder / "journal")
        keep.callback(self._journal.close)
        disk = _small_disk(self._folder, keep)
        processes, freezer = _group(keep, *NO_MORE_PROCESSES), _group(keep, *FREEZE)
        stdout = (disk or self._folder) / "stdout"
        self._pool = Pool(self._plan, self._folder, self._journal.path, stdout)
        keep.callback(self._pool.end)
        reader = Repeating("journal", 0.05, self._journal.read)
        reader.start()
        keep.callback(reader.stop)
        self._book = Book(self._journal)
        self._faults = Faults(
            self._pool,
            self._ledger,
            self._book,
            processes=processes,
            freezer=freezer,
            disk=disk,
        )
        self._rests = Rests(self._pool, self._book, self._journal, self._findings)
        self._watch = Watch(self._pool, self._book, self._ledger, self._findings)
        self._watch.start()
        keep.callback(self._watch.stop)
        self._clients = list(self._make_clients())
        for client in self._clients:
            client.start()

    def _make_clients(self) -> Iterator[Client]:
        numbers = iter(range(1000))

        def common() -> tuple[Pool, Book, random.Random]:
            seed = f"{self._plan.seed}/{self._plan.number}/{next(numbers)}"
            return self._pool, self._book, random.Random(seed)

        for listener, count in ASKING.items():
            for _ in range(count):
                if listener in DATAGRAMS:
                    yield AskingDatagrams(*common(), listener, self._journal)
                else:
                    yield StreamClient(*common(), listener)
        for _ in range(VANDALS):
            yield Vandal(*common())

    # A round

    def _round(self, one: Round) -> None:
        self._open_gates()
        begun = time.monotonic()
        lanes = [
            threading.Thread(target=self._run_lane, args=(lane, one.events, begun)) for lane in Lane
        ]
        for lane in lanes:
            lane.start()
        for lane in lanes:
            lane.join()
        self._watch.over.wait(max(0.0, begun + one.seconds - time.monotonic()))

    def _run_lane(self, lane: Lane, events: tuple[Event, ...], begun: float) -> None:
        for event in events:
            if event.lane is not lane:
                continue
            self._watch.over.wait(max(0.0, begun + event.at - time.monotonic()))
            while lane is Lane.WORKERS and self._faults.workers_are_spared.is_set():
                time.sleep(0.05)
            if self._watch.over.is_set():
                return
            self._faults.do(event, random.Random(event.draw))

    def _open_gates(self) -> None:
        self._book.answered_at = time.monotonic()
        self._watch.is_asking.set()
        for client in self._clients:
            client.idle.clear()
            client.gate.set()

    def _close_gates(self) -> None:
        """Let every client finish what it is doing."""
        self._watch.is_asking.clear()
        for client in self._clients:
            client.gate.clear()
        for client in self._clients:
            client.idle.wait(PATIENCE + 5)
            if client.error is not None:
                raise client.error

    def _end_clients(self) -> None:
        for client in self._clients:
            client.end()
        for client in self._clients:
            client.join()

    # The end

    def _end(self) -> None:
        """End the pool in the way of the plan, under load, and look at what is left."""
        ending = self._plan.ending
        if self._plan.sink is Sink.CLOSED_PIPE:
            self._pool.log.break_off()
        if ending is Ending.KILL:  # there is no master then that ends a request that hangs
            self._book.is_gentle.set()
        self._open_gates()
        time.sleep(1)
        others = [client for client in self._clients if not isinstance(client, StreamClient)]
        for client in self._clients:
            if isinstance(client, StreamClient):
                client.refused_ends.set()
        for client in others:  # a datagram that comes after the end is dropped without a word
            client.end()
        for client in others:
            client.join()
        self._watch.stop()
        with ExitStack() as stack:
            if ending not in GRACEFUL:
                what = f"ended by {ending.value}"
                stack.enter_context(self._ledger.excuse(what, Promise.LOSS, grace=2))
            self._stop(ending)
        self._findings.check(self._left_over(ending), Invariant.I16)

    def _stop(self, ending: Ending) -> None:
        for number in SIGNALS[ending]:
            self._pool.signal(number)
            time.sleep(0.2)
        code = self._pool.wait(GRACEFUL_TIMEOUT + 4)
        good = -signal.SIGKILL if ending is Ending.KILL else 0
        if code != good:
            text = f"exit status {code} after {ending.value}, {good} expected"
            self._findings.check([Breach(Invariant.I16, time.monotonic(), text)])

    def _left_over(self, ending: Ending) -> list[Breach]:
        patience = LEFT_FOR + (service.TIMEOUT if ending is Ending.KILL else 0)
        end = time.monotonic() + patience
        while (left := self._left(ending)) and time.monotonic() < end:
            time.sleep(0.02)
        return [Breach(Invariant.I16, time.monotonic(), one) for one in left]

    def _left(self, ending: Ending) -> list[str]:
        """Name what is left. A master that is killed leaves its files, and nothing else."""
        addresses = [*self._pool.addresses.values(), self._pool.metrics]
        left = [f"process {pid}" for pid in self._pool.all_processes()]
        left += [
            f"{address} cannot be bound"
            for address in addresses
            if isinstance(address, tuple) and not can_bind(address)
        ]
        if ending is not Ending.KILL:
            paths = [one for one in addresses if isinstance(one, str)] + [str(self._folder / "pid")]
            left += [f"file {path}" for path in paths if os.path.lexists(path)]
        return left

    # What it came to

    def _result(self) -> Result:
        book, ledger, findings, log = self._book, self._ledger, self._findings, self._pool.log
        now, lines = time.monotonic(), log.lines()
        # Nobody logs the end of workers whose master was killed.
        is_whole = log.is_whole and self._plan.ending is not Ending.KILL
        findings.check(judge_log(lines, now, is_whole=is_whole), Invariant.I15)
        known = book.ended_as_asked | ledger.let_go | self._journal.doomed
        known |= {harm.pid for harm in ledger.harms}
        findings.check(judge_deaths(lines, now, known), Invariant.I4)
        judged = explain(book.losses, ledger.harms, ledger.excuses, PATIENCE, ledger.drops)
        unread = sum(one.because.endswith(UNREAD) for one in judged)
        if unread > 3 + UNREAD_SHARE * len(ledger.harms):
            text = f"{unread} requests lost before they were read"
            findings.check([Breach(Invariant.I4, now, text)])
        result = Result(seconds=now - self._began, episodes=1)
        result.take(book.outcomes, book.by_listener, ledger, findings)
        where = f"seed {self._plan.seed} episode {self._plan.number}"
        result.note_losses(judged, where, self._began, ledger)
        result.note_breaches(findings.breaches, where, self._began, ledger)
        return result


def _small_disk(folder: Path, keep: ExitStack) -> Path | None:
    """Mount a small file system in the folder; None where that is not allowed."""
    place = folder / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    with suppress(FileNotFoundError):
        if not subprocess.run(command, capture_output=True, check=False).returncode:
            keep.callback(subprocess.run, ["umount", str(place)], check=False)
            return place
    return None


def _group(keep: ExitStack, *switches: Switch) -> Group | None:
    try:
        return keep.enter_context(group_with(*switches))
    except OSError:
        return None
