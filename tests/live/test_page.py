"""The status page in a real browser: what it shows of a pool, what it says when something is wrong."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from prefork.master.saturation import publish_saturation
from prefork.metrics.description import ListenerDescription, PoolDescription
from prefork.metrics.kernel import Queue
from prefork.metrics.page import page
from prefork.metrics.status import status
from prefork.workers.scoreboard import PoolField, Scoreboard, SlotField
from prefork.workers.slot_writer import SlotWriter
from prefork.workers.states import ExitKind, Order, Phase, SaturationCause, StartReason, WorkerState
from tests.support.browser import SLOW, Browser, wait_text, why_no_browser
from tests.support.load import Load
from tests.support.server import serving
from tests.support.waiting import let_pass, wait_until
from tests.support.web import metrics_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.server import Program

pytestmark = [
    pytest.mark.once,  # a browser is what is tested
    pytest.mark.skipif(bool(why_no_browser()), reason=why_no_browser()),
]

SECOND = 1_000_000_000
SLOTS = 6
RIGHT, DOWN, HOME, TAB = "\ue014", "\ue015", "\ue011", "\ue004"
STATES = "return [...document.querySelectorAll('#grid button')].map((one) => one.dataset.state)"
LETTERS = "#grid button span"


@pytest.fixture
def browser() -> Iterator[Browser]:
    """Give a browser."""
    with Browser() as browser:
        yield browser


class Site:
    """The page and the status of a scoreboard that a test writes, where a metrics process would serve them.

    answers: how often the status was asked for. silent: it is answered no more.
    """

    def __init__(self, board: Scoreboard) -> None:
        self.board = board
        self.description = PoolDescription()
        self.queues: dict[int, Queue] = {}
        self.answers = 0
        self.silent = False
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/status":
                    self.answer(*site.status(), "application/json", "default-src 'none'")
                else:
                    body, policy = page()
                    self.answer(200, body, "text/html; charset=utf-8", policy)

            def answer(self, code: int, body: bytes, kind: str, policy: str) -> None:
                self.send_response(code)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Security-Policy", policy)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def status(self) -> tuple[int, bytes]:
        """Return code and body of an answer."""
        self.answers += 1
        if self.silent:
            return 503, b""
        now = time.monotonic_ns()
        found = status(self.board.snapshot(), self.description, now, queues=self.queues)
        return 200, json.dumps(found).encode()

    def worker(self, slot: int, state: WorkerState, since: int = 0) -> SlotWriter:
        """Let a slot have a worker in a state, for some seconds."""
        now = time.monotonic_ns() - since * SECOND
        self.board.prepare_slot(slot, 0, now)
        self.board.occupy_slot(slot, 100 + slot, StartReason.STARTED)
        writer = SlotWriter(self.board, slot)
        writer.become(WorkerState.IDLE if state is WorkerState.BUSY else state)
        if state is WorkerState.BUSY:
            writer.words[SlotField.REQUEST_NS] = now
        if state is WorkerState.RETIRING:
            self.board.give_order(slot, Order.RETIRE)
        return writer

    def tick(self, ago: int = 0) -> None:
        """Let the master have looked around this many seconds ago."""
        self.board.set_pool(PoolField.TICK_NS, time.monotonic_ns() - ago * SECOND)

    def close(self) -> None:
        """Serve no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def site() -> Iterator[Site]:
    """Give a pool of paper: it serves, needs one worker and has one."""
    board = Scoreboard.create(SLOTS)
    with contextlib.closing(board), contextlib.closing(Site(board)) as site:
        board.set_pool(PoolField.MASTER_PID, 99)
        board.set_pool(PoolField.STARTED_NS, time.monotonic_ns() - 3600 * SECOND)
        board.set_pool(PoolField.NEEDED, 1)
        board.set_pool(PoolField.TARGET, 2)
        # From now on, so that no test has to tick for its master.
        site.tick(ago=-3600)
        site.worker(0, WorkerState.IDLE)
        yield site


def requests_by_the_page(browser: Browser) -> Callable[[], int]:
    """Return a reading of how many requests the page says have been served."""

    def read() -> int:
        shown = browser.text("#outcomes tr:first-child td:last-child")
        return int(shown.replace(",", "") or 0)

    return read


# --- a real pool


