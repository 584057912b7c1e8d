"""The measured tables of docs/CLUSTER.md, and its picture."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any, Final

from docs.images.charts import BLUE, GREEN, ORANGE, PALE, Axis, Panel, chart

HOME: Final = Path(__file__).parents[2] / "docs"
COLOURS: Final = {
    "weights": PALE,
    "round robin": BLUE,
    "leastconn": GREEN,
    "one queue": ORANGE,
}
"""Of the ways in the picture, the longest waits first."""


def tails_table(found: dict[str, Any]) -> str:
    """Say how long clients have waited."""
    rows = []
    for way, records in found.get("tails", {}).items():
        cells = [f"{_ms(one['median'])} / {_ms(one['p99'])}" for one in records]
        rows.append([way, *cells, str(sum(one["failed"] for one in records))])
    loads = ["70 %", "80 %", "90 %"]
    return _table(["median / p99", *loads, "failed"], rows)


def uneven_table(found: dict[str, Any]) -> str:
    """Say how long clients have waited where one machine is larger than another."""
    rows = [
        [way, _ms(one["median"]), _ms(one["p99"]), str(one["failed"])]
        for way, one in found.get("uneven", {}).items()
    ]
    return _table(["", "median", "p99", "failed"], rows)


def rolling_table(found: dict[str, Any]) -> str:
    """Say what reloads and restarts have cost."""
    rows = [
        [
            way,
            f"{one['requests']:,}",
            str(one["reloads"]),
            str(one["restarts"]),
            str(one["failed"]),
            _ms(one["slowest"]),
        ]
        for way, one in found.get("rolling", {}).items()
    ]
    return _table(["", "requests", "reloads", "restarts", "failed", "slowest answer"], rows)


def faults_table(found: dict[str, Any]) -> str:
    """Say what lost machines have cost."""
    rows = [
        [
            way,
            f"{one['requests']:,}",
            str(one["lost"]),
            f"{one['well']:.1f} s",
            f"{one['back']:.1f} s",
        ]
        for way, one in found.get("faults", {}).items()
    ]
    return _table(["", "requests", "lost", "all well after", "back after"], rows)


def share_table(found: dict[str, Any]) -> str:
    """Say how a machine gets more requests with more workers."""
    rows = [
        [
            way,
            f"{one['workers']} → {one['workers'] + one['more']}",
            f"{one['before']:.0%}",
            f"{one['after']:.0%}",
            f"{one['expected']:.0%}",
            f"{one['followed']:.1f} s",
        ]
        for way, one in found.get("share", {}).items()
    ]
    head = [
        "",
        "workers of the machine",
        "its share before",
        "after a second",
        "its part of all workers",
    ]
    return _table([*head, "workers known after"], rows)


TABLES: Final = {
    "tails": tails_table,
    "uneven": uneven_table,
    "rolling": rolling_table,
    "faults": faults_table,
    "share": share_table,
}


def machine() -> str:
    """Say on what was measured."""
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    model = names[0].strip() if names else platform.machine()
    return (
        f"{os.cpu_count()} CPUs ({model}), Linux {platform.release().partition('-')[0]}, CPython "
        f"{platform.python_version()}"
    )


def tables(found: dict[str, Any]) -> str:
    """Return all tables, for the terminal."""
    texts = [f"{name}\n\n{table(found)}" for name, table in TABLES.items()]
    return "\n\n".join([machine(), *texts])


def draw(found: dict[str, Any]) -> str:
    """Return the picture of the tails."""
    x = Axis(0.68, 0.92, (0.7, 0.8, 0.9), lambda load: f"{100 * load:.0f} %", "load of all workers")
    y = Axis(0, 1.5, (0, 0.5, 1, 1.5), lambda seconds: f"{seconds:g} s")
    panel = Panel(64, 86, 660, 250, x, y, "one answer in a hundred took longer than")
    for way, colour in COLOURS.items():
        records = found.get("tails", {}).get(way, [])
        points = [(one["load"], min(1.5, one["p99"])) for one in records]
        panel.line(points, colour)
        panel.label((0.7, 1.38 - 0.11 * [*COLOURS].index(way)), way, colour)
    return chart(
        "Three machines with four workers behind HAProxy: p99 by load",
        "Requests of 0.1 s on average, in four ways to choose a machine.",
        398,
        [panel],
    )


def write(found: dict[str, Any]) -> None:
    """Bring the page and its picture up to date. Tables of trials that found nothing stay as they are."""
    page = HOME / "CLUSTER.md"
    text = page.read_text(encoding="utf-8")
    filled = {name: table for name, table in TABLES.items() if name in found}
    for name, table in {**filled, "machine": lambda _: machine()}.items():
        between = re.compile(
            rf"(?<=<!-- measured {name} -->\n).*?(?=<!-- /measured {name} -->)", re.DOTALL
        )
        text = between.sub(f"\n{table(found)}\n\n", text)
    page.write_text(text, encoding="utf-8")
    if "tails" in found:
        (HOME / "images" / "cluster-tails.svg").write_text(draw(found), encoding="utf-8")


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms"
