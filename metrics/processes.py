"""What the kernel counts of the workers' processes: CPU, memory, descriptors, switches.

The fields of each scrape are read from ``/proc`` directly: 40 µs for each worker on a busy machine,
where psutil took 130. Unique and proportional memory, which a scrape has to ask for, come from
psutil.
"""

from __future__ import annotations

import mmap
import os
import time

import msgspec
import psutil

from prefork.workers.scoreboard import PoolField, Scoreboard, SlotField, SlotSnapshot, Snapshot

_TICKS = os.sysconf("SC_CLK_TCK")

PATIENCE = 0.05
"""Seconds that one scrape waits, for all slots together, for totals that are on their way."""

LOOK_INTERVAL = 0.0005
"""Seconds between two looks at such a slot."""


class Facts(msgspec.Struct, frozen=True):
    """The processes of one slot.

    user, system: CPU seconds; voluntary, involuntary: context switches; both of all workers that
    the slot has had. resident: bytes; fds: open descriptors; both of the live worker, None without
    one and where this process may not read them.
    """

    user: float
    system: float
    voluntary: int
    involuntary: int
    resident: int | None = None
    fds: int | None = None


class Processes:
    """Reads the facts of a pool, so that no total of a slot ever decreases.

    While a worker lives, its share of the totals is found with its process. When it has ended, the
    master collects it, which removes the process, and adds its share to the slot's words; then the
    slot has no pid any more. Between the two steps lie some microseconds in which the share is found
    nowhere. A slot whose process is gone is therefore read again until its pid has changed: once in
    any case, because the snapshot can be older than the end of the worker. The master may be stopped
    just then, and a worker can write any pid into its slot, so there is an end to that: PATIENCE for
    each scrape. After it the highest totals that were found so far hold. A metrics process that has
    just started has found none yet, for example after a reload, when all workers end. It leaves the
    slot out of this scrape, because a total without the share would fall.
    """

    def __init__(self, board: Scoreboard) -> None:
        self._board = board
        self._highest: dict[int, tuple[float, float, int, int]] = {}

    def facts(self, snapshot: Snapshot) -> dict[int, Facts]:
        """Return the facts of every slot that has had a worker and of which they are known.

        The snapshot must be older than the call. Otherwise a worker that has ended could count
        twice: in the slot's words, and as a process.
        """
        master = snapshot[PoolField.MASTER_PID]
        until = time.monotonic() + PATIENCE
        found = {
            one.slot: self._facts(one, master, until) for one in snapshot.slots if was_used(one)
        }
        return {slot: facts for slot, facts in found.items() if facts is not None}

    def _facts(self, one: SlotSnapshot, master: int, until: float) -> Facts | None:
        live = _live(one[SlotField.PID], master)
        is_last = False
        while live is None and not is_last:
            is_last = time.monotonic() >= until
            one = self._board.slot_snapshot(one.slot)
            live = _live(one[SlotField.PID], master)
            if live is None and not is_last:
                time.sleep(LOOK_INTERVAL)
        if live is None:
            if one.slot not in self._highest:
                return None
            live = _NO_PROCESS
        return self._not_below(one.slot, _with_the_dead(one, live))

    def _not_below(self, slot: int, found: Facts) -> Facts:
        """Return the facts, with no total below the highest one of this slot so far."""
        totals = found.user, found.system, found.voluntary, found.involuntary
        before = self._highest.get(slot, totals)
        user, system, voluntary, involuntary = highest = (
            max(totals[0], before[0]),
            max(totals[1], before[1]),
            max(totals[2], before[2]),
            max(totals[3], before[3]),
        )
        self._highest[slot] = highest
        return Facts(user, system, voluntary, involuntary, found.resident, found.fds)


def _with_the_dead(one: SlotSnapshot, live: Facts) -> Facts:
    """Return the facts of a slot: its live worker's and the totals of those that have ended."""
    return Facts(
        max(0, one[SlotField.CPU_USER_NS]) / 1e9 + live.user,
        max(0, one[SlotField.CPU_SYSTEM_NS]) / 1e9 + live.system,
        max(0, one[SlotField.VOLUNTARY_SWITCHES]) + live.voluntary,
        max(0, one[SlotField.INVOLUNTARY_SWITCHES]) + live.involuntary,
        live.resident,
        live.fds,
    )


def was_used(one: SlotSnapshot) -> bool:
    """Return whether a slot has ever had a worker: a slot that had none has no series."""
    return one[SlotField.SPAWNS] != 0


def memory(snapshot: Snapshot) -> dict[int, tuple[int, int]]:
    """Return unique and proportional bytes (USS, PSS) of the workers that may be read, by slot.

    Takes 0.2 ms and more for each worker, which cannot change its memory map meanwhile.
    """
    found = {}
    for one in snapshot.slots:
        pid = one[SlotField.PID]
        if pid > 0:
            try:
                full = psutil.Process(pid).memory_full_info()
            except (psutil.Error, OSError, OverflowError):
                continue  # it has ended, or may not be read
            found[one.slot] = (full.uss, full.pss)
    return found


_NO_PROCESS = Facts(0.0, 0.0, 0, 0)


def _live(pid: int, master: int) -> Facts | None:
    """Return the facts of a process; None where it is gone or cannot be read, zeros for a stranger.

    The pid comes from memory that workers can write, and the pid of a collected worker may belong
    to any process by now. So the parent is compared. A process that is collected at this moment has
    none (0).
    """
    if pid <= 0:
        return _NO_PROCESS
    try:
        state = _read(f"/proc/{pid}/stat")
        fields = state[state.rindex(b")") + 2 :].split()
        if (parent := int(fields[1])) != master:
            return _NO_PROCESS if parent else None
        voluntary, involuntary = _switches(_read(f"/proc/{pid}/status"))
        return Facts(
            user=int(fields[11]) / _TICKS,
            system=int(fields[12]) / _TICKS,
            voluntary=voluntary,
            involuntary=involuntary,
            resident=int(fields[21]) * mmap.PAGESIZE,
            fds=_count_fds(pid),
        )
    except (OSError, ValueError, IndexError):
        return None


def _switches(status: bytes) -> tuple[int, int]:
    """Return voluntary and involuntary switches: the last two lines of ``/proc/PID/status``."""
    *_, voluntary, involuntary = status.split(b"\n")[:-1]
    return int(voluntary.split()[1]), int(involuntary.split()[1])


def _count_fds(pid: int) -> int | None:
    folder = f"/proc/{pid}/fd"
    try:
        # Since Linux 6.2 the size of the folder is the number of descriptors, and any process may
        # read it. Only root can list the folder of a worker that runs as another user.
        return os.stat(folder).st_size or len(os.listdir(folder))
    except OSError:
        return None


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 65536)  # a process of many groups has a long status
    finally:
        os.close(fd)
