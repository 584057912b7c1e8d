"""Draw every timeout in the life of a request for docs/OPERATING.md, and write its table: ``python -m docs.images.timeouts``.

``TIMEOUTS`` says once what each timeout bounds. The picture and the table of the page are made of it, and a test
compares its names with the durations among the settings.
"""
# ruff: noqa: INP001 - a folder of pictures, not a package

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape

import msgspec

from docs.images.charts import BLUE, BLUE_FILL, GREEN, GRID, INK, ORANGE, PALE, chart
from docs.images.markdown import filled, table
from prefork.cli.sources import OWN_DEFAULTS
from prefork.workers.settings import ROWS

HERE: Final = Path(__file__).parent
DOCUMENT: Final = HERE.parent / "OPERATING.md"
PICTURE: Final = HERE / "timeouts.svg"


class Loss(Enum):
    """What a timeout ends, as the colour in which it is drawn."""

    NOTHING = GREEN
    REQUEST = BLUE
    WORKER = ORANGE


LEGEND: Final = {
    Loss.NOTHING: "ends nothing",
    Loss.REQUEST: "ends the request or the connection",
    Loss.WORKER: "kills the worker",
}


class Timeout(msgspec.Struct, frozen=True):
    """What one setting bounds.

    spans: from where to where it is drawn, each as two names of ``PLACES``. then: what happens when the time is
    over, in a few words for the picture. since, until, ends: for the table. on_left: whether ``then`` stands
    before the span, because there is no room behind it. dashed: whether only parts of the span count.
    """

    key: str
    spans: Sequence[tuple[str, str]]
    loss: Loss
    then: str
    since: str
    until: str
    ends: str
    on_left: bool = False
    dashed: bool = False


PLACES: Final = {
    # a connection
    "connected": 24,
    "spoken": 118,
    "taken": 224,
    "admitted": 306,
    "slow": 424,
    "read": 390,
    "soft": 470,
    "worked": 484,
    "answered": 562,
    "parked": 622,
    "closed": 736,
    # a worker
    "forked": 24,
    "ready": 150,
    "asked": 560,
    "gone": 736,
    # a stop
    "ordered": 150,
    "delayed": 320,
    "stopped": 560,
}
"""Where each instant is drawn, in pixels from the left."""

REQUEST: Final = (
    Timeout(
        "defer_accept",
        [("connected", "spoken")],
        Loss.NOTHING,
        "queued all the same",
        "the connection is made",
        "the client has sent data",
        "The connection enters the accept queue, although its client has said nothing",
    ),
    Timeout(
        "max_queue_wait",
        [("spoken", "taken")],
        Loss.REQUEST,
        "shed when a worker takes it",
        "the connection enters the accept queue; for a parked one, its client speaks",
        "a worker takes it",
        "The worker sheds the request: `shed_request()` may answer, and no handler runs",
    ),
    Timeout(
        "edge_timeout",
        [("taken", "admitted")],
        Loss.REQUEST,
        "refused",
        "a worker takes the connection",
        "the handler begins. For a WSGI application also: the head of a request begins → the head is whole",
        "The client is refused",
    ),
    Timeout(
        "client_timeout",
        [("admitted", "read"), ("worked", "answered")],
        Loss.REQUEST,
        "each wait for the client",
        "the handler waits for its client to send data, or begins to send an answer",
        "data has come, or the client has accepted the whole answer",
        "`TimeoutError` in the handler. The connection is closed",
        on_left=True,
    ),
    Timeout(
        "slow_request",
        [("taken", "slow")],
        Loss.NOTHING,
        "its stacks are logged, once",
        "a worker takes the request",
        "the request is over",
        "The stacks of the worker are logged, and the request goes on",
    ),
    Timeout(
        "soft_timeout",
        [("taken", "soft")],
        Loss.REQUEST,
        "exception in the handler",
        "a worker takes the request",
        "the request is over",
        "`RequestTimeout` is raised in the handler ([CANCELLING.md](CANCELLING.md))",
    ),
    Timeout(
        "cpu_timeout",
        [("read", "worked")],
        Loss.REQUEST,
        "exception, by CPU time",
        "a worker takes the request; CPU time of the worker counts, and waiting does not",
        "the request is over",
        "`CPUTimeExceeded` is raised in the handler",
        dashed=True,
    ),
    Timeout(
        "request_timeout",
        [("taken", "answered")],
        Loss.WORKER,
        "worker killed",
        "a worker takes the request",
        "the request is over; `extend_deadline()` gives more time",
        "The stacks of the worker are logged, the worker is killed and replaced",
        on_left=True,
    ),
    Timeout(
        "linger",
        [("answered", "parked")],
        Loss.NOTHING,
        "then it is parked",
        "the answer is sent",
        "the client asks again",
        "The connection is parked. With TLS it is closed",
        on_left=True,
    ),
    Timeout(
        "park_timeout",
        [("parked", "closed")],
        Loss.REQUEST,
        "then it is closed",
        "the connection is parked",
        "its client speaks",
        "The connection is closed",
        on_left=True,
    ),
)

