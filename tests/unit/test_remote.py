"""The pools of other machines: what is believed of an answer, what is refused, and in what order pools are shown."""

from __future__ import annotations

import io
import json
import socket
import threading
from collections import Counter
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from prefork.cli.commands.options import urls_in
from prefork.inspect import fleet, remote
from prefork.inspect.fleet import Need, Row, as_lines, in_order, row, summary
from prefork.inspect.fleet_drawing import fleet_drawing
from prefork.inspect.remote import (
    MOST_BYTES,
    Document,
    RemoteError,
    Seen,
    Url,
    UrlError,
    Watch,
    ask_once,
    fetch,
)
from tests.support.boards import SECOND, occupy, scoreboard, status_of_board, take_request
from tests.support.waiting import Stopwatch, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

NOW = 1_000 * SECOND


def status(*, busy: int = 0, **changes: Any) -> dict[str, Any]:
    """Return the status of a pool with two workers, as /status has it. busy: how many have a request."""
    with scoreboard(2, name="shop", at=NOW) as board:
        for slot in range(2):
            writer = occupy(board, slot, 4711 + slot, at=NOW)
            if slot < busy:
                take_request(writer, NOW - SECOND)
        return {**status_of_board(board, NOW), **changes}


def document(**changes: Any) -> Document:
    """Return the same as it comes over the network."""
    return Document.from_json(json.dumps(status(**changes)).encode())


@contextmanager
def answering(answer: bytes, *, closes: bool = True) -> Iterator[Url]:
    """Answer one client with these bytes, whatever it asks."""
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            client, _ = listener.accept()
            with client:
                client.recv(65536)
                try:
                    client.sendall(answer)
                except OSError:
                    return
                if not closes:
                    ended.wait(5)

        thread = threading.Thread(target=serve)
        thread.start()
        yield Url("127.0.0.1", listener.getsockname()[1], "/status")
        ended.set()
        thread.join()


def http(body: bytes, status_line: bytes = b"HTTP/1.1 200 OK") -> bytes:
    """Return an answer."""
    return status_line + b"\r\nContent-Type: application/json\r\n\r\n" + body


# --- addresses


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://web1", Url("web1", 80, "/status")),
        ("http://web1:9100/", Url("web1", 9100, "/status")),
        ("http://[fd00::1]:9100/pool/status", Url("fd00::1", 9100, "/pool/status")),
    ],
)
def test_url(text: str, url: Url) -> None:
    """An address of HTTP is read; without a path it is that of the status."""
    assert Url.parse(text) == url


def test_urls_of_one_host_are_told_apart() -> None:
    """Two pools behind one gateway have two rows, while the usual path is not shown."""
    urls = ("http://web1:9100", "http://web1:9100/shop/status", "http://[fd00::1]/status")
    assert [Url.parse(one).where for one in urls] == [
        *("web1:9100", "web1:9100/shop/status", "[fd00::1]:80")
    ]
    given = ["http://web1:9100", "http://web1:9100/", "http://web1:9100/status"]
    assert urls_in(given, None) == [Url("web1", 9100, "/status")]


@pytest.mark.parametrize(
    "text",
    [
        *("https://web1", "http://", "web1", "http://web1:99999", "http://[::1", "http://a b"),
        *(
            "http://web1/a b",
            "http://web1/\r\nX: y",
            "http://me@web1",
            "http://web1/?a",
            "http://web1/#a",
            "http://web1:0",
            "http://ä",
            "http://a..b",
            "http://256.1.1.1",
            "http://[fe80::1%eth0]",
        ),
    ],
)
def test_what_is_no_url_is_refused(text: str) -> None:
    """Anything else is refused with an example; no byte of the command line can add a header."""
    with pytest.raises(UrlError, match="such as http://web1:9100"):
        Url.parse(text)


# --- answers


