"""A sandbox that refuses system calls, as container runtimes do by a seccomp profile."""

from __future__ import annotations

import errno
import platform
import sys

_PROGRAM = """
import ctypes, os, struct, sys
number, code, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
steps = [
    (0x20, 0, 0, 0),                    # load the number of the call
    (0x15, 0, 1, number),               # skip the next one unless it is this number
    (0x06, 0, 0, 0x00050000 | code),    # refuse with the error
    (0x06, 0, 0, 0x7FFF0000),           # allow
]
filter = b"".join(struct.pack("=HBBI", *step) for step in steps)
buffer = ctypes.create_string_buffer(filter)
profile = struct.pack("@HP", len(steps), ctypes.addressof(buffer))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
assert libc.prctl(22, 2, profile, 0, 0) == 0, ctypes.get_errno()  # PR_SET_SECCOMP
os.execv(command[0], command)
"""

CALLS = {
    "x86_64": {"memfd_create": 319, "pidfd_open": 434, "pidfd_send_signal": 424, "waitid": 247},
    "aarch64": {"memfd_create": 279, "pidfd_open": 434, "pidfd_send_signal": 424, "waitid": 95},
}.get(platform.machine(), {})
"""The numbers of system calls on this machine; empty where they are not known here."""


def without(call: str, error: int = errno.EPERM) -> list[str]:
    """Return the beginning of a command that runs the rest of it without this system call."""
    return [sys.executable, "-c", _PROGRAM, str(CALLS[call]), str(error)]
