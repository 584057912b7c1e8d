"""The application's own prometheus_client metrics, kept by slot instead of by process.

prometheus_client's multiprocess mode writes each process's values into files of its own, named by
pid: files without end in a pool that replaces workers. Here the name is the slot. A slot has one
live worker and its files go on with the next one, so counters outlive workers and there are never
more files than slots times types of metrics.

The class of values must be exchanged before the application makes its first metric: ``enable()``
is called before it is imported. It does not import prometheus_client itself, but waits until the
application does; a master whose application has no metrics never has it.

Who writes under which name: the master ``m``, a worker its slot, and a process that one of them
has forked (a handler with multiprocessing, ForkingMixIn) ``UfN``: the user's number and the lowest
number that no living process holds, so that two never write into one file.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import re
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import msgspec

from prefork.workers import forks
from prefork.workers.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from importlib.machinery import ModuleSpec

VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
"""Where prometheus_client reads the directory from, each time it opens a file."""

FILE_BYTES: Final = 64 * 1024
"""What prometheus_client sets a file to at first."""

TYPES: Final = 4
"""Kinds of files that most applications have: counters, histograms, summaries and one mode of gauge."""

MOST_FORKS: Final = 4096
"""Processes forked by workers that may count at the same time; further ones share a file."""

FILES: Final = re.compile(r"(counter|histogram|summary|gauge_[a-z]+)_[^_]+\.db")
"""The names of the files; a directory may hold others, which are nobody's business here."""

_VALUES = "prometheus_client.values"
_OWNER = "prefork-master"
_LIVE_MODES = ("liveall", "livemax", "livemin", "livemostrecent", "livesum")
_MASTER = "m"
_ALLOWED = (
    "the path of a directory that exists and can be written to, and that no other master uses"
)


class _Here(msgspec.Struct):
    """What this process is to the directory; one for each process.

    directory: an absolute path, None while ``enable()`` was not called. owner: the pid of another
    live master that has it, 0 if we have. identity: the name to write under, None for a process
    that was forked and has not found one. made_before: metrics that were made too early.
    ranges: first number and count of the slots of each running pool. locks: the descriptor that
    holds the name of a forked process.
    """

    directory: str | None = None
    owner: int = 0
    identity: str | None = _MASTER
    made_before: tuple[str, ...] = ()
    ranges: tuple[tuple[int, int], ...] = ()
    locks: int = -1


_here = _Here()


def enable(directory: str | None = None, *, source: str = "enable()") -> None:
    """Have the application's metrics kept by slot; called before the application is imported.

    directory: where the files go; without it the variable PROMETHEUS_MULTIPROC_DIR names it, and
    where that is not set nothing happens. It is emptied of what an earlier master has left, but
    not after a reload of this one. SettingsError when it cannot be used. source: where its name
    came from, for the error. In a process that is not to be a master (a trial of new code while
    another serves) the application's metrics are kept in memory and the directory is left alone.
    """
    origin = source if directory else f"environment {VARIABLE}"
    directory = directory or os.environ.get(VARIABLE)
    if not directory:
        return
    path = os.path.abspath(directory)
    if _here.directory is not None:
        if _here.directory != path:
            raise _refusal(
                directory, origin, f"{_here.directory} is in use already, one per process"
            )
        return
    _check(path, directory, origin)
    try:
        _here.owner = _claim(path)
    except OSError as error:
        reason = f"it cannot be taken over ({error.strerror})"
        raise _refusal(directory, origin, reason) from error
    _here.directory = path
    os.environ[VARIABLE] = path
    forks.add(_forget_identity, every_time=True)
    if _VALUES in sys.modules:
        _here.made_before = tuple(_metrics_so_far())
        _exchange(sys.modules[_VALUES])
    else:
        sys.meta_path.insert(0, _Exchange())


class Lease:
    """One pool's use of the directory, from the start of ``serve_forever()`` to its end (master)."""

    def __init__(self, directory: str | None, first: int, slots: int) -> None:
        self.directory = directory
        """Where the metrics process finds the files; None where there are none."""
        self._range = first, slots

    def enter(self, slot: int) -> None:
        """Become the writer of a slot (worker, with its final privileges, before the application runs)."""
        if self.directory is not None:
            if not os.access(self.directory, os.W_OK | os.X_OK, effective_ids=True):
                raise PermissionError(
                    f"metrics_dir {self.directory} cannot be written to by the workers' user "
                    f"(uid {os.geteuid()}): change its owner or mode"
                )
            _here.identity = str(self._range[0] + slot)

    def vacate(self, slot: int) -> None:
        """Drop the gauges that live as long as their worker; its counters stay (master)."""
        if self.directory is not None:
            _drop_live_gauges(self.directory, str(self._range[0] + slot))

    def close(self) -> None:
        """Give the numbers back; no worker is left by now (master)."""
        _here.ranges = tuple(one for one in _here.ranges if one != self._range)


