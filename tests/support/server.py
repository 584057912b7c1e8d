"""A server program in a process of its own, as a test sees it."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import textwrap
import time
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

from tests.support.leftovers import PATIENCE
from tests.support.processes import children_of, live_children_of, reap_adopted
from tests.support.waiting import CEILING, wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from tests.support.clients import Address

ENDED = (0, 120)
"""Exit statuses of a program that stopped in order but cannot flush its streams: 120 is Python's own word for that."""

_REPOSITORY = Path(__file__).parents[2]


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a program under test, which imports the ``prefork`` that the tests import."""
    spec = find_spec("prefork")
    homes = [str(_REPOSITORY)]
    if spec is not None and spec.origin is not None:
        homes.insert(0, str(Path(spec.origin).parents[1]))
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("PREFORK_", "WEB_CONC")) and key != "PYTHONUNBUFFERED"
    }
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(homes)),
        # A source that a test changes within a second, to the same length, would not be read again.
        "PYTHONDONTWRITEBYTECODE": "1",
        **more,
    }


def serving(handler: str = "Echo", *, base: str = "PreForkingTCPServer", **members: object) -> str:
    """Return a program that serves a handler of ``tests.support.app`` with ``prefork``'s class ``base``.

    members: the address if it is not to be a free port of the loopback interface, and class attributes.
    """
    given = "".join(f", {name}={value!r}" for name, value in members.items())
    return (
        "from tests.support.app import *\n"
        "import prefork\n"
        f"serve({handler}, prefork.{base}{given})\n"
    )


class Program:
    """``with Program(source, folder) as program:`` runs Python source; the end of the block ends all of it.

    The program leads a session of its own. What it tells (``tests.support.app.tell``) comes through
    its standard output, whose end of file proves that nobody is left who holds it; its standard
    error goes to a file, which the report of a failed test shows.

    source: text of a program, or the path of one. folder: where its files go. before: a command that
    starts the interpreter, such as ``["unshare", "--pid"]``. stderr: a descriptor instead of the file.
    """

    def __init__(
        self,
        source: str | Path | None,
        folder: Path,
        *,
        arguments: Sequence[str] = (),
        before: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        stderr: int | None = None,
        name: str = "program",
    ) -> None:
        self.name = name
        self.stderr_path = folder / f"{name}.stderr"
        self._facts: list[tuple[str, Any]] = []
        self._unread = b""
        self._ended = False
        command = [*before, sys.executable, *self._script(source, folder), *arguments]
        with self.stderr_path.open("wb") as log:
            self.popen = subprocess.Popen(
                command,
                cwd=folder,
                env=environment(**(environ or {})),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log if stderr is None else stderr,
                pass_fds=pass_fds,
                start_new_session=True,
            )
        assert self.popen.stdout is not None
        self._stdout: IO[bytes] = self.popen.stdout
        os.set_blocking(self._stdout.fileno(), False)

    def _script(self, source: str | Path | None, folder: Path) -> list[str]:
        if source is None:
            return []
        if isinstance(source, Path):
            return [str(source)]
        path = folder / f"{self.name}.py"
        path.write_text(textwrap.dedent(source))
        return [str(path)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    # What it is

    @property
    def pid(self) -> int:
        """The pid of the master (of the outermost command where there is one before it)."""
        return self.popen.pid

    @property
    def log(self) -> str:
        """What it has written to standard error so far."""
        return self.stderr_path.read_text(errors="replace")

    def logged(self, pattern: str) -> list[str]:
        """Return the log lines so far in which a regular expression is found."""
        return [line for line in self.log.splitlines() if re.search(pattern, line)]

    def wait_logged(self, pattern: str, ceiling: float = CEILING, times: int = 1) -> list[str]:
        """Return the log lines in which the pattern is found, once there are this many."""
        return wait_until(
            lambda: found if len(found := self.logged(pattern)) >= times else [],
            lambda: f"{times} times {pattern!r} in the log of {self.name}",
            ceiling,
        )

    # What it tells

    def told(self, key: str, nth: int = 0, ceiling: float = CEILING) -> Any:
        """Return the value of the nth fact of this name, waiting for it; other facts stay to be asked for."""
        end = time.monotonic() + ceiling
        while len(values := self.all_told(key)) <= nth:
            assert not self._ended, f"{self.name} ended and never told {key!r}"
            rest = end - time.monotonic()
            assert rest > 0, f"{self.name} did not tell {key!r} within {ceiling:g} s"
            self._read(rest)
        return values[nth]

    def all_told(self, key: str) -> list[Any]:
        """Return the values of all facts of this name so far, without waiting."""
        self._read(0)
        return [value for name, value in self._facts if name == key]

    def address(self, nth: int = 0) -> Address:
        """Where its nth server listens; it is told when the pool is ready."""
        told = self.told("address", nth)
        return tuple(told) if isinstance(told, list) else told

    def _read(self, timeout: float) -> None:
        if self._ended or not select.select([self._stdout], [], [], timeout)[0]:
            return
        block = self._stdout.read(65536)
        if block == b"":
            self._ended = True
        self._unread += block or b""
        *lines, self._unread = self._unread.split(b"\n")
        for line in lines:
            if line.startswith(b"["):  # anything else was printed by the program for nobody
                key, value = json.loads(line)
                self._facts.append((key, value))

    def wait_silent(self, ceiling: float = CEILING) -> None:
        """Wait for the end of file of its standard output: no process is left that holds it."""
        end = time.monotonic() + ceiling
        while not self._ended:
            rest = end - time.monotonic()
            assert rest > 0, (
                f"after {ceiling:g} s somebody still holds the standard output of {self.name}"
            )
            self._read(rest)

    # Its workers

    def workers(self) -> set[int]:
        """Return the pids of its live children."""
        return live_children_of(self.pid)

    def wait_workers(self, count: int, ceiling: float = CEILING) -> set[int]:
        """Return the pids of its live children, once there are this many."""
        return wait_until(
            lambda: found if len(found := self.workers()) == count else set(),
            lambda: f"{count} workers of {self.name}, which has {self.workers()}",
            ceiling,
        )

    def worker(self) -> int:
        """Return the pid of one of its workers."""
        return min(self.workers())

    # How it ends

    def signal(self, number: int) -> None:
        """Send a signal to the master."""
        self.popen.send_signal(number)

    def settle(self) -> None:
        """Wait until the master has taken every signal sent so far: it reports its status after them."""
        seen = len(self.logged("master status"))
        self.signal(signal.SIGUSR1)
        self.wait_logged("master status", times=seen + 1)

    def terminate(self) -> None:
        """Ask for a graceful stop."""
        self.signal(signal.SIGTERM)

    def wait(self, ceiling: float = CEILING) -> int:
        """Return the exit status, once it has ended."""
        assert self._ends_within(ceiling), f"{self.name} runs on after {ceiling:g} s"
        return self.popen.wait()

    def _ends_within(self, ceiling: float) -> bool:
        """Tell whether it ends in time; ``Popen.wait()`` with a timeout would look every 50 ms only."""
        if self.popen.poll() is not None:
            return True
        pidfd = os.pidfd_open(self.pid)
        try:
            ended = select.poll()
            ended.register(pidfd, select.POLLIN)
            return bool(ended.poll(ceiling * 1000))
        finally:
            os.close(pidfd)

    def stop(self, ceiling: float = CEILING) -> int:
        """Stop it gracefully and return its exit status."""
        self.terminate()
        return self.wait(ceiling)

    def end(self) -> None:
        """End it by the shortest way that leaves nothing; a program that TERM does not end is a failure."""
        in_time = True
        if self.popen.poll() is None:
            self.signal(signal.SIGCONT)
            self.terminate()
            in_time = self._ends_within(CEILING)
            if not in_time:
                self.popen.kill()
            self.popen.wait()
        self._stdout.close()
        reap_adopted()
        assert in_time, f"TERM has not ended {self.name} within {CEILING:g} s"

    def leftovers(self) -> list[str]:
        """Return the live processes of its session, orphans that this process has adopted, that stay."""
        end = time.monotonic() + PATIENCE
        while (left := self._orphans()) and time.monotonic() < end:
            time.sleep(0.005)
        return left

    def _orphans(self) -> list[str]:
        return [
            str(child)
            for child in children_of(os.getpid())
            if child.session == self.pid and child.pid != self.pid and not child.is_zombie
        ]
