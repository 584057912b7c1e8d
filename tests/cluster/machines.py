"""A machine of the cluster: a pool of prefork in a network namespace of its own."""

from __future__ import annotations

import os
import re
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.support.server import Program
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.cluster.network import Namespace

EXAMPLES: Final = Path(__file__).parents[2] / "examples" / "cluster"
LINES, WEB, METRICS, AGENT = 9000, 8000, 9100, 9101

WITH_LINES: Final = ("-b", f":{LINES}", "--proxy-from", "10.20.0.2", f"{EXAMPLES}/work.py:Lines")
WITH_WEB: Final = ("-b", f":{WEB}", f"{EXAMPLES}/work.py:application")
WITH_DATAGRAMS: Final = ("-b", f"udp://0.0.0.0:{LINES}", f"{EXAMPLES}/work.py:Datagrams")


class Machine:
    """A pool with the settings of examples/cluster/prefork.toml; ``end()`` removes all of it.

    arguments: further ones of the command line, such as ``WITH_LINES``.
    """

    def __init__(self, namespace: Namespace, folder: Path, arguments: Sequence[str]) -> None:
        self.name = namespace.name
        self._namespace = namespace
        self._folder = folder
        self._arguments = arguments
        self._starts = 0
        self.program = self._start()

    def _start(self) -> Program:
        self._starts += 1
        return Program(
            None,
            self._folder,
            arguments=[
                *("-m", "prefork", "run", "-c", str(EXAMPLES / "prefork.toml")),
                *("--name", self.name, *self._arguments),
            ],
            before=self._namespace.enter,
            environ={"MACHINE": self.name},
            name=f"{self.name}-{self._starts}",
        )

    def wait_ready(self) -> None:
        """Wait until the pool has all its workers and its metrics process answers."""
        self.program.wait_logged(r"metrics pid=\d+ ready")
        wait_until(self.is_ready, lambda: f"{self.name} is ready:\n{self.program.log[-2000:]}")

    def is_ready(self) -> bool:
        """Whether /readyz says that the pool wants requests."""
        return self._asked(METRICS, b"GET /readyz HTTP/1.0\r\n\r\n").startswith("HTTP/1.1 200")

    def agent(self) -> str:
        """Return what the agent says."""
        return self._asked(AGENT, b"").strip()

    def _asked(self, port: int, text: bytes) -> str:
        def ask() -> str:
            try:
                with socket.create_connection((self._namespace.address, port), 5) as client:
                    client.sendall(text)
                    return b"".join(iter(lambda: client.recv(4096), b"")).decode()
            except OSError:
                return ""

        return self._namespace.call(ask)

    # What is done to it

    def reload(self) -> None:
        """Have the pool load its code again, and wait until all its workers are new."""
        before = len(self.program.logged("master reloaded"))
        self.program.signal(signal.SIGHUP)
        self.program.wait_logged("master reloaded", ceiling=60, times=before + 1)

    def restart(self) -> None:
        """Stop the pool in order, and start it again."""
        assert self.program.stop(ceiling=40) == 0, self.program.log[-2000:]
        self.program.end()
        self.program = self._start()
        self.wait_ready()

    def grow(self, count: int) -> None:
        """Ask for this many workers more."""
        for _ in range(count):
            self.program.signal(signal.SIGTTIN)
            self.program.settle()  # two signals that come at once are one

    def freeze(self) -> None:
        """Stop every process of the machine where it is; the kernel goes on and accepts its connections."""
        os.killpg(self.program.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let the processes go on."""
        os.killpg(self.program.pid, signal.SIGCONT)

    def begin_to_end(self) -> None:
        """Ask the pool to stop, also when it is frozen."""
        if self.program.popen.poll() is None:
            self.thaw()
            self.program.terminate()

    def end(self) -> None:
        """End the pool."""
        self.begin_to_end()
        self.program.end()

    def clients(self) -> set[str]:
        """Return the addresses of the clients in the access log."""
        lines = self.program.logged(r"\boutcome=ok\b")
        return {found[1] for line in lines if (found := re.search(r"client=([\d.]+):", line))}