def test_answer_of_a_pool() -> None:
    """The status that a pool serves is understood as it is."""
    with answering(http(json.dumps(status(busy=1)).encode())) as url:
        found = fetch(url)
    assert (found.name, found.phase, found.workers.busy) == ("shop", "serving", 1)
    assert found == document(busy=1)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "the connection was closed"),
        (b"\x15\x03\x01\x00\x02", "no HTTP"),
        (http(b"{}", b"HTTP/1.1 404 Not Found"), "HTTP 404"),
        (http(b"<html>"), "no status of a pool"),
        (http(b"[" * 100_000), "no status of a pool"),
        (http(b"{}"), "no status of a pool"),
        (http(json.dumps(status(uptime=-1)).encode()), "no status of a pool"),
        (http(json.dumps(status(uptime=1e300)).encode()), "no status of a pool"),
        (http(json.dumps(status(durations={"bounds": [1], "counts": [1]})).encode()), "no status"),
        (http(json.dumps(status(phase="x" * 600)).encode()), "no status of a pool"),
        (http(b" " * (MOST_BYTES + 1)), "more than 4 MiB"),
    ],
)
def test_other_answers_have_a_reason(answer: bytes, reason: str) -> None:
    """An answer that is not a pool's, or has impossible numbers, is named in a few words and shown as nothing else."""
    with answering(answer) as url, pytest.raises(RemoteError, match=reason):
        fetch(url)


def test_slow_answer_has_one_deadline() -> None:
    """A host that sends a part and no more is given up in time; one where nothing listens is given up at once."""
    with answering(b"HTTP/1.1 200 OK\r\n", closes=False) as url:
        watch = Stopwatch()
        with pytest.raises(RemoteError, match=r"silent for 0\.1 s"):
            fetch(url, 0.1)
        assert watch.seconds < 2
    with pytest.raises(RemoteError, match="connection refused"):
        fetch(url)
    with pytest.raises(RemoteError, match="the name cannot be resolved"):
        fetch(Url("a..b", 9100, "/status"))


class SilentSockets:
    """Sockets that reach no address but the good ones. Waiting for a silent one takes its whole timeout."""

    SOCK_STREAM = socket.SOCK_STREAM
    gaierror = socket.gaierror

    def __init__(self, addresses: int, good: int) -> None:
        self.now = 100.0
        self.tried: list[float] = []
        self.getaddrinfo = lambda *_, **__: [(2, 1, 6, "", n == good) for n in range(addresses)]

    def monotonic(self) -> float:
        """Return the time of these sockets."""
        return self.now

    @contextmanager
    def socket(self, *_: int) -> Iterator[Any]:
        """Give a socket."""
        yield self

    def settimeout(self, seconds: float) -> None:
        """Take the timeout of what comes next."""
        self._timeout = seconds

    def connect(self, is_good: bool) -> None:
        """Wait."""
        self.tried.append(self.now)
        if not is_good:
            self.now += self._timeout
            raise TimeoutError


