"""The programs that a page of docs/ shows, and how a test serves one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.server import Program

DOCS = Path(__file__).parents[2] / "docs"

_BLOCK = re.compile(r"^```python\n# (\w+)\.py\n(.*?)^```$", re.DOTALL | re.MULTILINE)
"""A block of Python whose first line is the name of a file."""


def programs_of(page: str) -> dict[str, str]:
    """Return the programs of a page by the names of their files, without ``.py``."""
    return dict(_BLOCK.findall((DOCS / page).read_text(encoding="utf-8")))


def serve_program(
    start: Callable[..., Program],
    folder: Path,
    name: str,
    source: str,
    *,
    target: str = "Server",
    workers: int = 3,
) -> tuple[Program, tuple[str, int]]:
    """Serve a program of a page by the command line; return it, and its address, when all workers are ready.

    target: what the command serves, of the names in the program.
    """
    (folder / f"{name}.py").write_text(source)
    command = ["-m", "prefork", "run", f"{name}.py:{target}", "--bind", "127.0.0.1:0"]
    program = start(None, arguments=[*command, "--workers", str(workers)])
    program.wait_logged(f"master .*ready workers={workers}")
    port = re.search(r"listeners=tcp://127\.0\.0\.1:(\d+)", program.log)
    assert port is not None
    return program, ("127.0.0.1", int(port[1]))
