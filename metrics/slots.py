"""The application's own prometheus_client metrics, kept by slot instead of by process.

**Why.** In the multiprocess mode of prometheus_client each process writes its values into files of
its own, which are named by its pid. A pool replaces its workers, so the number of files would grow
without end. Here the files are named by the slot. A slot has one live worker, and the next worker
goes on with the files of the previous one. So counters outlive workers, and there are never more
files than slots times types.

**How.** prometheus_client has one class for the values of all metrics, which every metric looks up
when it is made. ``enable()`` exchanges that class, and so has to run before the application makes
its first metric, which is when it is imported. ``enable()`` does not import prometheus_client. It
leaves a finder in ``sys.meta_path``, which makes the exchange when the application imports the
module. A master whose application has no metrics therefore never loads prometheus_client.

**Names.** Two processes must never write into one file. The master writes as ``m``, a worker as its
slot, and a process that one of them has forked (a handler with multiprocessing, ForkingMixIn) as
``UfN``: the number of the user, and the lowest number that no living process holds.

**Ownership.** One master uses a directory at a time. A file in it names that master by pid and
start time, which both stay over an exec in place. So a reload keeps the values, and the next master
empties the files of one that has ended.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib.util
import os
import re
import stat
import sys
import time
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import msgspec

from prefork.workers import forks
from prefork.workers.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from importlib.machinery import ModuleSpec

__all__ = ["enable"]

VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
"""The variable from which prometheus_client reads the directory, each time it opens a file."""

FILE_BYTES: Final = 64 * 1024
"""The first size of a file of prometheus_client."""

TYPES: Final = 4
"""Kinds of files of most applications: counters, histograms, summaries, one kind of gauge."""

MOST_FORKS: Final = 4096
"""Processes forked by workers that can write at the same time. Further ones share a file."""

FILES: Final = re.compile(r"(counter|histogram|summary|gauge_[a-z]+)_[^_]+\.db")
"""The names of the files. Other files in the directory are left alone."""

_VALUES = "prometheus_client.values"
_OWNER = "prefork-master"
LOCK_TIME = 2.0
"""Seconds to wait for another master that looks at the directory. It takes milliseconds."""

LOCK_PAUSE = 0.01

_LIVE_MODES = ("liveall", "livemax", "livemin", "livemostrecent", "livesum")
_MASTER = "m"
_ALLOWED = (
    "the path of a directory that exists and can be written to, and that no other master uses"
)


class _Here(msgspec.Struct):
    """What this process has to do with the directory. Each process has one.

    directory: an absolute path, None before ``enable()``. owner: the pid of another live master
    that owns the directory, 0 if this process does. identity: the name to write under, None in a
    forked process that has not taken one yet. made_before: metrics that were made before
    ``enable()``. ranges: the first number and the count of the slots of each running pool. locks:
    the descriptor whose locks hold the name of a forked process.
    """

    directory: str | None = None
    owner: int = 0
    identity: str | None = _MASTER
    made_before: tuple[str, ...] = ()
    ranges: tuple[tuple[int, int], ...] = ()
    locks: int = -1


_here = _Here()


def enable(directory: str | None = None, *, source: str = "enable()") -> None:
    """Keep the application's metrics by slot (master). Call this before prometheus_client is imported.

    directory: where the files go. Without a directory, the variable PROMETHEUS_MULTIPROC_DIR names one.
    Where the variable is not set either, nothing happens. source: where the name came from, for the text of
    an error.

    The files of an earlier master are removed, and those of this master are kept over a reload. In a
    process that is no master, such as a trial while another process serves, the metrics stay in
    memory and the directory is left alone. SettingsError: the directory cannot be used.
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
    """The use of the directory by one pool, while ``serve_forever()`` runs (master)."""

    def __init__(self, directory: str | None, first: int, slots: int) -> None:
        self.directory = directory
        """The directory of the files; None where there is none."""
        self._range = first, slots

    def enter(self, slot: int) -> None:
        """Write as this slot from now on (worker, once its privileges are dropped)."""
        if self.directory is not None:
            if not os.access(self.directory, os.W_OK | os.X_OK, effective_ids=True):
                raise PermissionError(
                    f"metrics_dir {self.directory} cannot be written to by the workers' user "
                    f"(uid {os.geteuid()}): change its owner or mode"
                )
            _here.identity = str(self._range[0] + slot)

    def vacate(self, slot: int) -> None:
        """Remove the gauges that end with their worker; the counters of the slot stay (master)."""
        if self.directory is not None:
            _drop_live_gauges(self.directory, str(self._range[0] + slot))

    def close(self) -> None:
        """Give the numbers of the slots back, when no worker is left (master)."""
        _here.ranges = tuple(one for one in _here.ranges if one != self._range)


def lease(metrics_dir: str | None, slots: int) -> Lease:
    """Begin to use the directory for a pool of this many slots (master, before the first fork).

    Calls ``enable()`` if the program has not. Raises SettingsError for a directory that cannot be
    used, that has too little room, or that another master owns.
    """
    enable(metrics_dir, source="settings")
    path = _here.directory
    if path is None:
        return Lease(None, 0, 0)
    if _here.owner:
        raise _refusal(path, "settings", f"the master with pid {_here.owner} uses it")
    _check(path, path, "settings")
    _check_room(path, slots, "settings")
    # The slots of a second pool of this program are numbered after those of the first.
    first = 0
    for begin, count in sorted(_here.ranges):
        if first + slots <= begin:
            break
        first = begin + count
    _here.ranges = (*_here.ranges, (first, slots))
    return Lease(path, first, slots)