WORKER: Final = (
    Timeout(
        "boot_timeout",
        [("forked", "ready")],
        Loss.WORKER,
        "killed, and the slot is tried again",
        "a worker is forked, or new code is loaded for a reload",
        "the worker is ready, or the new code serves",
        "The worker is killed and tried again. A reload fails, and the previous code serves on",
    ),
    Timeout(
        "max_lifetime",
        [("forked", "asked")],
        Loss.NOTHING,
        "replaced",
        "a worker is forked",
        "the worker leaves",
        "A successor is started, and the worker leaves between two requests",
    ),
    Timeout(
        "graceful_timeout",
        [("asked", "gone")],
        Loss.WORKER,
        "stacks logged, worker killed",
        "a worker is asked to leave; at a stop, when `drain_delay` is over",
        "the worker has finished its request and ended",
        "The stacks of the worker are logged, and it is killed with its request",
        on_left=True,
    ),
)

STOP: Final = (
    Timeout(
        "drain_delay",
        [("ordered", "delayed")],
        Loss.NOTHING,
        "",
        "TERM or INT reaches the master",
        "the time is over",
        "New clients are refused, and the accept queue is served to its end",
    ),
)

STOP_GRACE: Final = msgspec.structs.replace(
    WORKER[-1], spans=[("delayed", "stopped")], then="busy workers are killed"
)
"""``graceful_timeout``, as it is drawn in a stop."""

TIMEOUTS: Final = (*REQUEST, *WORKER, *STOP)


class Box(msgspec.Struct, frozen=True):
    """A phase: what it is called, what happens in it, and where it begins and ends; a part of one has no title."""

    title: str
    text: str
    begin: str
    end: str


CONNECTION_BOXES: Final = (
    Box("kernel", "silent", "connected", "spoken"),
    Box("accept queue", "waits", "spoken", "taken"),
    Box("edge", "PROXY, TLS", "taken", "admitted"),
    Box("handler", "", "admitted", "answered"),
    Box("", "reads", "admitted", "read"),
    Box("", "works", "read", "worked"),
    Box("", "answers", "worked", "answered"),
    Box("worker", "waits", "answered", "parked"),
    Box("lot", "idle, parked", "parked", "closed"),
)

WORKER_BOXES: Final = (
    Box("boots", "worker_init()", "forked", "ready"),
    Box("serves", "one request after the other", "ready", "asked"),
    Box("leaves", "finishes its request", "asked", "gone"),
)

STOP_BOXES: Final = (
    Box("serves", "", "forked", "ordered"),
    Box("not ready", "still accepts clients", "ordered", "delayed"),
    Box("drains", "serves the queue and what is in hand", "delayed", "stopped"),
)

BUSY: Final = {"edge", "handler", "serves"}
"""The phases in which a worker has the request in hand, or serves."""

ROW: Final = 25
BOX_HEIGHT: Final = 42


class Timeline:
    """A row of phases, and below it each timeout as a span: one ``svg()`` of a chart."""

    def __init__(
        self, top: float, title: str, boxes: Sequence[Box], timeouts: Sequence[Timeout]
    ) -> None:
        self._top = top
        self._title = title
        self._boxes = boxes
        self._timeouts = timeouts

    @property
    def bottom(self) -> float:
        """Return where the drawing ends, in pixels from the top."""
        return self._top + BOX_HEIGHT + 14 + ROW * len(self._timeouts)

    def svg(self) -> str:
        """Return the drawing."""
        return "\n".join([*self._guides(), *self._phases(), *self._spans()])

    def _guides(self) -> Iterator[str]:
        for place in dict.fromkeys(name for box in self._boxes for name in (box.begin, box.end)):
            x = PLACES[place]
            yield f"<path d='M{x} {self._top}V{self.bottom - 6}' stroke='{GRID}'/>"

    def _phases(self) -> Iterator[str]:
        yield _text(24, self._top - 10, self._title, PALE)
        for box in self._boxes:
            left, right = PLACES[box.begin], PLACES[box.end]
            middle = (left + right) / 2
            if box.title:
                fill = BLUE_FILL if box.title in BUSY else GRID
                yield (
                    f"<rect x='{left + 1}' y='{self._top}' width='{right - left - 2}' height='{BOX_HEIGHT}' "
                    f"rx='4' fill='{fill}'/>"
                )
                yield _text(middle, self._top + 18, box.title, INK, "middle", bold=True)
            yield _text(middle, self._top + 34, box.text, INK, "middle")

    def _spans(self) -> Iterator[str]:
        for number, timeout in enumerate(self._timeouts):
            y = self._top + BOX_HEIGHT + 20 + ROW * number
            colour = timeout.loss.value
            for begin, end in timeout.spans:
                yield _span(PLACES[begin], PLACES[end], y, colour, dashed=timeout.dashed)
            yield _label(timeout, y + 4, colour)


