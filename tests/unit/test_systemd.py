"""What systemd is told and what it hands over, in values: messages, clocks, variables, names."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING

import pytest

from prefork.host import notify, systemd_sockets
from prefork.host.addresses import Address
from prefork.host.notify import Notifier, address_of, feed_interval, status_line
from prefork.host.systemd_sockets import Handed, SystemdSockets
from prefork.workers.errors import SettingsError
from prefork.workers.pool.views import PoolView, WorkerView
from prefork.workers.states import Phase

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Manager:
    """A service manager that only listens."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(path)
        self._socket.setblocking(False)

    def heard(self) -> list[str]:
        """Return what has come since the last time."""
        messages = []
        while True:
            try:
                messages.append(self._socket.recv(4096).decode())
            except BlockingIOError:
                return messages

    def fill(self, path: str) -> None:
        """Send to itself until the queue is full."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            while True:
                try:
                    sender.sendto(b"full", path)
                except BlockingIOError:
                    return

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()


class Clock:
    """A monotonic clock that stands still."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        """Return the seconds."""
        return self.now

    def monotonic_ns(self) -> int:
        """Return the nanoseconds."""
        return int(self.now * 1e9)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the manager listens, which stands in the environment."""
    path = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    return path


@pytest.fixture
def manager(path: str) -> Iterator[Manager]:
    """Listen there."""
    manager = Manager(path)
    yield manager
    manager.close()
    os.unlink(path)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Give the module a clock of ours."""
    clock = Clock()
    monkeypatch.setattr(notify, "time", clock)
    return clock


# --- what is sent


def test_life_of_a_pool_in_messages(manager: Manager, clock: Clock) -> None:
    """Each change is one datagram, a reload has the monotonic microseconds, and each has a status."""
    notifier = Notifier()
    notifier.ready("2 workers ready")
    notifier.reloading()
    clock.now = 107.5
    notifier.ready("reloaded, generation 1")
    notifier.stopping()
    notifier.stopping()
    notifier.close()

    assert manager.heard() == [
        "READY=1\nSTATUS=2 workers ready",
        "RELOADING=1\nMONOTONIC_USEC=100000000\nSTATUS=reloading",
        "READY=1\nSTATUS=reloaded, generation 1",
        "STOPPING=1\nSTATUS=stopping",
    ]


def test_reload_that_fails_makes_no_pool_ready(manager: Manager) -> None:
    """A pool that was not ready before a reload is not ready after it has failed; one that was, is."""
    for was_ready in (False, True):
        notifier = Notifier(was_ready=was_ready)
        notifier.ready_as_before("the reload failed")
        assert len(manager.heard()) == was_ready
        notifier.ready("2 workers ready")
        notifier.ready_as_before("the reload failed")
        assert len(manager.heard()) == 2
        notifier.close()


def test_abstract_socket(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name after @ is one in the abstract namespace."""
    name = f"prefork-notify-{os.getpid()}"
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    manager = Manager(f"\0{name}")
    notifier = Notifier()
    notifier.ready("so")
    notifier.close()

    assert manager.heard() == ["READY=1\nSTATUS=so"]
    manager.close()