def test_page_shows_a_pool_under_load(start: Callable[..., Program], browser: Browser) -> None:
    """Slots, states and figures are those of the pool and move with it; the console is silent and nothing else is asked for."""
    program = start(
        serving(
            "Echo",
            workers=3,
            max_children=5,
            pause=0.2,
            metrics_address="127.0.0.1:0",
            pool_name="paper",
        )
    )
    address = program.address()
    metrics = metrics_of(program).address
    origin = f"http://{metrics[0]}:{metrics[1]}/"

    browser.open(origin)
    wait_text(browser, "#phase", "Ready")
    wait_until(
        lambda: browser.run(STATES) == ["idle"] * 3 + ["gone"] * 2, "an idle pool", SLOW, poll=0.1
    )
    read = requests_by_the_page(browser)
    with Load(address, clients=6):
        busy = ["B", "B", "B", ".", "."]
        wait_until(lambda: browser.texts(LETTERS) == busy, "all are busy", SLOW, poll=0.1)
        first = wait_until(read, "requests are counted", SLOW, poll=0.1)
        wait_until(lambda: read() > first, "the numbers move", SLOW, poll=0.1)
        wait_text(browser, "#use", "100 %")
        wait_text(browser, "#latency", "ms")
        # Six clients, three workers: three wait.
        wait_until(lambda: browser.text("#queue").startswith("3"), "the queue", SLOW, poll=0.1)
        wait_text(browser, "#alerts", "Saturated")

    assert browser.text("#name") == "paper"
    assert f"master {program.pid}" in browser.text("#facts")
    assert f"{address[0]}:{address[1]}" in browser.text("#listeners")
    for plot in ("use", "queue", "rate", "latency"):
        assert browser.run(
            "return document.querySelectorAll(arguments[0]).length", f"#{plot}-plot .line"
        )
    assert browser.run("return document.querySelectorAll('#spread-plot .bar').length") > 0
    assert browser.complaints() == []
    asked = browser.requests()
    assert asked
    assert {url for url in asked if not url.startswith(("data:", origin))} == set()


# --- a pool of paper


def test_every_state_is_told_by_letter_word_and_colour(site: Site, browser: Browser) -> None:
    """A state has a letter in its slot, a word for screen readers, a count in the legend, and a colour that no other has."""
    for slot, state in enumerate(WorkerState):
        if state is not WorkerState.GONE:
            site.worker(slot, state, since=7)
    browser.open(site.url)
    wait_text(browser, "#phase", "Ready")

    assert browser.texts(LETTERS) == ["_", "S", "_", "B", "R", "."]
    labels = "return [...document.querySelectorAll('#grid button')].map((one) => one.ariaLabel)"
    assert browser.run(labels)[1:] == [
        *("slot 1, starting", "slot 2, idle", "slot 3, busy", "slot 4, retiring", "slot 5, empty")
    ]
    assert browser.run(STATES)[3] == "busy"
    assert 7 <= int(browser.texts("#grid button em")[3].removesuffix("s")) < 60
    assert browser.text("#legend").split() == [
        *(
            "B",
            "1",
            "busy",
            "_",
            "2",
            "idle",
            "S",
            "1",
            "starting",
            "R",
            "1",
            "retiring",
            ".",
            "1",
            "empty",
        )
    ]
    colour = "return [...document.querySelectorAll('#grid button')].slice(1).map((one) => getComputedStyle(one).backgroundColor)"
    for dark in (False, True):
        browser.show(1280, 900, dark=dark)
        assert len(set(browser.run(colour))) == 5


def test_what_is_wrong_is_said(site: Site, browser: Browser) -> None:
    """A pool that is not ready, that stops or whose master hangs says so, and a page without an answer that it has none."""
    site.board.set_pool(PoolField.NEEDED, 2)
    browser.open(site.url)
    wait_text(browser, "#alerts", "Not ready: 1 of the 2 workers that are needed")
    assert browser.text("#phase") == "Not ready"

    site.board.set_pool(PoolField.NEEDED, 1)
    wait_text(browser, "#phase", "Ready")
    wait_until(lambda: browser.text("#alerts") == "", "all is well", SLOW, poll=0.1)

    publish_saturation(site.board, SaturationCause.WORKERS_COMPUTE, 44.0)
    wait_text(browser, "#alerts", "clients wait (44 s). The workers compute: raise workers")
    assert browser.text("#phase") == "Saturated"
    publish_saturation(site.board, SaturationCause.NONE, 0.0)
    wait_until(lambda: browser.text("#alerts") == "", "it keeps up again", SLOW, poll=0.1)

    site.tick(ago=30)
    wait_text(browser, "#alerts", "The master hangs: it has not ticked for 3")
    assert browser.text("#phase") == "Hung"
    wait_until(
        lambda: (
            browser.run("return document.getElementById('said').textContent") == "The master hangs"
        ),
        "it is said to those who do not see it",
        SLOW,
    )

    site.tick(ago=-3600)
    site.board.set_pool(PoolField.PHASE, Phase.DRAINING)
    wait_text(browser, "#alerts", "Draining")

    site.silent = True
    wait_text(browser, "#alerts", "Connection lost")
    assert browser.text("#phase") == "No answer"
    site.silent = False
    site.board.set_pool(PoolField.PHASE, Phase.SERVING)
    wait_text(browser, "#phase", "Ready")
    wait_until(lambda: browser.text("#alerts") == "", "it has come back", SLOW, poll=0.1)


