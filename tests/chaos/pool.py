"""The pool under chaos: a folder, the code in it, and the program that ``prefork run`` makes of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Final

from tests.chaos import service
from tests.support.clients import Address
from tests.support.ports import free_port
from tests.support.processes import children_of, process, reap_adopted, title_of
from tests.support.server import environment
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.chaos.schedule import Plan

CODE = """\
from tests.chaos import service
service.VERSION = {version}
{trouble}
servers = service.servers
"""

FAILS_THE_SECOND_TIME: Final = """\
import os
loads = os.open("loads", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
os.write(loads, b".")
if os.fstat(loads).st_size > 1:
    raise RuntimeError("the harness wants this code to fail behind the exec")
"""

BROKEN: Final = {
    "syntax": "this is no Python (",
    "raises": "raise RuntimeError('the harness wants this code to fail')",
    "exits": "import sys; sys.exit(0)",
    "exits hard": "import os; os._exit(0)",
    "hangs": "import time; time.sleep(600)",
    "crashes": "import os; os.abort()",
    "kills itself": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "serves nothing": "service.servers = lambda: []",
    "takes an address": "import socket; service.servers = lambda: [service.Tcp(('192.0.2.1', 80), service.Stream)]",
}
"""Code whose trial fails, by name."""

BOOT_TIMEOUT: Final = 4.0
GRACEFUL_TIMEOUT: Final = 6.0
CLIENT_TIMEOUT: Final = 3.0

SETTLED_IN: Final = 12.0
"""Seconds in which a pool to which nothing is done any more comes to rest; a hung request takes 3 of them."""

STREAMS: Final = ("tcp", "tcp2", "unix")
DATAGRAMS: Final = ("udp", "unixgram")


class Log:
    """The reader of the pool's log: a pipe that a thread copies into a file, unless it is asked not to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_whole = True
        """Whether nothing can have been lost."""
        self._reads = threading.Event()
        self._reads.set()
        self._reader, self.writer = os.pipe()
        self._thread = threading.Thread(target=self._copy, daemon=True)
        self._thread.start()

    def _copy(self) -> None:
        with self.path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while self._reads.wait() and (block := os.read(self._reader, 65536)):
                file.write(block)

    def pause(self) -> None:
        """Stop reading: the pipe fills."""
        self.is_whole = False
        self._reads.clear()

    def resume(self) -> None:
        """Read on."""
        self._reads.set()

    def break_off(self) -> None:
        """Put the null device in the place of the reader: the pipe has none any more."""
        self.is_whole = False
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, self._reader)
        os.close(null)

    def close(self) -> None:
        """Read to the end; every process that writes must be gone."""
        self.resume()
        self._thread.join(5)
        os.close(self._reader)

    def lines(self) -> list[str]:
        """Return what was read so far."""
        return self.path.read_text(errors="replace").splitlines()


class Pool:
    """A running pool of the plan's settings. journal: the path of the pipe that requests are noted in."""

    def __init__(self, plan: Plan, folder: Path, journal: Path, stdout: Path) -> None:
        self.folder = folder
        self.plan = plan
        self.version = 0
        self.addresses: dict[str, Address] = {
            "tcp": ("127.0.0.1", free_port(socket.SOCK_STREAM)),
            "tcp2": ("127.0.0.1", free_port(socket.SOCK_STREAM)),
            "unix": str(folder / "stream"),
            "udp": ("127.0.0.1", free_port(socket.SOCK_DGRAM)),
            "unixgram": str(folder / "datagram"),
        }
        self.metrics = ("127.0.0.1", free_port(socket.SOCK_STREAM))
        self.name = f"chaos-{os.getpid()}-{plan.number}"
        self.environment = environment(
            **{service.JOURNAL: str(journal), service.ADDRESSES: json.dumps(self.addresses)}
        )
        self.write_good_code()
        self.log = Log(folder / "log")
        with stdout.open("ab") as out:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "prefork", "run", "app:servers", *self._flags()],
                cwd=folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=self.log.writer,
                start_new_session=True,
            )
        os.close(self.log.writer)
        self.pid = self._popen.pid

    def _flags(self) -> list[str]:
        plan = self.plan
        flags = {
            "workers": plan.workers,
            "max-children": plan.max_children,
            "min-spare": plan.min_spare,
            "max-requests": 2000,
            "max-memory": "120M",
            "request-timeout": service.TIMEOUT,
            "client-timeout": CLIENT_TIMEOUT,
            "boot-timeout": BOOT_TIMEOUT,
            "graceful-timeout": GRACEFUL_TIMEOUT,
            "metrics": ":".join(map(str, self.metrics)),
            "name": self.name,
            "pidfile": self.folder / "pid",
            "log-level": "debug",
        }
        return ["--factory", *(f"--{name}={value}" for name, value in flags.items())]

    # The code

    def write_code(self, trouble: str = "") -> None:
        """Write a new version of the code, with something wrong in it or nothing."""
        self.version += 1
        (self.folder / "loads").unlink(missing_ok=True)
        new = self.folder / "app.new"
        new.write_text(CODE.format(version=self.version, trouble=trouble))
        new.replace(self.folder / "app.py")

    def write_good_code(self) -> None:
        """Write a new version of the code that serves."""
        self.write_code()

    def trouble_boots(self, kind: str) -> None:
        """Have new workers fail while they boot; "" ends that."""
        path = self.folder / service.BOOT_TROUBLE
        if not kind:
            path.unlink(missing_ok=True)
            return
        new = self.folder / "boot.new"
        new.write_text(kind)
        new.replace(path)

    # Its processes

    @property
    def is_alive(self) -> bool:
        """Whether the master runs."""
        return self._popen.poll() is None

    def signal(self, number: int) -> None:
        """Send a signal to the master, if it is there."""
        self._popen.send_signal(number)

    def workers(self) -> list[int]:
        """Return the pids of the live workers, as their titles tell, in order."""
        return self._children("prefork: worker ")

    def metrics_processes(self) -> list[int]:
        """Return the pids of the live metrics processes; one, as a rule."""
        return self._children("prefork: metrics ")

    def _children(self, title: str) -> list[int]:
        return sorted(
            child.pid
            for child in children_of(self.pid)
            if not child.is_zombie and title_of(child.pid).startswith(title)
        )

    def all_processes(self, *, with_orphans: bool = False) -> list[int]:
        """Return the pids of the live processes of its session.

        with_orphans: also the programs that a handler has left behind, which are none of prefork's business.
        """
        found = []
        for entry in os.listdir("/proc"):
            one = process(int(entry)) if entry.isdigit() else None
            if one is None or one.session != self.pid or one.is_zombie:
                continue
            if with_orphans or one.name != "sleep":
                found.append(one.pid)
        return found

    def await_fact(
        self, what: str, fact: Callable[[], bool], seconds: float = SETTLED_IN, pause: float = 0.1
    ) -> None:
        """Wait for a fact about the pool. TimeoutError: it is not so after these seconds, or the master is gone."""
        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(OSError, ValueError):
                if fact():
                    return
            if time.monotonic() > end or not self.is_alive:
                raise TimeoutError(f"not within {seconds:g} s: {what}")
            time.sleep(pause)

    # Its end

    def wait(self, seconds: float) -> int | None:
        """Return the exit status, None if the master runs on after this many seconds."""
        try:
            return self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def end(self) -> None:
        """End every process of it, in whatever state it is."""
        for pid in self.all_processes(with_orphans=True):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._popen.wait()
        wait_until(
            lambda: not self.all_processes(with_orphans=True), "the processes of the pool are gone"
        )
        reap_adopted()
        self.log.close()
