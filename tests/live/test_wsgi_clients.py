"""WSGI applications asked by the programs that people have: curl, ab, wrk, slowhttptest and a browser."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from prefork.workers.scoreboard import SlotField
from prefork.workers.states import Rejection
from tests.support import board
from tests.support.browser import Browser, wait_text, why_no_browser
from tests.support.engines import needs
from tests.support.strict_http import StrictClient
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.server import Program

PROGRAM = """
    from tests.support.app import *
    from wsgiref.validate import validator
    from prefork.wsgi import WSGIServer

    def application(environ, start_response):
        body = environ["wsgi.input"].read(1 << 24)
        fields = [("Content-Type", "text/html; charset=utf-8")]
        if environ["PATH_INFO"] == "/pieces":
            start_response("200 OK", fields)
            return iter([b"<p>", body or b"none", b"</p>"])
        body = body or b"<title>Shop</title><p>Hello, <b>browser</b></p><img src=/pieces>"
        start_response("200 OK", [*fields, ("Content-Length", str(len(body)))])
        return [body]

    class Server(WSGIServer):
        workers = 2
        edge_timeout = 0.3
        when_ready = announce

    log_to_stderr()
    with Server(("127.0.0.1", 0), validator(application)) as server:
        server.serve_forever()
"""


def url_of(program: Program) -> str:
    """Return where a program serves."""
    return "http://{}:{}/".format(*program.address())


def output_of(*command: str, ceiling: float = 60) -> str:
    """Return what a program prints that ends by itself, without an error."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=ceiling, check=False, errors="replace"
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_curl(start: Callable[..., Program], tmp_path: Path) -> None:
    """Curl keeps its connection over bodies of a length, in chunks and after 100 Continue, and over HEAD."""
    curl = [needs("curl"), "-sS", "--fail", "--max-time", "30"]
    url = url_of(start(PROGRAM))
    upload = tmp_path / "upload"
    upload.write_bytes(b"0123456789" * 200_000)
    each = ["-w", "%{http_code} %{num_connects} %{size_download}\\n", "-o", "/dev/null"]
    chunked = ["-H", "Transfer-Encoding: chunked"]
    requests = [
        [url],
        ["-I", url],
        ["-d", "abc", url + "pieces"],
        ["-H", "Expect: 100-continue", "-T", str(upload), url],
        [*chunked, "-T", str(upload), url],
        [*chunked, "-H", "Expect:", "-d", "abc", url + "pieces"],
    ]
    command = [*curl, *each]
    for number, one in enumerate(requests):
        command += one if not number else ["--next", *curl[1:], *each, *one]
    assert output_of(*command).splitlines() == [
        *("200 1 64", "200 0 0", "200 0 10", "200 0 2000000", "200 0 2000000", "200 0 10"),
    ]


def test_ab_and_wrk(start: Callable[..., Program]) -> None:
    """Load generators that keep their connections get good answers alone, by HTTP/1.0 and by HTTP/1.1."""
    ab, wrk = needs("ab"), needs("wrk")
    program = start(PROGRAM)
    said = output_of(ab, "-q", "-k", "-n", "400", "-c", "8", url_of(program))
    for words in ("Complete requests: +400", "Failed requests: +0", "Keep-Alive requests: +400"):
        assert re.search(rf"^{words}$", said, re.MULTILINE), said
    said = output_of(wrk, "-t1", "-c8", "-d1s", "--timeout", "30s", url_of(program) + "pieces")
    assert re.search(r"^ +[1-9]\d* requests in ", said, re.MULTILINE), said
    assert "Non-2xx" not in said
    assert "Socket errors" not in said


def test_slowhttptest(start: Callable[..., Program]) -> None:
    """Clients that send their heads byte by byte are refused at edge_timeout, and others are served meanwhile."""
    slowhttptest = needs("slowhttptest")
    program = start(PROGRAM)
    count = 12
    flags = f"-H -c {count} -r {count} -i 10 -l 60 -p 1 -u {url_of(program)}"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    attack = subprocess.Popen([slowhttptest, *flags.split()], **quiet)
    try:
        with board.board_of(program.pid) as scores:
            place = SlotField.REJECTIONS + tuple(Rejection).index(Rejection.REQUEST)
            wait_until(lambda: scores.total(place) > 1, "the first slow clients are refused")
            client = StrictClient(program.address())
            try:
                assert client.ask("GET", "/").status == 200
            finally:
                client.close()
            wait_until(lambda: scores.total(place) >= count, "all slow clients are refused")
    finally:
        attack.terminate()
        attack.wait()


@pytest.mark.skipif(bool(why_no_browser()), reason=why_no_browser())
def test_browser(start: Callable[..., Program]) -> None:
    """Chromium shows a page and what the page asks for, and shows it again over the connection that it keeps."""
    url = url_of(start(PROGRAM))
    with Browser() as browser:
        for _ in range(2):
            browser.open(url)
            wait_text(browser, "p", "Hello, browser")
        assert [one for one in browser.requests() if one.endswith("/pieces")] == [
            url + "pieces"
        ] * 2