def test_idle_connections_are_shown_where_there_is_a_lot(site: Site, browser: Browser) -> None:
    """A pool that parks shows how many connections are idle and what became of others; no other pool does."""
    shown = "return [...document.querySelectorAll('.parking')].map((one) => one.checkVisibility())"
    site.board.set_pool(PoolField.PARKED, 1234)
    browser.open(site.url)
    wait_text(browser, "#phase", "Ready")
    assert browser.run(shown) == [False, False]

    site.board.set_pool(PoolField.LOT_STARTS, 1)
    wait_until(lambda: browser.run(shown) == [True, True], "the idle connections", SLOW, poll=0.1)
    wait_text(browser, "#parked", "1,234 parked")
    site.board.count_pool(PoolField.RESUMED_TOTAL, 500)
    site.board.count_pool(PoolField.PARKED_EVICTED, 17)
    wait_text(browser, "#unparked", "17")
    assert browser.text("#unparked").startswith("the client asked again\t500\t500")
    assert browser.run("return document.querySelectorAll('#parked-plot .line').length") > 0
    assert browser.complaints() == []


def test_texts_of_the_pool_stay_texts(site: Site, browser: Browser) -> None:
    """HTML in a name, a listener or a setting is shown as it is written, and makes no element."""
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    site.description = PoolDescription(
        name=evil,
        listeners=(ListenerDescription(evil, "stream", "unix", 5),),
        settings={evil: evil},
    )
    site.queues = {5: Queue(depth=4, limit=128)}
    browser.open(site.url)

    wait_text(browser, "#name", evil)
    assert evil in browser.text("#listeners")
    assert evil in browser.run("return document.getElementById('settings').textContent")
    assert browser.text("#queue").split() == ["4", "of", "128"]
    assert browser.run("return document.querySelectorAll('img').length") == 0
    assert browser.run("return document.querySelectorAll('script').length") == 1
    assert browser.complaints() == []


def test_browser_itself_refuses_html_and_foreign_scripts(site: Site, browser: Browser) -> None:
    """Should the script ever err, the policy of the page keeps text from becoming HTML and refuses other scripts."""
    browser.open(site.url)
    wait_text(browser, "#phase", "Ready")

    refused = "try { {} } catch (error) { return error.name }"
    for mischief in (
        "document.body.innerHTML = '<b>x</b>'; return 'done'",
        "document.createElement('img').setAttribute('onerror', 'window.ran = 1'); return 'done'",
        "document.createElement('script').textContent = 'window.ran = 1'; return 'done'",
    ):
        assert browser.run(refused.replace("{}", mischief)) == "TypeError", mischief


def test_slots_are_walked_by_keyboard(site: Site, browser: Browser) -> None:
    """Tab leads to the grid, arrows from slot to slot; who works there stands below."""
    site.worker(1, WorkerState.BUSY, since=65)
    site.board.vacate_slot(1, ExitKind.KILLED, time.monotonic_ns())
    site.worker(1, WorkerState.BUSY, since=65)
    browser.open(site.url)
    wait_text(browser, "#phase", "Ready")

    browser.press(TAB)
    assert "Slot 0 · idle · pid 100" in browser.text("#detail")
    browser.press(RIGHT)
    detail = browser.text("#detail")
    assert "Slot 1 · busy, a request for 1 min" in detail
    assert "pid 101" in detail
    assert "last exit killed" in detail
    browser.press(RIGHT, HOME)
    assert "Slot 0" in browser.text("#detail")
    browser.press(DOWN)  # there is one row
    assert "Slot 0" in browser.text("#detail")


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_nothing_is_wider_than_the_window(site: Site, browser: Browser, width: int) -> None:
    """On a phone, a tablet and a desk nothing has to be scrolled sideways, and a phone shows no empty slots."""
    path = "unix:/run/" + "a" * 90
    site.description = PoolDescription(
        name="n" * 64,
        listeners=(ListenerDescription(path, "stream", "unix", 5),),
        settings={"bind": path, "log_format": "text"},
    )
    browser.show(width, 800)
    browser.open(site.url)
    wait_text(browser, "#phase", "Ready")

    browser.run("for (const one of document.querySelectorAll('details')) one.open = true")

    assert browser.run("return document.documentElement.scrollWidth") <= width
    assert browser.run("return innerWidth") == width
    empty = "return [...document.querySelectorAll('#grid .gone')].some((one) => one.offsetParent)"
    assert browser.run(empty) == (width >= 600)


def test_hidden_page_asks_no_more(site: Site, browser: Browser) -> None:
    """A page in the background stops its polls, and goes on when it is looked at again."""
    browser.open(site.url)
    wait_text(browser, "#phase", "Ready")
    hide = (
        "Object.defineProperty(document, 'hidden', { configurable: true, value: arguments[0] });"
        "document.dispatchEvent(new Event('visibilitychange'))"
    )

    browser.run(hide, True)
    let_pass(0.5)  # for a poll that was under way
    before = site.answers
    let_pass(2.5)
    assert site.answers == before

    browser.run(hide, False)
    wait_until(lambda: site.answers >= before + 2, "it asks again", SLOW)
