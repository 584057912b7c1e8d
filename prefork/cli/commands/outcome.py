"""What a command gives back: the exit codes (a leaf)."""

from __future__ import annotations

from typing import Final

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
BOOT_FAILED: Final = 3
BIND_FAILED: Final = 4
CRASH_LOOP: Final = 5
INTERRUPTED: Final = 130
