"""What a worker under the control of an attacker does with all that it has; imported by programs under test."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import socketserver
import stat
import struct
import threading
import time
from typing import TYPE_CHECKING, Any

from prefork.workers.identity import SHUTDOWN
from prefork.workers.scoreboard import SLOT_WORDS, Scoreboard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


MASTER_PID_AT = 8 * 8
"""Where the pid of the master stands in the scoreboard, in bytes: behind the eight words of the header."""


class Hostile(socketserver.StreamRequestHandler):
    """Evaluates a line of Python with the names of this module, ``self`` being the handler; answers the value."""

    def handle(self) -> None:
        """Do what the client says, and answer if the connection is still there."""
        line = self.rfile.readline().decode()
        value = eval(line, globals(), {"self": self}) if line else None
        self.wfile.write(f"{os.getpid()} {value!r}\n".encode())


def descriptors(handler: Any) -> list[int]:
    """Return the descriptors of this process but for the standard streams and the handler's connection."""
    listed = [int(name) for name in os.listdir("/proc/self/fd")]
    return [fd for fd in listed if fd > 2 and fd != handler.connection.fileno() and _is_open(fd)]


def _is_open(fd: int) -> bool:
    with contextlib.suppress(OSError):
        os.fstat(fd)
        return True
    return False


def each(handler: Any, attack: Callable[[int], object]) -> tuple[int, int]:
    """Do something to each descriptor; return how often it was done and how often the kernel refused it."""
    done, refused = 0, 0
    for fd in descriptors(handler):
        try:
            attack(fd)
        except (OSError, ValueError):
            refused += 1
        else:
            done += 1
    return done, refused


def is_pipe(fd: int) -> bool:
    """Return whether a descriptor is an end of a pipe."""
    return stat.S_ISFIFO(os.fstat(fd).st_mode)


def overwrite(handler: Any) -> tuple[int, int]:
    """Put a descriptor of /dev/null in the place of each descriptor."""
    null = os.open(os.devnull, os.O_RDWR)
    return each(handler, lambda fd: os.dup2(null, fd) if fd != null else None)


# --- pipes


def write_to_pipes(handler: Any, content: bytes) -> tuple[int, int]:
    """Write to every pipe that can be written to."""
    return each(handler, lambda fd: os.write(fd, content) if is_pipe(fd) else None)


def fill_pipes(handler: Any, content: bytes, *, blocking: bool) -> tuple[int, int]:
    """Fill every pipe that can be written to, and leave it blocking or not."""

    def fill(fd: int) -> None:
        if is_pipe(fd) and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:
            os.set_blocking(fd, False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(fd, content)
            os.set_blocking(fd, blocking)

    return each(handler, fill)


_floods: list[bool] = []


def flood_pipes(handler: Any, content: bytes) -> None:
    """Write to every pipe without end, in a thread, as long as this worker lives; once for each worker."""
    if _floods:
        return
    _floods.append(True)
    pipes = [fd for fd in descriptors(handler) if is_pipe(fd)]

    def write() -> None:
        while True:
            for fd in pipes:
                with contextlib.suppress(OSError):
                    os.write(fd, content)
            time.sleep(0.0001)

    threading.Thread(target=write, daemon=True).start()


HARMLESS = bytes(byte for byte in range(256) if bytes([byte]) != SHUTDOWN) * 16
"""Every byte but the one by which a handler may ask for a shutdown."""


# --- the scoreboard


def scoreboard() -> int:
    """Return the descriptor of the scoreboard."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith("/memfd:prefork-scoreboard"):
                return int(name)
    raise LookupError("this process has no scoreboard")


def scribble(content: bytes, at: int = 0) -> int:
    """Write over the scoreboard from this byte on; return how many bytes were written."""
    return os.pwrite(scoreboard(), content, at)


def scribble_all(byte: int) -> int:
    """Write one byte over the whole scoreboard."""
    return scribble(bytes([byte]) * os.fstat(scoreboard()).st_size)


def scribble_slots(words: Iterable[int], value: int, slots: int) -> None:
    """Write a value into these words of the first slots."""
    fields = list(words)
    for slot in range(slots):
        at = Scoreboard.slot_at(slot)
        for word in fields:
            assert word < SLOT_WORDS
            scribble(struct.pack("q", value), (at + word) * 8)


def scribble_on(words: Iterable[int], value: int, slots: int) -> None:
    """Write these words again and again, in a thread, as long as this worker lives."""
    fields = list(words)

    def write() -> None:
        while True:
            scribble_slots(fields, value, slots)
            time.sleep(0.001)

    threading.Thread(target=write, daemon=True).start()


def pass_on_scoreboard(pid: int) -> bool:
    """Give the scoreboard to a process that listens for descriptors, and name it as the master from then on."""

    def write() -> None:
        while True:
            scribble(struct.pack("q", pid), MASTER_PID_AT)
            time.sleep(0.001)

    threading.Thread(target=write, daemon=True).start()
    with socket.socket(socket.AF_UNIX) as way:
        way.connect(f"\0prefork-test-{pid}")
        return bool(socket.send_fds(way, [b"x"], [scoreboard()]))
