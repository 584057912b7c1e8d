"""A file that contains the pid of the master, and is locked while the master lives.

The lock decides whether a server runs, and not the number in the file. The kernel reuses pids, and
after a power failure the file names a process that has nothing to do with prefork. Therefore no
signal is ever sent to a pid from the file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from prefork.host.process import process
from prefork.workers import forks
from prefork.workers.errors import PreforkError, SettingsError
from prefork.workers.files import identity_of, is_still, lock, unlink_if_still

if TYPE_CHECKING:
    from types import TracebackType

_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class PidFile:
    """The pid file of this process, held while the context manager is entered (master).

    path: as given. source: where the path came from, for errors. Entering raises SettingsError
    if the path cannot be a pid file, and PreforkError if a running process holds it.

    An exec in place keeps the descriptor and its lock, so that the lock is held without a gap. A
    trial of new code holds the file for a moment, to find out whether it could, unless the file is
    the one that its master holds.
    """

    def __init__(self, path: str, source: str = "pidfile") -> None:
        self.path = Path(path).absolute()
        self._given = path
        self._source = source
        self._fd = -1
        self._on_list: forks.Entry | None = None

    def __enter__(self) -> Self:
        tried = process.inventory
        if tried is None:
            self._hold()
        elif not is_still(self.path, tried.pidfile):
            self._hold()
            self.__exit__(None, None, None)
        return self

    def _hold(self) -> None:
        with forks.lock:
            self._fd = self._kept_through_exec()
            while self._fd < 0:
                self._fd = self._open_and_lock()
            # The lock belongs to the open file description, which children share. A worker that
            # outlives the master would keep it.
            self._on_list = forks.add(self._let_go_in_child)
        process.pidfile = self._fd

    def refuse_unusable(self) -> None:
        """Raise SettingsError if the path cannot be a pid file. No file is made, locked or written.

        A file that a running process holds is no reason: ``prefork check`` is used beside a server.
        The file of the live pool is good, and a trial must not open it for writing.
        """
        if process.inventory is not None and is_still(self.path, process.inventory.pidfile):
            return
        try:
            fd = os.open(self.path, _FLAGS & ~os.O_CREAT)
        except FileNotFoundError:
            if self.path.is_symlink() or not self.path.parent.is_dir():
                raise self._refused(
                    _reason(OSError(errno.ENOENT, os.strerror(errno.ENOENT)))
                ) from None
            if not os.access(self.path.parent, os.W_OK | os.X_OK, effective_ids=True):
                raise self._refused(
                    _reason(OSError(errno.EACCES, os.strerror(errno.EACCES)))
                ) from None
            return
        except OSError as error:
            raise self._refused(_reason(error)) from None
        try:
            self._refuse_what_is_no_pid_file(fd)
        finally:
            os.close(fd)

    def _kept_through_exec(self) -> int:
        """Return the descriptor by which this process holds the file since before an exec, or -1."""
        previous = process.handover
        fd = None if previous is None else previous.pidfile
        return fd if fd is not None and is_still(self.path, identity_of(fd)) else -1

    def _open_and_lock(self) -> int:
        """Return the descriptor of the locked file with this pid in it, or -1 if it was replaced.

        The process that held the file until now may have removed it just before the lock was
        obtained. Then this process would hold a file without a name, the next one would create and
        lock another file, and both would run. So the path is checked again under the lock, and -1
        makes the caller start again.
        """
        fd = self._open()
        held = False
        try:
            self._lock(fd)
            self._refuse_what_is_no_pid_file(fd)
            held = is_still(self.path, identity_of(fd))
            if held:
                self._write(fd)
        except BaseException:
            os.close(fd)
            raise
        if not held:
            os.close(fd)
        return fd if held else -1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        """Remove the file if it is still the one that was written, and release the lock.

        New code that ends before it has served leaves a file that it has got through an exec, and
        the lock on it, to the next attempt.
        """
        if self._fd < 0 or self._on_list is None:  # this is a child of the holder
            return
        process.pidfile = None
        is_inherited = process.handover is not None and process.handover.pidfile == self._fd
        with forks.lock:
            forks.remove(self._on_list)
            if not is_inherited:
                with contextlib.suppress(OSError):  # the directory is gone or has become read-only
                    unlink_if_still(self.path, identity_of(self._fd))
                os.close(self._fd)
            self._fd = -1

    def _let_go_in_child(self) -> None:
        fd, self._fd = self._fd, -1
        os.close(fd)

    def _open(self) -> int:
        try:
            return os.open(self.path, _FLAGS, 0o644)
        except OSError as error:
            raise self._refused(_reason(error)) from None

    def _lock(self, fd: int) -> None:
        try:
            is_locked = lock(fd)
        except OSError as error:
            raise self._refused(_reason(error)) from None
        if not is_locked:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            whom = f"the running process {holder}" if holder.isdigit() else "a running process"
            raise PreforkError(
                f"pidfile {self._given} (from {self._source}) is held by {whom}; stop that process, or "
                "name another pidfile"
            )

    def _refuse_what_is_no_pid_file(self, fd: int) -> None:
        """Raise SettingsError for a file that must not be overwritten.

        ``-p app.py`` would overwrite the application. A hard link in a directory that other users
        can write to would let them choose the file that is overwritten.
        """
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise self._refused("the path is not a regular file with one name; name another path")
        content = os.pread(fd, 64, 0).strip()
        if content and not content.isdigit():
            raise self._refused("the file contains something other than a pid; name another path")

    def _write(self, fd: int) -> None:
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        except OSError as error:
            raise self._refused(_reason(error)) from None

    def _refused(self, reason: str) -> SettingsError:
        return SettingsError("pidfile", self._given, self._source, reason)


def _reason(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "the path is a symbolic link, which could lead to any file; name the file itself"
    return f"the file cannot be written ({error.strerror}); name a path in a writable folder"
