"""What the live pool has in the file system, new code leaves alone (trial, new image).

Programs clean up at their start: they remove the file of a Unix socket if it exists, and bind; they
empty the folder of their metrics; they set the mode of a socket's file. At the first start all of
that is left over from an earlier run. At a reload it is in use. Without the file of the socket no
client reaches the pool, and a reload that fails must not have cost that.

So while new code is loaded, the functions of ``os`` by which a program does so are exchanged, and do
nothing where the file is one of the pool's (``stand_by()``). The program goes on as if the file were
gone: its ``bind()`` does not fail, because it gets the socket that the file belongs to
(prefork/reloading/sockets.py and binding.py). Which file it is, device and inode decide. A new image
gets Python's own functions back when its master has adopted everything.

A trial must not change what it has by other ways either. There an audit hook raises
PermissionError, and the trial fails with it: for a function that the program has imported from
``os`` before prefork, for ``rename()`` onto such a file, for ``open()`` of the pid file. The hook
cannot be taken away, and costs a microsecond for each event, so no process that serves has it.

Another program that the trial starts, such as ``rm``, is not seen here. ``prefork.on_trial()`` is for
that.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import sys
from typing import Any, Final

from prefork.host.process import process
from prefork.workers import forks
from prefork.workers.files import Identity, identity_of

_CLEANING: Final = ("unlink", "remove", "rmdir", "mkdir")
"""What a program does with the files of an earlier run. ``mkdir()`` follows ``rmdir()``."""

_CHANGING: Final = ("chmod", "chown")
"""What a trial must not do either. The new image is the owner, and may."""

_WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_TRUNC | os.O_APPEND

_ENDING_WITH_FOLDER: Final = ("os.remove", "os.rmdir", "os.chmod", "os.chown")
"""The events of the audit hook that have a path first and ``dir_fd`` last among their arguments."""


class _LiveFiles:
    """The files and the folder of the pool. files: by device and inode. folder: of its metrics."""

    def __init__(self, files: frozenset[Identity], folder: bytes | None) -> None:
        self._files = files
        self._folder = None if folder is None else os.path.realpath(os.fsdecode(folder))

    def have(self, path: Any, dir_fd: int | None = None) -> bool:
        """Return whether a path leads to a file of the pool, or to one in its folder."""
        with contextlib.suppress(OSError, ValueError, TypeError):  # there is no such file
            if dir_fd is not None and dir_fd >= 0:
                path = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), os.fsdecode(path))
            return identity_of(path) in self._files or self._have_in_folder(path)
        return False

    def have_file(self, path: Any) -> bool:
        """Return whether a path leads to a file of the pool; its folder does not count."""
        with contextlib.suppress(OSError, ValueError, TypeError):
            return identity_of(path) in self._files
        return False

    def _have_in_folder(self, path: Any) -> bool:
        if self._folder is None:
            return False
        return f"{os.path.realpath(os.fsdecode(path))}/".startswith(f"{self._folder}/")


_exchanged: Final[list[tuple[str, Any, Any]]] = []
"""The functions that are exchanged: name, Python's own, and the one in its place."""


def stand_by() -> None:
    """Exchange the functions in a process that loads new code; do nothing in any other one."""
    if (inventory := process.inventory) is not None:
        live = _LiveFiles(frozenset(inventory.files), inventory.metrics_dir)
        _exchange((*_CLEANING, *_CHANGING), live)
        sys.addaudithook(functools.partial(_refuse, live))
    elif (state := process.handover) is not None:
        live = _LiveFiles(frozenset(state.socket_files.values()), state.metrics_dir)
        _exchange(_CLEANING, live)
        process.close_after_handover(put_back)
        forks.add(put_back, every_time=True)


def _exchange(names: tuple[str, ...], live: _LiveFiles) -> None:
    for name in names:
        own = getattr(os, name)
        careful = _careful(own, live)
        _exchanged.append((name, own, careful))
        setattr(os, name, careful)
        if own in os.supports_dir_fd:
            os.supports_dir_fd.add(careful)  # shutil looks there when it is imported


def _careful(function: Any, live: _LiveFiles) -> Any:
    @functools.wraps(function)
    def do_unless_live(path: Any, *arguments: Any, **named: Any) -> Any:
        if live.have(path, named.get("dir_fd")):
            return None
        return function(path, *arguments, **named)

    return do_unless_live


def put_back() -> None:
    """Give the program Python's own functions again."""
    while _exchanged:
        name, own, careful = _exchanged.pop()
        os.supports_dir_fd.discard(careful)
        if getattr(os, name) is careful:  # another library may have put its own there
            setattr(os, name, own)


def _refuse(live: _LiveFiles, event: str, arguments: tuple[Any, ...]) -> None:
    if _changes_live(live, event, arguments):
        raise PermissionError(
            errno.EPERM, f"a trial of new code leaves alone what the live pool has ({event})"
        )


def _changes_live(live: _LiveFiles, event: str, arguments: tuple[Any, ...]) -> bool:
    if event in _ENDING_WITH_FOLDER:
        return live.have(arguments[0], arguments[-1])
    if event == "os.rename":
        return live.have(arguments[0]) or live.have(arguments[1])
    if event == "open":
        return bool((arguments[2] or 0) & _WRITING) and live.have_file(arguments[0])
    return event == "os.truncate" and live.have_file(arguments[0])
