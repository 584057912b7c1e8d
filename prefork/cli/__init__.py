"""The command line.

Importing ``prefork.cli`` loads no part of the command line.
"""

from __future__ import annotations

from typing import NoReturn

from prefork.host import stopping


def main() -> NoReturn:
    """Run the command of ``sys.argv``, and end the process with its exit code.

    This is the console script ``prefork``, ``python -m prefork`` and ``python -m prefork.cli``.
    """
    stopping.block()  # A HUP or a TTIN must not end or stop a server that begins.
    from prefork.cli.command_line import main as run_this_process  # noqa: PLC0415 - see above

    run_this_process()
