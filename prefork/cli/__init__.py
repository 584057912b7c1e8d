"""The command line.

This module loads nothing else, so that importing ``prefork.cli`` costs nothing.
"""

from __future__ import annotations

from typing import NoReturn


def main() -> NoReturn:
    """Run the command of ``sys.argv``, and end the process with its exit code.

    This is the console script ``prefork`` and ``python -m prefork``.
    """
    from prefork.cli.command_line import main as run_this_process  # noqa: PLC0415 - see above

    run_this_process()
