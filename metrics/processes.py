"""What the kernel says of the workers' processes: CPU, memory, descriptors, switches (any process).

Read from ``/proc`` by hand: psutil takes three times as long for the same fields (130 and 40 µs a
worker on a busy machine), which counts at every scrape. The costly memory figures are psutil's.
"""

from __future__ import annotations

import mmap
import os

import msgspec
import psutil

from prefork.workers.scoreboard import PoolField, SlotField, SlotSnapshot, Snapshot

_TICKS = os.sysconf("SC_CLK_TCK")


class Facts(msgspec.Struct, frozen=True):
    """One slot's processes. Totals are of all workers it ever had, the rest is of the live one.

    user, system: CPU seconds. voluntary, involuntary: context switches. resident: bytes.
    resident and fds are None without a worker, and where the system does not let us look.
    """

    user: float
    system: float
    voluntary: int
    involuntary: int
    resident: int | None = None
    fds: int | None = None


class Processes:
    """Reads the facts, and remembers for each slot the highest totals: they never decrease.

    When a worker dies the master adds its totals to the slot's words. Between a scrape that saw
    it alive and that moment there is one in which neither shows them.
    """

    def __init__(self) -> None:
        self._highest: dict[int, tuple[float, float, int, int]] = {}

    def facts(self, snapshot: Snapshot) -> dict[int, Facts]:
        """Return the facts of every slot that has had a worker; one that has just gone is no error.

        The snapshot must be of before the call: were it taken afterwards, a worker could be in the
        slot's words and be counted here once more.
        """
        master = snapshot[PoolField.MASTER_PID]
        return {one.slot: self._facts(one, master) for one in snapshot.slots if was_used(one)}

    def _facts(self, one: SlotSnapshot, master: int) -> Facts:
        live = _live(one[SlotField.PID], master)
        totals = (
            max(0, one[SlotField.CPU_USER_NS]) / 1e9 + live.user,
            max(0, one[SlotField.CPU_SYSTEM_NS]) / 1e9 + live.system,
            max(0, one[SlotField.VOLUNTARY_SWITCHES]) + live.voluntary,
            max(0, one[SlotField.INVOLUNTARY_SWITCHES]) + live.involuntary,
        )
        before = self._highest.get(one.slot, totals)
        user, system, voluntary, involuntary = highest = (
            max(totals[0], before[0]),
            max(totals[1], before[1]),
            max(totals[2], before[2]),
            max(totals[3], before[3]),
        )
        self._highest[one.slot] = highest
        return Facts(user, system, voluntary, involuntary, live.resident, live.fds)


def was_used(one: SlotSnapshot) -> bool:
    """Tell whether a slot has ever had a worker: one that had none has nothing to show."""
    return one[SlotField.SPAWNS] != 0


def memory(snapshot: Snapshot) -> dict[int, tuple[int, int]]:
    """Return unique and proportional bytes (USS, PSS) of the workers by slot, as far as we may look.

    Takes 0.2 ms and more for each, during which the worker cannot change its memory map.
    """
    found = {}
    for one in snapshot.slots:
        pid = one[SlotField.PID]
        if pid > 0:
            try:
                full = psutil.Process(pid).memory_full_info()
            except (psutil.Error, OSError, OverflowError):
                continue  # it has gone, or is not ours to look at
            found[one.slot] = (full.uss, full.pss)
    return found


_NOBODY = Facts(0.0, 0.0, 0, 0)


def _live(pid: int, master: int) -> Facts:
    """Return the facts of a process; nobody's when it has gone or is not the master's child.

    The pid stands in memory that workers can write, and one that was reaped may belong to a
    stranger by now.
    """
    if pid <= 0:
        return _NOBODY
    try:
        state = _read(f"/proc/{pid}/stat")
        fields = state[state.rindex(b")") + 2 :].split()
        if int(fields[1]) != master:
            return _NOBODY
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
        return _NOBODY


def _switches(status: bytes) -> tuple[int, int]:
    """Return voluntary and involuntary switches: the last two lines of ``/proc/PID/status``."""
    *_, voluntary, involuntary = status.split(b"\n")[:-1]
    return int(voluntary.split()[1]), int(involuntary.split()[1])


def _count_fds(pid: int) -> int | None:
    folder = f"/proc/{pid}/fd"
    try:
        # Since Linux 6.2 the folder's size is their number, and anybody may know it: the folder of a
        # worker that has changed its user can be read by root alone.
        return os.stat(folder).st_size or len(os.listdir(folder))
    except OSError:
        return None


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 65536)  # a process of many groups has a long status
    finally:
        os.close(fd)
