"""Goodput under overload: answers whose client still waits, against the load that is offered.

    python benchmarks/goodput.py                measure all servers, print the table
    python benchmarks/goodput.py --draw         draw docs/images/goodput.svg as well

Every request needs one of four tokens for 25 ms, as it would need one of four cores or connections of a
database. So each server can answer 160 requests a second, whatever it is made of, and a busy machine does
not disturb the measurement much. Clients come at random, wait for half a second, and leave. gunicorn has to
be installed (``pip install gunicorn``); without it, its line is left out. ForkingTCPServer is not measured: hundreds
of forks a second need more CPU time than a small machine has, so its line would show the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import logging
import multiprocessing
import os
import random
import re
import signal
import socket
import socketserver
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
sys.path.insert(1, str(HERE.parent))

import prefork  # noqa: E402 - a plain checkout: the package lies beside this folder

TOKENS: Final = 4
SERVICE: Final = 0.025
CAPACITY: Final = TOKENS / SERVICE
PATIENCE: Final = 0.5
"""Seconds after which a client leaves."""

QUEUE_WAIT: Final = 0.25
"""The max_queue_wait of the variant that has it."""

LOADS: Final = (0.5, 0.8, 1.0, 1.5, 2.0, 3.0)
WARM_UP: Final = 3.0
MEASURED: Final = 5.0
ANSWER: Final = b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"
VARIANTS: Final = {
    "prefork, max_queue_wait": f"prefork with max_queue_wait = {QUEUE_WAIT:g} s",
    "prefork": "prefork",
    "gunicorn": "gunicorn, sync workers",
    "threads": "ThreadingTCPServer",
}

tokens = multiprocessing.Semaphore(TOKENS)


# --- the servers


def work() -> None:
    """Do what a request costs."""
    with tokens:
        time.sleep(SERVICE)


def application(_environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Answer as a WSGI application (gunicorn)."""
    work()
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]


class Handler(socketserver.BaseRequestHandler):
    """Answers a GET without a look at it."""

    def handle(self) -> None:
        """Serve one request."""
        if self.request.recv(1024):
            work()
            self.request.sendall(ANSWER)


