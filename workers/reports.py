"""What workers leave behind in words: stack dumps and last words, made fit for the log (pure)."""

from __future__ import annotations

from prefork.workers.bootstrap import run_worker


def printable(report: str) -> str:
    """Replace what a terminal would obey, line by line: a report's bytes are a worker's."""
    return "\n".join(
        "".join(c if c.isprintable() else "\ufffd" for c in line) for line in report.splitlines()
    )


def without_masters_frames(report: str) -> str:
    """Cut what lies below the worker's first frame in a stack dump, and the frame of what wrote it.

    The traceback of a boot stays whole.
    """
    lines = report.splitlines()
    report = "\n".join(line for line in lines if not line.endswith(" in write_stacks"))
    end = report.find(f" in {run_worker.__name__}\n")
    if end < 0 or "(most recent call first)" not in report[:end]:
        return report
    return report[: end + len(run_worker.__name__) + 4]
