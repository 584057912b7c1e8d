"""The exit codes of the command line (a leaf)."""

from __future__ import annotations

import enum


class ExitCode(enum.IntEnum):
    """What a command returns; docs/COMMANDS.md promises each number."""

    OK = 0
    FAILED = 1
    """The command failed while it ran, or did not reach what it was asked for."""
    USAGE = 2
    """The arguments, the settings or the target are wrong, or they do not name one running pool."""
    BOOT_FAILED = 3
    """The application could not be loaded, or its first workers died before they were ready."""
    BIND_FAILED = 4
    """An address cannot be bound."""
    CRASH_LOOP = 5
    """New workers died again and again, and ``crash_loop = "exit"`` was set."""
    INTERRUPTED = 130
    """Ctrl-C: 128 and the number of INT, as a shell reports a process that INT has ended."""
