"""The system calls that a pool cannot do without: whether the kernel grants them to this process.

A container runtime or a service manager may forbid system calls by a seccomp profile, and an old
kernel does not have them. A call that is refused so stays refused: to try it again, as the pool
does with a fork that fails because of low memory, would try for ever, and nothing would be served.
So the calls are tried once, before anything is forked, and the start fails with the name of the
call.

Only calls are tried that have been refused in practice, because they are younger than the profiles
of older runtimes. All of them are in Linux since 5.4.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from typing import Final

from prefork.workers import system
from prefork.workers.errors import PreforkError

_REFUSALS: Final = (errno.ENOSYS, errno.EPERM, errno.EACCES)
"""How a call fails that is forbidden or unknown. Other errors, such as EMFILE, may pass."""


def refuse_without_calls() -> None:
    """Raise PreforkError if the kernel refuses a call that every pool needs."""
    if (refused := _first_refused(tuple(_CALLS))) is not None:
        raise _refusal(*refused)


def why_no_process_can_be_held() -> str:
    """Return why a command cannot find or signal a process here; "" where it can."""
    refused = _first_refused(("pidfd_open", "pidfd_send_signal"))
    if refused is None:
        return ""
    name, error = refused
    return (
        f"the system call {name} is refused ({error.strerror}), and a command finds and signals a "
        "pool by it; allow it in the seccomp profile, or send signals to the master by kill"
    )


def _first_refused(names: tuple[str, ...]) -> tuple[str, OSError] | None:
    for name in names:
        try:
            _CALLS[name]()
        except OSError as error:
            if error.errno in _REFUSALS:
                return name, error
    return None


def _refusal(name: str, error: OSError) -> PreforkError:
    *others, last = _CALLS
    return PreforkError(
        f"the system call {name} is refused ({error.strerror}), and a pool cannot do without it: "
        f"allow {', '.join(others)} and {last} in the seccomp profile of the container or the "
        "service, or use a kernel and a runtime that have them (Linux 5.4); workers = 0 serves "
        "without a pool"
    )


def _memfd_create() -> None:
    fd = os.memfd_create("prefork-probe", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    finally:
        os.close(fd)


def _pidfd_open() -> None:
    os.close(system.hold_process(os.getpid()))


def _pidfd_send_signal() -> None:
    _with_pidfd(system.probe_signal)


def _waitid() -> None:
    _with_pidfd(system.probe_wait)


def _with_pidfd(use: Callable[[int], None]) -> None:
    pidfd = system.hold_process(os.getpid())
    try:
        use(pidfd)
    finally:
        os.close(pidfd)


_CALLS: Final[dict[str, Callable[[], None]]] = {
    "memfd_create": _memfd_create,
    "pidfd_open": _pidfd_open,
    "pidfd_send_signal": _pidfd_send_signal,
    "waitid": _waitid,
}
"""The calls by name, each with a function that tries it and leaves nothing."""