def _span(left: float, right: float, y: float, colour: str, *, dashed: bool) -> str:
    dash = " stroke-dasharray='4 3'" if dashed else ""
    return (
        f"<path d='M{left + 2} {y - 5}v10M{right - 2} {y - 5}v10' stroke='{colour}' stroke-width='2'/>"
        f"<path d='M{left + 2} {y}H{right - 2}' stroke='{colour}' stroke-width='2'{dash}/>"
    )


def _label(timeout: Timeout, y: float, colour: str) -> str:
    """Return the name and what happens, behind the last span or before the first one."""
    x = PLACES[timeout.spans[0][0]] - 8 if timeout.on_left else PLACES[timeout.spans[-1][1]] + 6
    anchor = "end" if timeout.on_left else "start"
    then = f"<tspan fill='{PALE}' dx='6'>{escape(timeout.then)}</tspan>" if timeout.then else ""
    return (
        f"<text x='{x}' y='{y}' text-anchor='{anchor}' paint-order='stroke' stroke='#fff' stroke-width='4'>"
        f"<tspan fill='{colour}' font-weight='600'>{timeout.key}</tspan>{then}</text>"
    )


def _text(
    x: float, y: float, text: str, colour: str, anchor: str = "start", *, bold: bool = False
) -> str:
    weight = " font-weight='600'" if bold else ""
    return f"<text x='{x}' y='{y}' fill='{colour}' text-anchor='{anchor}'{weight}>{escape(text)}</text>"


class Legend:
    """What the colours mean, in one line."""

    def __init__(self, top: float) -> None:
        self._top = top

    def svg(self) -> str:
        """Return the line."""
        parts, x = [], 24
        for loss, text in LEGEND.items():
            parts.append(
                f"<path d='M{x} {self._top - 4}h22' stroke='{loss.value}' stroke-width='3'/>"
            )
            parts.append(_text(x + 28, self._top, text, PALE))
            x += 60 + 6 * len(text)
        return "\n".join(parts)


def picture() -> str:
    """Draw the three timelines."""
    request = Timeline(94, "a request, from connect to close", CONNECTION_BOXES, REQUEST)
    worker = Timeline(request.bottom + 34, "a worker", WORKER_BOXES, WORKER)
    stop = Timeline(worker.bottom + 34, "a stop by TERM", STOP_BOXES, (*STOP, STOP_GRACE))
    return chart(
        "Every timeout, and what it bounds",
        "Which part of a request, of a worker's life and of a stop each timeout bounds, and what happens when it is over.",
        stop.bottom + 14,
        (Legend(58), request, worker, stop),
    )


def rows() -> Iterator[tuple[str, ...]]:
    """Yield the rows of the table."""
    for timeout in TIMEOUTS:
        row = ROWS[timeout.key]
        default = "off" if row.default is None else f"`{row.shown(row.default)}`"
        if timeout.key in OWN_DEFAULTS.values:
            default += f"; `{row.shown(OWN_DEFAULTS.values[timeout.key])}` with `prefork run`"
        yield (f"`{timeout.key}`", default, f"{timeout.since} → {timeout.until}", timeout.ends)


def timeouts_table() -> str:
    """Return the table of all timeouts."""
    return table(("setting", "default", "counts from → to", "when the time is over"), [*rows()])


def document(text: str) -> str:
    """Return the page with its table brought up to date."""
    return filled(text, {"timeouts": timeouts_table})


def main() -> None:
    """Write the table and the picture."""
    DOCUMENT.write_text(document(DOCUMENT.read_text("utf-8")), "utf-8")
    PICTURE.write_text(picture(), "utf-8")


if __name__ == "__main__":
    main()