def test_nothing_is_sent_where_nobody_asked(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without NOTIFY_SOCKET nothing is owed, and nobody looks for a status."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notifier = Notifier()
    notifier.ready("so")
    notifier.tick(Phase.SERVING, lambda: pytest.fail("looked"))
    notifier.close()


def test_words_of_others_stay_one_line(manager: Manager) -> None:
    """A reason with line breaks adds no message of its own."""
    notifier = Notifier()
    notifier.ready("the reload failed: a\nWATCHDOG=trigger")
    notifier.close()

    (message,) = manager.heard()
    assert message.splitlines()[1:] == ["STATUS=the reload failed: a\\nWATCHDOG=trigger"]


def test_full_queue_does_not_block_and_the_message_comes_later(manager: Manager, path: str) -> None:
    """What systemd waits for is owed until it can be sent, in its order."""
    manager.fill(path)
    notifier = Notifier()
    notifier.reloading()
    notifier.ready("reloaded")
    assert set(manager.heard()) == {"full"}

    notifier.tick(Phase.SERVING, lambda: "reloaded")
    notifier.close()
    assert [message.partition("=")[0] for message in manager.heard()] == ["RELOADING", "READY"]


def test_a_socket_that_is_gone_is_told_once(path: str, caplog: pytest.LogCaptureFixture) -> None:
    """A manager that went away harms nothing; one line says it."""
    notifier = Notifier()
    for _ in range(3):
        notifier.ready("so")
        notifier.tick(Phase.SERVING, lambda: "so")
    notifier.close()

    assert caplog.text.count("cannot notify the service manager") == 1


def test_debts_are_bounded(path: str) -> None:
    """Whoever never listens is not owed more and more."""
    notifier = Notifier()
    for number in range(1000):
        notifier.ready(str(number))
    manager = Manager(path)
    notifier.tick(Phase.SERVING, lambda: "999")
    notifier.close()

    heard = manager.heard()
    manager.close()
    os.unlink(path)
    assert len(heard) == 8
    assert heard[-1] == "READY=1\nSTATUS=999"


@pytest.mark.parametrize(
    ("phase", "told"),
    [
        (Phase.SERVING, False),
        (Phase.NOT_READY, True),
        (Phase.DRAINING, True),
        (Phase.LEAVING, False),
        (Phase.STOPPING_NOW, True),
    ],
)
def test_stops_that_are_told(manager: Manager, phase: Phase, told: bool) -> None:
    """A stop by signal is told once; after shutdown() the program may serve again, which systemd would not let it."""
    notifier = Notifier()
    notifier.tick(phase, lambda: "")
    notifier.tick(phase, lambda: "")
    notifier.close()

    assert ("STOPPING=1\nSTATUS=stopping" in manager.heard()) == told


def test_status_when_it_changed_and_not_too_often(manager: Manager, clock: Clock) -> None:
    """The same line is not sent twice, and no two within five seconds."""
    notifier = Notifier()
    seen = []
    for second, line in enumerate(["a", "b", "b", "b", "b", "c", "d", "d", "d", "d", "d", "d"]):
        clock.now = 100.0 + second
        notifier.tick(Phase.SERVING, lambda line=line: line)  # type: ignore[misc]  # mypy knows no defaults of lambdas
        seen += [(second, message) for message in manager.heard()]
    notifier.close()

    assert seen == [(0, "STATUS=a"), (5, "STATUS=c"), (10, "STATUS=d")]


def test_signs_of_life_at_a_third(
    manager: Manager, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three signs of life in the time of the watchdog, however often the master ticks."""
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    notifier = Notifier()
    signs = []
    for tick in range(300):
        clock.now = 100.0 + tick / 10
        notifier.tick(Phase.SERVING, lambda: "")
        signs += [tick / 10 for message in manager.heard() if message == "WATCHDOG=1"]
    notifier.close()

    assert signs == [0.0, 10.0, 20.0]


@pytest.mark.parametrize(
    ("expected", "span", "whose"),
    [
        (1.0, "3000000", ""),
        (1.0, "3000000", "7"),
        (None, "3000000", "8"),
        (None, "", ""),
        (None, "0", ""),
        (None, "-3000000", ""),
        (None, "soon", "7"),
        (None, "9" * 5000, "7"),
    ],
)
def test_whose_watchdog_it_is(expected: float | None, span: str, whose: str) -> None:
    """Signs of life are wanted of the process that is named, or of any; nonsense asks for none."""
    environ = {"WATCHDOG_USEC": span, "WATCHDOG_PID": whose}
    assert feed_interval(environ, 7) == expected


@pytest.mark.parametrize(
    ("expected", "value"),
    [("/run/x", "/run/x"), ("\0x", "@x"), (None, ""), (None, "relative"), (None, "vsock:2:9")],
)
def test_where_to_send(expected: str | None, value: str) -> None:
    """A path, or a name in the abstract namespace; anything else is not understood."""
    assert address_of({"NOTIFY_SOCKET": value}) == expected


def test_variables_are_away_as_long_as_the_pool_runs(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What workers inherit does not name the manager; afterwards everything is as it was."""
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    before = dict(os.environ)
    notifier = Notifier()
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC"} & os.environ.keys()
    notifier.close()
    assert dict(os.environ) == before


def test_status_line_counts_workers() -> None:
    """Workers that are not ready are none yet; a reload under way, or one that failed, is told."""

    def worker(slot: int, *, ready: bool = True, idle: bool = True) -> WorkerView:
        return WorkerView(slot, ready=ready, idle=idle, generation=0, spawned_at=0.0)

    workers = worker(0), worker(1, idle=False), worker(2, ready=False, idle=False)
    view = PoolView(Phase.SERVING, floor=3, workers=workers)
    assert status_line(view, [], reloading=False, failure="") == "1/2 workers busy"
    assert status_line(view, [], reloading=True, failure="x") == "1/2 workers busy, reloading"
    assert (
        status_line(view, [], reloading=False, failure="it is bad\nTraceback")
        == "1/2 workers busy, the last reload failed: it is bad"
    )


# --- what is handed over


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"LISTEN_FDS": "1"},
        {"LISTEN_PID": "7"},
        {"LISTEN_FDS": "1", "LISTEN_PID": "8"},
        {"LISTEN_FDS": "one", "LISTEN_PID": "7"},
        {"LISTEN_FDS": "9" * 5000, "LISTEN_PID": "7"},
        {"LISTEN_FDS": "1", "LISTEN_PID": "9" * 5000},
        {"LISTEN_FDS": "-1", "LISTEN_PID": "7"},
        {"LISTEN_FDS": "0", "LISTEN_PID": "7"},
    ],
)
def test_variables_that_hand_over_nothing(environ: dict[str, str]) -> None:
    """What was meant for another process, or means nothing, is no socket of ours."""
    assert systemd_sockets.handed_over(environ, {7}) == ()