def lease(metrics_dir: str | None, slots: int) -> Lease:
    """Begin to use the directory for a pool of so many slots (master, before the first fork).

    Calls ``enable()`` where the program has not. SettingsError when the directory cannot be used,
    has too little room, or is another master's.
    """
    enable(metrics_dir, source="settings")
    path = _here.directory
    if path is None:
        return Lease(None, 0, 0)
    if _here.owner:
        raise _refusal(path, "settings", f"the master with pid {_here.owner} uses it")
    _check(path, path, "settings")
    _check_room(path, slots)
    # Two pools of one program: the second one's slots are numbered behind those of the first.
    first = 0
    for begin, count in sorted(_here.ranges):
        if first + slots <= begin:
            break
        first = begin + count
    _here.ranges = (*_here.ranges, (first, slots))
    return Lease(path, first, slots)


def made_before() -> tuple[str, ...]:
    """Return the names of the metrics that were made before ``enable()``: they are in no file by slot."""
    return _here.made_before


# --- the directory


def _refusal(directory: str, origin: str, reason: str) -> SettingsError:
    return SettingsError("metrics_dir", directory, origin, f"{reason}; it must be {_ALLOWED}")


def _check(path: str, given: str, origin: str) -> None:
    if not os.path.isdir(path):
        reason = "that is no directory" if os.path.exists(path) else "there is no such directory"
        raise _refusal(given, origin, f"{reason}: make it before the start")
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
        raise _refusal(given, origin, "this process cannot write there: change its owner or mode")


def _check_room(path: str, slots: int) -> None:
    """Refuse a file system that could become full: writing to a mapped file would kill with SIGBUS."""
    files = (slots + 1) * TYPES
    room = os.statvfs(path)
    free = room.f_bavail * room.f_frsize
    if room.f_blocks and free < files * FILE_BYTES:
        raise _refusal(
            path,
            "settings",
            f"{free >> 10} KiB are free and {files * FILE_BYTES >> 10} KiB may be needed "
            f"({slots} slots, {TYPES} files each); lower max_children or make room",
        )


def _claim(path: str) -> int:
    """Make the directory ours and empty it; return 0, or the pid of the live master whose it is.

    Ours it is already after an exec in place: pid and start time are those of the process.
    """
    owner = os.path.join(path, _OWNER)
    with os.fdopen(
        os.open(owner, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644), "r+"
    ) as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # held for these few lines
        pid, _, started = file.read(100).partition(" ")
        if pid.isdecimal() and started and started == _started(int(pid)):
            return 0 if int(pid) == os.getpid() else int(pid)
        for name in filter(FILES.fullmatch, os.listdir(path)):
            os.unlink(os.path.join(path, name))
        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()} {_started(os.getpid())}")
    return 0


def _started(pid: int) -> str | None:
    """Return when a live process was started, in clock ticks; with its pid it is unique."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            fields = stat.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]


def _drop_live_gauges(path: str, identity: str) -> None:
    # By their names: what prometheus_client has for it would have to be imported here.
    for mode in _LIVE_MODES:
        with contextlib.suppress(OSError):  # mostly there is none
            os.unlink(os.path.join(path, f"gauge_{mode}_{identity}.db"))


# --- who writes


def _identity() -> str:
    if _here.identity is None:
        _here.identity = _identity_of_fork()
    return _here.identity


def _forget_identity() -> None:
    _here.identity = None


def _identity_of_fork() -> str:
    """Take the lowest number that no living process of this user holds.

    Held by a lock on one byte of a file, which the kernel drops when the process ends, however it
    ends, and which its own forks do not inherit.
    """
    assert _here.directory is not None  # noqa: S101 - the class of values is exchanged by enable() only
    user = os.geteuid()
    if _here.locks < 0:
        _here.locks = os.open(
            os.path.join(_here.directory, f"prefork-forks-{user}"),
            os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW,
            0o600,
        )
    number = next(filter(_take, range(MOST_FORKS)), MOST_FORKS)
    identity = f"{user}f{number}"
    _drop_live_gauges(_here.directory, identity)
    return identity


def _take(number: int) -> bool:
    try:
        fcntl.lockf(_here.locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
    except OSError:
        return False
    return True


# --- the class of values


def _exchange(values: ModuleType) -> None:
    # A process that the directory does not belong to writes nothing there.
    values.ValueClass = (  # type: ignore[attr-defined]
        values.MutexValue if _here.owner else values.MultiProcessValue(process_identifier=_identity)
    )


class _Exchange:
    """Exchanges the class of values right after the application has imported it."""

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find the one module with the others' help, and have it exchanged once it has run."""
        if fullname != _VALUES:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            _after_run(spec.loader)
        return spec


def _after_run(loader: Any) -> None:
    run = loader.exec_module

    def run_and_exchange(module: ModuleType) -> None:
        run(module)
        _exchange(module)

    loader.exec_module = run_and_exchange


def _metrics_so_far() -> Iterator[str]:
    """Yield the names of the registered metrics whose values are kept some other way."""
    metrics = sys.modules.get("prometheus_client.metrics")
    registry = getattr(sys.modules.get("prometheus_client.registry"), "REGISTRY", None)
    for collector in list(getattr(registry, "_collector_to_names", ())):
        if metrics is not None and isinstance(collector, metrics.MetricWrapperBase):
            yield next(iter(collector.describe())).name