class Quiet:
    """Prints no traceback for a client that has left."""

    request_queue_size = 1024
    allow_reuse_address = True
    daemon_threads = True
    workers = TOKENS
    max_children = 300

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing."""


def serve(variant: str) -> None:
    """Serve until the end of this process."""
    bases: dict[str, Any] = {
        "prefork": prefork.PreForkingTCPServer,
        "prefork, max_queue_wait": prefork.PreForkingTCPServer,
        "threads": socketserver.ThreadingTCPServer,
    }
    members = {"max_queue_wait": QUEUE_WAIT} if variant.endswith("max_queue_wait") else {}
    if variant.startswith("prefork"):
        members["max_children"] = TOKENS
    logging.getLogger("prefork").setLevel(logging.ERROR)
    server = type("Server", (Quiet, bases[variant]), members)(("127.0.0.1", 0), Handler)
    print(json.dumps(server.server_address), flush=True)
    server.serve_forever()


def start(variant: str) -> tuple[subprocess.Popen[str], tuple[str, int]]:
    """Start a server, and return its process and its address once it listens."""
    if variant != "gunicorn":
        command = [sys.executable, __file__, "--serve", variant]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert process.stdout is not None
        host, port = json.loads(process.stdout.readline())
        return process, (host, port)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address: tuple[str, int] = free.getsockname()
    command = [sys.executable, "-m", "gunicorn", "--preload", "--workers", str(TOKENS)]
    command += [
        "--bind",
        f"127.0.0.1:{address[1]}",
        "--log-level",
        "critical",
        "goodput:application",
    ]
    process = subprocess.Popen(command, cwd=HERE, text=True, start_new_session=True)
    while True:
        try:
            socket.create_connection(address).close()
        except ConnectionRefusedError:
            time.sleep(0.05)
        else:
            return process, address


# --- the clients


async def ask(address: tuple[str, int]) -> bool:
    """Ask once; return whether the answer came in time."""
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"GET / HTTP/1.0\r\n\r\n")
            return (await reader.read()).endswith(b"ok")
    except (OSError, TimeoutError):
        return False
    finally:
        if writer is not None:
            writer.close()


async def load(address: tuple[str, int], rate: float) -> float:
    """Offer this many requests a second; return how many were answered in time, per second."""
    dice = random.Random(18)
    began = time.monotonic()
    at, asked = began, []
    while at < began + WARM_UP + MEASURED:
        await asyncio.sleep(max(0.0, at - time.monotonic()))
        asked.append((at - began, asyncio.create_task(ask(address))))
        at += dice.expovariate(rate)
    answers = [await task for begun, task in asked if begun >= WARM_UP]
    return sum(answers) / MEASURED


def measure(variant: str, share: float) -> float:
    """Return the goodput of a fresh server, as a share of the capacity."""
    process, address = start(variant)
    try:
        return asyncio.run(load(address, share * CAPACITY)) / CAPACITY
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


# --- the result


def table(found: dict[str, list[float]]) -> str:
    """Return the goodput of all servers as a table of Markdown."""
    lines = ["| offered load | " + " | ".join(f"{share:g}" for share in LOADS) + " |"]
    lines.append("|---|" + "---|" * len(LOADS))
    for variant, shares in found.items():
        cells = " | ".join(f"{100 * share:.0f} %" for share in shares)
        lines.append(f"| {VARIANTS[variant]} | {cells} |")
    return "\n".join(lines)


def draw(found: dict[str, list[float]]) -> str:
    """Return the picture."""
    from docs.images.charts import (  # noqa: PLC0415 - for the picture alone
        BLUE,
        GREEN,
        ORANGE,
        PALE,
        Axis,
        Panel,
        chart,
    )

    x = Axis(0.5, 3, (0.5, 1, 1.5, 2, 2.5, 3), title="offered load, in capacities")
    y = Axis(0, 1.1, (0, 0.25, 0.5, 0.75, 1), lambda part: f"{100 * part:.0f} %")
    panel = Panel(64, 86, 660, 250, x, y, "answers in time, as a share of the capacity")
    colours = dict(zip(VARIANTS, (BLUE, ORANGE, GREEN, PALE), strict=True))
    for variant, shares in found.items():
        panel.line([*zip(LOADS, shares, strict=True)], colours[variant])
    for number, variant in enumerate(found):
        panel.label((2.95, 0.86 - 0.09 * number), VARIANTS[variant], colours[variant], "end")
    return chart(
        "Goodput under overload",
        f"Four workers, requests of {1000 * SERVICE:g} ms, clients that leave after {PATIENCE:g} s.",
        398,
        [panel],
    )


def main() -> None:
    """Measure, print, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--draw", action="store_true", help="draw the picture of the documents")
    given = parser.parse_args()
    if given.serve:
        serve(given.serve)
        return
    variants = [*VARIANTS]
    if importlib.util.find_spec("gunicorn") is None:
        variants.remove("gunicorn")
    found: dict[str, list[float]] = {}
    for variant in variants:
        found[variant] = [measure(variant, share) for share in LOADS]
        print(variant, " ".join(f"{share:.2f}" for share in found[variant]), file=sys.stderr)
    text = table(found)
    print(text)
    if given.draw:
        home = HERE.parent / "docs"
        (home / "images" / "goodput.svg").write_text(draw(found), encoding="utf-8")
        page = home / "OVERLOAD.md"
        marks = r"(?s)(<!-- goodput -->\n).*(<!-- /goodput -->)"
        said = page.read_text(encoding="utf-8")
        page.write_text(re.sub(marks, rf"\1\n{text}\n\n\2", said), encoding="utf-8")


if __name__ == "__main__":
    main()
