"""Datagram servers: who answers, from where, what is cut, and what stays unanswered."""

from __future__ import annotations

import os
import signal
import socket
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.support.board import board_of
from tests.support.clients import ask_datagram, datagram_client
from tests.support.processes import live_children_of
from tests.support.server import serving
from tests.support.waiting import Stopwatch, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.server import Program


def datagram_server(
    address: object = ("127.0.0.1", 0), base: str = "PreForkingUDPServer", **members: object
) -> str:
    """Return a program that serves ``EchoDatagram``."""
    return serving("EchoDatagram", base=base, address=address, **members)


def test_oversize_datagram_is_counted_and_logged_once(start: Callable[..., Program]) -> None:
    """A datagram longer than max_packet_size is served cut, and of many such ones the log tells once."""
    program = start(datagram_server(workers=2))
    address = program.address()
    for _ in range(5):
        answer = ask_datagram(address, "x" * 20_000)
        assert len(answer.partition(" ")[2]) == 8192
    program.wait_logged("max_packet_size")
    ask_datagram(address)
    assert program.stop() == 0
    assert len(program.logged("max_packet_size")) == 1


def test_max_packet_size_of_the_class_is_honoured(start: Callable[..., Program]) -> None:
    """A class that takes longer datagrams gets them whole, and nothing is logged."""
    program = start(datagram_server(workers=1, max_packet_size=40_000))
    assert ask_datagram(program.address(), "x" * 20_000).endswith(" " + "x" * 20_000)
    assert program.logged("max_packet_size") == []


def test_handler_that_writes_nothing_sends_nothing(start: Callable[..., Program]) -> None:
    """In our own datagram server an unanswered datagram brings no empty reply."""
    program = start(datagram_server(workers=1))
    with datagram_client(program.address()) as client:
        for _ in range(3):
            client.send(b"")
        client.send(b"hello")
        assert client.recv(100) == f"{program.worker()} hello".encode()


def test_standard_datagram_server_keeps_its_empty_reply(start: Callable[..., Program]) -> None:
    """With the standard library's server class behind the mix-in an unanswered datagram brings an empty reply."""
    program = start("""
        from tests.support.app import *
        import prefork, socketserver

        class Server(prefork.PreForkingMixIn, socketserver.UDPServer):
            pass

        serve(EchoDatagram, base=Server, workers=1)
    """)
    with datagram_client(program.address()) as client:
        client.send(b"")
        assert client.recv(100) == b""
        client.send(b"hello")
        assert client.recv(100) == f"{program.worker()} hello".encode()


def test_empty_datagram_is_one_request(start: Callable[..., Program]) -> None:
    """An empty datagram calls the handler, once."""
    program = start("""
        from tests.support.app import *
        import prefork

        class Telling(EchoDatagram):
            def handle(self):
                tell("packet", len(self.packet))
                super().handle()

        serve(Telling, base=prefork.PreForkingUDPServer, workers=2)
    """)
    address = program.address()
    with datagram_client(address) as client:
        client.send(b"")
    assert program.told("packet") == 0
    ask_datagram(address, "hello")
    assert program.told("packet", 1) == 5


def test_replies_come_from_the_bound_address(start: Callable[..., Program]) -> None:
    """A client that is connected to 127.0.0.2 gets its answer: it comes from there."""
    program = start(datagram_server(("127.0.0.2", 0), workers=2))
    assert program.address()[0] == "127.0.0.2"
    assert ask_datagram(program.address(), "hello").endswith(" hello")


@pytest.mark.parametrize("kind", ["inet6", "path", "abstract"])
def test_other_families(start: Callable[..., Program], tmp_path: Path, kind: str) -> None:
    """IPv6, Unix paths and abstract names serve datagrams as well."""
    address, base, own = {
        "inet6": (("::1", 0), "PreForkingUDPServer", ""),
        "path": (str(tmp_path / "socket"), "PreForkingUnixDatagramServer", str(tmp_path / "own")),
        "abstract": (
            f"\0prefork-test-{os.getpid()}",
            "PreForkingUnixDatagramServer",
            f"\0prefork-test-client-{os.getpid()}",
        ),
    }[kind]
    program = start(datagram_server(address, base, workers=2))
    answer = ask_datagram(program.address(), "hello", own=own)
    assert int(answer.split()[0]) in program.workers()
    if kind == "path":
        (tmp_path / "own").unlink()
        assert program.stop() == 0
        assert not (tmp_path / "socket").exists()


