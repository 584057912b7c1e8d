"""A client of the metrics process: one request, one answer, read to its end."""

from __future__ import annotations

import gzip
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from tests.support.clients import TIMEOUT, Address, connect

if TYPE_CHECKING:
    import socket

    from tests.support.server import Program


class Observed(NamedTuple):
    """A metrics process: its pid, and where it listens."""

    pid: int
    address: Address


def metrics_of(program: Program, nth: int = 0) -> Observed:
    """Return the nth metrics process of a program, once it answers."""
    line = program.wait_logged(r"metrics pid=\d+ ready", times=nth + 1)[nth]
    found = re.search(r"pid=(\d+) ready address=(\S+)", line)
    assert found is not None
    pid, text = found.groups()
    if text.startswith("unix:"):
        return Observed(int(pid), text.removeprefix("unix:").replace("@", "\0", 1))
    host, _, port = text.rpartition(":")
    return Observed(int(pid), (host.strip("[]"), int(port)))


def agent_of(program: Program, nth: int = 0) -> Observed:
    """Return the nth metrics process of a program by the address of its agent, once it answers."""
    line = program.wait_logged(r"metrics pid=\d+ ready", times=nth + 1)[nth]
    found = re.search(r"pid=(\d+) ready .*agent=(\S+)", line)
    assert found is not None
    host, _, port = found[2].rpartition(":")
    return Observed(int(found[1]), (host, int(port)))


def agent_line(address: Address) -> str:
    """Return the line with which an agent answers a client that says nothing, as HAProxy does."""
    with connect(address) as client:
        line = received(client).decode()
    assert line.endswith("\n"), f"no whole line: {line!r}"
    return line.removesuffix("\n")


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: header names in lower case, the body as it was before compression."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode()

    def value(self, sample: str) -> float:
        """Return the value of a sample of /metrics, named with its labels."""
        found = [line for line in self.text.splitlines() if line.startswith(f"{sample} ")]
        assert len(found) == 1, f"{sample}: {found}"
        return float(found[0].rpartition(" ")[2])

    def total(self, name: str) -> float:
        """Return the sum of a metric's samples, 0 where there is none."""
        lines = [line for line in self.text.splitlines() if re.match(rf"{name}[{{ ]", line)]
        return sum(float(line.rpartition(" ")[2]) for line in lines)


def fetch(
    address: Address,
    path: str = "/metrics",
    *,
    method: str = "GET",
    timeout: float = TIMEOUT,
    **headers: str,
) -> Answer:
    """Ask for a path; headers by their names, with underscores for dashes."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return exchange(address, "\r\n".join([*lines, "", ""]).encode(), timeout)


def exchange(address: Address, request: bytes, timeout: float = TIMEOUT) -> Answer:
    """Send these bytes and read the answer to its end."""
    with connect(address, timeout) as client:
        client.sendall(request)
        return parsed(received(client))


def received(client: socket.socket) -> bytes:
    """Return everything until the server closes."""
    parts = []
    while part := client.recv(65536):
        parts.append(part)
    return b"".join(parts)


def parsed(raw: bytes) -> Answer:
    """Take an answer apart, and hold its length against what it says itself."""
    head, end, body = raw.partition(b"\r\n\r\n")
    assert end, f"no whole answer: {raw[:200]!r}"
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = {
        name.lower(): value.strip() for name, _, value in (one.partition(":") for one in lines)
    }
    assert len(body) in (0, int(headers["content-length"]))
    if headers.get("content-encoding") == "gzip" and body:
        body = gzip.decompress(body)
    return Answer(int(status.split()[1]), headers, body)
