"""Why an address cannot be bound: who has it, and what to do."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from prefork.host import bind_errors
from prefork.host.bind_errors import Holder, bind_reason, holder_of
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.once, pytest.mark.processes]  # the kernel's tables

IN_USE = OSError(errno.EADDRINUSE, "Address already in use")


def listening(family: int, address: Any, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """Return a socket that has this address."""
    sock = socket.socket(family, kind)
    sock.bind(address)
    if kind == socket.SOCK_STREAM:
        sock.listen()
    return sock


@pytest.mark.parametrize(
    ("family", "host", "wanted", "kind"),
    [
        (socket.AF_INET, "127.0.0.1", "127.0.0.1", socket.SOCK_STREAM),
        (socket.AF_INET, "127.0.0.1", "0.0.0.0", socket.SOCK_STREAM),
        (socket.AF_INET, "0.0.0.0", "127.0.0.1", socket.SOCK_STREAM),
        (socket.AF_INET, "127.0.0.1", "localhost", socket.SOCK_STREAM),
        (socket.AF_INET6, "::1", "::1", socket.SOCK_STREAM),
        (socket.AF_INET6, "::", "127.0.0.1", socket.SOCK_STREAM),
        (socket.AF_INET, "127.0.0.1", "127.0.0.1", socket.SOCK_DGRAM),
    ],
)
def test_holder_of_a_port(family: int, host: str, wanted: str, kind: int) -> None:
    """The process that has a port is found, whether it has one address or all, and whichever is wanted."""
    with listening(family, (host, 0), kind) as sock:
        port = sock.getsockname()[1]
        holder = holder_of((wanted, port), kind)
        assert holder is not None
        assert holder.pid == os.getpid()
        other = socket.SOCK_DGRAM if kind == socket.SOCK_STREAM else socket.SOCK_STREAM
        assert holder_of((wanted, port), other) is None
    assert holder_of((wanted, port), kind) is None


def test_other_address_of_the_same_port_is_no_holder() -> None:
    """A listener on another address of the machine does not count."""
    with listening(socket.AF_INET, ("127.0.0.2", 0)) as sock:
        assert holder_of(("127.0.0.1", sock.getsockname()[1]), socket.SOCK_STREAM) is None


@pytest.mark.parametrize("abstract", [False, True])
def test_holder_of_a_unix_socket(tmp_path: Path, abstract: bool) -> None:
    """The process that has a path or an abstract name is found."""
    name = f"\0prefork-test-{os.getpid()}" if abstract else str(tmp_path / "socket")
    with listening(socket.AF_UNIX, name):
        holder = holder_of(name, socket.SOCK_STREAM)
    if not abstract:
        os.unlink(name)
    assert holder is not None
    assert holder.pid == os.getpid()


def test_reason_names_process_and_command() -> None:
    """The message has the pid and the command of the program that listens, and says what to do."""
    source = (
        "import socket, sys\n"
        "s = socket.create_server(('127.0.0.1', 0))\n"
        "print(s.getsockname()[1], flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", source, "shop"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        port = int(other.stdout.readline())
        reason = bind_reason(IN_USE, ("127.0.0.1", port))
        other.communicate(timeout=60)
    assert reason.startswith(f"the address is in use by process {other.pid} ({sys.executable} -c ")
    assert reason.endswith("; stop it, or choose another address")
    assert reason.isprintable()


def test_process_of_another_user_is_named_by_its_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where this user may not see the processes, the user of the socket is named."""
    monkeypatch.setattr(bind_errors, "_has_open", lambda *_: False)
    with listening(socket.AF_INET, ("127.0.0.1", 0)) as sock:
        holder = holder_of(sock.getsockname(), socket.SOCK_STREAM)
    assert str(holder).startswith("a process of u")


@pytest.mark.parametrize("parent", [0, 7])
def test_of_a_pool_the_master_is_named(monkeypatch: pytest.MonkeyPatch, parent: int) -> None:
    """Of several processes that share a socket, the one that has forked the others is named."""
    monkeypatch.setattr(bind_errors, "_parent_of", {3: 9, 4: 9, 9: parent}.__getitem__)
    assert bind_errors._eldest({3, 4, 9}) == 9


@pytest.mark.parametrize(
    "sockaddr", [("no.such.host.invalid", 80), ("127.0.0.1", 1), "/no/such", 7, ()]
)
def test_nothing_is_raised_where_nothing_is_found(sockaddr: Any) -> None:
    """What is not found leaves the message without a holder."""
    assert holder_of(sockaddr, socket.SOCK_STREAM) is None
    assert "stop the program that listens there" in bind_reason(IN_USE, sockaddr)


def test_address_of_a_server_that_has_just_stopped() -> None:
    """Where only closed connections hold an address, the message says how long, and how to avoid it."""
    with listening(socket.AF_INET, ("127.0.0.1", 0)) as server:
        address = server.getsockname()
        with socket.create_connection(address) as client:
            server.accept()[0].close()  # the side that closes first keeps the connection
            assert client.recv(1) == b""
    with socket.socket() as again:
        with pytest.raises(OSError, match="in use") as caught:
            again.bind(address)
        reason = wait_until(
            lambda: "nothing listens" in (said := bind_reason(caught.value, address)) and said,
            "the kernel lists the closed connection",
        )
    assert "for a minute" in reason
    assert "allow_reuse_address = True" in reason
    assert "stop" not in bind_reason(caught.value, ("0.0.0.0", address[1]))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EADDRNOTAVAIL, "x"), "this machine does not have that address"),
        (PermissionError(errno.EACCES, "x"), "below 1024"),
        (FileNotFoundError(errno.ENOENT, "x"), "make the folder"),
        (socket.gaierror(-2, "Name or service not known"), "check the host name"),
        (OSError(errno.EIO, "Input/output error"), "input/output error"),
    ],
)
def test_every_usual_reason_has_a_remedy(error: OSError, words: str) -> None:
    """The usual errors of the system come with what to do."""
    assert words in bind_reason(error, ("127.0.0.1", 1))


def test_holder_as_text() -> None:
    """A process without a command line that can be read is named by its pid alone."""
    assert str(Holder(4711, "", "user root")) == "process 4711"
    assert str(Holder(4711, "sh", "user root")) == "process 4711 (sh)"


def test_address_that_this_process_has_itself() -> None:
    """Where two addresses of one program overlap, the message says so."""
    with listening(socket.AF_INET, ("127.0.0.1", 0)) as sock:
        reason = bind_reason(IN_USE, ("0.0.0.0", sock.getsockname()[1]))
    assert reason == (
        "this process listens there already; leave out one of the addresses that overlap"
    )
