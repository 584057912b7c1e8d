"""The registration with rpcbind: what is asked of it, and what follows from every way it can fail."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any

import pytest

from prefork.host.process import process
from prefork.master.announcements import Announcements
from prefork.rpc import Program, RegistrationError, RPCServer, UDPRPCServer, registration, xdr
from prefork.rpc.message import accepted, read_call
from prefork.rpc.record import Record, marked
from prefork.rpc.registration import BOUND, FIRST_PAUSE, Registration, refuse_without_rpcbind
from prefork.rpc.rpcbind import (
    DUMP,
    SET,
    UNSET,
    Changes,
    Entry,
    changes,
    entries_of,
    places_of,
    universal,
)
from prefork.workers.errors import SettingsError
from prefork.workers.states import Phase
from tests.support.waiting import CEILING, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PLACE = ("tcp", "127.0.0.1.4.210")
OURS = Entry(7, 1, *PLACE)
OTHERS = Entry(7, 1, "tcp", "127.0.0.1.9.9")
LIST = Annotated[list[Entry], xdr.Linked()]


class Seven(Program):
    """A program."""

    number, version = 7, 1


class FakeRpcbind:
    """An rpcbind that answers when the test lets it. refuses: whether it does nothing that is asked of it."""

    def __init__(self, path: str) -> None:
        self.entries: dict[tuple[int, int, str], Entry] = {}
        self.refuses = False
        self.others: set[Entry] = set()
        """Entries of another user, which are not unset."""
        self._path = path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(path)
        self._listener.listen()
        self._listener.setblocking(False)
        self.clients: list[socket.socket] = []

    def close(self) -> None:
        """End all connections, and be gone."""
        self.hang_up()
        self._listener.close()
        os.unlink(self._path)

    def hang_up(self) -> None:
        """End all connections."""
        for one in self.clients:
            one.close()
        self.clients = []

    def serve(self) -> None:
        """Answer what was asked so far."""
        with contextlib.suppress(BlockingIOError):
            while True:
                client, _ = self._listener.accept()
                client.setblocking(False)
                self.clients.append(client)
        for client in self.clients:
            with contextlib.suppress(BlockingIOError, BrokenPipeError):
                data: bytes | None = client.recv(65536)
                while data:
                    record = Record(65536)
                    data = record.feed(data)
                    client.sendall(marked(self._answer(record.message)))

    def _answer(self, message: bytes) -> bytes:
        call = read_call(message)
        assert (call.program, call.version) == (100000, 3)
        if call.procedure == DUMP:
            return accepted(call.xid) + xdr.encode(LIST, list(self.entries.values()))
        entry = xdr.decode(Entry, message[call.begin :])
        if not self.refuses and call.procedure == SET:
            self.entries.setdefault(entry.place, entry)
        elif entry in self.others:
            return accepted(call.xid) + xdr.encode(bool, False)
        elif not self.refuses and call.procedure == UNSET:
            self.entries.pop(entry.place, None)
        return accepted(call.xid) + xdr.encode(bool, not self.refuses)


@pytest.fixture(name="rpcbind")
def _rpcbind(tmp_path: Path) -> Iterator[FakeRpcbind]:
    """Yield an rpcbind."""
    made = FakeRpcbind(str(tmp_path / "rpcbind.sock"))
    yield made
    if os.path.exists(made._path):
        made.close()


class Kept:
    """A registration, driven by ticks in a time that the test moves."""

    def __init__(self, rpcbind: FakeRpcbind, mode: Any = "try") -> None:
        self.rpcbind = rpcbind
        self.now = 100.0
        self.made = Registration([OURS], [PLACE], mode=mode, path=rpcbind._path)

    def run(self, *, serving: bool = True, turns: int = 6) -> float | None:
        """Tick, with rpcbind answering in between; return the instant of the last tick."""
        wake = None
        for _ in range(turns):
            wake = self.made.tick(self.now, serving=serving)
            self.rpcbind.serve()
        return wake


@pytest.fixture(name="kept")
def _kept(rpcbind: FakeRpcbind) -> Iterator[Kept]:
    """Yield a registration."""
    made = Kept(rpcbind)
    yield made
    made.made.close()


def test_what_is_to_be_asked() -> None:
    """Entries are set where they are missing, and unset where they lead to our socket and are not ours."""
    places = [PLACE]
    old = Entry(7, 0, *PLACE, owner="superuser")
    assert changes([OURS], places, [], taking_over=True) == Changes(set=(OURS,))
    assert not changes([OURS], places, [Entry(7, 1, *PLACE, owner="me")], taking_over=True)
    assert changes([OURS], places, [old], taking_over=False) == Changes((old,), (OURS,))
    assert changes([], places, [old, OTHERS], taking_over=False) == Changes((old,))
    assert changes([OURS], places, [OTHERS], taking_over=True) == Changes((OTHERS,), (OURS,))
    assert not changes([OURS], places, [OTHERS], taking_over=False)


def test_addresses_as_rpcbind_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each socket has the transports by which it is reached, and one without a file has none."""
    monkeypatch.chdir(tmp_path)
    assert universal("127.0.0.1", 1234) == "127.0.0.1.4.210"
    assert universal("fe80::1%2", 65535) == "fe80::1.255.255"
    found = []
    for family, kind, address in (
        (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
        (socket.AF_INET, socket.SOCK_DGRAM, ("0.0.0.0", 0)),
        (socket.AF_INET6, socket.SOCK_DGRAM, ("::", 0)),
        (socket.AF_INET6, socket.SOCK_STREAM, ("::1", 0)),
        (socket.AF_UNIX, socket.SOCK_STREAM, "a.sock"),
        (socket.AF_UNIX, socket.SOCK_STREAM, "\0prefork-test-rpcbind"),
    ):
        with socket.socket(family, kind) as sock:
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.bind(address)
            name = sock.getsockname()
            port = f".{name[1] >> 8}.{name[1] & 255}" if isinstance(name, tuple) else ""
            found.append({(netid, text.removesuffix(port)) for netid, text in places_of(sock)})
    os.unlink("a.sock")
    assert found == [
        {("tcp", "127.0.0.1")},
        {("udp", "0.0.0.0")},
        {("udp6", "::"), ("udp", "0.0.0.0")},
        {("tcp6", "::1")},
        {("local", str(tmp_path / "a.sock"))},
        set(),
    ]


def test_entries_are_set_and_taken_back(kept: Kept, caplog: pytest.LogCaptureFixture) -> None:
    """A server that is ready is registered with one conversation, and a stop takes back what it has set."""
    caplog.set_level(logging.INFO)
    kept.rpcbind.entries[9, 9, "tcp"] = other = Entry(9, 9, "tcp", "127.0.0.1.1.1")
    assert kept.run() is None
    assert kept.rpcbind.entries == {(9, 9, "tcp"): other, OURS.place: OURS}
    assert len(kept.rpcbind.clients) == 1
    assert kept.run() is None
    assert kept.run(serving=False) is None
    assert kept.rpcbind.entries == {(9, 9, "tcp"): other}
    assert len(kept.rpcbind.clients) == 1
    assert [one.getMessage() for one in caplog.records] == [
        'master registered with rpcbind entries="7 v1 tcp 127.0.0.1.4.210"',
        'master taken back from rpcbind entries="7 v1 tcp 127.0.0.1.4.210"',
    ]


@pytest.mark.parametrize("turns", [1, 2, 3, 4])
def test_stop_within_a_conversation_takes_everything_back(kept: Kept, turns: int) -> None:
    """Wherever a conversation is that registers a server, a stop leaves no entry of it behind."""
    kept.run(turns=turns)
    assert kept.run(serving=False) is None
    assert kept.rpcbind.entries == {}


def test_stop_while_another_version_is_unset_takes_everything_back(kept: Kept) -> None:
    """A stop right after a reload waits for the conversation of the reload, and has one of its own."""
    former = Entry(7, 2, *PLACE)
    kept.rpcbind.entries = {OURS.place: OURS, former.place: former}
    kept.run(turns=2)
    assert former.place not in kept.rpcbind.entries
    assert kept.run(serving=False) is None
    assert kept.rpcbind.entries == {}


def test_no_tick_waits(kept: Kept) -> None:
    """While rpcbind does not answer, ticks return at once, and after a bound the conversation is given up."""
    begin = kept.now
    wake = kept.made.tick(kept.now, serving=True)
    assert wake is not None
    assert begin < wake < begin + 0.1
    kept.now = begin + BOUND + 0.1
    wake = kept.made.tick(kept.now, serving=True)
    assert wake == kept.now + FIRST_PAUSE
    assert kept.rpcbind.entries == {}
    kept.now = wake
    kept.run()
    assert kept.rpcbind.entries == {OURS.place: OURS}


def test_rpcbind_that_was_restarted(kept: Kept, caplog: pytest.LogCaptureFixture) -> None:
    """When the connection has ended, all is compared again: what has gone is set again, what is there is left."""
    caplog.set_level(logging.INFO)
    kept.run()
    kept.rpcbind.hang_up()
    kept.rpcbind.entries.clear()
    kept.run()
    assert kept.rpcbind.entries == {OURS.place: OURS}
    kept.rpcbind.hang_up()
    kept.run()
    assert len([one for one in caplog.records if "registered with" in one.getMessage()]) == 2


def test_rpcbind_that_is_gone(kept: Kept, caplog: pytest.LogCaptureFixture) -> None:
    """Without an rpcbind there is one line of the log, and tries with pauses that grow up to a bound."""
    path = kept.rpcbind._path
    kept.rpcbind.close()
    pauses = []
    for _ in range(9):
        wake = kept.made.tick(kept.now, serving=True)
        assert wake is not None
        pauses.append(wake - kept.now)
        kept.now = wake
    assert pauses == [0.5, 1, 2, 4, 8, 15, 15, 15, 15]
    assert len(caplog.records) == 1
    assert "cannot register with rpcbind, retrying" in caplog.text
    kept.rpcbind = FakeRpcbind(path)
    kept.run()
    assert kept.rpcbind.entries == {OURS.place: OURS}
    kept.rpcbind.close()


def test_later_server_keeps_the_entry(kept: Kept) -> None:
    """A server that begins takes an entry over, and leaves it to one that begins later, also when it stops."""
    kept.rpcbind.entries[OTHERS.place] = OTHERS
    kept.run()
    assert kept.rpcbind.entries == {OURS.place: OURS}
    kept.rpcbind.entries[OTHERS.place] = OTHERS
    kept.rpcbind.hang_up()
    kept.run()
    kept.run(serving=False)
    assert kept.rpcbind.entries == {OTHERS.place: OTHERS}


def test_entry_of_another_user_keeps_nobody_out(
    rpcbind: FakeRpcbind, caplog: pytest.LogCaptureFixture
) -> None:
    """An old entry for our socket that rpcbind does not unset for us is logged once, and ours are set."""
    old = Entry(8, 1, *PLACE)
    rpcbind.entries[old.place] = old
    rpcbind.others = {old}
    kept = Kept(rpcbind, "require")
    for _ in range(3):
        assert kept.run() is None
        rpcbind.hang_up()
    kept.run(serving=False)
    kept.made.close()
    assert rpcbind.entries == {old.place: old}
    assert caplog.text.count("cannot unset entries of another user in rpcbind") == 1


def test_refusal_where_entries_are_required(rpcbind: FakeRpcbind) -> None:
    """With ``require`` the first refusal ends the pool, and its end does not raise again; with ``try`` it is tried again."""
    rpcbind.refuses = True
    kept = Kept(rpcbind, "require")
    with pytest.raises(RegistrationError, match="refuses to set 7 v1 tcp"):
        kept.run()
    kept.run(serving=False)
    kept.made.close()
    tried = Kept(rpcbind)
    assert tried.run() == tried.now + 0.5
    tried.made.close()


def test_answers_that_are_none(kept: Kept, caplog: pytest.LogCaptureFixture) -> None:
    """An answer that is no reply is a failure like any other."""
    for answer in (marked(b"nonsense"), b"\x8f\xff\xff\xff", marked(accepted(1, 3))):
        kept.made.tick(kept.now, serving=True)
        while not kept.rpcbind.clients:
            kept.rpcbind.serve = lambda: None  # type: ignore[method-assign]
            client, _ = kept.rpcbind._listener.accept()
            kept.rpcbind.clients.append(client)
        kept.rpcbind.clients[0].sendall(answer)
        kept.made.tick(kept.now, serving=True)
        kept.rpcbind.hang_up()
        kept.now += 20
    assert caplog.text.count("cannot register") == 1


def test_end_without_rpcbind_waits_for_nothing(kept: Kept) -> None:
    """The end of a pool whose rpcbind is gone, or was never there, raises nothing."""
    kept.run()
    kept.rpcbind.close()
    kept.made.settle(serving=False)
    assert kept.made.tick(kept.now, serving=False) is None


def test_rpcbind_has_to_be_there(tmp_path: Path) -> None:
    """A missing rpcbind is refused before anything is forked, with the remedy."""
    with pytest.raises(RegistrationError, match=r'No such file.*; start rpcbind, or use "try"'):
        refuse_without_rpcbind(str(tmp_path / "none.sock"))
    required = type("Required", (RPCServer,), {"rpcbind": "require", "rpcbind_socket": "/none"})
    with (
        required(("127.0.0.1", 0), Seven) as server,
        pytest.raises(RegistrationError, match="on /none"),
    ):
        server.serve_forever()


def test_settings_of_a_server() -> None:
    """A server without the setting has nothing to announce; a value that does not exist is refused unbound."""
    with RPCServer(("127.0.0.1", 0), Seven) as server:
        assert server.make_announcement() is None
        assert len(entries_of([Seven], places_of(server.socket))) == 1
    wrong = type("Wrong", (RPCServer,), {"rpcbind": "yes"})
    with pytest.raises(SettingsError, match=r"attribute Wrong\.rpcbind.*off, try or require"):
        wrong(("127.0.0.1", 0), Seven)


def test_end_waits_for_a_hung_rpcbind_within_a_bound(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of a pool waits for an rpcbind that does not answer, but not for long."""
    kept.run()
    monkeypatch.setattr(registration, "END_BOUND", 0.03)
    begin = monotonic()
    kept.made.settle(serving=False)
    assert 0.03 <= monotonic() - begin < CEILING
    assert kept.rpcbind.entries == {OURS.place: OURS}


def test_server_without_workers_is_registered(rpcbind: FakeRpcbind) -> None:
    """A server that serves in its own process is registered meanwhile."""
    members = {"workers": 0, "rpcbind": "require", "rpcbind_socket": rpcbind._path}
    made = type("Made", (RPCServer,), members)
    ended = threading.Event()

    def answer() -> None:
        while not ended.wait(0.001):
            rpcbind.serve()

    answering = threading.Thread(target=answer)
    with made(("127.0.0.1", 0), Seven) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.005,))
        answering.start()
        serving.start()
        try:
            wait_until(lambda: len(rpcbind.entries) == 1, "the program is registered")
            server.shutdown()
            serving.join(CEILING)
        finally:
            ended.set()
            answering.join(CEILING)
    assert rpcbind.entries == {}


def test_reload_requires_no_rpcbind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A pool that was reloaded serves on without an rpcbind, also where its start has required one."""
    path = str(tmp_path / "none.sock")
    required = type("Required", (RPCServer,), {"rpcbind": "require", "rpcbind_socket": path})
    with required(("127.0.0.1", 0), Seven) as server:
        monkeypatch.setattr(process, "handover", object())
        made = server.make_announcement()
        monkeypatch.undo()
    assert made is not None
    assert made.tick(100.0, serving=True) == 100.5


@pytest.mark.parametrize(
    ("base", "name", "value"),
    [
        *((RPCServer, "limit_message", value) for value in (0, "much", None, True, 1 << 31)),
        *((RPCServer, "message_timeout", value) for value in (0, "soon", None, -1)),
        *((UDPRPCServer, "limit_replays", value) for value in (-1, "many", True, None)),
    ],
)
def test_bounds_of_a_server(base: Any, name: str, value: object) -> None:
    """A bound that is none is refused before the server binds, with its origin."""
    wrong = type("Wrong", (base,), {name: value})
    with pytest.raises(SettingsError, match=rf"attribute Wrong\.{name}"):
        wrong(("no such host", 0), Seven)


def test_bounds_as_texts() -> None:
    """Sizes and times may be texts, as everywhere."""
    made = type("Made", (RPCServer,), {"limit_message": "64K", "message_timeout": "500ms"})
    with made(("127.0.0.1", 0), Seven) as server:
        assert (server.limit_message, server.message_timeout) == (65536, 0.5)


class Noted:
    """An announcement that notes what the master says."""

    def __init__(self, wake: float | None) -> None:
        self.wake = wake
        self.calls: list[object] = []

    def tick(self, now: float, *, serving: bool) -> float | None:
        """Note the call."""
        self.calls.append((now, serving))
        return self.wake

    def settle(self, *, serving: bool) -> None:
        """Note the call."""
        self.calls.append(serving)

    def close(self) -> None:
        """Note the call."""
        self.calls.append("closed")


def test_master_announces_what_is_ready() -> None:
    """Nothing is announced before the first workers are ready, and what stops is taken back at once."""
    first, second = Noted(5.0), Noted(None)
    both = Announcements([first, second])
    assert both.tick(1.0, ready=False, phase=Phase.SERVING) is None
    assert both.tick(2.0, ready=True, phase=Phase.SERVING) == 5.0
    assert both.tick(3.0, ready=True, phase=Phase.NOT_READY) == 5.0
    assert both.tick(4.0, ready=False, phase=Phase.LEAVING) == 5.0
    both.begin_without_workers()
    both.end()
    assert first.calls == [(2.0, True), (3.0, False), (4.0, False), True, False, "closed"]
    assert second.calls == first.calls
    assert Announcements().tick(1.0, ready=True, phase=Phase.SERVING) is None
