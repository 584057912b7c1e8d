"""The child process in which ``prefork check`` loads the application.

Nothing of the application stays in the process of the command. The child is a fresh interpreter in
a session of its own, without standard input. It writes its verdict into memory that both processes
have. Its exit status would not do, because an application that calls ``os._exit(0)`` ends with 0,
too.
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
    """Run a command of prefork in a child, and return its exit code and its verdict.

    arguments: the command and its arguments, without ``--verdict-to``. timeout: seconds after which
    the child is killed with everything that it has started. BootError: the time was over, the child
    died by a signal, or it exited with 0 and wrote no verdict.
    """
    command, *others = arguments
    with Memory("prefork-verdict") as verdict:
        whole = [command, "--verdict-to", str(verdict.fd), *others]
        status = _status_of(whole, verdict, timeout)
        text = verdict.last(_LONGEST_VERDICT).decode("utf-8", "replace")
    if status.signal is not None:
        name = signal_name(status.signal)
        raise BootError(f"the application died of {name} while it was loaded")
    code = status.code or 0
    if code == 0 and not text:
        raise BootError("the application ended the process while it was loaded")
    return code, text


def _status_of(arguments: Sequence[str], verdict: Memory, timeout: float) -> ExitStatus:
    command = call_of("prefork.cli.command_line", "main_of_trial", arguments)
    child = start_program(command, keep=[verdict.fd])
    try:
        if not child.wait(timeout):
            raise BootError(
                f"the application was not loaded within {timeout:g} seconds; raise boot_timeout if it "
                "needs longer"
            )
    finally:
        status = child.end()
    return status
