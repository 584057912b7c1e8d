"""Sockets that the program binds beside its pool: a reload hands them over as well (trial, new image).

Many programs have a second listener: for metrics, for health checks, for an administrator. The
process has its address, and its workers hold copies of the socket, so that no other process can
bind that address, and neither can the next image of this one. prefork knows nothing of the socket
but its descriptor.

So the old image names every socket of this process that listens or receives datagrams
(``bound_sockets()``). While new code is loaded, ``bind()`` of Python's sockets is exchanged
(``stand_by()``). A ``bind()`` to an address which is not among those named is done as usual. For one
that is:

In a trial
    The socket is bound to an address that no client knows, on the loopback interface. It says that
    it has the address that was asked for. So the program goes on as if it were alone, and takes no
    client of the live process, also not by SO_REUSEPORT.
In the new image
    The socket of the old image takes the place of the one that was to be bound, under the number of
    the latter. Clients that wait in its queue stay there.

A socket that the new image has not asked for is closed when the roll is over, and ``bind()`` is
Python's own again. The wait is for programs that bind in ``when_ready()``.

A library in C that binds for itself is not seen here. Then the trial fails because the address is
in use, and the pool goes on with the code that it has.

A trial that binds the path of a Unix socket in earnest leaves a file, and ``bind()`` of the new
image would fail for it. So ``remove_made()`` removes these files at the end of the trial.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import socket
import stat
import weakref
from collections.abc import Collection, Iterator
from typing import Any, Final

from prefork.host.process import process
from prefork.workers.files import Identity, identity_of, unlink_if_still

_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)

_UNKNOWN_ADDRESS: Final[dict[int, Any]] = {
    socket.AF_INET: ("127.0.0.1", 0),
    socket.AF_INET6: ("::1", 0),
    socket.AF_UNIX: "",  # the kernel chooses an abstract name
}
"""What a stand-in is bound to, by family."""

_bind: Final[Any] = socket.socket.bind
_getsockname: Final[Any] = socket.socket.getsockname

_names: Final[weakref.WeakKeyDictionary[socket.socket, Any]] = weakref.WeakKeyDictionary()
"""The stand-ins of this trial, each with the address that it says it has."""

_made: Final[list[tuple[str, Identity]]] = []
"""The files of Unix sockets that this trial has bound in earnest."""


# --- the old image


def bound_sockets(known: Collection[int]) -> list[int]:
    """Return the descriptors of the sockets by which this process can be reached (master).

    known: descriptors of sockets that have an owner; they and their duplicates are left out. So are
    sockets that an exec keeps anyway, because the program knows these by their number.
    """
    seen = {identity_of(fd) for fd in known}
    found = []
    for fd in _open_sockets():
        if (identity := identity_of(fd)) not in seen and _is_bound(fd):
            seen.add(identity)
            found.append(fd)
    return found


def _open_sockets() -> Iterator[int]:
    for number in sorted(map(int, os.listdir("/proc/self/fd"))):
        with contextlib.suppress(OSError):  # the one by which the folder was read
            is_socket = stat.S_ISSOCK(os.fstat(number).st_mode)
            if is_socket and fcntl.fcntl(number, fcntl.F_GETFD) & fcntl.FD_CLOEXEC:
                yield number


def _is_bound(fd: int) -> bool:
    sock = socket.socket(fileno=fd)
    try:
        if sock.family not in _FAMILIES or sock.type not in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            return False
        if sock.type == socket.SOCK_STREAM:
            return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        name = sock.getsockname()
        return bool(name[1] if isinstance(name, tuple) else name) and not _has_peer(sock)
    finally:
        sock.detach()


def _has_peer(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


# --- the trial, and the new image


def stand_by() -> None:
    """Exchange ``bind()`` in a process that loads new code; do nothing in any other one."""
    if process.is_trial:
        _exchange(bind=_bind_on_trial, getsockname=_name_on_trial)
        atexit.register(remove_made)
    elif process.handover is not None:
        _exchange(bind=_bind_or_adopt)
        process.call_when_taken_over(_put_back)


def _exchange(**methods: Any) -> None:
    for name, method in methods.items():
        setattr(socket.socket, name, method)


def _put_back() -> None:
    if vars(socket.socket).get("bind") is _bind_or_adopt:
        del socket.socket.bind  # Python's class inherits the method from the one in C


def _bind_or_adopt(sock: socket.socket, address: Any, /) -> None:
    claimed = _claim(sock, address)
    if claimed is None:
        _bind(sock, address)
    else:
        os.dup2(claimed[1], sock.fileno(), inheritable=False)
        process.release_claimed(claimed[1])
        sock.settimeout(sock.gettimeout())  # whether it blocks comes from the old image's socket


def _bind_on_trial(sock: socket.socket, address: Any, /) -> None:
    claimed = _claim(sock, address)
    if claimed is not None:
        with contextlib.suppress(OSError):  # a machine without IPv6 on its loopback interface
            _bind(sock, _UNKNOWN_ADDRESS[sock.family])
        _names[sock] = claimed[0].sockname
        return
    _bind(sock, address)
    if sock.family == socket.AF_UNIX:
        with contextlib.suppress(OSError, ValueError):  # an abstract name
            path = os.path.abspath(os.fsdecode(address))
            _made.append((path, identity_of(path)))


def _claim(sock: socket.socket, address: Any) -> Any:
    if sock.family not in _FAMILIES or not address:
        return None
    return process.claim(sock.family, sock.type, address, any_port=False)


def _name_on_trial(sock: socket.socket, /) -> Any:
    return _names[sock] if sock in _names else _getsockname(sock)


def remove_made() -> None:
    """Remove the files of the Unix sockets that this trial has bound."""
    while _made:
        unlink_if_still(*_made.pop())
