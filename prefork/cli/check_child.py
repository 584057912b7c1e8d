"""Loading an application on trial: in a child process, so that nothing of it stays here.

The child is a fresh interpreter, in a session of its own and without standard input. It writes its
verdict into memory that both have: an exit status of 0 could also come from an application that
calls ``os._exit(0)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prefork.workers.errors import BootError
from prefork.workers.programs import Memory, call_of, start_program
from prefork.workers.states import signal_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefork.workers.states import ExitStatus

_LONGEST_VERDICT: Final = 65_536


def run(arguments: Sequence[str], timeout: float) -> tuple[int, str]:
    """Run a command with ``--verdict-to FD`` in a child; return its exit code and its verdict.

    After ``timeout`` seconds the child is killed with everything that it has started. Raises
    BootError then, and when the child died by a signal, or exited with 0 and left no verdict.
    """
    with Memory("prefork-verdict") as verdict:
        told = [arguments[0], "--verdict-to", str(verdict.fd), *arguments[1:]]
        status = _status_of(told, verdict, timeout)
        said = verdict.last(_LONGEST_VERDICT).decode("utf-8", "replace")
    if status.signal is not None:
        name = signal_name(status.signal)
        raise BootError(f"the application died of {name} while it was loaded")
    code = status.code or 0
    if code == 0 and not said:
        raise BootError("the application ended the process while it was loaded")
    return code, said


def _status_of(arguments: Sequence[str], verdict: Memory, timeout: float) -> ExitStatus:
    command = call_of("prefork.cli.command_line", "main_of_trial", arguments)
    child = start_program(command, keep=[verdict.fd])
    try:
        if not child.wait(timeout):
            raise BootError(f"the application was not loaded within {timeout:g} seconds")
    finally:
        status = child.end()
    return status
