"""A command on a terminal of its own, as a person has it: keys in, a screen out."""

from __future__ import annotations

import fcntl
import os
import re
import select
import struct
import subprocess
import sys
import termios
import time
from typing import TYPE_CHECKING, Any, Self

from tests.support.server import environment
from tests.support.waiting import CEILING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

ENTERS = "\x1b[?1049h"
"""What switches to the other screen."""

LEAVES = "\x1b[?1049l"
SHOWS_CURSOR = "\x1b[?25h"


class Terminal:
    """``with Terminal("top", folder=…) as terminal:`` runs ``prefork top`` on a pseudo-terminal.

    The command leads the session of that terminal, so that Ctrl-C and resizing reach it. command: another
    one than ``prefork``.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        size: tuple[int, int] = (80, 24),
        command: Sequence[str] = (sys.executable, "-m", "prefork"),
    ) -> None:
        self._master, self._slave = os.openpty()
        os.set_blocking(self._master, False)
        self.resize(*size)
        self.modes_before = self.modes()
        self._said = b""
        self.popen = subprocess.Popen(
            ["setsid", "--ctty", *command, *arguments],
            cwd=folder,
            env=environment(TERM="xterm-256color", COLORTERM="", LANG="C.UTF-8"),
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait()
        os.close(self._master)
        os.close(self._slave)

    def modes(self) -> list[Any]:
        """Return how the terminal is set: echo, line by line or by keys …."""
        return termios.tcgetattr(self._slave)

    def resize(self, columns: int, lines: int) -> None:
        """Give the terminal another size."""
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))

    def press(self, keys: str) -> None:
        """Press keys."""
        os.write(self._master, keys.encode())

    @property
    def said(self) -> str:
        """All that the command has written so far, control sequences included."""
        while select.select([self._master], [], [], 0)[0]:
            try:
                self._said += os.read(self._master, 65536)
            except OSError:
                break
        return self._said.decode(errors="replace")

    @property
    def text(self) -> str:
        """All that was written so far, without control sequences."""
        return _CONTROL.sub("", self.said)

    @property
    def screen(self) -> str:
        """What was drawn last: all since the cursor last went home."""
        return _CONTROL.sub("", self.said.rpartition("\x1b[H")[2])

    def wait_shown(self, pattern: str, ceiling: float = CEILING) -> str:
        """Return the screen, once a regular expression is found on it; it is read while it is waited for."""
        end = time.monotonic() + ceiling
        while not re.search(pattern, self.screen):
            assert time.monotonic() < end, (
                f"no {pattern!r} within {ceiling:g} s:\n{self.text[-4000:]}"
            )
            assert self.popen.poll() is None, f"it ended:\n{self.text[-4000:]}"
            select.select([self._master], [], [], 0.02)
        return self.screen

    def wait(self, ceiling: float = CEILING) -> int:
        """Return the exit status, once it has ended; it is read meanwhile."""
        end = time.monotonic() + ceiling
        while self.popen.poll() is None:
            assert time.monotonic() < end, f"it runs on after {ceiling:g} s:\n{self.text[-4000:]}"
            assert self.said is not None
            time.sleep(0.005)
        return self.popen.returncode