def test_descriptors_have_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names belong to the numbers from 3 on; one without is called as systemd calls it."""

    def identity_of(fd: int) -> tuple[int, int]:
        if fd == 5:
            raise OSError(errno.EBADF, "closed")
        return 1, fd

    monkeypatch.setattr(systemd_sockets, "identity_of", identity_of)
    environ = {"LISTEN_FDS": "4", "LISTEN_PID": "7", "LISTEN_FDNAMES": "web::gone"}

    found = systemd_sockets.handed_over(environ, {7})
    assert [(one.fd, one.name) for one in found] == [(3, "web"), (4, "unknown"), (6, "unknown")]


def test_count_of_descriptors_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A count that somebody made up costs little."""
    monkeypatch.setattr(systemd_sockets, "identity_of", lambda fd: (1, fd))
    environ = {"LISTEN_FDS": "9" * 9, "LISTEN_PID": "7"}

    assert len(systemd_sockets.handed_over(environ, {7})) == 1000


def test_name_stands_for_all_that_bear_it() -> None:
    """A name is replaced by its sockets, in their order; others stay, also names that no socket has."""
    names = enumerate(("web", "admin", "web"), start=3)
    sockets = SystemdSockets([Handed(fd, name, (0, 0)) for fd, name in names])
    texts = ["systemd:admin", "127.0.0.1:80", "systemd:web", "systemd:other"]
    expanded = sockets.expanded([Address.parse(text) for text in texts])

    shown = ["fd://4", "tcp://127.0.0.1:80", "fd://3", "fd://5", "systemd:other"]
    assert [str(address) for address in expanded] == shown
    assert [str(address) for address in sockets.addresses()] == [
        "fd://3",
        "fd://4",
        "fd://5",
    ]
    assert sockets.why_none().endswith("only web, admin")


def test_closed_descriptor_is_not_kept() -> None:
    """A number whose file is another one by now is not taken for what was handed over."""
    reader, writer = os.pipe()
    there = os.fstat(reader)
    same = Handed(reader, "a", (there.st_dev, there.st_ino))
    sockets = SystemdSockets([same, Handed(writer, "b", (0, 0))])
    assert sockets.still_open() == [reader]
    os.close(reader)
    assert sockets.still_open() == []
    os.close(writer)


@pytest.mark.parametrize("name", ["web", "prefork-example.socket", "a b", "x" * 255])
def test_names_that_systemd_takes(name: str) -> None:
    """The text of such an address is its canonical one."""
    address = Address.parse(f"systemd:{name}")
    assert (address.scheme, address.name, address.is_bound) == ("systemd", name, True)
    assert str(address) == f"systemd:{name}"


@pytest.mark.parametrize("name", ["", "a:b", "ä", "a\nb", "x" * 256])
def test_names_that_it_does_not_take(name: str) -> None:
    """Empty, too long, or with what separates names: refused with an example."""
    with pytest.raises(SettingsError, match="such as systemd:web"):
        Address.parse(f"systemd:{name}")
