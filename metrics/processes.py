"""What the kernel counts of the workers' processes: CPU, memory, descriptors, switches.

The fields of each scrape are read from ``/proc`` directly: 40 µs for each worker on a busy machine,
where psutil took 130. Unique and proportional memory, which a scrape has to ask for, come from
psutil.
"""

from __future__ import annotations

import mmap
import os

import msgspec
import psutil

from prefork.workers.scoreboard import PoolField, SlotField, SlotSnapshot, Snapshot

_TICKS = os.sysconf("SC_CLK_TCK")


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
    """Reads the facts, and remembers the highest totals of each slot, so that they never decrease.

    When a worker has ended, the master adds its totals to the slot's words. There is a moment in
    between in which the process is gone and the words do not have its totals yet.
    """

    def __init__(self) -> None:
        self._highest: dict[int, tuple[float, float, int, int]] = {}

    def facts(self, snapshot: Snapshot) -> dict[int, Facts]:
        """Return the facts of every slot that has had a worker.

        The snapshot must be older than the call. Otherwise a worker that has ended could count
        twice: in the slot's words, and as a process.
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


def _live(pid: int, master: int) -> Facts:
    """Return the facts of a process; zeros where it has ended or is not the master's child.

    The pid comes from memory that workers can write, and the pid of a collected worker may belong
    to any process by now. So the parent is compared.
    """
    if pid <= 0:
        return _NO_PROCESS
    try:
        state = _read(f"/proc/{pid}/stat")
        fields = state[state.rindex(b")") + 2 :].split()
        if int(fields[1]) != master:
            return _NO_PROCESS
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
        return _NO_PROCESS


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