def refuse_unusable(directory: str | None, source: str, slots: int) -> None:
    """Raise SettingsError for a directory that a master of this many slots could not use.

    The arguments are those of ``enable()``. The directory is left as it is, also while another
    master uses it.
    """
    origin = source if directory else f"environment {VARIABLE}"
    directory = directory or os.environ.get(VARIABLE)
    if directory:
        path = os.path.abspath(directory)
        _check(path, directory, origin)
        _check_room(path, slots, origin)


def made_before() -> tuple[str, ...]:
    """Return the names of the metrics that were made before ``enable()``, and are in no file."""
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


def _check_room(path: str, slots: int, source: str) -> None:
    """Refuse a file system that could become full.

    The files are mapped, and a write for which there is no room kills the process with SIGBUS. The
    room of files that are there already counts as free: they are emptied, or belong to this master.
    """
    files = (slots + 1) * TYPES
    room = os.statvfs(path)
    free = room.f_bavail * room.f_frsize + _used(path)
    if room.f_blocks and free < files * FILE_BYTES:
        raise _refusal(
            path,
            source,
            f"{free >> 10} KiB are free and {files * FILE_BYTES >> 10} KiB may be needed "
            f"({slots} slots, {TYPES} files each); lower max_children or make room",
        )


def _used(path: str) -> int:
    """Return the bytes of the files of metrics in a directory."""
    sizes = 0
    for name in filter(FILES.fullmatch, os.listdir(path)):
        with contextlib.suppress(OSError):  # removed since the listing
            sizes += os.stat(os.path.join(path, name)).st_blocks * 512
    return sizes


def _claim(path: str) -> int:
    """Own the directory and empty it; return 0, or the pid of the live master that owns it.

    After an exec in place this process owns it already, with all files: pid and start time are the
    same. Raises OSError where the claim cannot be made.
    """
    fd = _open_claim(os.path.join(path, _OWNER))
    try:
        _lock(fd)
        pid, _, started = os.pread(fd, 100, 0).decode("ascii", "replace").partition(" ")
        if pid.isdecimal() and started and started == _started(int(pid)):
            return 0 if int(pid) == os.getpid() else int(pid)
        for name in filter(FILES.fullmatch, os.listdir(path)):
            os.unlink(os.path.join(path, name))
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()} {_started(os.getpid())}".encode(), 0)
    finally:
        os.close(fd)
    return 0


def _lock(fd: int) -> None:
    """Lock the claim; raise BlockingIOError where another process keeps it locked.

    Unlike ``flock()``, a lock of this kind takes the permission to write, which a worker of another
    user does not have.
    """
    give_up_at = time.monotonic() + LOCK_TIME
    while time.monotonic() < give_up_at:
        with contextlib.suppress(BlockingIOError, PermissionError):
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(LOCK_PAUSE)
    raise BlockingIOError(errno.EAGAIN, f"another process keeps {_OWNER} in it locked")


def _open_claim(owner: str) -> int:
    """Open the file that names the directory's master; OSError for anything that is no such file.

    The workers may write to the directory. If they have another user than the master, they could
    lock a file of their own there for ever, or name a master in it that is none. So where the master
    is root, a file that belongs to another user is replaced.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    fd = os.open(owner, flags, 0o644)
    found = os.fstat(fd)
    if os.geteuid() == 0 and found.st_uid != 0:
        os.close(fd)
        os.unlink(owner)
        fd = os.open(owner, flags | os.O_EXCL, 0o644)
        found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(fd)
        raise OSError(errno.EINVAL, f"{_OWNER} in it is not a regular file with one name")
    return fd


def _started(pid: int) -> str | None:
    """Return when a live process was started, in clock ticks; with its pid it is unique."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            fields = stat.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]


def _drop_live_gauges(path: str, identity: str) -> None:
    # By name, because importing prometheus_client for it would load it into every master.
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

    A process holds a number by a lock on one byte of a file. The kernel releases the lock when the
    process ends, in whatever way, and forks do not inherit it.
    """
    assert _here.directory is not None  # noqa: S101 - enable() has set it
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
    # A process that does not own the directory writes nothing there.
    values.ValueClass = (  # type: ignore[attr-defined]
        values.MutexValue if _here.owner else values.MultiProcessValue(process_identifier=_identity)
    )


class _Exchange:
    """Exchanges the class of values right after the application has imported it."""

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find that module as the other finders do; exchange the class once it has run."""
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
    """Yield the names of the metrics that are registered already, whose values are not in files."""
    metrics = sys.modules.get("prometheus_client.metrics")
    registry = getattr(sys.modules.get("prometheus_client.registry"), "REGISTRY", None)
    for collector in list(getattr(registry, "_collector_to_names", ())):
        if metrics is not None and isinstance(collector, metrics.MetricWrapperBase):
            yield next(iter(collector.describe())).name