def test_addresses_of_a_name_share_one_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many addresses of a name are silent, the answer takes no longer, and the last address has its chance."""
    for good, ends in ((-1, 102.0), (3, 101.5)):
        sockets = SilentSockets(4, good)
        monkeypatch.setattr(remote, "socket", sockets)
        monkeypatch.setattr(remote, "time", sockets)
        with pytest.raises(TimeoutError) if good < 0 else nullcontext():
            remote._connected(Url("web1", 80, "/status"), 102.0)
        assert sockets.tried == [100.0, 100.5, 101.0, 101.5]
        assert sockets.now == pytest.approx(ends)


def test_texts_of_a_stranger_are_escaped() -> None:
    """Nothing that a host says can steer the terminal."""
    found = document(name="\x1b[2J\nx", phase="\x1b]0;t\x07")
    one = row("web1:80", None, Seen(1.0, found), 1.0)
    assert all(cell.isprintable() for cell in fleet.cells(one))
    assert one.need is Need.NOT_READY


def test_hosts_are_asked_at_the_same_time() -> None:
    """Each host has a thread; a watch keeps the last two answers, and ends when it is told to."""
    with answering(http(json.dumps(status()).encode())) as url:
        one, other = ask_once([url, Url("127.0.0.1", 1, "/status")])
    assert one.seen[1] is not None
    assert one.seen[1].document == document()
    assert other.seen[1] is not None
    assert other.seen[1].failure == "connection refused"
    watch = Watch(Url("127.0.0.1", 1, "/status"), 0.01)
    wait_until(lambda: watch.seen[0], "a second answer")
    watch.end()
    watch.wait(5)
    assert not watch._thread.is_alive()


# --- rows


def rows() -> list[Row]:
    """Return a row of each kind, the healthy ones first."""
    found = {
        "idle": document(),
        "busy": document(busy=1),
        "reload": document(reload_state="failed"),
        "full": document(saturation={"cause": "workers_compute"}),
        "starting": document(ready=False),
        "hung": document(last_tick=12.0),
    }
    seen = [row(name, None, Seen(10.0, one), 10.0) for name, one in found.items()]
    return [*seen, row("gone", None, Seen(10.0, failure="connection refused"), 10.0)]


def test_pools_that_need_attention_come_first() -> None:
    """No answer, a hung master, not ready, saturated, a failed reload; then the healthy ones, the busiest first."""
    assert [one.where for one in in_order(rows())] == [
        *("gone", "hung", "starting", "full", "reload", "busy", "idle")
    ]
    assert [one.need for one in in_order(rows())] == [*list(Need), Need.NONE]
    assert summary(rows()) == "4 of 7 pools ready, 1 of 12 workers busy"


def test_old_answer_is_no_answer() -> None:
    """A row never shows numbers of a host that has been silent for longer than it may."""
    seen = Seen(10.0, document())
    assert row("a:1", None, seen, 12.0).need is Need.NONE
    late = row("a:1", None, seen, 13.0)
    assert (late.need, late.busy, late.state) == (Need.NO_ANSWER, "-", "no answer for 3.0s")
    assert row("a:1", None, None, 0.0).state == "no answer yet"


def test_rates_need_two_answers() -> None:
    """Rate and p99 are of the time between the last two answers; a restarted pool has no negative rate."""
    first, last = document(), document()
    first.durations.counts[0] = 100
    last.durations.counts[0], last.durations.counts[12] = 100, 10
    more = {**status()["requests"], "total": 30}
    last = Document.from_json(json.dumps(status(requests=more)).encode())
    found = row("a:1", Seen(8.0, first), Seen(10.0, last), 10.0)
    assert found.rate == 15.0
    assert row("a:1", Seen(8.0, last), Seen(10.0, first), 10.0).rate == 0.0
    assert row("a:1", None, Seen(10.0, last), 10.0).rate is None


@pytest.mark.parametrize("width", [60, 70, 80, 200, None])
def test_lines_have_every_word_of_a_state(width: int | None) -> None:
    """The table keeps to the width of a terminal and cuts no state; without a terminal each pool is one line."""
    lines = as_lines(rows(), width)
    assert lines[0] == summary(rows())
    assert lines[2].split()[0] == "host"
    assert max(map(len, lines)) <= (width or 1000)
    assert states_of(rows()) <= Counter(" ".join(lines[2:]).split())
    assert (len(lines) == len(rows()) + 3) == (width in (200, None))


def states_of(found: list[Row]) -> Counter[str]:
    """Return all words of the states."""
    return Counter(word for one in found for word in one.state.split())


@pytest.mark.parametrize(("width", "height"), [(100, 30), (80, 20), (80, 10), (40, 24), (40, 6)])
def test_screen_fits_the_terminal(width: int, height: int) -> None:
    """The screen has as many lines as the terminal, with every word of the states, and says how many pools it leaves out."""
    console = Console(file=io.StringIO(), width=width, height=height, color_system=None)
    console.print(fleet_drawing(rows(), width, height))
    shown = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(shown) == height
    assert max(map(len, shown)) <= width
    assert ("more pools" in "\n".join(shown)) == (height < 12)
    if height > 12:
        assert states_of(rows()) <= Counter("\n".join(shown).split())
