"""Programs of our own that this process starts: fresh interpreters, none of them a fork.

There are three: the trial of a reload, the trial of ``prefork check``, and the watcher of ``run
--watch``. A fork would do for none of them. New code must be loaded into an interpreter that has
not seen the old code, and a library that starts a thread must not start it in a master.

A program leads a process group of its own. So a Ctrl-C of the terminal does not reach it, and
``end()`` kills it together with everything that it has started. A group is known by the pid of its
leader. That number cannot belong to another group as long as the leader has not been collected: so
the kill comes first, the collecting after it.

What a program has to say beyond its exit status goes into a ``Memory``, not through a pipe. A pipe
can be full, so that its writer waits; and a process that the program has left behind can hold a
pipe open, so that its reader waits.

A child that this process forks meanwhile, such as a worker, has no use for any of this. So
memories are on the list of what a fork lets go of (workers/forks.py), as all pidfds are.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Final, Self

from prefork.workers import forks, system
from prefork.workers.states import ExitStatus

# The path of this interpreter goes along, so that a checkout which is not installed finds itself,
# too.
_START: Final = """
import sys
count = int(sys.argv[1])
sys.path[:], sys.argv[1:] = sys.argv[2 : 2 + count], sys.argv[2 + count :]
from {module} import {function} as run
run()
"""


def call_of(module: str, function: str, arguments: Sequence[str]) -> list[str]:
    """Return the command that calls a function in a fresh interpreter like this one.

    The function finds ``arguments`` in ``sys.argv[1:]``.
    """
    program = _START.format(module=module, function=function)
    return [sys.executable, "-c", program, str(len(sys.path)), *sys.path, *arguments]


class Memory:
    """Bytes that a program writes and this process reads. A context manager, which closes it.

    name: for /proc. Raises OSError where there is no descriptor left.
    """

    def __init__(self, name: str) -> None:
        with forks.lock:
            self.fd = os.memfd_create(name, os.MFD_CLOEXEC)
            self._on_list = forks.add(self._close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with forks.lock:
            forks.remove(self._on_list)
            self._close()

    def _close(self) -> None:
        os.close(self.fd)

    def last(self, most: int) -> bytes:
        """Return what was written, its last ``most`` bytes where that is more."""
        size = os.fstat(self.fd).st_size
        return os.pread(self.fd, most, max(0, size - most))


def start_program(
    command: Sequence[str],
    *,
    folder: str | None = None,
    environment: Mapping[str, str] | None = None,
    output: Memory | None = None,
    keep: Sequence[int] = (),
    has_terminal: bool = False,
) -> ProgramChild:
    """Start a program without standard input, in a process group of its own; OSError if it fails.

    folder, environment: this process' own where they are not given. output: gets standard output
    and standard error, which otherwise go where this process' own go. keep: descriptors that the
    program inherits under the same numbers; it inherits no other one. has_terminal: whether the
    program stays in the session of this process, with its terminal. An application on trial must
    not: nobody would answer its questions.
    """
    import subprocess  # noqa: PLC0415 - 2 ms that only a process which starts programs has to pay

    stream = None if output is None else output.fd
    process = subprocess.Popen(  # noqa: S603 - a command of our own, no shell
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=stream,
        stderr=stream,
        pass_fds=keep,
        process_group=0 if has_terminal else None,  # the leader of a session leads a group anyway
        start_new_session=not has_terminal,
    )
    # From here on ProgramChild collects the program. The object would warn that nobody has done so.
    process.returncode = 0
    return ProgramChild(system.hold_child(process.pid))


def adopt_program(pid: int) -> ProgramChild | None:
    """Return a program that an earlier image of this process has started; None if it has ended.

    None, too, where the pid is a stranger's by now.
    """
    with contextlib.suppress(OSError):
        child = system.Child(pid, system.hold_process(pid))
        system.adopt(child)
        if system.collect(child) is None:
            return ProgramChild(child)
        system.release(child)
    return None


class ProgramChild:
    """A program that this process has started, and that it has to end or to release."""

    def __init__(self, child: system.Child) -> None:
        self._child = child
        self._status: ExitStatus | None = None

    @property
    def pid(self) -> int:
        """The pid of the program."""
        return self._child.pid

    def has_ended(self) -> bool:
        """Return whether the program has ended by itself."""
        return self.wait(0)

    def wait(self, seconds: float) -> bool:
        """Wait until the program has ended, for this long at most; return whether it has."""
        return self._status is not None or system.wait_for_all([self._child], seconds)

    def end(self) -> ExitStatus:
        """Kill the program and what it has started, and collect it; return how it ended.

        The status of a program that had already ended is its own. May be called again.
        """
        if self._status is None:
            system.kill_group(self._child)
            system.wait_for_end(self._child)
            self._status = system.collect(self._child) or ExitStatus()
            system.release(self._child)
        return self._status

    def release(self) -> int:
        """Let the program run on by itself; return its pid, for ``adopt_program()``."""
        system.release(self._child)
        return self._child.pid
