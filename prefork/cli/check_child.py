"""Loading an application on trial: in a child process, so that nothing of it stays here.

The child is a fresh interpreter in a session of its own, without standard input. It tells its
verdict through a pipe: an exit status of 0 could also be an application that calls ``os._exit(0)``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Final

from prefork.workers.errors import BootError

if TYPE_CHECKING:
    from collections.abc import Sequence

# The path of this interpreter is handed over, so that an uninstalled checkout finds itself too.
_START: Final = """
import sys
count = int(sys.argv[1])
sys.path[:], sys.argv[1:] = sys.argv[2 : 2 + count], sys.argv[2 + count :]
from prefork.cli.command_line import main_of_trial
main_of_trial()
"""


def run(arguments: Sequence[str], timeout: float) -> tuple[int, str]:
    """Run a command of prefork in a child, with ``--verdict-to FD``; give its exit code and verdict.

    timeout: seconds until the child and all that it started are killed; BootError then, and
    when the child ends without a verdict although it was content or died by a signal.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    with open(reader, "rb", buffering=0) as verdict:
        try:
            told = [arguments[0], "--verdict-to", str(writer), *arguments[1:]]
            status = _run_child(told, writer, timeout)
        finally:
            os.close(writer)
        # Not read(): something that the application left running may hold the other end.
        said = (verdict.read(65_536) or b"").decode("utf-8", "replace")
    if status < 0:
        raise BootError(f"the application died of {_signal_name(-status)} while it was loaded")
    if status == 0 and not said:
        raise BootError("the application ended the process while it was loaded")
    return status, said


def _run_child(arguments: Sequence[str], writer: int, timeout: float) -> int:
    command = [sys.executable, "-c", _START, str(len(sys.path)), *sys.path, *arguments]
    child = subprocess.Popen(  # noqa: S603 - our own interpreter, no shell
        command, stdin=subprocess.DEVNULL, pass_fds=[writer], start_new_session=True
    )
    try:
        return child.wait(timeout)
    except subprocess.TimeoutExpired:
        raise BootError(f"the application was not loaded within {timeout:g} seconds") from None
    finally:
        # The child is its group's leader; what the application started may outlive it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
