"""The command line. Loading one of its modules loads no other: what is heavy comes with ``main()``."""

from __future__ import annotations

from typing import NoReturn


def main() -> NoReturn:
    """Run the command that this process was started with, and end the process with its exit code."""
    from prefork.cli.command_line import main as run_this_process  # noqa: PLC0415 - see above

    run_this_process()
