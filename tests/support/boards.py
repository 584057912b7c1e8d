"""Scoreboards without a pool, filled as a master and workers would fill them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from typing import TYPE_CHECKING, Any

from prefork.inspect.survey import look_around
from prefork.inspect.view import Look, ProcessUsage, SlotRow
from prefork.metrics.description import ListenerDescription, PoolDescription
from prefork.metrics.status import status
from prefork.workers import proof
from prefork.workers.scoreboard import PoolField, Scoreboard, SlotField
from prefork.workers.slot_writer import SlotWriter
from prefork.workers.states import StartReason, WorkerState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefork.inspect.running_pool import RunningPool

HERE = os.getpid()
"""This process, which is the master of the boards made here."""

SECOND = 1_000_000_000

_writers: dict[int, list[SlotWriter]] = {}
"""The slot writers of each board by its descriptor. They keep its memory in use until they are detached."""


@contextlib.contextmanager
def scoreboard(
    slots: int = 4, *, master: int = HERE, name: str | None = None, at: int | None = None
) -> Iterator[Scoreboard]:
    """Make the scoreboard of a pool that has served for a minute, and the proof of its master.

    master: the pid that the scoreboard names. at: the present instant, in nanoseconds.
    """
    now = time.monotonic_ns() if at is None else at
    board = Scoreboard.create(slots)
    writers = _writers[board.fd] = []
    held = proof.create(board.fd)
    try:
        for field, value in (
            (PoolField.MASTER_PID, master),
            (PoolField.STARTED_NS, now - 60 * SECOND),
            (PoolField.TICK_NS, now),
            (PoolField.FLOOR, slots),
            (PoolField.TARGET, slots),
            (PoolField.NEEDED, 1),
        ):
            board.set_pool(field, value)
        listener = ListenerDescription("tcp://127.0.0.1:9000", "stream", "inet", 1)
        description = PoolDescription(
            name=name,
            version="0.1.0",
            python="3.11.7",
            listeners=(listener,),
            settings={"workers": "2", "boot_timeout": "7s"},
        )
        board.description.write(description.to_text())
        yield board
    finally:
        for writer in writers:
            writer.detach()
        board.close()
        os.close(held)


def occupy(board: Scoreboard, slot: int, pid: int, *, at: int | None = None) -> SlotWriter:
    """Put an idle worker, ten seconds old, into a slot, and return its writer."""
    now = time.monotonic_ns() if at is None else at
    board.prepare_slot(slot, 0, now - 10 * SECOND)
    board.occupy_slot(slot, pid, StartReason.STARTED)
    writer = SlotWriter(board, slot)
    _writers[board.fd].append(writer)
    writer.become(WorkerState.IDLE)
    return writer


def take_request(writer: SlotWriter, since: int) -> None:
    """Make a worker busy from an instant on."""
    writer.words[SlotField.REQUEST_NS] = since


def status_of_board(board: Scoreboard, at: int) -> dict[str, Any]:
    """Return the status at an instant, in nanoseconds."""
    return status(board.snapshot(), PoolDescription.from_text(board.description.read()), at)


@contextlib.contextmanager
def pools_of(pid: int) -> Iterator[list[RunningPool]]:
    """Survey this machine and yield the pools of one process, without others that may run."""
    survey = look_around()
    try:
        yield [pool for pool in survey.pools if pool.pid == pid]
    finally:
        survey.close()


@contextlib.contextmanager
def memfd(content: bytes, *, size: int | None = None, sealed: bool = True) -> Iterator[None]:
    """Keep a memfd with the name of a scoreboard open, with or without its seals, and a proof for it."""
    fd = os.memfd_create("prefork-scoreboard", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    held = proof.create(fd)
    try:
        os.write(fd, content)
        if size is not None:
            os.ftruncate(fd, size)
        if sealed:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        yield
    finally:
        os.close(held)
        os.close(fd)


def look_at(board: Scoreboard, at: int, **usage: ProcessUsage) -> Look:
    """Look at a board at an instant (ns); ``_4711=ProcessUsage(…)`` is what a worker uses."""
    used = {int(pid[1:]): one for pid, one in usage.items()}
    return Look(at / SECOND, status_of_board(board, at), used)


def slot_row(**changes: Any) -> SlotRow:
    """Make a row of the table."""
    plain: dict[str, Any] = {
        "slot": 0,
        "pid": 1,
        "generation": 0,
        "state": "idle",
        "request_age": None,
        "age": 1.0,
        "requests": 0,
        "rate": None,
        "busy": None,
        "cpu": None,
        "memory": None,
        "spawns": 1,
        "last_exit": None,
    }
    return SlotRow(**plain | changes)
