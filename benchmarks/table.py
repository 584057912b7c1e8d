"""The output: Markdown that fits into a document as it is."""

from __future__ import annotations

import datetime as dt
import os
import platform
from pathlib import Path


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """Return one table, padded so that it is also readable as text."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    )


def spread(values: list[float], form: str) -> str:
    """Return the smallest and the largest value."""
    return f"{form.format(min(values))} … {form.format(max(values))}"


def machine() -> str:
    """Say when and on which machine this runs; a figure means nothing without that."""
    cpus = len(os.sched_getaffinity(0))
    now = dt.datetime.now(dt.UTC)
    return (
        f"{now:%Y-%m-%d %H:%M} UTC, {_processor()}, {cpus} usable CPUs, Linux {platform.release()}, "
        f"{platform.python_implementation()} {platform.python_version()}"
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