def test_many_datagrams_over_four_workers(start: Callable[..., Program]) -> None:
    """Every datagram is answered once, by one of the four, and all four take part."""
    program = start(datagram_server(workers=4, pause=0.001))
    served: Counter[int] = Counter()
    with datagram_client(program.address()) as client:
        for window in range(40):
            sent = {f"{window}-{number}" for number in range(20)}
            for text in sent:
                client.send(text.encode())
            answers = [client.recv(100).decode().split() for _ in sent]
            assert {text for _, text in answers} == sent
            served.update(int(pid) for pid, _ in answers)
    assert set(served) == program.workers()
    assert max(served.values()) <= 2 * 800 / 4


def test_one_datagram_at_a_time_is_spread(start: Callable[..., Program]) -> None:
    """A single client's datagrams are spread: none of four workers serves over twice its share."""
    program = start(datagram_server(workers=4))
    program.wait_workers(4)
    with datagram_client(program.address()) as client:
        served: Counter[bytes] = Counter()
        for _ in range(400):
            client.send(b"x")
            served[client.recv(100).split()[0]] += 1
    assert max(served.values()) <= 2 * 400 / 4


def test_queued_datagrams_are_served_at_a_stop(start: Callable[..., Program]) -> None:
    """Twenty datagrams wait for two workers when TERM comes: all are answered."""
    program = start(datagram_server(workers=2, pause=0.03))
    with datagram_client(program.address()) as client:
        for number in range(20):
            client.send(str(number).encode())
        first = client.recv(100)
        program.terminate()
        answers = [first, *(client.recv(100) for _ in range(19))]
    assert {int(answer.split()[1]) for answer in answers} == set(range(20))
    assert program.wait() == 0


def test_error_costs_that_datagram_only(start: Callable[..., Program], tmp_path: Path) -> None:
    """A reply that cannot be sent, to a client without a name, is logged; the worker serves on."""
    path, own = str(tmp_path / "socket"), str(tmp_path / "own")
    program = start(datagram_server(path, "PreForkingUnixDatagramServer", workers=1))
    program.address()
    worker = program.worker()
    with datagram_client(path) as nameless:
        nameless.send(b"answer me if you can")
    assert ask_datagram(path, "hello", own=own) == f"{worker} hello"
    (tmp_path / "own").unlink()
    assert program.logged("Error")


def test_killed_worker_costs_only_its_datagram(start: Callable[..., Program]) -> None:
    """Datagrams that wait in the kernel are served by the others when a worker is killed."""
    program = start(datagram_server(workers=2, pause=0.05))
    with datagram_client(program.address()) as client:
        for number in range(10):
            client.send(str(number).encode())
        client.recv(100)
        os.kill(program.worker(), signal.SIGKILL)
        for _ in range(8):
            assert client.recv(100)


def test_process_that_a_handler_forks_takes_none_of_the_queue(
    start: Callable[..., Program],
) -> None:
    """A handler that forks in the middle of a queue and returns twice: the copy ends, the worker serves the rest."""
    program = start("""
        from tests.support.app import *
        import prefork

        class Forking(EchoDatagram):
            def handle(self):
                if self.packet == b"20" and os.fork() == 0:
                    tell("copy", os.getpid())
                    return
                super().handle()

        serve(Forking, base=prefork.PreForkingUDPServer, workers=1)
    """)
    with datagram_client(program.address()) as client:
        worker = program.worker()
        os.kill(worker, signal.SIGSTOP)
        for number in range(100):
            client.send(str(number).encode())
        os.kill(worker, signal.SIGCONT)
        answers = [client.recv(100).decode().split() for _ in range(100)]
    assert answers == [[str(worker), str(number)] for number in range(100)]
    assert program.told("copy")
    wait_until(lambda: not live_children_of(worker), "the copy has ended")
    with board_of(program.pid) as board:
        wait_until(lambda: board.snapshot().slots[0].ok == 100, "each is counted once")
    assert program.workers() == {worker}


def test_readable_socket_that_a_sibling_has_emptied_holds_nobody(
    start: Callable[..., Program],
) -> None:
    """One datagram for eight workers: those who come too late wait on, and a stop is obeyed at once."""
    program = start(datagram_server(workers=8))
    address = program.address()
    program.wait_workers(8)
    for _ in range(50):
        ask_datagram(address)
    watch = Stopwatch()
    assert program.stop() == 0
    assert watch.seconds < 5.0  # far below graceful_timeout


def test_orphans_of_a_datagram_server_leave(start: Callable[..., Program]) -> None:
    """Workers that wait for datagrams leave within a second of their master's death."""
    program = start(datagram_server(workers=4))
    address = program.address()
    program.wait_workers(4)
    program.signal(signal.SIGKILL)
    program.wait_silent(ceiling=4)  # below the seconds for which an idle worker sleeps
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        wait_until(lambda: probe.bind(address) is None, "the port is free")
