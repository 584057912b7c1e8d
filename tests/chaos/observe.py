"""What the harness sees of a pool: its children in /proc, its metrics over HTTP, and the journal of its handlers."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

from tests.chaos import service
from tests.chaos.invariants import Child, Role, Sample
from tests.support.processes import children_of, process, title_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.chaos.invariants import Values
    from tests.chaos.pool import Pool

_TITLES = {
    "prefork: worker ": Role.WORKER,
    "prefork: metrics ": Role.METRICS,
    "prefork: master ": Role.NEWBORN,
    "": Role.NEWBORN,
}


def sample(master: int) -> Sample:
    """Look at the master and its children."""
    found = process(master)
    away = found is not None and (
        found.state in "Tt" or not title_of(master).startswith("prefork: master ")
    )
    children = tuple(
        Child(one.pid, one.started, _role(one.pid), one.is_zombie) for one in children_of(master)
    )
    return Sample(time.monotonic(), found.state if found else "", away, children)


def _role(pid: int) -> Role:
    title = title_of(pid)
    for begin, role in _TITLES.items():
        if begin and title.startswith(begin):
            return role
    return Role.OTHER if title else Role.NEWBORN


_SAMPLE = re.compile(r"^(\w+(?:\{.*\})?) (\S+)$", re.MULTILINE)


def scrape(pool: Pool, timeout: float = 2.0) -> Values:
    """Return the samples of /metrics. OSError: there was no proper answer."""
    connection = http.client.HTTPConnection(*pool.metrics, timeout=timeout)
    try:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        text = answer.read().decode()
        if answer.status != 200:
            raise OSError(f"/metrics says {answer.status}")
    except http.client.HTTPException as error:
        raise OSError(f"/metrics: {error!r}") from error
    finally:
        connection.close()
    return {key: float(value) for key, value in _SAMPLE.findall(text)}


def status(pool: Pool) -> dict[str, object]:
    """Return what ``prefork status --json`` says of the pool, {} if it finds none."""
    done = subprocess.run(
        [sys.executable, "-m", "prefork", "status", "--json", str(pool.pid)],
        env=pool.environment,
        capture_output=True,
        check=False,
        timeout=20,
    )
    try:
        found: dict[str, object] = json.loads(done.stdout)
    except ValueError:
        return {}
    return found


class Journal:
    """The reader of the pipe into which the handlers write each request that they take."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        self.taken = 0
        """How many requests workers have taken so far."""
        self.doomed: set[int] = set()
        """Workers that failed while they booted because the harness wanted it."""
        self._takers: dict[int, int] = {}
        self._ports: dict[int, tuple[float, int]] = {}
        self._rest = b""
        self._lock = threading.Lock()
        # For reading and writing: so it never ends, and a handler's open() never waits.
        self._pipe = os.open(path, os.O_RDWR | os.O_NONBLOCK)

    def read(self) -> None:
        """Take what was written so far."""
        with self._lock:
            while True:
                try:
                    block = os.read(self._pipe, 65536)
                except BlockingIOError:
                    return
                self._take(self._rest + block)

    def _take(self, block: bytes) -> None:
        size = service.RECORD.size
        whole = len(block) - len(block) % size
        self._rest = block[whole:]
        for key, at, pid, mark in service.RECORD.iter_unpack(block[:whole]):
            if mark == service.Mark.READ:
                self._takers[key] = pid
            elif mark == service.Mark.DOOMED:
                self.doomed.add(pid)
            else:
                self.taken += 1
                if key:
                    self._ports[key] = at / 1e9, pid

    def taker(self, nonce: int, port: int = 0, since: float = 0.0) -> int:
        """Return the pid of the worker that took a request, 0 if none has noted it.

        port: the client's own, by which a request is known that was taken and not yet read; since: when
        the client has connected.
        """
        self.read()
        with self._lock:
            if taker := self._takers.get(nonce):
                return taker
            at, pid = self._ports.get(port, (0.0, 0))
            return pid if at >= since else 0

    def forget(self) -> None:
        """Forget which worker took which request; nobody may wait for an answer."""
        self.read()
        with self._lock:
            self._takers.clear()

    def close(self) -> None:
        """Close the pipe."""
        os.close(self._pipe)


class Repeating(threading.Thread):
    """Calls a function again and again, with a pause between two calls, until it is stopped."""

    def __init__(self, name: str, pause: float, look: Callable[[], None]) -> None:
        super().__init__(name=name, daemon=True)
        self.error: BaseException | None = None
        self._pause = pause
        self._look = look
        self._ending = threading.Event()

    def run(self) -> None:
        """Call the function; an exception ends the thread and is kept for ``stop()``."""
        try:
            while not self._ending.wait(self._pause):
                self._look()
        except BaseException as error:  # noqa: BLE001 - raised again by stop()
            self.error = error

    def stop(self) -> None:
        """End the thread, and raise what has ended it before."""
        self._ending.set()
        self.join()
        if self.error is not None:
            raise self.error
