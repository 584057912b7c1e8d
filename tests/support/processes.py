"""Facts about processes, read from ``/proc``: who lives, whose child it is, what it holds, what it costs."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import psutil

if TYPE_CHECKING:
    from collections.abc import Callable

_PR_SET_CHILD_SUBREAPER = 36
_TICK = os.sysconf("SC_CLK_TCK")


class Process(msgspec.Struct, frozen=True):
    """One line of ``/proc/PID/stat``; pid and started (clock ticks since boot) identify it for ever."""

    pid: int
    name: str
    state: str
    parent: int
    group: int
    session: int
    cpu: float
    threads: int
    started: int

    @property
    def is_zombie(self) -> bool:
        """Whether it is dead and not yet reaped; not while a thread of it still lives and holds its files."""
        return self.state in "ZX" and self.threads <= 1

    def __str__(self) -> str:
        return f"{self.name}[{self.pid}] state={self.state} parent={self.parent}"


def process(pid: int) -> Process | None:
    """Return the process with this pid, also as a zombie; None when there is none."""
    text = _read(f"/proc/{pid}/stat").decode(errors="replace")
    if not text:
        return None
    name, _, rest = text.partition("(")[2].rpartition(")")
    fields = rest.split(None, 20)
    cpu = (int(fields[11]) + int(fields[12])) / _TICK
    return Process(
        pid,
        name,
        state=fields[0],
        parent=int(fields[1]),
        group=int(fields[2]),
        session=int(fields[3]),
        cpu=cpu,
        threads=int(fields[17]),
        started=int(fields[19]),
    )


def children_of(pid: int) -> list[Process]:
    """Return the children of a process, zombies included, as all its threads have forked them.

    A child that is not listed for one instant is possible while others die (the kernel's caveat);
    one that is listed was there.
    """
    listed = (process(child) for child in _listed_children(pid))
    return [child for child in listed if child is not None and child.parent == pid]


def live_children_of(pid: int) -> set[int]:
    """Return the pids of the children that live."""
    return {child.pid for child in children_of(pid) if not child.is_zombie}


def zombies_of(pid: int) -> set[int]:
    """Return the pids of the dead children that wait to be reaped."""
    return {child.pid for child in children_of(pid) if child.is_zombie}


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    found = process(pid)
    return found is not None and not found.is_zombie


def _listed_children(pid: int) -> set[int]:
    listed: set[int] = set()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
        for thread in os.listdir(f"/proc/{pid}/task"):
            listed.update(map(int, _read(f"/proc/{pid}/task/{thread}/children").split()))
    return listed


def _read(path: str) -> bytes:
    """Return a file of the kernel's, nothing when its process is gone.

    Some tests ask thousands of times; pathlib would take three times as long.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            return file.readall()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def fds_of(pid: int | None = None) -> dict[int, str]:
    """Return the open descriptors of a process (this one by default) and what each is: ``{3: "socket:[4711]"}``."""
    folder = f"/proc/{'self' if pid is None else pid}/fd"
    held: dict[int, str] = {}
    for number in os.listdir(folder):
        try:
            held[int(number)] = os.readlink(f"{folder}/{number}")
        except FileNotFoundError:
            continue  # closed meanwhile, such as the one that lists this folder
    return held


def pipes_of(pid: int, mode: int) -> set[str]:
    """Return the pipes of which a process holds the end for reading, or for writing."""
    held = set()
    for fd, link in fds_of(pid).items():
        info = Path(f"/proc/{pid}/fdinfo/{fd}").read_text()
        flags = next(line.split()[1] for line in info.splitlines() if line.startswith("flags"))
        if link.startswith("pipe:") and int(flags, 8) & os.O_ACCMODE == mode:
            held.add(link)
    return held


def kind_of(link: str) -> str:
    """Return what a descriptor is, without which one: ``socket:[4711]`` is a ``socket``."""
    return re.sub(r":\[\d+\]|(-\d+)* \(deleted\)", "", link)


def status_of(pid: int) -> dict[str, str]:
    """``/proc/PID/status`` as a table: ``Uid``, ``Groups``, ``TracerPid``, ``SigBlk`` …."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def title_of(pid: int) -> str:
    """Return the process title as ``ps`` shows it, "" when the process is gone."""
    return _read(f"/proc/{pid}/cmdline").replace(b"\0", b" ").decode(errors="replace").strip()


def cpu_seconds(pid: int) -> float:
    """Processor seconds of all threads so far, to the nanosecond where the kernel counts them so."""
    try:
        tasks = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    except (FileNotFoundError, ProcessLookupError):
        tasks = []
    if tasks:
        return sum(int(text.split()[0]) for text in tasks) / 1e9
    found = process(pid)
    return found.cpu if found else 0.0


def private_bytes(pid: int) -> int:
    """Memory that would come back if the process ended (USS)."""
    return psutil.Process(pid).memory_full_info().uss


def proportional_bytes(pid: int) -> int:
    """Memory with shared pages divided among their users (PSS)."""
    return psutil.Process(pid).memory_full_info().pss


def become_subreaper() -> None:
    """Make this process the parent of all orphans among its descendants, so that none escapes a test."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def reap_adopted() -> None:
    """Reap the dead orphans that this process has adopted: those of a program's session but not its leader."""
    own = os.getsid(0)
    for child in children_of(os.getpid()):
        if child.is_zombie and child.session not in (own, child.pid):
            os.waitpid(child.pid, 0)


def in_child(run: Callable[[], object]) -> object:
    """Return what a function returns in a child that is forked for it, as text."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, str(run()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return said
